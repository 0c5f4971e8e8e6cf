//! The servers that are asked for what is not of the mesh: `/etc/resolv.conf` (resolv.conf(5)).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// Where it is.
pub(crate) const PATH: &str = "/etc/resolv.conf";

/// Octets of it that are read at most.
pub(crate) const LONGEST: u64 = 64 * 1024;

/// Servers that are used at most; the C library stops at three.
const MOST_SERVERS: usize = 8;

/// Search domains that are used at most, which is as many as resolvers of today take.
const MOST_SEARCH_DOMAINS: usize = 32;

const PORT: u16 = 53;

/// What the file says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct ResolvConf {
    /// In the order in which they are preferred. Empty: nobody can be asked.
    pub(crate) servers: Vec<SocketAddr>,
    /// In lower case, without final dots.
    pub(crate) search: Arc<[Arc<str>]>,
    /// How long one try waits.
    pub(crate) timeout: Duration,
    /// How often the servers are tried, beyond the first time.
    pub(crate) attempts: u32,
    /// A name with this many dots is tried as it is first.
    pub(crate) ndots: usize,
}

impl Default for ResolvConf {
    fn default() -> Self {
        Self {
            servers: Vec::new(),
            search: Arc::default(),
            timeout: Duration::from_secs(5),
            attempts: 2,
            ndots: 1,
        }
    }
}

impl ResolvConf {
    /// Reads the file as the C library does: what is not understood is passed over.
    pub(crate) fn parse(text: &[u8]) -> Self {
        let mut conf = Self::default();
        for line in String::from_utf8_lossy(text).lines() {
            let line = line.split(['#', ';']).next().unwrap_or_default();
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("nameserver") => match words.next().map(str::parse::<IpAddr>) {
                    Some(Ok(address)) if conf.servers.len() < MOST_SERVERS => {
                        conf.servers.push((address, PORT).into());
                    }
                    Some(Ok(_)) | None => {}
                    Some(Err(_)) => tracing::warn!(line, "a name server in {PATH} is no address"),
                },
                // The last of them counts.
                Some("search" | "domain") => {
                    let domains = words.map(|domain| domain.trim_end_matches('.').to_ascii_lowercase());
                    conf.search = domains
                        .filter(|domain| !domain.is_empty())
                        .take(MOST_SEARCH_DOMAINS)
                        .map(Arc::from)
                        .collect();
                }
                Some("options") => words.for_each(|option| conf.option(option)),
                _ => {}
            }
        }
        conf
    }

    fn option(&mut self, option: &str) {
        let Some((name, value)) = option.split_once(':') else { return };
        let Ok(value) = value.parse::<u8>() else { return };
        match name {
            // The bounds are the C library's.
            "timeout" => self.timeout = Duration::from_secs(u64::from(value.clamp(1, 30))),
            "attempts" => self.attempts = u32::from(value.clamp(1, 5)),
            "ndots" => self.ndots = usize::from(value.min(15)),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_search_domains_and_options_are_read_and_the_rest_is_passed_over() {
        let conf = ResolvConf::parse(
            b"# made by hand\n\nnameserver 10.96.0.10\nnameserver fd00::a ; the other\nnameserver nowhere\n\
              domain old.example\nsearch Ns.svc.cluster.local. svc.cluster.local\noptions ndots:5 timeout:2 edns0 \
              attempts:99 use-vc\nsortlist 1.2.3.4\n\xff\xfe\n",
        );
        let servers: [SocketAddr; 2] = ["10.96.0.10:53".parse().unwrap(), "[fd00::a]:53".parse().unwrap()];
        assert_eq!(conf.servers, servers);
        assert_eq!(&*conf.search, ["ns.svc.cluster.local".into(), "svc.cluster.local".into()]);
        assert_eq!((conf.ndots, conf.attempts, conf.timeout), (5, 5, Duration::from_secs(2)));
    }

    #[test]
    fn an_empty_file_names_nobody() {
        assert_eq!(ResolvConf::parse(b""), ResolvConf::default());
        assert!(ResolvConf::parse(b"").servers.is_empty());
    }
}
