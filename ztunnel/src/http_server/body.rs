//! Answers: short ones at hand, long ones produced while they are sent.

use std::fmt;
use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use hyper::body::{Bytes, Frame, SizeHint};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// The body of an answer.
///
/// A long one is produced on a thread of its own, so that neither producing nor sending it keeps the control thread from
/// its work, and only as fast as the client reads: a few chunks exist at any time, however long the whole is. When the
/// client goes away, the producer's next write fails.
#[derive(Debug)]
pub struct Body(State);

/// Where a producer writes. Fails when nobody reads any more, and then the producer should return.
#[derive(Debug)]
pub struct ChunkSink {
    buffer: Vec<u8>,
    chunks: mpsc::Sender<Bytes>,
}

/// The producer failed, so the connection ends in the middle of the body instead of pretending that this was all.
#[derive(Debug, thiserror::Error)]
#[error("the answer could not be completed")]
pub struct Interrupted(#[source] io::Error);

/// Bytes handed over at once.
const CHUNK: usize = 64 * 1024;

/// Chunks that wait for the connection to take them.
const WAITING_CHUNKS: usize = 2;

type Produce = Box<dyn FnOnce(&mut ChunkSink) -> io::Result<()> + Send>;

enum State {
    Whole(Bytes),
    /// Nobody has asked for it yet, and for HEAD nobody will.
    NotStarted(Produce),
    Running {
        chunks: mpsc::Receiver<Bytes>,
        producer: JoinHandle<io::Result<()>>,
    },
    Ended,
}

impl Body {
    /// No body.
    pub fn empty() -> Self {
        Self(State::Whole(Bytes::new()))
    }

    /// A body made by `produce`, which may block. It runs when the body is sent, and never for HEAD.
    pub fn produced(produce: impl FnOnce(&mut ChunkSink) -> io::Result<()> + Send + 'static) -> Self {
        Self(State::NotStarted(Box::new(produce)))
    }
}

impl<T: Into<Bytes>> From<T> for Body {
    fn from(whole: T) -> Self {
        Self(State::Whole(whole.into()))
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Interrupted;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Interrupted>>> {
        if let State::NotStarted(_) = self.0
            && let State::NotStarted(produce) = std::mem::replace(&mut self.0, State::Ended)
        {
            self.0 = start(produce);
        }
        let ended = match &mut self.0 {
            State::Whole(bytes) => {
                let bytes = std::mem::take(bytes);
                self.0 = State::Ended;
                return Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))));
            }
            State::Running { chunks, producer } => {
                if let Some(chunk) = ready!(chunks.poll_recv(context)) {
                    return Poll::Ready(Some(Ok(Frame::data(chunk))));
                }
                ready!(Pin::new(producer).poll(context)).map_err(io::Error::other).flatten()
            }
            State::NotStarted(_) | State::Ended => return Poll::Ready(None),
        };
        self.0 = State::Ended;
        Poll::Ready(ended.err().map(|error| Err(Interrupted(error))))
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            State::Whole(bytes) => bytes.is_empty(),
            State::Ended => true,
            State::NotStarted(_) | State::Running { .. } => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            State::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            State::NotStarted(_) | State::Running { .. } => SizeHint::default(),
            State::Ended => SizeHint::with_exact(0),
        }
    }
}

fn start(produce: Produce) -> State {
    let (sender, chunks) = mpsc::channel(WAITING_CHUNKS);
    // Ends by itself once `chunks` is dropped, so nobody has to wait for it.
    let producer = tokio::task::spawn_blocking(move || {
        let mut sink = ChunkSink { buffer: Vec::with_capacity(CHUNK), chunks: sender };
        produce(&mut sink)?;
        sink.hand_over()
    });
    State::Running { chunks, producer }
}

impl ChunkSink {
    fn hand_over(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::replace(&mut self.buffer, Vec::with_capacity(CHUNK));
        self.chunks.blocking_send(chunk.into()).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl io::Write for ChunkSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.buffer.len() == CHUNK {
            self.hand_over()?;
        }
        let taken = bytes.len().min(CHUNK - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    /// Does nothing: what is left is sent when the producer returns.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl fmt::Write for ChunkSink {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        io::Write::write_all(self, text.as_bytes()).map_err(|_| fmt::Error)
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Whole(_) => "Whole",
            Self::NotStarted(_) => "NotStarted",
            Self::Running { .. } => "Running",
            Self::Ended => "Ended",
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use http_body_util::BodyExt as _;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    async fn collected(body: Body) -> Result<Vec<u8>, Interrupted> {
        let collected = tokio::time::timeout(LONG, body.collect()).await.unwrap()?;
        Ok(collected.to_bytes().to_vec())
    }

    #[tokio::test]
    async fn everything_that_was_written_arrives_in_order() {
        for length in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK] {
            let expected: Vec<u8> = (0..=250).cycle().take(length).collect();
            let written = expected.clone();
            let body =
                Body::produced(move |sink| written.chunks(1000).try_for_each(|piece| sink.write_all(piece)));
            assert!(collected(body).await.unwrap() == expected, "{length} bytes");
        }
    }

    #[tokio::test]
    async fn a_body_whose_producer_fails_or_panics_does_not_end_as_if_complete() {
        let fails = Body::produced(|sink| {
            sink.write_all(b"half")?;
            Err(io::ErrorKind::InvalidData.into())
        });
        let Interrupted(cause) = collected(fails).await.unwrap_err();
        assert_eq!(cause.kind(), io::ErrorKind::InvalidData);
        let panics = Body::produced(|_| panic!("as the test wants"));
        assert!(collected(panics).await.is_err());
    }

    #[tokio::test]
    async fn a_producer_is_not_ahead_of_its_reader_and_ends_with_it() {
        let (ended, end) = tokio::sync::oneshot::channel();
        let mut body = Body::produced(move |sink| {
            let mut written = 0;
            let error = loop {
                match sink.write_all(&[0; CHUNK]) {
                    Ok(()) => written += 1,
                    Err(error) => break error,
                }
            };
            ended.send(written).unwrap();
            Err(error)
        });
        body.frame().await.unwrap().unwrap();
        drop(body);
        let written = tokio::time::timeout(LONG, end).await.unwrap().unwrap();
        // One was read, some wait, one is in the producer's hands.
        assert!(written <= 1 + WAITING_CHUNKS + 2, "{written}");
    }

    #[tokio::test]
    async fn a_body_that_nobody_asks_for_is_not_produced() {
        let ran = Arc::new(AtomicBool::new(false));
        let seen = ran.clone();
        drop(Body::produced(move |_| {
            seen.store(true, Ordering::Relaxed);
            Ok(())
        }));
        // Were it running, it would be before this one.
        tokio::task::spawn_blocking(|| ()).await.unwrap();
        assert!(!ran.load(Ordering::Relaxed));
    }
}
