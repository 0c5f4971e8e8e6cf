//! Packets that pass through a namespace, to prove what is or is not on the wire.

use std::io::{ErrorKind, Read as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{Namespace, PATIENCE, Result};

/// The most bytes kept. What comes after them is not recorded, and [`Capture::stop`] then fails.
const LIMIT: usize = 64 << 20;

/// `ETH_P_ALL` of `linux/if_ether.h`: packets of every protocol, both directions.
const EVERY_PROTOCOL: u16 = 0x0003;

/// A running capture of all packets on all interfaces of a namespace. Dropping it stops it.
pub struct Capture {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    packets: Mutex<Packets>,
    stopping: AtomicBool,
}

#[derive(Default)]
struct Packets {
    list: Vec<Vec<u8>>,
    bytes: usize,
    overflowed: bool,
}

impl Capture {
    /// Starts recording. Packets sent after this returns are recorded.
    pub fn start(namespace: &Namespace) -> Result<Self> {
        let protocol = Protocol::from(i32::from(EVERY_PROTOCOL.to_be()));
        let socket = namespace
            .visit(|| Socket::new(Domain::PACKET, Type::RAW, Some(protocol)))?
            .context("cannot open a packet socket")?;
        socket.set_recv_buffer_size(8 << 20)?;
        socket.set_read_timeout(Some(Duration::from_millis(20)))?;
        let shared = Arc::new(Shared::default());
        let thread = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || record(socket, &shared)
        });
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Waits, at most [`PATIENCE`], until `bytes` have been seen within one packet.
    pub fn wait_for(&self, bytes: &[u8]) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !self.packets().list.iter().any(|packet| contains(packet, bytes)) {
            ensure!(Instant::now() < deadline, "{:?} was never on the wire", String::from_utf8_lossy(bytes));
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Ends the recording and hands out the packets, link-layer headers included.
    ///
    /// Errors: more came than is kept, so that absence would prove nothing.
    pub fn stop(mut self) -> Result<Recording> {
        self.finish();
        let packets = std::mem::take(&mut *self.packets());
        ensure!(!packets.overflowed, "more than {LIMIT} bytes of packets");
        Ok(Recording { packets: packets.list })
    }

    fn packets(&self) -> std::sync::MutexGuard<'_, Packets> {
        self.shared.packets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn finish(&mut self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.finish();
    }
}

/// What was captured.
pub struct Recording {
    /// The packets in order. One that crosses several interfaces is here several times.
    pub packets: Vec<Vec<u8>>,
}

impl Recording {
    /// How many packets contain `bytes`.
    pub fn containing(&self, bytes: &[u8]) -> usize {
        self.packets.iter().filter(|packet| contains(packet, bytes)).count()
    }

    /// How many IPv4 TCP packets come from or go to `port`.
    pub fn tcp_packets(&self, port: u16) -> usize {
        self.packets
            .iter()
            .filter(|packet| tcp_ports(packet).is_some_and(|ports| ports.contains(&port)))
            .count()
    }
}

/// Source and destination port of an IPv4 TCP packet in an Ethernet frame.
fn tcp_ports(frame: &[u8]) -> Option<[u16; 2]> {
    const ETHERNET: usize = 14;
    let packet = frame.get(ETHERNET..)?;
    let is_tcp_over_ipv4 = frame[12..ETHERNET] == [0x08, 0x00] && *packet.get(9)? == 6;
    let segment = packet.get(usize::from(packet.first()? & 0x0f) * 4..)?;
    let port = |at: usize| Some(u16::from_be_bytes([*segment.get(at)?, *segment.get(at + 1)?]));
    is_tcp_over_ipv4.then_some([port(0)?, port(2)?])
}

fn contains(packet: &[u8], bytes: &[u8]) -> bool {
    packet.windows(bytes.len()).any(|window| window == bytes)
}

fn record(socket: Socket, shared: &Shared) {
    // Segmentation offload passes packets of up to 64 KiB through virtual interfaces.
    let mut buffer = vec![0; 128 * 1024];
    loop {
        match (&socket).read(&mut buffer) {
            Ok(size) => {
                let mut packets = shared.packets.lock().unwrap_or_else(PoisonError::into_inner);
                if packets.bytes + size > LIMIT {
                    packets.overflowed = true;
                } else {
                    packets.bytes += size;
                    packets.list.push(buffer[..size].to_vec());
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                // Only now, so that what was queued when stopping began is still recorded.
                if shared.stopping.load(Ordering::Relaxed) {
                    return;
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}
