//! What we say of ourselves: a token, the cluster, and whatever the operator adds.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use thiserror::Error;
use tonic::metadata::MetadataMap;

use super::files::{blocking, read_bounded};

/// Names the cluster that a token is of.
const CLUSTER_ID: HeaderName = HeaderName::from_static("clusterid");

/// What goes along with every call.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// Where the bearer token comes from.
    pub token: TokenSource,
    /// Value of `clusterid`, which goes with the token.
    pub cluster_id: HeaderValue,
    /// More headers. One with the name of a header above gives way to it.
    pub headers: Vec<ExtraHeader>,
}

/// Where the bearer token comes from.
#[derive(Clone, Debug)]
pub enum TokenSource {
    /// A file, read for every call, as tokens are replaced before they expire.
    File(PathBuf),
    /// The token itself.
    Literal(Token),
    /// There is none: calls carry neither `authorization` nor `clusterid`.
    None,
}

/// A bearer token. It goes into a header and nowhere else: it cannot be printed or compared.
#[derive(Clone)]
pub struct Token(HeaderValue);

/// There is no token to send. Ours or the operator's fault.
#[derive(Debug, Error)]
pub enum TokenError {
    /// The file cannot be read.
    #[error("cannot read the token in {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Nothing but spaces.
    #[error("the token is empty")]
    Empty,
    /// It holds characters that no header can carry.
    #[error("the token holds characters that cannot be sent")]
    Characters,
}

/// A header that the operator adds to calls. Its value is not printed: it may be a secret.
#[derive(Clone)]
pub struct ExtraHeader {
    name: HeaderName,
    value: HeaderValue,
}

/// A header that cannot be sent. The operator's fault.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum HeaderError {
    /// RFC 9110 section 5.1.
    #[error("not a header name")]
    Name,
    /// The gRPC protocol reserves names that end so for values in base64.
    #[error("a name that ends in -bin is for binary values")]
    Binary,
    /// Anything but printable ASCII.
    #[error("the value is not printable ASCII")]
    Value,
}

impl Credentials {
    /// The headers of one call. A token file is read now; blocks no other task.
    pub(super) async fn metadata(&self) -> Result<MetadataMap, TokenError> {
        let token = match &self.token {
            TokenSource::None => None,
            TokenSource::Literal(token) => Some(token.clone()),
            TokenSource::File(path) => Some(Token::read(path).await?),
        };
        let mut headers = HeaderMap::new();
        for extra in &self.headers {
            headers.insert(extra.name.clone(), extra.value.clone());
        }
        if let Some(Token(bearer)) = token {
            headers.insert(AUTHORIZATION, bearer);
            headers.insert(CLUSTER_ID, self.cluster_id.clone());
        }
        Ok(MetadataMap::from_headers(headers))
    }
}

impl TokenSource {
    /// What a setting's text means: the path of an existing file, else the token itself.
    pub fn parse(text: &str, exists: impl FnOnce(&Path) -> bool) -> Result<Self, TokenError> {
        match exists(Path::new(text)) {
            true => Ok(Self::File(text.into())),
            false => Token::new(text).map(Self::Literal),
        }
    }
}

impl Token {
    /// Spaces and line ends around the token are not part of it.
    pub fn new(text: &str) -> Result<Self, TokenError> {
        let token = text.trim();
        if token.is_empty() {
            return Err(TokenError::Empty);
        }
        let mut bearer = ascii(&format!("Bearer {token}")).ok_or(TokenError::Characters)?;
        // Keeps it out of Debug output and out of the peer's compression table (RFC 7541 section 7.1.3).
        bearer.set_sensitive(true);
        Ok(Self(bearer))
    }

    async fn read(path: &Path) -> Result<Self, TokenError> {
        let content = blocking({
            let path = path.to_owned();
            move || read_bounded(&path)
        });
        let content = content.await.map_err(|source| TokenError::File { path: path.to_owned(), source })?;
        Self::new(str::from_utf8(&content).map_err(|_| TokenError::Characters)?)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Token(..)")
    }
}

impl ExtraHeader {
    /// A header; the name is put into lower case, as HTTP/2 has it.
    pub fn new(name: &str, value: &str) -> Result<Self, HeaderError> {
        let name: HeaderName = name.to_ascii_lowercase().parse().map_err(|_| HeaderError::Name)?;
        if name.as_str().ends_with("-bin") {
            return Err(HeaderError::Binary);
        }
        let mut value = ascii(value).ok_or(HeaderError::Value)?;
        value.set_sensitive(true);
        Ok(Self { name, value })
    }

