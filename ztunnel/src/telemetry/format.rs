//! The bytes of a log line.
//!
//! Text: `time⇥level⇥scope[:span{fields}]⇥message⇥fields`, fields separated by spaces, strings quoted and escaped so
//! that nothing a peer sent can forge a line or a column. The message is always followed by a tab, also when there are
//! no fields; an event without a message has no message column.

use std::fmt::{self, Write as _};

use time::OffsetDateTime;
use tracing::Metadata;
use tracing::field::{Field, Visit};

use super::LogFormat;

/// The fields of one event or span, rendered as they are visited.
pub(super) struct Fields {
    format: LogFormat,
    message: Option<String>,
    rendered: String,
}

impl Fields {
    pub(super) fn new(format: LogFormat) -> Self {
        Self { format, message: None, rendered: String::new() }
    }

    fn key(&mut self, name: &str) {
        match self.format {
            LogFormat::Text => {
                if !self.rendered.is_empty() {
                    self.rendered.push(' ');
                }
                self.rendered.push_str(name);
                self.rendered.push('=');
            }
            LogFormat::Json => {
                if !self.rendered.is_empty() {
                    self.rendered.push(',');
                }
                json_string(&mut self.rendered, name);
                self.rendered.push(':');
            }
        }
    }

    fn bare(&mut self, field: &Field, value: impl fmt::Display) {
        self.key(field.name());
        write(&mut self.rendered, format_args!("{value}"));
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == MESSAGE {
            self.message = Some(value.to_owned());
            return;
        }
        self.key(field.name());
        match self.format {
            LogFormat::Text => write(&mut self.rendered, format_args!("{value:?}")),
            LogFormat::Json => json_string(&mut self.rendered, value),
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.bare(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.bare(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.bare(field, value);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.record_str(field, &with_causes(value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == MESSAGE {
            self.message = Some(format!("{value:?}"));
            return;
        }
        self.key(field.name());
        match self.format {
            LogFormat::Text => push_without_controls(&mut self.rendered, &format!("{value:?}")),
            LogFormat::Json => json_string(&mut self.rendered, &format!("{value:?}")),
        }
    }
}

/// The name under which `tracing` hands over an event's message.
const MESSAGE: &str = "message";

/// One line under construction.
pub(super) struct Line {
    head: String,
    spans: String,
    fields: Fields,
}

impl Line {
    pub(super) fn begin(format: LogFormat, metadata: &Metadata<'_>) -> Self {
        let mut head = String::with_capacity(512);
        let level = level(*metadata.level());
        match format {
            LogFormat::Text => {
                timestamp(&mut head, OffsetDateTime::now_utc());
                let scope = metadata.target().strip_prefix("ztunnel::").unwrap_or(metadata.target());
                write(&mut head, format_args!("\t{level}\t{scope}"));
            }
            LogFormat::Json => {
                write(&mut head, format_args!("{{\"level\":\"{level}\",\"time\":\""));
                timestamp(&mut head, OffsetDateTime::now_utc());
                head.push_str("\",\"scope\":");
                json_string(&mut head, metadata.target());
            }
        }
        Self { head, spans: String::new(), fields: Fields::new(format) }
    }

    pub(super) fn fields(&mut self) -> &mut Fields {
        &mut self.fields
    }

    /// Adds an enclosing span; outermost first.
    pub(super) fn span(&mut self, name: &str, fields: &Fields) {
        match self.fields.format {
            LogFormat::Text if fields.rendered.is_empty() => write(&mut self.spans, format_args!(":{name}")),
            LogFormat::Text => write(&mut self.spans, format_args!(":{name}{{{}}}", fields.rendered)),
            LogFormat::Json => {
                self.spans.push(',');
                json_string(&mut self.spans, name);
                write(&mut self.spans, format_args!(":{{{}}}", fields.rendered));
            }
        }
    }

    /// The finished line, with its newline.
    pub(super) fn end(self) -> String {
        let Self { mut head, spans, fields } = self;
        match fields.format {
            LogFormat::Text => {
                head.push_str(&spans);
                if let Some(message) = &fields.message {
                    head.push('\t');
                    push_without_controls(&mut head, message);
                }
                head.push('\t');
                head.push_str(&fields.rendered);
            }
            LogFormat::Json => {
                if let Some(message) = &fields.message {
                    head.push_str(",\"message\":");
                    json_string(&mut head, message);
                }
                if !fields.rendered.is_empty() {
                    head.push(',');
                    head.push_str(&fields.rendered);
                }
                head.push_str(&spans);
                head.push('}');
            }
        }
        head.push('\n');
        head
    }
}

fn level(level: tracing::Level) -> &'static str {
    match level {
        tracing::Level::ERROR => "error",
        tracing::Level::WARN => "warn",
        tracing::Level::INFO => "info",
        tracing::Level::DEBUG => "debug",
        tracing::Level::TRACE => "trace",
    }
}

/// RFC 3339 in UTC with exactly six fractional digits: log readers cut at fixed columns.
fn timestamp(out: &mut String, at: OffsetDateTime) {
    write(
        out,
        format_args!(
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:06}Z",
            at.year(),
            u8::from(at.month()),
            at.day(),
            at.hour(),
            at.minute(),
            at.second(),
            at.microsecond()
        ),
    );
}

/// An error and everything beneath it, outermost first.
pub fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // Some libraries repeat their cause in their own text.
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

fn push_without_controls(out: &mut String, text: &str) {
    if !text.contains(char::is_control) {
        out.push_str(text);
        return;
    }
    for character in text.chars() {
        if character.is_control() {
            out.extend(character.escape_default());
        } else {
            out.push(character);
        }
    }
}

fn json_string(out: &mut String, text: &str) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            control if control.is_control() => write(out, format_args!("\\u{:04x}", u32::from(control))),
            other => out.push(other),
        }
    }
    out.push('"');
}

fn write(out: &mut String, arguments: fmt::Arguments<'_>) {
    out.write_fmt(arguments).expect("writing to a string cannot fail");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestamp_has_six_fractional_digits() {
        let mut out = String::new();
        let at = OffsetDateTime::from_unix_timestamp_nanos(1_936_166_400_000_417_999).unwrap();
        timestamp(&mut out, at);
        assert_eq!(out, "2031-05-10T08:00:00.000417Z");
    }

    #[test]
    fn a_json_string_escapes_quotes_and_controls() {
        let mut out = String::new();
        json_string(&mut out, "a\"b\\c\n\u{1}é");
        assert_eq!(out, "\"a\\\"b\\\\c\\n\\u0001é\"");
        assert_eq!(serde_json::from_str::<String>(&out).unwrap(), "a\"b\\c\n\u{1}é");
    }

    #[test]
    fn control_characters_cannot_forge_a_line() {
        let mut out = String::new();
        push_without_controls(&mut out, "evil\n2031-01-01\terror");
        assert_eq!(out, "evil\\n2031-01-01\\terror");
    }

    #[test]
    fn causes_are_joined_once() {
        let inner = std::io::Error::other("refused");
        let outer = std::io::Error::other(inner);
        assert_eq!(with_causes(&outer), "refused");
    }
}
