//! What holds whatever a SOCKS client sends. Included by the fuzz target and by the corpus test.

use std::fmt::Debug;

use ztunnel::proxy::socks5::wire::{LONGEST, Step, Violation, greeting, request};

/// Takes the bytes for either message.
pub(crate) fn messages(bytes: &[u8]) {
    grow(bytes, greeting);
    grow(bytes, request);
}

/// The message as it comes, byte by byte: what is known of it does not change any more, and no byte is asked for that does
/// not belong to it.
fn grow<T: Debug + PartialEq>(bytes: &[u8], parse: impl Fn(&[u8]) -> Result<Step<T>, Violation>) {
    let mut needed = 0;
    let mut known = None;
    for length in 0..=bytes.len() {
        let parsed = parse(&bytes[..length]);
        if let Some(known) = &known {
            assert_eq!(&parsed, known, "at {length}");
            continue;
        }
        match parsed {
            Ok(Step::Need(more)) => {
                assert!(more > 0 && length + more <= LONGEST);
                assert!(length + more >= needed, "asked for too much before");
                needed = length + more;
            }
            Ok(Step::Done(message)) => {
                assert_eq!(length, needed, "it was over before");
                known = Some(Ok(Step::Done(message)));
            }
            Err(violation) => known = Some(Err(violation)),
        }
    }
}
