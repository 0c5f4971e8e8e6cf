//! Where mesh and certificates come from, and how we authenticate there.

use std::path::PathBuf;
use std::sync::Arc;

use http::header::HeaderValue;
use rustls_pki_types::ServerName;

use super::documents::{ProxyConfig, Sourced};
use super::metadata::{self, NodeDescription};
use super::read::Reader;
use super::settings::{self, Setting};
use crate::control_plane::{Credentials, Endpoint, ExtraHeader, PeerConfig, RootSource, TokenSource, ascii};

/// The control plane of this cluster.
const ISTIOD: &str = "https://istiod.istio-system.svc:15012";
/// The control plane where there is no Kubernetes.
const LOCAL_ISTIOD: &str = "https://localhost:15012";
/// Where Kubernetes puts our token.
const TOKEN_FILE: &str = "./var/run/secrets/tokens/istio-token";

/// The control plane, and what it is told.
#[derive(Clone, Debug)]
pub struct XdsConfig {
    /// Where it is, and how both ends prove who they are.
    pub peer: Arc<PeerConfig>,
    /// Who we are.
    pub node: NodeDescription,
    /// Which addresses are asked for.
    pub addresses: AddressDemand,
}

/// Which addresses the control plane is asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum AddressDemand {
    /// All.
    Everything,
    /// Each when it is first needed (`XDS_ON_DEMAND`).
    OnDemand,
}

/// Who issues certificates.
#[derive(Clone, Debug)]
pub enum CaSource {
    /// A local authority, in this directory.
    Local(PathBuf),
    /// An authority to be called.
    Remote(Arc<PeerConfig>),
}

/// The control plane; `None` when there is none.
pub(super) fn xds(read: &mut Reader<'_>, documents: &ProxyConfig, shared: &Shared) -> Option<XdsConfig> {
    let address = match read.optional(&settings::XDS_ADDRESS) {
        Some(value) => Sourced { name: settings::XDS_ADDRESS.name.to_owned(), value },
        None => match &documents.discovery_address {
            Some(address) => address.clone(),
            None => Sourced { name: settings::XDS_ADDRESS.name.to_owned(), value: shared.default_address() },
        },
    };
    let peer = shared.peer(
        read,
        address,
        &PeerSettings {
            roots: &settings::XDS_ROOT_CA,
            alternative_name: &settings::ALT_XDS_HOSTNAME,
            headers: "XDS_HEADER_",
        },
    );
    let node = metadata::node(read, &documents.metadata);
    let addresses = match read.value(&settings::XDS_ON_DEMAND) {
        true => AddressDemand::OnDemand,
        false => AddressDemand::Everything,
    };
    peer.map(|peer| XdsConfig { peer: peer.into(), node, addresses })
}

/// Who issues certificates: the local authority if one is named, else the one to be called.
pub(super) fn ca(read: &mut Reader<'_>, shared: &Shared) -> CaSource {
    if read.value(&settings::FAKE_CA) {
        let problem = "there is no fake authority here; for an authority without a control plane, set LOCAL_CA_PATH \
                       to a directory and FAKE_CA to false";
        read.fault(settings::FAKE_CA.name, problem);
    }
    let local = read.optional(&settings::LOCAL_CA_PATH);
    let address = read.optional(&settings::CA_ADDRESS);
    if local.is_some() && address.as_ref().is_some_and(|address| !address.is_empty()) {
        read.warning(settings::CA_ADDRESS.name, "is not used, as LOCAL_CA_PATH is set");
    }
    // Read all the same, so that its faults are not found one start later.
    let value = address.unwrap_or_else(|| shared.default_address());
    let peer = shared.peer(
        read,
        Sourced { name: settings::CA_ADDRESS.name.to_owned(), value },
        &PeerSettings {
            roots: &settings::CA_ROOT_CA,
            alternative_name: &settings::ALT_CA_HOSTNAME,
            headers: "CA_HEADER_",
        },
    );
    match (local, peer) {
        (Some(directory), _) => CaSource::Local(directory),
        (None, Some(peer)) => CaSource::Remote(peer.into()),
        (None, None) => {
            if read.machine().text(settings::CA_ADDRESS.name).is_some_and(|address| address.is_empty()) {
                let problem = "is empty, so there is nobody to issue certificates: set it to an address, or \
                               LOCAL_CA_PATH to the directory of a local authority";
                read.fault(settings::CA_ADDRESS.name, problem);
            }
            CaSource::Local(PathBuf::new())
        }
    }
}

