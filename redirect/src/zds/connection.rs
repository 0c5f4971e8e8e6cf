//! The proxy's end of the connection.

use std::path::Path;

use super::session::{Request, Session, ZdsError};
use super::transport::SeqPacket;
use super::wire::{encode_hello, encode_response};

/// A connection with the node agent: dial, announce, then a request and its answer by turns until the end.
///
/// ```no_run
/// # use redirect::zds::{Connection, Request, ZdsError};
/// # async fn serve(_: Request) -> Result<(), String> { Ok(()) }
/// # async fn example() -> Result<(), ZdsError> {
/// let mut agent = Connection::dial("/var/run/ztunnel/ztunnel.sock").await?;
/// agent.announce().await?;
/// while let Some(request) = agent.next_request().await? {
///     let outcome = serve(request).await;
///     agent.respond(outcome.as_ref().map(|()| ()).map_err(String::as_str)).await?;
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Connection {
    packets: SeqPacket,
    session: Session,
}

impl Connection {
    /// Connects to the agent's socket. Wait by [`super::Backoff`] after a failure.
    pub async fn dial(path: impl AsRef<Path>) -> Result<Connection, ZdsError> {
        let path = path.as_ref();
        let packets = SeqPacket::dial(path);
        let packets = packets.map_err(|source| ZdsError::Dial { path: path.to_owned(), source })?;
        Ok(Connection { packets, session: Session::Snapshot })
    }

    /// Sends the hello, upon which the agent begins with its snapshot.
    pub async fn announce(&mut self) -> Result<(), ZdsError> {
        self.packets.send(&encode_hello(), None).await.map_err(ZdsError::Send)
    }

    /// Waits for the agent's next request; `None` when it has closed the connection, which calls for dialling again.
    ///
    /// An error about what the agent sent is owed an answer like a request; [`ZdsError::recovery`] tells what next.
    ///
    /// Cancel safe: dropping the future before it is ready loses no request.
    pub async fn next_request(&mut self) -> Result<Option<Request>, ZdsError> {
        let packet = self.packets.receive().await.map_err(ZdsError::Receive)?;
        self.session.receive(packet)
    }

    /// Answers the last request. An error text is cut to what fits a packet.
    ///
    /// Dropping the future may leave the request unanswered; the connection is of no use then.
    pub async fn respond(&mut self, outcome: Result<(), &str>) -> Result<(), ZdsError> {
        self.packets.send(&encode_response(outcome), None).await.map_err(ZdsError::Send)
    }
}
