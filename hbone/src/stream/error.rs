//! How a stream can end before its time, and what that means for the connection it carries.

use std::io;

use crate::error_code::ErrorCode;

/// A stream ended other than by END_STREAM in both directions.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The peer sent RST_STREAM.
    #[error("the peer reset the stream: {0}")]
    Reset(ErrorCode),
    /// The tunnel was shut down, and this stream with it.
    #[error("the tunnel was shut down: {0}")]
    GoAway(ErrorCode),
    /// The peer broke the protocol, so this side gave up the stream or the tunnel.
    #[error("the peer violated the protocol: {0}")]
    Violation(ErrorCode),
    /// The byte stream under the tunnel failed or ended.
    #[error("the tunnel's transport failed")]
    Transport(#[source] io::Error),
    /// This side has finished or reset the half that it now wants to use.
    #[error("the stream is already finished")]
    Finished,
}

/// What the end of a stream means to the one who copies bytes through it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The peer has said all it wants to say: as good as END_STREAM. Istio's proxies end connections
    /// this way.
    EndOfData,
    /// The other side is gone, which happens to every connection; nothing to report.
    Disconnected,
    /// Something is wrong that should show up as the connection's error.
    Failed,
}

impl StreamError {
    /// How to treat the error.
    pub fn ending(&self) -> Ending {
        match self {
            StreamError::Reset(code) | StreamError::GoAway(code) => match *code {
                ErrorCode::NO_ERROR | ErrorCode::CANCEL => Ending::EndOfData,
                ErrorCode::STREAM_CLOSED => Ending::Disconnected,
                _ => Ending::Failed,
            },
            StreamError::Transport(error) => match error.kind() {
                io::ErrorKind::NotConnected
                | io::ErrorKind::UnexpectedEof
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::BrokenPipe => Ending::Disconnected,
                _ => Ending::Failed,
            },
            StreamError::Violation(_) | StreamError::Finished => Ending::Failed,
        }
    }
}

impl From<h2::Error> for StreamError {
    fn from(error: h2::Error) -> Self {
        match error.reason() {
            Some(code) if error.is_library() => StreamError::Violation(code.into()),
            Some(code) if error.is_go_away() => StreamError::GoAway(code.into()),
            Some(code) => StreamError::Reset(code.into()),
            None => error.into_io().map_or(StreamError::Finished, StreamError::Transport),
        }
    }
}

impl From<StreamError> for io::Error {
    fn from(error: StreamError) -> Self {
        match error.ending() {
            Ending::EndOfData | Ending::Disconnected => io::Error::new(io::ErrorKind::BrokenPipe, error),
            Ending::Failed => io::Error::other(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resets_are_sorted_by_their_code() {
        for (code, ending) in [
            (ErrorCode::NO_ERROR, Ending::EndOfData),
            (ErrorCode::CANCEL, Ending::EndOfData),
            (ErrorCode::STREAM_CLOSED, Ending::Disconnected),
            (ErrorCode::INTERNAL_ERROR, Ending::Failed),
            (ErrorCode::REFUSED_STREAM, Ending::Failed),
            (ErrorCode::from(0x1234), Ending::Failed),
        ] {
            assert_eq!(StreamError::Reset(code).ending(), ending, "{code}");
        }
    }

    #[test]
    fn transport_errors_are_sorted_by_their_kind() {
        use io::ErrorKind::*;
        for kind in [NotConnected, UnexpectedEof, ConnectionReset, BrokenPipe] {
            assert_eq!(StreamError::Transport(kind.into()).ending(), Ending::Disconnected, "{kind}");
        }
        for kind in [TimedOut, InvalidData, PermissionDenied] {
            assert_eq!(StreamError::Transport(kind.into()).ending(), Ending::Failed, "{kind}");
        }
    }
}
