//! Our certificates. Only what a peer is shown anyway, and the roots that came with it.

use std::time::{SystemTime, UNIX_EPOCH};

use identity::{CertificateInfo, IdentityState, SpiffeId};
use serde::{Serialize, Serializer};
use time::OffsetDateTime;

use super::json::{Object, Text, list};
use crate::telemetry::with_causes;

/// All of them, in the given order: that of their identities.
pub(super) fn all(identities: &[(SpiffeId, IdentityState)]) -> impl Serialize {
    list(identities.iter().map(|(identity, state)| IdentityView { identity, state }))
}

struct IdentityView<'a> {
    identity: &'a SpiffeId,
    state: &'a IdentityState,
}

impl Serialize for IdentityView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let chain = match self.state {
            IdentityState::Available(certificate) => Some(certificate.chain()),
            IdentityState::Initializing | IdentityState::Unavailable(_) => None,
        };
        let presented =
            chain.into_iter().flat_map(|chain| [&chain.leaf].into_iter().chain(&chain.intermediates));
        let roots = chain.into_iter().flat_map(|chain| &chain.roots);
        let mut object = Object::begin(serializer)?;
        object.put("certChain", &list(presented.map(CertificateView)))?;
        object.put("identity", &Text(self.identity))?;
        object.put("rootCerts", &list(roots.map(CertificateView)))?;
        match self.state {
            IdentityState::Initializing => object.put("state", "Initializing")?,
            IdentityState::Available(_) => object.put("state", "Available")?,
            IdentityState::Unavailable(error) => {
                object.put("state", &Text(format_args!("Unavailable: {}", with_causes(&**error))))?;
            }
        }
        object.end()
    }
}

struct CertificateView<'a>(&'a CertificateInfo);

impl Serialize for CertificateView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let CertificateInfo { der, serial_number, not_before, not_after } = self.0;
        let mut object = Object::begin(serializer)?;
        object.put("expirationTime", &rfc3339(*not_after))?;
        // Tools expect the text of a PEM file, encoded once more.
        object.put("pem", &base64(pem(der).as_bytes()))?;
        object.put("serialNumber", serial_number)?;
        object.put("validFrom", &rfc3339(*not_before))?;
        object.end()
    }
}

/// RFC 3339 in UTC, whole seconds. A time that has no such form becomes the last or first one that has.
fn rfc3339(at: SystemTime) -> String {
    let seconds = match at.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_secs()).map_or(i64::MIN, |seconds| -seconds),
    };
    const FIRST: i64 = -62_167_219_200; // 0000-01-01T00:00:00Z
    const LAST: i64 = 253_402_300_799; // 9999-12-31T23:59:59Z
    let at =
        OffsetDateTime::from_unix_timestamp(seconds.clamp(FIRST, LAST)).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let (date, time) = (at.date(), at.time());
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
        date.year(),
        u8::from(date.month()),
        date.day(),
        time.hour(),
        time.minute(),
        time.second()
    )
}

/// RFC 7468: base64 in lines of 64 characters between two labels.
fn pem(der: &[u8]) -> String {
    const LINE: usize = 64;
    let mut rest = &*base64(der);
    let mut text = "-----BEGIN CERTIFICATE-----\n".to_owned();
    while !rest.is_empty() {
        let (line, others) = rest.split_at(rest.len().min(LINE));
        text.push_str(line);
        text.push('\n');
        rest = others;
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}

/// RFC 4648, section 4, with padding.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |index: usize| u32::from(group.get(index).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for index in 0..4 {
            let character = ALPHABET[(bits >> (18 - 6 * index)) as usize % ALPHABET.len()];
            text.push(if index > group.len() { '=' } else { char::from(character) });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn base64_gives_the_test_vectors_of_rfc_4648() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
        assert_eq!(base64(&[0xfb, 0xff, 0xbf]), "+/+/");
    }

    #[test]
    fn pem_lines_have_64_characters_and_the_last_what_is_left() {
        let text = pem(&[0; 50]);
        let lines: Vec<_> = text.lines().map(str::len).collect();
        assert_eq!(lines, [27, 64, 4, 25]);
        assert_eq!(pem(&[0; 48]).lines().count(), 3);
    }

    #[test]
    fn every_system_time_has_an_rfc_3339_form() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(rfc3339(at(951_782_400)), "2000-02-29T00:00:00Z");
        assert_eq!(rfc3339(at(253_402_300_799)), "9999-12-31T23:59:59Z");
        assert_eq!(rfc3339(at(1 << 60)), "9999-12-31T23:59:59Z");
        assert_eq!(rfc3339(UNIX_EPOCH - Duration::from_secs(1)), "1969-12-31T23:59:59Z");
    }
}
