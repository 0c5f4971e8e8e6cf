//! What the control plane is told of this proxy: the xDS node.

use std::collections::BTreeMap;

use xds_client::prost_types::value::Kind;
use xds_client::prost_types::{ListValue, Struct, Value};

use super::documents::Sourced;
use super::read::Reader;
use super::settings;

/// Marks a variable that holds metadata in JSON.
const JSON_PREFIX: &str = "ISTIO_METAJSON_";

/// The xDS node of this proxy. Fixed after start.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeDescription {
    /// `ztunnel~<ip>~<pod>.<namespace>~<namespace>.svc.cluster.local`. The suffix is no DNS domain: it is always this.
    pub id: String,
    /// Where we run, then the metadata of documents and variables.
    pub metadata: Struct,
}

/// `metadata` goes before what is known of the pod, and the variables in JSON before both.
pub(super) fn node(read: &mut Reader<'_>, metadata: &BTreeMap<String, Sourced<String>>) -> NodeDescription {
    let ip = read.value(&settings::INSTANCE_IP);
    let pod = read.optional(&settings::POD_NAME).unwrap_or_default();
    let namespace = read.optional(&settings::POD_NAMESPACE).unwrap_or_default();
    let node = read.optional(&settings::NODE_NAME).unwrap_or_default();
    let id = format!("ztunnel~{ip}~{pod}.{namespace}~{namespace}.svc.cluster.local");
    let place = [("NAME", pod), ("NAMESPACE", namespace), ("INSTANCE_IPS", ip), ("NODE_NAME", node)];
    let mut fields: BTreeMap<_, _> =
        place.into_iter().map(|(key, value)| (key.to_owned(), text(value))).collect();
    fields.extend(metadata.iter().map(|(key, sourced)| (key.clone(), text(sourced.value.clone()))));
    for (name, key, json) in read.prefixed(JSON_PREFIX) {
        match serde_json::from_str(&json) {
            Ok(json) => drop(fields.insert(key, value(json))),
            Err(error) => read.warning(name, format!("is not JSON and is left out: {error}")),
        }
    }
    NodeDescription { id, metadata: Struct { fields } }
}

fn text(text: String) -> Value {
    Value { kind: Some(Kind::StringValue(text)) }
}

/// JSON as protobuf has it; numbers are doubles.
fn value(json: serde_json::Value) -> Value {
    use serde_json::Value as Json;
    let kind = match json {
        Json::Null => Kind::NullValue(0),
        Json::Bool(truth) => Kind::BoolValue(truth),
        Json::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or(f64::NAN)),
        Json::String(text) => Kind::StringValue(text),
        Json::Array(values) => Kind::ListValue(ListValue { values: values.into_iter().map(value).collect() }),
        Json::Object(fields) => {
            let fields = fields.into_iter().map(|(key, field)| (key, value(field))).collect();
            Kind::StructValue(Struct { fields })
        }
    };
    Value { kind: Some(kind) }
}
