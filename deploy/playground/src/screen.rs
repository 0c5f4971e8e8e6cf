//! What a person sees: short lines, aligned, in colour where it is wanted.

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Result, Stdout, Write as _};

/// Standard output.
pub(crate) struct Screen {
    out: Stdout,
    is_terminal: bool,
    has_colour: bool,
    /// Width of the progress line that the cursor is in, or 0.
    progress: usize,
}

/// A label, and what there is to say under it.
pub(crate) type Fact = (String, String);

/// Select Graphic Rendition (ECMA-48 8.3.117).
#[derive(Clone, Copy)]
enum Ink {
    Bold = 1,
    Dim = 2,
    Red = 31,
    Green = 32,
}

impl Screen {
    /// Colour on a terminal only, and not where `NO_COLOR` (no-color.org) or `TERM=dumb` is set.
    pub(crate) fn new() -> Self {
        let out = std::io::stdout();
        let is_terminal = out.is_terminal();
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|value| value == "dumb");
        Self { out, is_terminal, has_colour: is_terminal && !unwanted, progress: 0 }
    }

    /// The first line.
    pub(crate) fn title(&mut self, text: &str) -> Result<()> {
        let text = self.paint(Ink::Bold, text);
        self.line(&format!("{text}\n"))
    }

    /// What is going on, for whoever is waiting at a terminal. The next line replaces it.
    pub(crate) fn progress(&mut self, text: &str) -> Result<()> {
        if !self.is_terminal {
            return Ok(());
        }
        self.erase_progress()?;
        let text = format!("{text} ...");
        self.progress = text.chars().count();
        write!(self.out, "{text}")?;
        self.out.flush()
    }

    /// A line as it is.
    pub(crate) fn line(&mut self, text: &str) -> Result<()> {
        self.erase_progress()?;
        writeln!(self.out, "{text}")?;
        self.out.flush()
    }

    /// A story that turned out as it should, with the facts that say so.
    pub(crate) fn success(&mut self, title: &str, command: &str, facts: &[Fact]) -> Result<()> {
        let mut text = self.headline(Ink::Green, "ok", title, command);
        for (label, value) in facts {
            // Writing to a String cannot fail.
            let _ = write!(text, "\n      {} {value}", self.paint(Ink::Dim, &format!("{label:<11}")));
        }
        self.line(&format!("{text}\n"))
    }

    /// A story that did not.
    pub(crate) fn failure(&mut self, title: &str, command: &str, reason: &str) -> Result<()> {
        let text = self.headline(Ink::Red, "FAILED", title, command);
        self.line(&format!("{text}\n      {}\n", reason.replace('\n', "\n      ")))
    }

    fn headline(&self, ink: Ink, verdict: &str, title: &str, command: &str) -> String {
        let (verdict, title) = (self.paint(ink, verdict), self.paint(Ink::Bold, title));
        format!("{verdict}  {title}\n      {}", self.paint(Ink::Dim, command))
    }

    fn paint(&self, ink: Ink, text: &str) -> String {
        if self.has_colour { format!("\x1b[{}m{text}\x1b[0m", ink as u8) } else { text.to_owned() }
    }

    fn erase_progress(&mut self) -> Result<()> {
        let width = std::mem::take(&mut self.progress);
        if width > 0 { write!(self.out, "\r{:width$}\r", "") } else { Ok(()) }
    }
}
