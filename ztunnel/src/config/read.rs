//! Reading settings as text, and collecting what is wrong with them.

use std::collections::BTreeMap;
use std::fmt;

use super::ConfigError;
use super::settings::Setting;

/// Where settings come from: the process's environment, or a map in tests.
pub trait Environment {
    /// The text of the variable `name`; `None` when it is not set, `Some("")` when it is set to nothing.
    fn text(&self, name: &str) -> Option<String>;
}

/// The environment of this process. A value that is not UTF-8 is read with replacement characters, and so refused
/// by every setting that has a form.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProcessEnvironment;

impl Environment for ProcessEnvironment {
    fn text(&self, name: &str) -> Option<String> {
        std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
    }
}

impl Environment for BTreeMap<String, String> {
    fn text(&self, name: &str) -> Option<String> {
        self.get(name).cloned()
    }
}

/// One setting that cannot be used.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Fault {
    /// The variable.
    pub name: &'static str,
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
}

impl<'a> Reader<'a> {
    pub(super) fn new(environment: &'a dyn Environment) -> Self {
        Self { environment, faults: Vec::new() }
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
            self.fault(setting, format!("cannot read {text:?}; expected {}", setting.expected));
        }
        value
    }

    /// The value. It is a fault, of this description, if the variable is not set.
    pub(super) fn required<T: Default>(&mut self, setting: &Setting<T>, missing: &str) -> T {
        if self.environment.text(setting.name).is_none() {
            self.fault(setting, missing);
        }
        self.optional(setting).unwrap_or_default()
    }

    /// A setting of the reference that this version cannot honour: anything but nothing is a fault.
    pub(super) fn unsupported(&mut self, setting: &Setting<String>) {
        if self.optional(setting).is_some_and(|text| !text.is_empty()) {
            self.fault(setting, format!("this version has no use for it; expected {}", setting.expected));
        }
    }

    pub(super) fn fault<T>(&mut self, setting: &Setting<T>, problem: impl Into<String>) {
        self.faults.push(Fault { name: setting.name, problem: problem.into() });
    }

    pub(super) fn finish<T>(self, value: T) -> Result<T, ConfigError> {
        match self.faults.is_empty() {
            true => Ok(value),
            false => Err(ConfigError { faults: self.faults }),
        }
    }
}
