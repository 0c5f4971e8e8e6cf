//! Captured packets as a person asks about them: which ports, how much, and what can be read.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Result, ensure};

/// Everything that crossed the wire.
#[derive(Default)]
pub(crate) struct Traffic {
    /// How many packets, of any protocol.
    pub(crate) packets: usize,
    streams: Vec<Stream>,
}

/// One direction of a TCP connection.
pub(crate) struct Stream {
    from: SocketAddr,
    to: SocketAddr,
    packets: usize,
    /// On the wire, headers included.
    wire_bytes: usize,
    /// The payload, put together.
    pub(crate) bytes: Vec<u8>,
}

impl Traffic {
    /// Reads Ethernet frames, among which the same one may be several times.
    ///
    /// Errors: bytes of a stream are missing, so that absence would prove nothing.
    pub(crate) fn read(frames: &[Vec<u8>]) -> Result<Self> {
        // A frame is captured where it enters the wire and where it leaves it.
        let frames: BTreeSet<&[u8]> = frames.iter().map(Vec::as_slice).collect();
        let mut segments: BTreeMap<(SocketAddr, SocketAddr), Vec<(usize, Segment<'_>)>> = BTreeMap::new();
        for frame in &frames {
            if let Some(segment) = Segment::parse(frame) {
                segments.entry((segment.from, segment.to)).or_default().push((frame.len(), segment));
            }
        }
        let streams = segments.into_iter().map(|((from, to), segments)| {
            let (packets, wire_bytes) = (segments.len(), segments.iter().map(|(length, _)| length).sum());
            let bytes = put_together(segments.into_iter().map(|(_, segment)| segment).collect())?;
            Ok(Stream { from, to, packets, wire_bytes, bytes })
        });
        Ok(Self { packets: frames.len(), streams: streams.collect::<Result<_>>()? })
    }

    /// The connections to a port, both directions.
    pub(crate) fn port(&self, port: u16) -> PortTraffic<'_> {
        let streams: Vec<_> = self.streams.iter().filter(|stream| stream.service_port() == port).collect();
        let packets = streams.iter().map(|stream| stream.packets).sum();
        let wire_bytes = streams.iter().map(|stream| stream.wire_bytes).sum();
        PortTraffic { packets, wire_bytes, streams }
    }

    /// Which ports there were connections to.
    pub(crate) fn ports(&self) -> BTreeSet<u16> {
        self.streams.iter().map(Stream::service_port).collect()
    }

    /// How often a text can be read in what passed.
    pub(crate) fn count(&self, text: &str) -> usize {
        let windows = self.streams.iter().flat_map(|stream| stream.bytes.windows(text.len()));
        windows.filter(|window| *window == text.as_bytes()).count()
    }
}

impl Stream {
    /// The other end's port is ephemeral, which in Linux is from 32768 up.
    fn service_port(&self) -> u16 {
        self.from.port().min(self.to.port())
    }
}

/// The connections to a port.
pub(crate) struct PortTraffic<'a> {
    pub(crate) packets: usize,
    wire_bytes: usize,
    pub(crate) streams: Vec<&'a Stream>,
}

impl fmt::Display for PortTraffic<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} packets, {} bytes", self.packets, self.wire_bytes)
    }
}

/// How many TLS records (RFC 8446 section 5.1) follow one another from the start, and how many bytes are left then.
pub(crate) fn tls_records(mut bytes: &[u8]) -> (usize, usize) {
    /// The payload's limit and what encryption may add to it (RFC 8446 section 5.2).
    const LONGEST: usize = (1 << 14) + 256;
    let mut count = 0;
    while let [20..=23, 3, 0..=4, high, low, rest @ ..] = bytes {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        if length > LONGEST || length > rest.len() {
            break;
        }
        bytes = &rest[length..];
        count += 1;
    }
    (count, bytes.len())
}

/// A TCP segment (RFC 9293 section 3.1).
#[derive(Clone, Copy)]
struct Segment<'a> {
    from: SocketAddr,
    to: SocketAddr,
    sequence: u32,
    is_syn: bool,
    payload: &'a [u8],
}

impl<'a> Segment<'a> {
    /// Reads an Ethernet frame. None if it is anything but TCP over IPv4 or over IPv6 without extension headers.
    fn parse(frame: &'a [u8]) -> Option<Self> {
        let (ethernet, packet) = frame.split_at_checked(14)?;
        let (from, to, segment) = match ethernet[12..] {
            [0x08, 0x00] => {
                let header = packet.get(..20)?;
                let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
                let segment = packet.get(usize::from(header[0] & 0x0f) * 4..total)?;
                let address =
                    |at: usize| Some(IpAddr::from(Ipv4Addr::from(*header[at..].first_chunk::<4>()?)));
                (header[9] == TCP).then_some((address(12)?, address(16)?, segment))?
            }
            [0x86, 0xdd] => {
                let header = packet.get(..40)?;
                let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
                let segment = packet.get(40..40 + length)?;
                let address =
                    |at: usize| Some(IpAddr::from(Ipv6Addr::from(*header[at..].first_chunk::<16>()?)));
                (header[6] == TCP).then_some((address(8)?, address(24)?, segment))?
            }
            _ => return None,
        };
        let header = segment.get(..20)?;
        let port = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        Some(Self {
            from: (from, port(0)).into(),
            to: (to, port(2)).into(),
            sequence: u32::from_be_bytes(*header[4..].first_chunk()?),
            is_syn: header[13] & 0x02 != 0,
            payload: segment.get(usize::from(header[12] >> 4) * 4..)?,
        })
    }
}

