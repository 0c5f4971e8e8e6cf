//! A client for the servers of the process.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::LocalSet;
use tokio::time::timeout;

/// Longer than anything here takes.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// Runs `test` where servers can run, within a bound.
pub(crate) fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(LocalSet::new().run_until(async { timeout(LONG, test).await.unwrap() }))
}

/// Sends one request on a connection of its own and takes the whole answer.
pub(crate) async fn ask(
    server: SocketAddr,
    method: &str,
    target: &str,
    accept: Option<&str>,
) -> Response<Bytes> {
    let stream = TcpStream::connect(server).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let connection = tokio::task::spawn_local(connection);
    let mut request = Request::builder().method(method).uri(target).header("host", "localhost");
    if let Some(accept) = accept {
        request = request.header("accept", accept);
    }
    let response = sender.send_request(request.body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
    let (head, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    connection.abort();
    Response::from_parts(head, body)
}

/// The same with GET, expecting success, as text.
pub(crate) async fn get(server: SocketAddr, target: &str, accept: Option<&str>) -> (String, String) {
    let answer = ask(server, "GET", target, accept).await;
    assert_eq!(answer.status(), 200, "{target}");
    let content_type = answer.headers()["content-type"].to_str().unwrap().to_owned();
    (content_type, String::from_utf8(answer.into_body().to_vec()).unwrap())
}