/// What calls to the control plane and to the certificate authority have in common.
pub(super) struct Shared {
    in_kubernetes: bool,
    token: TokenSource,
    cluster_id: HeaderValue,
}

impl Shared {
    pub(super) fn read(read: &mut Reader<'_>, cluster_id: &str) -> Self {
        let header = ascii(cluster_id);
        if header.is_none() {
            let explicit = read.machine().text(settings::ISTIO_META_CLUSTER_ID.name).is_some();
            let name = match explicit {
                true => settings::ISTIO_META_CLUSTER_ID.name,
                false => settings::CLUSTER_ID.name,
            };
            read.fault(name, "is not printable ASCII, and so cannot be sent");
        }
        Self {
            in_kubernetes: read.optional(&settings::KUBERNETES_SERVICE_HOST).is_some(),
            token: token(read),
            cluster_id: header.unwrap_or(HeaderValue::from_static("")),
        }
    }

    fn default_address(&self) -> String {
        if self.in_kubernetes { ISTIOD } else { LOCAL_ISTIOD }.to_owned()
    }

    /// The peer at `address`; `None` if that is empty, or wrong.
    fn peer(
        &self,
        read: &mut Reader<'_>,
        address: Sourced<String>,
        settings: &PeerSettings<'_>,
    ) -> Option<PeerConfig> {
        let alternative_name = alternative_name(read, settings.alternative_name);
        let headers = headers(read, settings.headers);
        if address.value.is_empty() {
            return None;
        }
        let roots = roots(read, settings.roots);
        let credentials =
            Credentials { token: self.token.clone(), cluster_id: self.cluster_id.clone(), headers };
        match address.value.parse::<Endpoint>() {
            Ok(endpoint) => Some(PeerConfig { endpoint, roots: roots?, alternative_name, credentials }),
            Err(error) => {
                read.fault(address.name, format!("cannot use {:?} as an address: {error}", address.value));
                None
            }
        }
    }
}

/// The settings of one peer.
struct PeerSettings<'a> {
    roots: &'a Setting<String>,
    alternative_name: &'a Setting<String>,
    headers: &'a str,
}

fn token(read: &mut Reader<'_>) -> TokenSource {
    let machine = read.machine();
    let Some(text) = read.optional(&settings::AUTH_TOKEN) else {
        return match machine.exists(TOKEN_FILE.as_ref()) {
            true => TokenSource::File(TOKEN_FILE.into()),
            false => TokenSource::None,
        };
    };
    // No token begins like a path; taken for one, the path of a file that is late would be sent to the peer.
    let path_like = ["/", "./", "../"].iter().any(|start| text.starts_with(start));
    TokenSource::parse(&text, |path| path_like || machine.exists(path)).unwrap_or_else(|error| {
        read.fault(settings::AUTH_TOKEN.name, error.to_string());
        TokenSource::None
    })
}

fn roots(read: &mut Reader<'_>, setting: &Setting<String>) -> Option<RootSource> {
    let machine = read.machine();
    let text = read.value(setting);
    let source = RootSource::parse(&text, |path| machine.exists(path));
    let checked = source.as_ref().map(RootSource::check);
    match checked {
        Some(Ok(())) => return source,
        Some(Err(error)) => read.fault(setting.name, crate::telemetry::with_causes(&error)),
        None => read.fault(setting.name, format!("names no roots; expected {}", setting.expected)),
    }
    None
}

fn alternative_name(read: &mut Reader<'_>, setting: &Setting<String>) -> Option<ServerName<'static>> {
    let text = read.optional(setting)?;
    match ServerName::try_from(text.clone()) {
        Ok(name) => Some(name),
        Err(_) => {
            read.fault(setting.name, format!("cannot read {text:?}; expected {}", setting.expected));
            None
        }
    }
}

fn headers(read: &mut Reader<'_>, prefix: &str) -> Vec<ExtraHeader> {
    let mut headers = Vec::new();
    for (name, header, value) in read.prefixed(prefix) {
        match ExtraHeader::new(&header, &value) {
            Ok(header) => headers.push(header),
            Err(error) => read.fault(name, format!("cannot be sent as a header: {error}")),
        }
    }
    headers
}
