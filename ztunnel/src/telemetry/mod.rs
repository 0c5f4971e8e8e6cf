//! Logs: one line per event on standard output, as text or JSON.
//!
//! Lines are formatted on the thread where the event happens and written by a thread of their own ([`writer`]), so
//! a reader of our output that stalls never stalls a connection.

mod format;
mod writer;

use std::fmt;

use thiserror::Error;
use tracing::Subscriber;
use tracing::span::{Attributes, Id, Record};
use tracing_subscriber::Registry;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

pub use format::with_causes;
use format::{Fields, Line};
pub use writer::LogWriter;

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum LogFormat {
    /// Five columns separated by tabs: time, level, scope, message, fields.
    #[default]
    Text,
    /// One JSON object.
    Json,
}

/// Which events are logged.
#[derive(Clone, Debug)]
pub struct LogFilter {
    /// As the operator wrote it.
    pub text: String,
    /// The same, understood.
    pub targets: Targets,
}

/// Logging was set up before in this process.
#[derive(Debug, Error)]
#[error("logging is already set up in this process")]
pub struct AlreadySet;

/// Starts logging for the process, to standard output.
///
/// The returned writer owns the writing thread. Keep it until exit: dropping it waits a moment for queued lines.
pub fn start(format: LogFormat, filter: &LogFilter) -> Result<LogWriter, AlreadySet> {
    let (writer, lines) = LogWriter::start(std::io::stdout());
    Registry::default()
        .with(LogLayer { format, lines }.with_filter(filter.targets.clone()))
        .try_init()
        .map_err(|_| AlreadySet)?;
    Ok(writer)
}

struct LogLayer {
    format: LogFormat,
    lines: writer::Lines,
}

impl<S> Layer<S> for LogLayer
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id) {
            let mut fields = Fields::new(self.format);
            attributes.record(&mut fields);
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &tracing::Event<'_>, context: Context<'_, S>) {
        let mut line = Line::begin(self.format, event.metadata());
        event.record(line.fields());
        for span in context.event_scope(event).into_iter().flat_map(|scope| scope.from_root()) {
            if let Some(fields) = span.extensions().get::<Fields>() {
                line.span(span.name(), fields);
            }
        }
        self.lines.push(line.end());
    }
}

impl fmt::Debug for LogLayer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("LogLayer").field("format", &self.format).finish_non_exhaustive()
    }
}
