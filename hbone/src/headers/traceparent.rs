//! `traceparent` (W3C Trace Context §3.2): `00-<trace id>-<parent id>-<flags>`.

use std::num::{NonZeroU64, NonZeroU128};

use http::{HeaderMap, HeaderValue};

use super::TRACEPARENT;

/// Length of the header's only defined form.
const LENGTH: usize = 55;

/// A trace and the span that caused the request. Neither identifier can be zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceParent {
    /// `trace-id`.
    pub trace_id: NonZeroU128,
    /// `parent-id`.
    pub parent_id: NonZeroU64,
    /// `trace-flags`; bit 0 means "sampled".
    pub flags: u8,
}

impl TraceParent {
    /// A fresh trace, not sampled. The identifiers come from a fast generator: they have to be
    /// different from others, not hard to guess.
    pub fn generate() -> Self {
        TraceParent {
            trace_id: NonZeroU128::new(fastrand::u128(..)).unwrap_or(NonZeroU128::MIN),
            parent_id: NonZeroU64::new(fastrand::u64(..)).unwrap_or(NonZeroU64::MIN),
            flags: 0,
        }
    }

    /// The header's value, marked as one not to be indexed by header compression, since it is new for
    /// every connection.
    pub fn encode(&self) -> HeaderValue {
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
        write_hex(&mut text[3..35], self.trace_id.get());
        write_hex(&mut text[36..52], self.parent_id.get().into());
        write_hex(&mut text[53..55], self.flags.into());
        let mut value =
            HeaderValue::from_bytes(&text).expect("hexadecimal digits and hyphens are visible ASCII");
        value.set_sensitive(true);
        value
    }

    /// The one `traceparent` header; `None` if there is none, more than one, or one that [`parse`]
    /// refuses.
    ///
    /// [`parse`]: TraceParent::parse
    pub fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(TRACEPARENT).iter();
        match (values.next(), values.next()) {
            (Some(value), None) => Self::parse(value.as_bytes()),
            _ => None,
        }
    }

    /// Exactly the 55 bytes of version 00: lower-case digits, identifiers that are not zero.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let text: &[u8; LENGTH] = text.try_into().ok()?;
        let hyphens = [2, 35, 52].into_iter().all(|index| text[index] == b'-');
        if !hyphens || read_hex(&text[..2])? != 0 {
            return None;
        }
        Some(TraceParent {
            trace_id: NonZeroU128::new(read_hex(&text[3..35])?)?,
            parent_id: NonZeroU64::new(read_hex(&text[36..52])?.try_into().ok()?)?,
            flags: read_hex(&text[53..])?.try_into().ok()?,
        })
    }
}

/// Fills `digits` from the right; the caller sizes it for the value.
fn write_hex(digits: &mut [u8], mut value: u128) {
    for digit in digits.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(value & 0xf) as usize];
        value >>= 4;
    }
}

/// At most 32 digits fit; callers pass fixed ranges of the header.
fn read_hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0u128, |value, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(value << 4 | u128::from(digit))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EXAMPLE: &[u8] = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn the_example_of_the_recommendation_parses_and_prints() {
        let parsed = TraceParent::parse(EXAMPLE).unwrap();
        assert_eq!(parsed.trace_id.get(), 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736);
        assert_eq!(parsed.parent_id.get(), 0x00f0_67aa_0ba9_02b7);
        assert_eq!(parsed.flags, 1);
        assert_eq!(parsed.encode().as_bytes(), EXAMPLE);
    }

    #[test]
    fn every_generated_trace_is_new_and_not_sampled() {
        let (first, second) = (TraceParent::generate(), TraceParent::generate());
        assert_ne!(first.trace_id, second.trace_id);
        assert_ne!(first.parent_id, second.parent_id);
        assert!(first.encode().to_str().unwrap().ends_with("-00"));
    }

    #[test]
    fn anything_but_the_defined_form_is_refused() {
        for text in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-011",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473g-00f067aa0ba902b7-01",
        ] {
            assert_eq!(TraceParent::parse(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn two_headers_are_none() {
        let mut headers = HeaderMap::from_iter([(TRACEPARENT, HeaderValue::from_bytes(EXAMPLE).unwrap())]);
        assert!(TraceParent::from_headers(&headers).is_some());
        headers.append(TRACEPARENT, HeaderValue::from_bytes(EXAMPLE).unwrap());
        assert_eq!(TraceParent::from_headers(&headers), None);
    }

    proptest! {
        #[test]
        fn any_value_round_trips(trace_id: NonZeroU128, parent_id: NonZeroU64, flags: u8) {
            let trace = TraceParent { trace_id, parent_id, flags };
            prop_assert_eq!(TraceParent::parse(trace.encode().as_bytes()), Some(trace));
        }

        #[test]
        fn whatever_parses_prints_the_same(text in "[0-9a-f-]{53,57}|[0f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}") {
            if let Some(trace) = TraceParent::parse(text.as_bytes()) {
                let printed = trace.encode();
                prop_assert_eq!(printed.as_bytes(), text.as_bytes());
            }
        }
    }
}
