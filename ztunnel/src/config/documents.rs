//! The two YAML documents: `defaultConfig` of the mesh configuration, a file, and `PROXY_CONFIG`, a variable.
//!
//! Both have the same fields; the variable goes before the file, field by field, and metadata key by key. Fields that mean
//! nothing here are left alone: the documents are also those of sidecars and gateways.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use serde_yaml_ng::{Mapping, Value};

use super::read::Reader;
use super::settings;

/// The mesh configuration; of the working directory.
const MESH_FILE: &str = "./etc/istio/config/mesh";

/// Marks a variable, or a key of `proxyMetadata`, that holds metadata.
const METADATA_PREFIX: &str = "ISTIO_META_";

/// A value, and what to call it when something is wrong with it.
#[derive(Clone, Debug)]
pub(super) struct Sourced<T> {
    pub(super) name: String,
    pub(super) value: T,
}

/// What the documents, and for the metadata the variables, say together.
#[derive(Clone, Debug, Default)]
pub(super) struct ProxyConfig {
    pub(super) discovery_address: Option<Sourced<String>>,
    pub(super) admin_port: Option<u16>,
    pub(super) stats_port: Option<u16>,
    pub(super) concurrency: Option<u16>,
    pub(super) metadata: BTreeMap<String, Sourced<String>>,
}

impl ProxyConfig {
    pub(super) fn read(read: &mut Reader<'_>) -> Self {
        let mut config = Self::default();
        match read.machine().file(Path::new(MESH_FILE)) {
            Ok(text) => {
                let document = parse(read, MESH_FILE, &text);
                let document = mapping(read, MESH_FILE, document);
                let fields = document.and_then(|document| document.get("defaultConfig").cloned());
                let name = format!("{MESH_FILE}: defaultConfig");
                if let Some(fields) = mapping(read, &name, fields) {
                    config.merge(read, &format!("{name}."), &fields);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => read.fault(MESH_FILE, format!("cannot be read: {error}")),
        }
        if let Some(text) = read.optional(&settings::PROXY_CONFIG) {
            let name = settings::PROXY_CONFIG.name;
            let document = parse(read, name, &text);
            if let Some(fields) = mapping(read, name, document) {
                config.merge(read, &format!("{name}: "), &fields);
            }
        }
        for (name, key, value) in read.prefixed(METADATA_PREFIX) {
            config.metadata.insert(key, Sourced { name, value });
        }
        config
    }

    /// Takes what `fields` has. `origin` goes before the fields' names in faults.
    fn merge(&mut self, read: &mut Reader<'_>, origin: &str, fields: &Mapping) {
        let field = |key| Field::find(origin, key, fields);
        if let Some(address) = field("discoveryAddress").and_then(|field| field.text(read)) {
            self.discovery_address = Some(address).filter(|address| !address.value.is_empty());
        }
        let mut number = |key| field(key).and_then(|field| field.number(read));
        self.admin_port = number("proxyAdminPort").or(self.admin_port);
        self.stats_port = number("statsPort").or(self.stats_port);
        self.concurrency = number("concurrency").or(self.concurrency);
        let Some(metadata) = field("proxyMetadata") else { return };
        let (name, value) = (metadata.name, metadata.value);
        let Some(entries) = mapping(read, &name, Some(value)) else { return };
        for key in entries.keys() {
            let Some(key) = key.as_str() else {
                read.fault(name.clone(), "has a key that is not text");
                continue;
            };
            let entry = Field::find(&format!("{name}."), key, &entries);
            if let Some(value) = entry.and_then(|entry| entry.text(read)) {
                let key = key.strip_prefix(METADATA_PREFIX).unwrap_or(key);
                self.metadata.insert(key.to_owned(), value);
            }
        }
    }
}

/// A field that is there and not null.
struct Field {
    name: String,
    value: Value,
}

impl Field {
    fn find(origin: &str, key: &str, fields: &Mapping) -> Option<Self> {
        let value = fields.get(key).filter(|value| !value.is_null())?.clone();
        Some(Self { name: format!("{origin}{key}"), value })
    }

    /// Text; numbers and truth values as they are written, for metadata is often left without quotes.
    fn text(self, read: &mut Reader<'_>) -> Option<Sourced<String>> {
        let value = match self.value {
            Value::String(text) => text,
            Value::Number(number) => number.to_string(),
            Value::Bool(truth) => truth.to_string(),
            _ => {
                read.fault(self.name, "is not text");
                return None;
            }
        };
        Some(Sourced { name: self.name, value })
    }

    fn number(self, read: &mut Reader<'_>) -> Option<u16> {
        let number = self.value.as_u64().and_then(|number| number.try_into().ok());
        if number.is_none() {
            read.fault(self.name, "is not a number from 0 to 65535");
        }
        number
    }
}

fn parse(read: &mut Reader<'_>, name: &str, text: &str) -> Option<Value> {
    match serde_yaml_ng::from_str(text) {
        Ok(value) => Some(value),
        Err(error) => {
            read.fault(name.to_owned(), format!("is not YAML: {error}"));
            None
        }
    }
}

/// The mapping; `None` for nothing, and for anything else, which is a fault.
fn mapping(read: &mut Reader<'_>, name: &str, value: Option<Value>) -> Option<Mapping> {
    match value {
        None | Some(Value::Null) => None,
        Some(Value::Mapping(mapping)) => Some(mapping),
        Some(_) => {
            read.fault(name.to_owned(), "is not a mapping of names to values");
            None
        }
    }
}
