//! The web server that runs in the servers' pods.

use std::convert::Infallible;
use std::net::SocketAddr;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// The longest request body that is sent back.
const LONGEST: usize = 1 << 20;

/// Serves one connection. Every answer's first line is what [`Greeting`] reads; the request's body follows, if any.
pub(crate) async fn serve(name: &str, node: &str, stream: TcpStream, peer: SocketAddr) -> lab::Result<()> {
    let greeting = Greeting { server: name.to_owned(), node: node.to_owned(), peer: peer.ip().to_string() };
    let service = service_fn(|request| answer(&greeting, request));
    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await?;
    Ok(())
}

async fn answer(
    greeting: &Greeting,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let body = Limited::new(request.into_body(), LONGEST).collect().await;
    Ok(match body {
        Ok(body) => {
            let mut text = greeting.to_line().into_bytes();
            text.extend(body.to_bytes());
            Response::new(text.into())
        }
        Err(error) => {
            let mut refusal = Response::new(format!("{error}\n").into());
            *refusal.status_mut() = StatusCode::BAD_REQUEST;
            refusal
        }
    })
}

/// Who answers whom: `server-1 on node-2 answers 10.1.0.1`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Greeting {
    /// The pod that answers.
    pub(crate) server: String,
    /// The node it is on.
    pub(crate) node: String,
    /// The address it was called from, as it sees it.
    pub(crate) peer: String,
}

impl Greeting {
    fn to_line(&self) -> String {
        format!("{} on {} answers {}\n", self.server, self.node, self.peer)
    }

    /// Reads the first line of an answer.
    pub(crate) fn read(body: &str) -> Option<Self> {
        match body.lines().next()?.split(' ').collect::<Vec<_>>()[..] {
            [server, "on", node, "answers", peer] => {
                Some(Self { server: server.to_owned(), node: node.to_owned(), peer: peer.to_owned() })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greeting_is_read_as_it_was_written() {
        let greeting =
            Greeting { server: "server-1".into(), node: "node-2".into(), peer: "fd10:0:0:1::1".into() };
        assert_eq!(Greeting::read(&format!("{}and more", greeting.to_line())), Some(greeting));
        assert_eq!(Greeting::read("<html>"), None);
        assert_eq!(Greeting::read(""), None);
    }
}
