//! Where a server is.

use std::fmt;
use std::str::FromStr;

use http::Uri;
use http::uri::Authority;
use rustls_pki_types::ServerName;
use thiserror::Error;

/// The port of `https` (RFC 9110 section 4.2.2).
const HTTPS_PORT: u16 = 443;

/// An `https` address: host and port, nothing else.
///
/// Read from text (`FromStr`) such as `https://istiod.istio-system.svc:15012` or the same without the scheme.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Endpoint {
    authority: Authority,
    name: ServerName<'static>,
}

/// The text is not an address that can be connected to. The operator's fault.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum EndpointError {
    /// Not a URI.
    #[error("not a URI with a host")]
    Syntax,
    /// A scheme other than `https`: the control plane is never spoken to without TLS.
    #[error("the scheme is {0}, and only https is spoken")]
    Scheme(String),
    /// Neither a DNS name nor an IP address.
    #[error("the host is neither a DNS name nor an IP address")]
    Host,
    /// A user, path or query.
    #[error("there is more than a host and a port")]
    Surplus,
}

impl Endpoint {
    /// Host and port as written: the `:authority` of calls.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The host, for lookups; an IPv6 address without brackets.
    pub fn host(&self) -> &str {
        bare_host(&self.authority)
    }

    /// The port; 443 when none is written.
    pub fn port(&self) -> u16 {
        self.authority.port_u16().unwrap_or(HTTPS_PORT)
    }

    /// The host as TLS takes it: the name to announce (unless it is an IP address) and to verify.
    pub fn name(&self) -> &ServerName<'static> {
        &self.name
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let text = text.trim();
        let uri: Uri = match text.contains("://") {
            true => text.parse(),
            false => format!("https://{text}").parse(),
        }
        .map_err(|_| EndpointError::Syntax)?;
        match uri.scheme_str() {
            Some("https") => {}
            scheme => return Err(EndpointError::Scheme(scheme.unwrap_or_default().to_owned())),
        }
        let authority = uri.authority().ok_or(EndpointError::Syntax)?.clone();
        let surplus = authority.as_str().contains('@') || !matches!(uri.path(), "" | "/");
        if surplus || uri.query().is_some() {
            return Err(EndpointError::Surplus);
        }
        let name = ServerName::try_from(bare_host(&authority).to_owned());
        // A port that is no number, or none after the colon, must not turn into 443.
        if authority.as_str() != authority.host() && authority.port_u16().is_none() {
            return Err(EndpointError::Syntax);
        }
        Ok(Self { name: name.map_err(|_| EndpointError::Host)?, authority })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "https://{}", self.authority)
    }
}

fn bare_host(authority: &Authority) -> &str {
    let host = authority.host();
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scheme_may_be_left_out() {
        for text in ["istiod.istio-system.svc:15012", "https://istiod.istio-system.svc:15012/"] {
            let endpoint: Endpoint = text.parse().unwrap();
            assert_eq!(endpoint.to_string(), "https://istiod.istio-system.svc:15012");
            assert_eq!((endpoint.host(), endpoint.port()), ("istiod.istio-system.svc", 15012));
        }
        assert_eq!("istiod".parse::<Endpoint>().unwrap().port(), 443);
    }

    #[test]
    fn an_ipv6_address_is_looked_up_and_verified_without_brackets() {
        let endpoint: Endpoint = "[::1]:15012".parse().unwrap();
        assert_eq!((endpoint.host(), endpoint.port()), ("::1", 15012));
        assert!(matches!(endpoint.name(), ServerName::IpAddress(_)));
        assert_eq!(endpoint.authority().as_str(), "[::1]:15012");
    }

    #[test]
    fn only_an_https_host_and_port_is_an_endpoint() {
        let error = |text: &str| text.parse::<Endpoint>().unwrap_err();
        assert_eq!(error("http://istiod:15010"), EndpointError::Scheme("http".to_owned()));
        assert_eq!(error("unix:///var/run/istiod"), EndpointError::Syntax);
        assert_eq!(error("https://user@istiod:15012"), EndpointError::Surplus);
        assert_eq!(error("istiod:15012/path"), EndpointError::Surplus);
        assert_eq!(error("istiod:15012?query"), EndpointError::Surplus);
        assert_eq!(error("not_a host"), EndpointError::Syntax);
        assert_eq!(error("istiod:99999"), EndpointError::Syntax);
        assert_eq!(error(""), EndpointError::Syntax);
        assert_eq!(error("-wrong-:1"), EndpointError::Host);
    }
}