    /// The name, in lower case.
    pub fn name(&self) -> &str {
        self.name.as_str()
    }
}

impl fmt::Debug for ExtraHeader {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: ..", self.name)
    }
}

/// A header value of printable ASCII, as gRPC wants metadata to be.
pub(crate) fn ascii(text: &str) -> Option<HeaderValue> {
    let printable = |byte: u8| (b' '..=b'~').contains(&byte);
    text.bytes().all(printable).then(|| HeaderValue::from_str(text).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials(token: TokenSource, headers: &[(&str, &str)]) -> Credentials {
        let headers = headers.iter().map(|(name, value)| ExtraHeader::new(name, value).unwrap()).collect();
        Credentials { token, cluster_id: HeaderValue::from_static("west"), headers }
    }

    async fn sent(credentials: &Credentials) -> Result<Vec<String>, TokenError> {
        let headers = credentials.metadata().await?.into_headers();
        let mut lines: Vec<_> =
            headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        lines.sort();
        Ok(lines)
    }

    #[tokio::test]
    async fn the_token_wins_over_a_header_of_the_same_name() {
        let token = TokenSource::Literal(Token::new("real").unwrap());
        let credentials =
            credentials(token, &[("Authorization", "Basic x"), ("ClusterId", "y"), ("X_A", "b")]);
        let lines = sent(&credentials).await.unwrap();
        assert_eq!(lines, ["authorization: Bearer real", "clusterid: west", "x_a: b"]);
    }

    #[tokio::test]
    async fn without_a_token_neither_the_token_nor_the_cluster_is_sent() {
        let nothing = credentials(TokenSource::None, &[]);
        assert_eq!(sent(&nothing).await.unwrap(), Vec::<String>::new());
        let own = credentials(TokenSource::None, &[("AUTHORIZATION", "Basic x")]);
        assert_eq!(sent(&own).await.unwrap(), ["authorization: Basic x"]);
    }

    #[tokio::test]
    async fn a_token_file_is_read_for_every_call_without_its_line_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        let credentials = credentials(TokenSource::File(path.clone()), &[]);
        assert!(matches!(sent(&credentials).await, Err(TokenError::File { .. })));
        std::fs::write(&path, "first\n").unwrap();
        assert_eq!(sent(&credentials).await.unwrap()[0], "authorization: Bearer first");
        std::fs::write(&path, "\tsecond\r\n").unwrap();
        assert_eq!(sent(&credentials).await.unwrap()[0], "authorization: Bearer second");
        std::fs::write(&path, " \n").unwrap();
        assert!(matches!(sent(&credentials).await, Err(TokenError::Empty)));
        std::fs::write(&path, "two\nlines").unwrap();
        assert!(matches!(sent(&credentials).await, Err(TokenError::Characters)));
    }

    #[tokio::test]
    async fn nothing_prints_a_secret() {
        let token = TokenSource::Literal(Token::new("s3cret").unwrap());
        let credentials = credentials(token, &[("x-key", "s3cret")]);
        let metadata = credentials.metadata().await.unwrap();
        let printed = format!("{credentials:?} {metadata:?}");
        assert!(printed.contains("x-key") && !printed.contains("s3cret"), "{printed}");
    }

    #[test]
    fn headers_that_cannot_be_sent_are_refused() {
        let error = |name, value| ExtraHeader::new(name, value).unwrap_err();
        assert_eq!(error("a b", ""), HeaderError::Name);
        assert_eq!(error("", ""), HeaderError::Name);
        assert_eq!(error("X-BIN", ""), HeaderError::Binary);
        assert_eq!(error("x", "line\nbreak"), HeaderError::Value);
        assert_eq!(error("x", "é"), HeaderError::Value);
    }

    #[test]
    fn a_token_is_a_file_if_one_exists() {
        assert!(matches!(TokenSource::parse("/token", |_| true), Ok(TokenSource::File(_))));
        assert!(matches!(TokenSource::parse("/token", |_| false), Ok(TokenSource::Literal(_))));
        assert!(matches!(TokenSource::parse("", |_| false), Err(TokenError::Empty)));
    }
}
