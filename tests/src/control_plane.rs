//! What a proxy needs to reach the scripted istiod: address, trust, token, and names of its own.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::istiod::{CLUSTER, Caller, HOST, ScriptedIstiod};
use crate::{Node, Result};

/// The settings and files by which one proxy is driven. The files can be replaced while it runs.
#[derive(Clone, Debug)]
pub struct ControlPlane {
    /// How it dials istiod.
    pub dial: Dial,
    /// The name of the proxy's pod, under which istiod knows it.
    pub pod: String,
    directory: PathBuf,
    address: std::net::SocketAddr,
    instance: std::net::IpAddr,
    environment: Vec<(String, OsString)>,
}

/// How a proxy dials istiod.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Dial {
    /// By its name, which the proxy's hosts file resolves.
    #[default]
    Name,
    /// By its address, which its certificate names too.
    Address,
}

impl ControlPlane {
    /// Files for a proxy on `node` with the pod name `pod`: istiod's current roots, and a token that it accepts for the
    /// pods of the node.
    pub fn new(istiod: &ScriptedIstiod, node: &Node, pod: &str) -> Result<Self> {
        let directory = node.directory().join(pod);
        std::fs::create_dir_all(directory.join("crl"))?;
        let control = Self {
            dial: Dial::Name,
            pod: pod.to_owned(),
            directory,
            address: istiod.address(),
            instance: node.ipv4().into(),
            environment: Vec::new(),
        };
        let token = format!("token-of-{pod}");
        istiod.accept_token(&token, Caller::node_proxy(Some(node.name())));
        control.write_token(&token)?;
        control.write_roots(&istiod.ca().roots())?;
        let hosts = format!("127.0.0.1 localhost\n::1 localhost\n{} {HOST}\n", control.address.ip());
        replace(&control.hosts(), &hosts)?;
        Ok(control)
    }

    /// The name of the pod of a node's ordinary proxy.
    pub fn pod_of(node: &Node) -> String {
        format!("ztunnel-{}", node.name())
    }

    /// Sets `CRL_PATH`, to [`revocations`](Self::revocations).
    #[must_use]
    pub fn with_revocations(mut self) -> Self {
        let path = self.revocations().into_os_string();
        self.environment.push(("CRL_PATH".to_owned(), path));
        self
    }

    /// Replaces the file of roots (`XDS_ROOT_CA`, `CA_ROOT_CA`) in one step.
    pub fn write_roots(&self, pem: &str) -> Result<()> {
        replace(&self.roots(), pem)
    }

    /// Replaces the file with the token (`AUTH_TOKEN`) in one step.
    pub fn write_token(&self, token: &str) -> Result<()> {
        replace(&self.token(), token)
    }

    /// The file of roots.
    pub fn roots(&self) -> PathBuf {
        self.directory.join("root-cert.pem")
    }

    /// The file with the token.
    pub fn token(&self) -> PathBuf {
        self.directory.join("istio-token")
    }

    /// The file of revocation lists, which does not exist at first.
    pub fn revocations(&self) -> PathBuf {
        self.directory.join("crl").join("ca-crl.pem")
    }

    /// The hosts file of the proxy.
    pub(crate) fn hosts(&self) -> PathBuf {
        self.directory.join("hosts")
    }

    /// The environment that the chart would give.
    pub(crate) fn environment(&self) -> Vec<(String, OsString)> {
        let host = match self.dial {
            Dial::Name => HOST.to_owned(),
            Dial::Address => self.address.ip().to_string(),
        };
        let endpoint = format!("https://{host}:{}", self.address.port());
        let texts = [
            ("XDS_ADDRESS", endpoint.clone()),
            ("CA_ADDRESS", endpoint),
            ("CLUSTER_ID", CLUSTER.to_owned()),
            ("ISTIO_META_CLUSTER_ID", CLUSTER.to_owned()),
            ("POD_NAME", self.pod.clone()),
            ("POD_NAMESPACE", "istio-system".to_owned()),
            ("SERVICE_ACCOUNT", "ztunnel".to_owned()),
            ("INSTANCE_IP", self.instance.to_string()),
            // The proxies of a laboratory do not answer DNS: there is nothing to answer with.
            ("ISTIO_META_DNS_CAPTURE", "false".to_owned()),
        ];
        let paths =
            [("XDS_ROOT_CA", self.roots()), ("CA_ROOT_CA", self.roots()), ("AUTH_TOKEN", self.token())];
        let texts = texts.map(|(key, value)| (key.to_owned(), value.into()));
        let paths = paths.map(|(key, value)| (key.to_owned(), value.into_os_string()));
        texts.into_iter().chain(paths).chain(self.environment.iter().cloned()).collect()
    }
}

/// Replaces a file in one step, as Kubernetes does with mounted files: readers see the old content or the new one.
pub(crate) fn replace(path: &Path, content: &str) -> Result<()> {
    let new = path.with_extension("new");
    std::fs::write(&new, content)
        .and_then(|()| std::fs::rename(&new, path))
        .with_context(|| format!("cannot replace {}", path.display()))
}
