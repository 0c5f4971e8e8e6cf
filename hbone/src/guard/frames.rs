//! Where frames begin in a stream of bytes that comes in any portion (RFC 9113 §4.1).

/// Length of a frame's header.
const HEADER: usize = 9;

/// What a frame's header says, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameHead {
    /// Of the payload.
    pub(super) length: u32,
    pub(super) kind: u8,
    pub(super) flags: u8,
}

/// Finds the headers, whatever the portions. Payloads are passed over without being looked at.
#[derive(Debug)]
pub(super) struct Scanner {
    /// Bytes before the next header.
    skip: u32,
    /// The part of a header that has come.
    partial: [u8; HEADER],
    have: usize,
}

impl Scanner {
    /// For a stream whose first frame follows after `skip` bytes.
    pub(super) fn after(skip: u32) -> Self {
        Scanner { skip, partial: [0; HEADER], have: 0 }
    }

    /// Gives `each` the headers that are complete with these bytes.
    pub(super) fn scan(&mut self, mut bytes: &[u8], mut each: impl FnMut(FrameHead)) {
        loop {
            let skipped = bytes.len().min(self.skip as usize);
            self.skip -= skipped as u32;
            bytes = &bytes[skipped..];
            if bytes.is_empty() {
                return;
            }
            let taken = bytes.len().min(HEADER - self.have);
            self.partial[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
            self.have += taken;
            bytes = &bytes[taken..];
            if self.have == HEADER {
                self.have = 0;
                let [high, middle, low, kind, flags, ..] = self.partial;
                let length = u32::from_be_bytes([0, high, middle, low]);
                self.skip = length;
                each(FrameHead { length, kind, flags });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(frames: &[(u16, u8, u8)]) -> (Vec<u8>, Vec<FrameHead>) {
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        let mut heads = Vec::new();
        for &(length, kind, flags) in frames {
            let [high, low] = length.to_be_bytes();
            // Payloads look like headers, to mislead whoever counts wrongly.
            bytes.extend([0, high, low, kind, flags, 0, 0, 0, 1]);
            bytes.extend((0..length).map(|at| at as u8));
            heads.push(FrameHead { length: length.into(), kind, flags });
        }
        (bytes, heads)
    }

    proptest! {
        #[test]
        fn whatever_the_portions_the_same_headers_are_found(
            frames in prop::collection::vec((0_u16..300, any::<u8>(), any::<u8>()), 0..20),
            portions in prop::collection::vec(1_usize..100, 1..20),
        ) {
            let (bytes, heads) = written(&frames);
            let mut scanner = Scanner::after(24);
            let (mut found, mut rest, mut portion) = (Vec::new(), &bytes[..], portions.iter().cycle());
            while !rest.is_empty() {
                let size = rest.len().min(*portion.next().unwrap());
                scanner.scan(&rest[..size], |head| found.push(head));
                rest = &rest[size..];
            }
            prop_assert_eq!(found, heads);
        }
    }
}
