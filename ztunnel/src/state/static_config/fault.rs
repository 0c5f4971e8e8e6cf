//! What is wrong in a file, and where.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// Something wrong at one place of a file.
///
/// Displays as `:<line>:<column>: <field>: <message>`, to follow the file's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Line and column, from 1; None when there are too many faults to look all of them up.
    pub location: Option<(usize, usize)>,
    /// Such as `workloads[2].protocol`; empty when the message says it, or when it is about the whole file.
    pub field: String,
    /// What is wrong, and what was expected.
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((line, column)) = self.location {
            write!(f, ":{line}:{column}")?;
        }
        if !self.field.is_empty() {
            write!(f, ": {}", self.field)?;
        }
        write!(f, ": {}", self.message)
    }
}

/// The way from the file's top to a value. Lives on the stack of whoever walks down it.
#[derive(Clone, Copy)]
pub(super) struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    step: Step<'a>,
}

#[derive(Clone, Copy)]
enum Step<'a> {
    Top,
    Key(&'a str),
    Index(usize),
}

impl<'a> Path<'a> {
    pub(super) const TOP: Path<'static> = Path { parent: None, step: Step::Top };

    pub(super) fn key(&'a self, key: &'a str) -> Path<'a> {
        Path { parent: Some(self), step: Step::Key(key) }
    }

    pub(super) fn index(&'a self, index: usize) -> Path<'a> {
        Path { parent: Some(self), step: Step::Index(index) }
    }

    /// Line and column of this value in `text`, from 1.
    ///
    /// Reads the text once more, goes down the path, and fails there on purpose: only errors carry locations.
    pub(super) fn locate(&self, text: &str) -> Option<(usize, usize)> {
        let steps = self.steps();
        let error = Locate(&steps).deserialize(serde_yaml_ng::Deserializer::from_str(text)).err()?;
        let location = error.location()?;
        Some((location.line(), location.column()))
    }

    fn steps(&self) -> Vec<Step<'a>> {
        let mut steps = self.parent.map(Path::steps).unwrap_or_default();
        match self.step {
            Step::Top => {}
            step => steps.push(step),
        }
        steps
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
        }
        match self.step {
            Step::Top => Ok(()),
            Step::Index(index) => write!(f, "[{index}]"),
            Step::Key(key) if key.contains(['.', '/']) => write!(f, "[{key:?}]"),
            Step::Key(key) => {
                let is_first = self.parent.is_none_or(|parent| matches!(parent.step, Step::Top));
                write!(f, "{}{key}", if is_first { "" } else { "." })
            }
        }
    }
}

struct Locate<'a>(&'a [Step<'a>]);

impl<'de> DeserializeSeed<'de> for Locate<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        match self.0 {
            [] => deserializer.deserialize_any(Here),
            _ => deserializer.deserialize_any(self),
        }
    }
}

impl<'de> Visitor<'de> for Locate<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map or a sequence")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Some((Step::Key(wanted), rest)) = self.0.split_first() else {
            return Err(A::Error::custom("not a sequence"));
        };
        while let Some(key) = map.next_key::<String>()? {
            if key == *wanted {
                return map.next_value_seed(Locate(rest));
            }
            map.next_value::<IgnoredAny>()?;
        }
        Err(A::Error::custom("no such key"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let Some((Step::Index(wanted), rest)) = self.0.split_first() else {
            return Err(A::Error::custom("not a map"));
        };
        for _ in 0..*wanted {
            seq.next_element::<IgnoredAny>()?;
        }
        seq.next_element_seed(Locate(rest))?;
        Err(A::Error::custom("no such element"))
    }
}

/// Refuses every value, and so reveals where it is.
struct Here;

impl Visitor<'_> for Here {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("its location")
    }
}
