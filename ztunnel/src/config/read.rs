//! Reading settings as text, and collecting what is wrong with them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::Path;

use super::ConfigError;
use super::settings::Setting;

/// Where settings come from: the process's environment and its files, or a map in tests.
pub trait Environment {
    /// The text of the variable `name`; `None` when it is not set, `Some("")` when it is set to nothing.
    fn text(&self, name: &str) -> Option<String>;

    /// The names of all variables that begin with `prefix`, in order.
    fn names(&self, prefix: &str) -> Vec<String>;

    /// The content of a file; a relative path is of the working directory.
    fn file(&self, path: &Path) -> io::Result<String>;

    /// Whether there is something at this path.
    fn exists(&self, path: &Path) -> bool;
}

/// The environment of this process. A value that is not UTF-8 is read with replacement characters, and so refused
/// by every setting that has a form.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProcessEnvironment;

impl Environment for ProcessEnvironment {
    fn text(&self, name: &str) -> Option<String> {
        std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
    }

    fn names(&self, prefix: &str) -> Vec<String> {
        let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
        let mut names: Vec<_> = names.filter(|name| name.starts_with(prefix)).collect();
        names.sort_unstable();
        names
    }

    fn file(&self, path: &Path) -> io::Result<String> {
        std::fs::read_to_string(path)
    }

    fn exists(&self, path: &Path) -> bool {
        path.exists()
    }
}

/// A machine without files.
impl Environment for BTreeMap<String, String> {
    fn text(&self, name: &str) -> Option<String> {
        self.get(name).cloned()
    }

    fn names(&self, prefix: &str) -> Vec<String> {
        self.keys().filter(|name| name.starts_with(prefix)).cloned().collect()
    }

    fn file(&self, _path: &Path) -> io::Result<String> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn exists(&self, _path: &Path) -> bool {
        false
    }
}

/// One setting that cannot be used, or that has less of an effect than it says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Fault {
    /// The variable, or the document and its field.
    pub name: Cow<'static, str>,
    /// What is wrong with it.
    pub problem: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.name, self.problem)
    }
}

/// Reads settings one by one and remembers the faults.
pub(super) struct Reader<'a> {
    environment: &'a dyn Environment,
    faults: Vec<Fault>,
    warnings: Vec<Fault>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(environment: &'a dyn Environment) -> Self {
        Self { environment, faults: Vec::new(), warnings: Vec::new() }
    }

    /// The value, or the default. After a fault the default stands in, so that reading can go on.
    pub(super) fn value<T>(&mut self, setting: &Setting<T>) -> T {
        self.optional(setting).unwrap_or_else(|| setting.default_value())
    }

    /// The value if the variable is set and can be read.
    pub(super) fn optional<T>(&mut self, setting: &Setting<T>) -> Option<T> {
        let text = self.environment.text(setting.name)?;
        let value = (setting.parse)(&text);
        if value.is_none() {
            self.fault(setting.name, format!("cannot read {text:?}; expected {}", setting.expected));
        }
        value
    }

    /// The value. It is a fault, of this description, if the variable is not set.
    pub(super) fn required<T: Default>(&mut self, setting: &Setting<T>, missing: &str) -> T {
        if self.environment.text(setting.name).is_none() {
            self.fault(setting.name, missing);
        }
        self.optional(setting).unwrap_or_default()
    }

    /// The variables whose names begin with `prefix` and go on: name, what follows the prefix, and value.
    pub(super) fn prefixed(&self, prefix: &str) -> Vec<(String, String, String)> {
        let names = self.environment.names(prefix).into_iter();
        let read = |name: String| {
            let rest = name.strip_prefix(prefix).filter(|rest| !rest.is_empty())?.to_owned();
            let value = self.environment.text(&name)?;
            Some((name, rest, value))
        };
        names.filter_map(read).collect()
    }

    /// The machine, for files.
    pub(super) fn machine(&self) -> &'a dyn Environment {
        self.environment
    }

    /// The configuration cannot be used.
    pub(super) fn fault(&mut self, name: impl Into<Cow<'static, str>>, problem: impl Into<String>) {
        self.faults.push(Fault { name: name.into(), problem: problem.into() });
    }

    /// The configuration can be used, but the operator should know this.
    pub(super) fn warning(&mut self, name: impl Into<Cow<'static, str>>, problem: impl Into<String>) {
        self.warnings.push(Fault { name: name.into(), problem: problem.into() });
    }

    /// The warnings, if there is no fault.
    pub(super) fn finish(self) -> Result<Vec<Fault>, ConfigError> {
        match self.faults.is_empty() {
            true => Ok(self.warnings),
            false => Err(ConfigError { faults: self.faults }),
        }
    }
}
