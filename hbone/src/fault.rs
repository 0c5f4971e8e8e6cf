//! What a peer did that ended its tunnel, for counters and logs.

use crate::client::TunnelError;
use crate::error_code::ErrorCode;
use crate::guard::Flood;

/// The peer's fault when a tunnel ended before its time. Peers that just went away, or said goodbye, have none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TunnelFault {
    /// No acknowledgement of a PING in time.
    Silent,
    /// Frames that make no sense, PROTOCOL_ERROR.
    Protocol,
    /// More than the credit, or more credit than there can be, FLOW_CONTROL_ERROR.
    FlowControl,
    /// FRAME_SIZE_ERROR.
    FrameSize,
    /// COMPRESSION_ERROR.
    Compression,
    /// More than the engine puts up with: headers without end, resets, small DATA frames. ENHANCE_YOUR_CALM.
    TooMuch,
    /// Any other violation.
    OtherViolation,
    /// See [`Flood::EmptyData`].
    EmptyDataFlood,
    /// See [`Flood::Headers`].
    HeadersFlood,
    /// See [`Flood::Continuation`].
    ContinuationFlood,
    /// See [`Flood::Reset`].
    ResetFlood,
    /// See [`Flood::Settings`].
    SettingsFlood,
    /// See [`Flood::Ping`].
    PingFlood,
    /// See [`Flood::WindowUpdate`].
    WindowUpdateFlood,
    /// See [`Flood::Priority`].
    PriorityFlood,
    /// See [`Flood::Other`].
    OtherFlood,
}

impl TunnelFault {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 16] = [
        Self::Silent,
        Self::Protocol,
        Self::FlowControl,
        Self::FrameSize,
        Self::Compression,
        Self::TooMuch,
        Self::OtherViolation,
        Self::EmptyDataFlood,
        Self::HeadersFlood,
        Self::ContinuationFlood,
        Self::ResetFlood,
        Self::SettingsFlood,
        Self::PingFlood,
        Self::WindowUpdateFlood,
        Self::PriorityFlood,
        Self::OtherFlood,
    ];

    /// A label, in the style of the other metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Silent => "silent",
            Self::Protocol => "protocol",
            Self::FlowControl => "flow_control",
            Self::FrameSize => "frame_size",
            Self::Compression => "compression",
            Self::TooMuch => "too_much",
            Self::OtherViolation => "other_violation",
            Self::EmptyDataFlood => "empty_data_flood",
            Self::HeadersFlood => "headers_flood",
            Self::ContinuationFlood => "continuation_flood",
            Self::ResetFlood => "reset_flood",
            Self::SettingsFlood => "settings_flood",
            Self::PingFlood => "ping_flood",
            Self::WindowUpdateFlood => "window_update_flood",
            Self::PriorityFlood => "priority_flood",
            Self::OtherFlood => "other_flood",
        }
    }
}

impl TunnelError {
    /// What the peer did, if the end was its fault.
    pub fn fault(&self) -> Option<TunnelFault> {
        match self {
            Self::Silent => Some(TunnelFault::Silent),
            Self::Violation(code) => Some((*code).into()),
            Self::Flood(flood) => Some((*flood).into()),
            Self::GoAway(_) | Self::Transport(_) => None,
        }
    }
}

impl From<ErrorCode> for TunnelFault {
    /// By the code with which this side gave the tunnel up.
    fn from(code: ErrorCode) -> Self {
        match code {
            ErrorCode::PROTOCOL_ERROR | ErrorCode::STREAM_CLOSED => Self::Protocol,
            ErrorCode::FLOW_CONTROL_ERROR => Self::FlowControl,
            ErrorCode::FRAME_SIZE_ERROR => Self::FrameSize,
            ErrorCode::COMPRESSION_ERROR => Self::Compression,
            ErrorCode::ENHANCE_YOUR_CALM => Self::TooMuch,
            _ => Self::OtherViolation,
        }
    }
}

impl From<Flood> for TunnelFault {
    fn from(flood: Flood) -> Self {
        match flood {
            Flood::EmptyData => Self::EmptyDataFlood,
            Flood::Headers => Self::HeadersFlood,
            Flood::Continuation => Self::ContinuationFlood,
            Flood::Reset => Self::ResetFlood,
            Flood::Settings => Self::SettingsFlood,
            Flood::Ping => Self::PingFlood,
            Flood::WindowUpdate => Self::WindowUpdateFlood,
            Flood::Priority => Self::PriorityFlood,
            Flood::Other => Self::OtherFlood,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_places_in_the_list_and_labels_differ() {
        for (at, fault) in TunnelFault::ALL.into_iter().enumerate() {
            assert_eq!(fault as usize, at);
            assert!(TunnelFault::ALL.iter().all(|other| *other == fault || other.as_str() != fault.as_str()));
        }
    }
}
