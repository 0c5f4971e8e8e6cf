//! Administration: what the proxy knows, for `istioctl`, Kiali and whoever looks into a pod. Port 15000, loopback only.
//!
//! | Path | Answer |
//! |---|---|
//! | `/` | this list, as a page |
//! | `/config_dump` | everything known, as JSON ([`dump`]); `?section=workloads,services` for parts of it |
//!
//! As in Istio's ztunnel no method is refused, unknown parameters are ignored, and any other path is 404. Keys never appear
//! anywhere: the dump is made of public certificates and of what the control plane sent.

pub mod dump;
mod section;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, StatusCode};

use crate::config::Families;
use crate::http_server::{Answer, Body, HttpServer, not_found, with_status};
use dump::{Dump, DumpSources, PodState};
pub use section::{Section, UnknownSection};

/// Port of the administration server.
pub const PORT: u16 = 15000;

/// Requests served at once. Dumps are large, and those who ask for them few.
const MAX_CONNECTIONS: usize = 16;

/// How long the threads that serve pods may take to tell of their connections. A dump without them is better than none.
const GATHERING_DEADLINE: Duration = Duration::from_secs(2);

/// Asks for the state of the pods; the future runs on the control thread.
pub type GatherPods = Box<dyn Fn() -> LocalBoxFuture<'static, Vec<PodState>>>;

/// The server that `istioctl` asks.
#[derive(Debug)]
pub struct AdminServer(HttpServer);

impl AdminServer {
    /// Takes `port` on 127.0.0.1, and on ::1 if that is among the `families` and the machine has it. Needs a tokio runtime.
    pub fn bind(families: Families, port: u16) -> io::Result<Self> {
        let bind = |addresses: &[IpAddr]| {
            let addresses = addresses.iter().map(|address| SocketAddr::new(*address, port));
            HttpServer::bind("admin", MAX_CONNECTIONS, addresses).map(Self)
        };
        match families {
            Families::Ipv4 => bind(&[Ipv4Addr::LOCALHOST.into()]),
            Families::Both => match bind(&[Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]) {
                Err(error) if lacks_ipv6(&error) => bind(&[Ipv4Addr::LOCALHOST.into()]),
                bound => bound,
            },
        }
    }

    /// What it listens on, IPv4 first.
    pub fn local_addresses(&self) -> io::Result<Vec<SocketAddr>> {
        self.0.local_addresses()
    }

    /// Answers until dropped, which cuts the open connections. Needs a `LocalRuntime` or `LocalSet`.
    ///
    /// `pods` is for shared mode; without it a dump has no `workloadState`.
    pub async fn serve(self, sources: DumpSources, pods: Option<GatherPods>) {
        let admin = Rc::new(Admin { sources: Arc::new(sources), pods });
        self.0.serve(async move |request: &Request<Incoming>| admin.answer(request).await).await;
    }
}

/// The machine has no IPv6, or no `::1`, which an operator can turn off for `lo` alone.
fn lacks_ipv6(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrNotAvailable
        || error.raw_os_error() == Some(nix::errno::Errno::EAFNOSUPPORT as i32)
}

/// What a path leads to.
#[derive(Clone, Copy)]
enum Endpoint {
    Help,
    ConfigDump,
}

/// Path, endpoint, and what it is for. Links are relative: `istioctl dashboard` forwards some other port to ours.
const ENDPOINTS: &[(&str, Endpoint, &str)] = &[
    ("", Endpoint::Help, "this page"),
    (
        "config_dump",
        Endpoint::ConfigDump,
        "what the proxy knows, as JSON; ?section=workloads,services for parts of it",
    ),
];

struct Admin {
    sources: Arc<DumpSources>,
    pods: Option<GatherPods>,
}

impl Admin {
    async fn answer(&self, request: &Request<Incoming>) -> Answer {
        let path = request.uri().path().strip_prefix('/');
        match ENDPOINTS.iter().find(|(name, ..)| Some(*name) == path) {
            Some((_, Endpoint::Help, _)) => html(help()),
            Some((_, Endpoint::ConfigDump, _)) => self.config_dump(request).await,
            None => not_found(),
        }
    }

    async fn config_dump(&self, request: &Request<Incoming>) -> Answer {
        let sections = match Section::from_query(request.uri().query().unwrap_or_default()) {
            Ok(sections) => sections,
            Err(error) => return with_status(StatusCode::BAD_REQUEST, format!("{error}\n").into()),
        };
        let pods = match request.method() {
            &Method::HEAD => None,
            _ => self.gather(&sections).await,
        };
        let dump = Dump::new(self.sources.clone(), pods, sections);
        let mut response = Answer::new(Body::produced(move |sink| dump.write(sink)));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }

    async fn gather(&self, sections: &BTreeSet<Section>) -> Option<Vec<PodState>> {
        let pods = self.pods.as_ref().filter(|_| sections.contains(&Section::WorkloadState))?;
        let states = tokio::time::timeout(GATHERING_DEADLINE, pods()).await;
        Some(states.unwrap_or_else(|_| {
            tracing::warn!(after = ?GATHERING_DEADLINE, "the dump lacks the state of the pods: they did not tell it in time");
            Vec::new()
        }))
    }
}

fn html(page: String) -> Answer {
    let mut response = Answer::new(page.into());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    response
}

fn help() -> String {
    let mut page = "<!DOCTYPE html>\n<html>\n<head><title>Ztunnel Admin</title></head>\n<body>\n<table>\n\
        <tr><th>Command</th><th>Description</th></tr>\n"
        .to_owned();
    for (path, _, meaning) in ENDPOINTS {
        // Writing to a string does not fail.
        let _ = writeln!(page, "<tr><td><a href=\"./{path}\">/{path}</a></td><td>{meaning}</td></tr>");
    }
    page.push_str("</table>\n</body>\n</html>\n");
    page
}
