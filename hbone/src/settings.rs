//! What this side tells its peer, and how much it lets the peer use.
//!
//! The defaults are what Istio's node proxy sends; peers and packet captures know them, so the values
//! that appear on the wire should only be changed by an operator.

use std::time::Duration;

const MIB: u32 = 1 << 20;

/// SETTINGS_INITIAL_WINDOW_SIZE: what a peer may send on one stream before we read it.
const STREAM_WINDOW: u32 = 4 * MIB;

/// The connection's window, four times a stream's, so that one unread stream cannot stall the tunnel.
const CONNECTION_WINDOW: u32 = 16 * MIB;

/// SETTINGS_MAX_FRAME_SIZE.
const MAX_FRAME_SIZE: u32 = MIB;

/// What a stream may hold unsent before its sender has to wait. The transport has buffers of its own;
/// this one only bridges the time until the tunnel's driver runs again. From 128 KiB to 1 MiB no
/// difference could be measured; and a peer that opens all its streams and reads none has us hold that much, and one
/// piece, for each: 37 MiB in a tunnel.
const SEND_BUFFER: usize = 128 * 1024;

/// Settings of the dialling side.
#[derive(Clone, Debug)]
pub struct ClientSettings {
    /// SETTINGS_INITIAL_WINDOW_SIZE, in bytes.
    pub stream_window: u32,
    /// The connection's receive window in bytes, announced by WINDOW_UPDATE on stream 0.
    pub connection_window: u32,
    /// SETTINGS_MAX_FRAME_SIZE, in bytes; RFC 9113 allows 16,384 to 16,777,215.
    pub max_frame_size: u32,
    /// SETTINGS_MAX_HEADER_LIST_SIZE, in bytes.
    pub max_header_list_size: u32,
    /// Bytes one stream may hold unsent before [`SendHalf::send`](crate::SendHalf::send) waits.
    pub send_buffer: usize,
    /// Streams to put on one tunnel at most; fewer when the peer allows fewer.
    pub max_streams: usize,
    /// Liveness check of the tunnel.
    pub keep_alive: KeepAlive,
}

impl Default for ClientSettings {
    fn default() -> Self {
        ClientSettings {
            stream_window: STREAM_WINDOW,
            connection_window: CONNECTION_WINDOW,
            max_frame_size: MAX_FRAME_SIZE,
            max_header_list_size: 16 * 1024,
            send_buffer: SEND_BUFFER,
            max_streams: 100,
            keep_alive: KeepAlive::default(),
        }
    }
}

/// Settings of the accepting side.
#[derive(Clone, Debug)]
pub struct ServerSettings {
    /// SETTINGS_INITIAL_WINDOW_SIZE, in bytes.
    pub stream_window: u32,
    /// The connection's receive window in bytes, announced by WINDOW_UPDATE on stream 0.
    pub connection_window: u32,
    /// SETTINGS_MAX_FRAME_SIZE, in bytes; RFC 9113 allows 16,384 to 16,777,215.
    pub max_frame_size: u32,
    /// SETTINGS_MAX_HEADER_LIST_SIZE, in bytes.
    pub max_header_list_size: u32,
    /// Bytes one stream may hold unsent before [`SendHalf::send`](crate::SendHalf::send) waits.
    pub send_buffer: usize,
    /// SETTINGS_MAX_CONCURRENT_STREAMS.
    pub max_streams: u32,
    /// Liveness check of the tunnel.
    pub keep_alive: KeepAlive,
}

impl Default for ServerSettings {
    fn default() -> Self {
        ServerSettings {
            stream_window: STREAM_WINDOW,
            connection_window: CONNECTION_WINDOW,
            max_frame_size: MAX_FRAME_SIZE,
            max_header_list_size: 64 * 1024,
            send_buffer: SEND_BUFFER,
            max_streams: 200,
            keep_alive: KeepAlive::default(),
        }
    }
}

/// PING on an otherwise healthy tunnel, whether or not there is traffic (RFC 9113 §6.7).
#[derive(Clone, Copy, Debug)]
pub struct KeepAlive {
    /// Pause before the first PING, and between an acknowledgement and the next PING.
    pub interval: Duration,
    /// How long an acknowledgement may take before the tunnel counts as dead.
    pub timeout: Duration,
}

impl Default for KeepAlive {
    fn default() -> Self {
        KeepAlive { interval: Duration::from_secs(10), timeout: Duration::from_secs(20) }
    }
}

/// Limits of a [`Pool`](crate::Pool).
#[derive(Clone, Debug)]
pub struct PoolSettings {
    /// Streams to expect of a new tunnel until its peer has said what it allows; the same number as
    /// [`ClientSettings::max_streams`] of the tunnels that are dialled.
    pub max_streams: usize,
    /// How long a tunnel without streams is kept.
    pub idle_timeout: Duration,
    /// Beyond this many tunnels in the pool, those without streams go, least recently used first.
    pub max_tunnels: usize,
}

impl Default for PoolSettings {
    fn default() -> Self {
        PoolSettings { max_streams: 100, idle_timeout: Duration::from_secs(300), max_tunnels: 500 }
    }
}