/// The protocol number of TCP.
const TCP: u8 = 6;

/// The payload of one direction of a connection. The same bytes may be in several segments.
fn put_together(mut segments: Vec<Segment<'_>>) -> Result<Vec<u8>> {
    let Some(syn) = segments.iter().find(|segment| segment.is_syn) else {
        ensure!(segments.iter().all(|segment| segment.payload.is_empty()), "a connection without a start");
        return Ok(Vec::new());
    };
    // The SYN takes the first number; what it carries itself (TCP Fast Open) is not used here.
    let start = syn.sequence.wrapping_add(1);
    let offset = |segment: &Segment<'_>| segment.sequence.wrapping_sub(start) as usize;
    segments.retain(|segment| !segment.payload.is_empty() && !segment.is_syn);
    segments.sort_by_key(offset);
    let mut bytes = Vec::new();
    for segment in &segments {
        let at = offset(segment);
        ensure!(at <= bytes.len(), "bytes from {} to {} were not captured", segment.from, segment.to);
        if let Some(new) = segment.payload.get(bytes.len() - at..) {
            bytes.extend_from_slice(new);
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An Ethernet frame from 10.1.0.1:40000 to 10.2.0.1:15008.
    fn frame(sequence: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([0x08, 0x00, 0x45, 0]);
        frame.extend((40 + payload.len() as u16).to_be_bytes());
        frame.extend([0, 0, 0, 0, 64, TCP, 0, 0, 10, 1, 0, 1, 10, 2, 0, 1]);
        frame.extend(40000u16.to_be_bytes());
        frame.extend(15008u16.to_be_bytes());
        frame.extend(sequence.to_be_bytes());
        frame.extend([0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0]);
        frame.extend(payload);
        frame
    }

    const SYN: u8 = 0x02;
    const ACK: u8 = 0x10;

    #[test]
    fn a_stream_is_put_together_over_reordering_repetition_and_the_end_of_the_numbers() {
        let start = u32::MAX - 1;
        let frames = [
            frame(start, SYN, b""),
            frame(start.wrapping_add(7), ACK, b"world"),
            frame(start.wrapping_add(1), ACK, b"hello "),
            frame(start.wrapping_add(1), ACK, b"hello "),
            frame(start.wrapping_add(4), ACK, b"lo wor"),
        ];
        let traffic = Traffic::read(&frames).unwrap();
        assert_eq!(traffic.packets, 4, "the repeated frame is one that was captured twice");
        let port = traffic.port(15008);
        assert_eq!(port.streams[0].bytes, b"hello world");
        assert_eq!((traffic.count("o w"), traffic.count("secret")), (1, 0));
        assert!(traffic.port(8080).streams.is_empty());
    }

    #[test]
    fn missing_bytes_are_an_error() {
        let gap = [frame(1, SYN, b""), frame(2, ACK, b"he"), frame(5, ACK, b"lo")];
        assert!(Traffic::read(&gap).is_err());
        let headless = [frame(2, ACK, b"hello")];
        assert!(Traffic::read(&headless).is_err());
    }

    #[test]
    fn ethernet_padding_is_no_payload() {
        let mut padded = frame(1, ACK, b"");
        padded.resize(60, 0xee);
        assert_eq!(Segment::parse(&padded).unwrap().payload, b"");
    }

    #[test]
    fn no_frame_cut_anywhere_is_trouble() {
        let whole = frame(1, ACK, b"hello");
        for length in 0..whole.len() {
            assert!(Segment::parse(&whole[..length]).is_none(), "{length} bytes");
        }
        assert_eq!(Segment::parse(&whole).unwrap().payload, b"hello");
    }

    #[test]
    fn records_are_counted_up_to_what_is_none() {
        let records = [22, 3, 1, 0, 2, 7, 7, 23, 3, 3, 0, 0];
        assert_eq!(tls_records(&records), (2, 0));
        assert_eq!(tls_records(&[&records[..], b"GET /"].concat()), (2, 5));
        assert_eq!(tls_records(&records[..6]), (0, 6), "a record without its end");
        assert_eq!(tls_records(&[23, 3, 3, 0xff, 0xff]), (0, 5), "longer than a record can be");
        assert_eq!(tls_records(b""), (0, 0));
    }
}
