//! CONNECT tunnels (HBONE) over any byte stream: headers, streams, client, pool, server.
//!
//! HBONE carries one TCP connection per HTTP/2 stream: the dialler sends a CONNECT request
//! (RFC 9113 §8.5) whose `:authority` names the destination, the acceptor answers `200`, and DATA
//! frames are the connection's bytes in either direction. Many such streams share one *tunnel*, which
//! here is any `AsyncRead + AsyncWrite`; in production it is mutual TLS on port 15008.
//!
//! | To | use |
//! |---|---|
//! | open tunnels and streams on them | [`Tunnel`], [`Lease::connect`] |
//! | share tunnels between connections to one destination | [`Pool`] |
//! | accept tunnels and answer CONNECT | [`Server`], [`IncomingConnect`] |
//! | move bytes | [`HboneStream`] and its two halves, or [`HboneStream::into_io`] |
//! | read and write the request's headers | [`Authority`], [`headers`] |
//!
//! Everything lives on one thread: values are neither `Send` nor locked, and the pool's background
//! work runs on the `LocalSet` of the worker that uses it.

mod authority;
mod client;
mod error_code;
mod fault;
mod guard;
pub mod headers;
mod keepalive;
mod pool;
mod server;
mod settings;
mod stream;
mod window;

pub use authority::{Authority, AuthorityError, HostName};
pub use client::{
    ConnectError, ConnectRequest, ConnectResponse, Connected, CutMark, Driver, HandshakeError, Lease, Tunnel,
    TunnelError,
};
pub use error_code::ErrorCode;
pub use fault::TunnelFault;
pub use guard::Flood;
pub use pool::{Pool, PoolError};
pub use server::{AcceptError, IncomingConnect, Refusal, Server};
pub use settings::{ClientSettings, KeepAlive, PoolSettings, ServerSettings};
pub use stream::{Ending, HboneIo, HboneStream, RecvHalf, SendHalf, StreamError};
