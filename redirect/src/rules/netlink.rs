//! Just enough rtnetlink (rtnetlink(7), netlink(7)) for policy rules and routes, so that no `ip` program is needed.
//!
//! A request is a header, a fixed struct of the request's kind, and attributes; integers are in the machine's order.

use std::io;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use crate::netns::Netns;

const HEADER_BYTES: usize = 16;
const ATTRIBUTE_HEADER_BYTES: usize = 4;
/// The kernel sends dumps in packets of up to 32 KiB.
const BUFFER_BYTES: usize = 32 * 1024;

/// A conversation with the kernel about one namespace.
pub(super) struct Netlink {
    socket: Socket,
}

/// A request under construction, or one object of an answer.
#[derive(Debug, Clone)]
pub(super) struct Message {
    /// `RTM_*`.
    pub(super) kind: u16,
    /// The fixed struct and, padded, the attributes.
    pub(super) body: Vec<u8>,
}

impl Message {
    pub(super) fn new(kind: u16, fixed: &[u8]) -> Message {
        Message { kind, body: fixed.to_vec() }
    }

    pub(super) fn with(mut self, attribute: u16, value: u32) -> Message {
        let length = (ATTRIBUTE_HEADER_BYTES + size_of::<u32>()) as u16;
        self.body.extend_from_slice(&length.to_ne_bytes());
        self.body.extend_from_slice(&attribute.to_ne_bytes());
        self.body.extend_from_slice(&value.to_ne_bytes());
        self
    }

    /// The value of an attribute of four bytes that follows a fixed struct of `fixed` bytes.
    pub(super) fn attribute(&self, fixed: usize, wanted: u16) -> Option<u32> {
        let mut rest = self.body.get(fixed..)?;
        loop {
            let length = usize::from(read_u16(rest, 0)?);
            let (kind, value) = (read_u16(rest, 2)?, rest.get(ATTRIBUTE_HEADER_BYTES..length)?);
            if kind == wanted {
                return Some(u32::from_ne_bytes(value.try_into().ok()?));
            }
            rest = rest.get(length.next_multiple_of(4)..)?;
        }
    }
}

impl Netlink {
    pub(super) fn open(netns: &Netns) -> io::Result<Netlink> {
        let (domain, protocol) = (Domain::from(libc::AF_NETLINK), Protocol::from(libc::NETLINK_ROUTE));
        let socket = netns.run(|| Socket::new(domain, Type::RAW, Some(protocol)))??;
        // The kernel answers at once; this is for the case that it does not.
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        Ok(Netlink { socket })
    }

    /// Has something done.
    pub(super) fn request(&self, message: &Message, flags: libc::c_int) -> io::Result<()> {
        self.send(message, flags | libc::NLM_F_ACK)?;
        self.answers().map(|_none| ())
    }

    /// Everything of the kind that `message` asks for.
    pub(super) fn dump(&self, message: &Message) -> io::Result<Vec<Message>> {
        const ATTEMPTS: usize = 5;
        for _ in 1..ATTEMPTS {
            self.send(message, libc::NLM_F_DUMP)?;
            match self.answers() {
                // The table changed meanwhile.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                answers => return answers,
            }
        }
        self.send(message, libc::NLM_F_DUMP)?;
        self.answers()
    }

    fn send(&self, message: &Message, flags: libc::c_int) -> io::Result<()> {
        let length = (HEADER_BYTES + message.body.len()) as u32;
        let flags = (libc::NLM_F_REQUEST | flags) as u16;
        let mut packet = Vec::with_capacity(length as usize);
        packet.extend_from_slice(&length.to_ne_bytes());
        packet.extend_from_slice(&message.kind.to_ne_bytes());
        packet.extend_from_slice(&flags.to_ne_bytes());
        // No sequence number and no port: one request at a time, and the kernel knows whom it answers.
        packet.extend_from_slice(&[0; 8]);
        packet.extend_from_slice(&message.body);
        self.socket.send(&packet).map(|_all| ())
    }

    /// Reads up to the acknowledgement or the end of a dump; `Interrupted` when a dump is not consistent.
    fn answers(&self) -> io::Result<Vec<Message>> {
        let mut answers = Vec::new();
        let mut interrupted = false;
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let length = io::Read::read(&mut &self.socket, &mut buffer)?;
            let mut rest = &buffer[..length];
            while let Some((message, flags, next)) = split(rest) {
                interrupted |= flags & libc::NLM_F_DUMP_INTR as u16 != 0;
                match i32::from(message.kind) {
                    libc::NLMSG_ERROR => match read_i32(&message.body) {
                        Some(0) => return Ok(answers),
                        Some(errno) => return Err(io::Error::from_raw_os_error(-errno)),
                        None => return Err(io::ErrorKind::InvalidData.into()),
                    },
                    libc::NLMSG_DONE if interrupted => return Err(io::ErrorKind::Interrupted.into()),
                    libc::NLMSG_DONE => return Ok(answers),
                    _ => answers.push(message),
                }
                rest = next;
            }
        }
    }
}

/// The first message of a packet, its flags, and what follows.
fn split(packet: &[u8]) -> Option<(Message, u16, &[u8])> {
    let length = u32::from_ne_bytes(packet.get(..4)?.try_into().ok()?) as usize;
    let body = packet.get(HEADER_BYTES..length)?.to_vec();
    let rest = packet.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((Message { kind: read_u16(packet, 4)?, body }, read_u16(packet, 6)?, rest))
}

fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn read_i32(bytes: &[u8]) -> Option<i32> {
    Some(i32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn attributes_are_found_behind_the_fixed_struct_and_behind_one_another() {
        let message = Message::new(32, &[7; 12]).with(6, 32764).with(10, 0x111);
        assert_eq!(message.attribute(12, 6), Some(32764));
        assert_eq!(message.attribute(12, 10), Some(0x111));
        assert_eq!(message.attribute(12, 16), None);
    }

    proptest! {
        #[test]
        fn no_bytes_of_an_answer_are_a_panic_or_an_endless_loop(
            bytes in proptest::collection::vec(any::<u8>(), 0..64), fixed in 0_usize..20, wanted in any::<u16>(),
        ) {
            let _ = split(&bytes);
            let _ = Message { kind: 0, body: bytes }.attribute(fixed, wanted);
        }
    }
}
