//! The 32-bit codes of RST_STREAM and GOAWAY frames.

use std::fmt;

/// An error code of RFC 9113 §7. Unknown codes are kept as they came.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ErrorCode(u32);

/// Declares the registered codes once, as constants and as names for printing.
macro_rules! registered_codes {
    ($($name:ident = $code:literal),* $(,)?) => {
        impl ErrorCode {
            $(#[doc = concat!("`", stringify!($name), "`, RFC 9113 §7.")]
            pub const $name: ErrorCode = ErrorCode($code);)*

            /// The registered name, or `None` for a code that RFC 9113 does not define.
            pub fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($code => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

registered_codes! {
    NO_ERROR = 0x00,
    PROTOCOL_ERROR = 0x01,
    INTERNAL_ERROR = 0x02,
    FLOW_CONTROL_ERROR = 0x03,
    SETTINGS_TIMEOUT = 0x04,
    STREAM_CLOSED = 0x05,
    FRAME_SIZE_ERROR = 0x06,
    REFUSED_STREAM = 0x07,
    CANCEL = 0x08,
    COMPRESSION_ERROR = 0x09,
    CONNECT_ERROR = 0x0a,
    ENHANCE_YOUR_CALM = 0x0b,
    INADEQUATE_SECURITY = 0x0c,
    HTTP_1_1_REQUIRED = 0x0d,
}

impl From<u32> for ErrorCode {
    fn from(code: u32) -> Self {
        ErrorCode(code)
    }
}

impl From<ErrorCode> for u32 {
    fn from(code: ErrorCode) -> Self {
        code.0
    }
}

impl From<h2::Reason> for ErrorCode {
    fn from(reason: h2::Reason) -> Self {
        ErrorCode(reason.into())
    }
}

impl From<ErrorCode> for h2::Reason {
    fn from(code: ErrorCode) -> Self {
        h2::Reason::from(code.0)
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "error code {:#x}", self.0),
        }
    }
}

impl fmt::Debug for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registered_codes_print_their_name_and_others_their_number() {
        assert_eq!(ErrorCode::REFUSED_STREAM.to_string(), "REFUSED_STREAM");
        assert_eq!(ErrorCode::from(0xfe).to_string(), "error code 0xfe");
    }

    #[test]
    fn codes_survive_the_engine_unchanged() {
        for code in [0, 7, 8, 13, 14, u32::MAX] {
            assert_eq!(ErrorCode::from(h2::Reason::from(ErrorCode::from(code))), ErrorCode::from(code));
        }
    }
}
