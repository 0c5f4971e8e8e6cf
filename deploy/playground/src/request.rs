//! One request with curl(1), and what the proxies' access logs say of its connection.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result};
use lab::{AccessLine, Pod, Ztunnel};

use crate::scene::Scene;
use crate::web::Greeting;

/// A request that a pod makes, as arguments for curl.
#[derive(Clone, Copy)]
pub(crate) struct Request<'a> {
    pub(crate) scene: &'a Scene,
    pub(crate) from: &'a Pod,
    pub(crate) arguments: &'a [&'a str],
}

/// What became of a request.
pub(crate) struct Answer<'a> {
    request: Request<'a>,
    /// How many lines each proxy's access log had before.
    before: [usize; 2],
    /// curl's own words, if it failed.
    pub(crate) failure: Option<String>,
    /// The HTTP status, 0 if there was none.
    pub(crate) status: u16,
    /// The body.
    pub(crate) body: String,
    /// The client's end of the connection.
    pub(crate) local: SocketAddr,
}

/// After the body, in curl's notation.
const FORMAT: &str = "\n%{http_code} %{local_ip} %{local_port}";

impl<'a> Request<'a> {
    /// As a person would type it.
    pub(crate) fn command_line(&self) -> String {
        format!("curl {}", self.arguments.join(" "))
    }

    /// The body, from the option `-d`; empty without it.
    pub(crate) fn body(&self) -> &'a str {
        self.arguments.iter().skip_while(|argument| **argument != "-d").nth(1).copied().unwrap_or_default()
    }

    /// Makes the request. That it fails is an answer too.
    ///
    /// Errors: curl cannot be run, or did not get as far as a connection.
    pub(crate) fn send(self) -> Result<Answer<'a>> {
        let before = self.scene.proxies()?.map(|(_, ztunnel)| ztunnel.access_lines().len());
        let mut command = self.from.command("curl");
        // Nothing of the user's: neither ~/.curlrc nor proxies.
        command.args(["-q", "--noproxy", "*", "--silent", "--show-error", "--max-time", "20"]);
        command.args(["--write-out", FORMAT]).args(self.arguments);
        let output = self.from.output(command)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let complaint = String::from_utf8_lossy(&output.stderr);
        let failure = complaint.trim().trim_start_matches("curl: ").to_owned();
        let (body, report) = text.rsplit_once('\n').with_context(|| format!("curl said {text:?}"))?;
        let words: Vec<_> = report.split(' ').collect();
        let (status, local) = read_report(&words).with_context(|| format!("no connection: {failure}"))?;
        Ok(Answer {
            request: self,
            before,
            failure: (!output.status.success()).then_some(failure),
            status,
            body: body.to_owned(),
            local,
        })
    }
}

fn read_report(words: &[&str]) -> Option<(u16, SocketAddr)> {
    let [status, ip, port] = words else { return None };
    Some((status.parse().ok()?, SocketAddr::new(ip.parse().ok()?, port.parse().ok()?)))
}

impl Answer<'_> {
    /// Which server answered.
    pub(crate) fn greeting(&self) -> Result<Greeting> {
        Greeting::read(&self.body).with_context(|| match &self.failure {
            Some(failure) => failure.clone(),
            None => format!("not our server's answer: {} {:?}", self.status, self.body),
        })
    }

    /// What the server sent back of the request's body.
    pub(crate) fn echo(&self) -> &str {
        self.body.split_once('\n').map_or("", |(_, echo)| echo)
    }

    /// The line of the client's proxy about this connection.
    pub(crate) fn outbound(&self) -> Result<AccessLine> {
        let source = self.local.to_string();
        self.line(self.request.from, |line| {
            line.text("direction") == "outbound" && line.text("src.addr") == source
        })
    }

    /// The line of the proxy of `server` about this connection. In a tunnel only the address is the client's, the
    /// port is the tunnel's; as one request is made at a time, the address is enough.
    pub(crate) fn inbound(&self, server: &Pod) -> Result<AccessLine> {
        self.line(server, |line| {
            let source = line.text("src.addr").parse().ok().map(|source: SocketAddr| source.ip());
            line.text("direction") == "inbound"
                && source == Some(self.local.ip())
                && line.get("dst.workload").is_none_or(|name| name == server.name())
        })
    }

    /// The client pod's address in the family of this connection.
    pub(crate) fn client_address(&self) -> IpAddr {
        let from = self.request.from;
        if self.local.is_ipv4() { from.ipv4().into() } else { from.ipv6().into() }
    }

    /// The first line since the request, written already or soon, of the proxy of the pod's node.
    fn line(&self, pod: &Pod, select: impl Fn(&AccessLine) -> bool) -> Result<AccessLine> {
        let scene = self.request.scene;
        let ztunnel: &Ztunnel = scene.proxy_of(pod)?;
        let of_node = scene.proxies()?.map(|(node, _)| node.name() == pod.node().name());
        let [one, two] = self.before;
        let mut to_skip = if of_node[0] { one } else { two };
        ztunnel.wait_for_access(|line| {
            let is_new = to_skip == 0;
            to_skip = to_skip.saturating_sub(1);
            is_new && select(line)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_curl_reports_becomes_a_status_and_an_address() {
        let (status, local) = read_report(&["200", "fd10:0:0:1::1", "43210"]).unwrap();
        assert_eq!((status, local), (200, "[fd10:0:0:1::1]:43210".parse().unwrap()));
        assert_eq!(read_report(&["000", "", "0"]), None, "a request without a connection");
    }
}
