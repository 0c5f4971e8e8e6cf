//! A peer that reads and writes single frames (RFC 9113 §4.1).

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;

pub(crate) const END_STREAM: u8 = 0x1;
pub(crate) const ACK: u8 = 0x1;
pub(crate) const END_HEADERS: u8 = 0x4;

const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// `:status: 200` in HPACK's static table (RFC 7541 appendix A).
pub(crate) const STATUS_200: &[u8] = &[0x88];
/// `:status: 400`.
pub(crate) const STATUS_400: &[u8] = &[0x8c];

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    /// The payload of RST_STREAM or WINDOW_UPDATE, or the last four of GOAWAY's first eight bytes.
    pub(crate) fn number(&self) -> u32 {
        let bytes = if self.kind == GOAWAY { &self.payload[4..8] } else { &self.payload[..4] };
        u32::from_be_bytes(bytes.try_into().unwrap())
    }

    /// GOAWAY's last stream.
    pub(crate) fn last_stream(&self) -> u32 {
        u32::from_be_bytes(self.payload[..4].try_into().unwrap())
    }

    /// SETTINGS as pairs, in the order sent.
    pub(crate) fn settings(&self) -> Vec<(u16, u32)> {
        let pair = |bytes: &[u8]| {
            (u16::from_be_bytes([bytes[0], bytes[1]]), u32::from_be_bytes(bytes[2..6].try_into().unwrap()))
        };
        self.payload.chunks_exact(6).map(pair).collect()
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        self.flags & END_STREAM != 0
    }
}

pub(crate) struct Raw {
    io: DuplexStream,
    /// Whether PINGs are acknowledged while waiting for other frames.
    pub(crate) answers_pings: bool,
}

impl Raw {
    /// Speaks first, as a client, with these SETTINGS.
    pub(crate) async fn client(io: DuplexStream, settings: &[(u16, u32)]) -> Raw {
        let mut raw = Raw { io, answers_pings: true };
        raw.io.write_all(PREFACE).await.unwrap();
        raw.settings(settings).await;
        raw
    }

    /// Takes a client's preface and answers with these SETTINGS.
    pub(crate) async fn server(io: DuplexStream, settings: &[(u16, u32)]) -> Raw {
        let mut raw = Raw::silent_server(io).await;
        raw.settings(settings).await;
        raw
    }

    /// Takes a client's preface and does not answer.
    pub(crate) async fn silent_server(io: DuplexStream) -> Raw {
        let mut raw = Raw { io, answers_pings: true };
        let mut preface = [0; 24];
        raw.io.read_exact(&mut preface).await.unwrap();
        assert_eq!(&preface, PREFACE);
        raw
    }

    pub(crate) async fn settings(&mut self, settings: &[(u16, u32)]) {
        let payload: Vec<u8> = settings
            .iter()
            .flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()[..]].concat())
            .collect();
        self.write(SETTINGS, 0, 0, &payload).await;
    }

    pub(crate) async fn write(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = (payload.len() as u32).to_be_bytes();
        let mut bytes = vec![length[1], length[2], length[3], kind, flags];
        bytes.extend_from_slice(&stream.to_be_bytes());
        bytes.extend_from_slice(payload);
        self.io.write_all(&bytes).await.unwrap();
    }

    /// Sends the same frame many times over, as long as somebody takes it. Nothing is read meanwhile.
    pub(crate) async fn flood(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8], times: usize) {
        let length = (payload.len() as u32).to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags];
        frame.extend_from_slice(&stream.to_be_bytes());
        frame.extend_from_slice(payload);
        // The other side hangs up when it has had enough.
        let _ = self.io.write_all(&frame.repeat(times)).await;
    }

    pub(crate) async fn reset(&mut self, stream: u32, code: u32) {
        self.write(RST_STREAM, 0, stream, &code.to_be_bytes()).await;
    }

    pub(crate) async fn goaway(&mut self, last_stream: u32, code: u32) {
        self.write(GOAWAY, 0, 0, &[last_stream.to_be_bytes(), code.to_be_bytes()].concat()).await;
    }

    pub(crate) async fn window_update(&mut self, stream: u32, increment: u32) {
        self.write(WINDOW_UPDATE, 0, stream, &increment.to_be_bytes()).await;
    }

    /// Sends `CONNECT <authority>` as literals without indexing (RFC 7541 §6.2.2).
    pub(crate) async fn connect(&mut self, stream: u32, authority: &str) {
        let mut block = vec![0x02, 7];
        block.extend_from_slice(b"CONNECT");
        block.extend_from_slice(&[0x01, authority.len() as u8]);
        block.extend_from_slice(authority.as_bytes());
        self.write(HEADERS, END_HEADERS, stream, &block).await;
    }

    pub(crate) async fn accept(&mut self, stream: u32) {
        self.write(HEADERS, END_HEADERS, stream, STATUS_200).await;
    }

    /// The next frame of any kind; `None` at the end of the transport.
    pub(crate) async fn read(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.io.read_exact(&mut head).await.ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        self.io.read_exact(&mut payload).await.ok()?;
        let stream = u32::from_be_bytes(head[5..9].try_into().unwrap());
        Some(Frame { kind: head[3], flags: head[4], stream, payload })
    }

    /// The next frame that is not housekeeping: SETTINGS, PING and their acknowledgements, and
    /// WINDOW_UPDATE of the connection are dealt with and passed over.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        loop {
            let frame = self.read().await?;
            match frame.kind {
                SETTINGS if frame.flags & ACK == 0 => self.write(SETTINGS, ACK, 0, &[]).await,
                PING if frame.flags & ACK == 0 && self.answers_pings => {
                    self.write(PING, ACK, 0, &frame.payload).await;
                }
                SETTINGS | PING => {}
                WINDOW_UPDATE if frame.stream == 0 => {}
                _ => return Some(frame),
            }
        }
    }

    /// The next frame that is not housekeeping, which has to be of this kind.
    pub(crate) async fn expect(&mut self, kind: u8) -> Frame {
        let frame = self.next().await.expect("the transport ended");
        assert_eq!(frame.kind, kind, "{frame:?}");
        frame
    }
}
