//! Ending a connection from outside its task.

use std::cell::{OnceCell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use super::authorize::Denied;
use super::error::ConnectionError;

/// Why a connection is ended that both its ends could go on with.
#[derive(Clone, Debug)]
pub(crate) enum CutReason {
    /// The process or the pod ends.
    Drained,
    /// The peer's certificate was revoked.
    Revoked,
    /// Policies, or what they apply to, have changed since it was let in.
    Denied(Denied),
}

impl From<CutReason> for ConnectionError {
    fn from(reason: CutReason) -> Self {
        match reason {
            CutReason::Drained => Self::Drained,
            CutReason::Revoked => Self::Revoked,
            CutReason::Denied(denied) => Self::Denied(denied),
        }
    }
}

/// By which one connection is cut: its task waits for it, and anybody on the same thread may pull it.
#[derive(Debug, Default)]
pub(crate) struct Cutter {
    /// Boxed, since most connections never have one.
    reason: OnceCell<Box<CutReason>>,
    /// The task that waits. There is one.
    task: RefCell<Option<Waker>>,
}

impl Cutter {
    /// Has the connection end. The first reason counts.
    pub(crate) fn cut(&self, reason: CutReason) {
        if self.reason.set(Box::new(reason)).is_ok()
            && let Some(task) = self.task.take()
        {
            task.wake();
        }
    }

    /// Why the connection is to end, once it is.
    pub(crate) fn reason(&self) -> Option<&CutReason> {
        self.reason.get().map(Box::as_ref)
    }

    /// Ready once the connection is to end. Polled again and again it costs a comparison.
    pub(super) fn poll(&self, context: &mut Context<'_>) -> Poll<()> {
        if self.reason.get().is_some() {
            return Poll::Ready(());
        }
        let mut task = self.task.borrow_mut();
        if !task.as_ref().is_some_and(|task| task.will_wake(context.waker())) {
            *task = Some(context.waker().clone());
        }
        Poll::Pending
    }

    /// What `work` comes to, unless the connection is cut first; `work` is dropped then.
    pub(crate) async fn unless_cut<T>(
        &self,
        work: impl Future<Output = Result<T, ConnectionError>>,
    ) -> Result<T, ConnectionError> {
        let mut work = pin!(work);
        poll_fn(|context| match self.poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(self.reason().cloned().unwrap_or(CutReason::Drained).into())),
            Poll::Pending => work.as_mut().poll(context),
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use tokio::task::LocalSet;

    use super::*;

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(LocalSet::new().run_until(test));
    }

    #[test]
    fn the_first_reason_ends_what_waits_and_the_others_do_not_count() {
        run(async {
            let cutter = Rc::new(Cutter::default());
            let waiting = tokio::task::spawn_local({
                let cutter = cutter.clone();
                async move { cutter.unless_cut(std::future::pending::<Result<(), _>>()).await }
            });
            tokio::task::yield_now().await;
            assert!(!waiting.is_finished());
            cutter.cut(CutReason::Revoked);
            cutter.cut(CutReason::Drained);
            assert!(matches!(waiting.await, Ok(Err(ConnectionError::Revoked))));
            assert!(matches!(cutter.reason(), Some(CutReason::Revoked)));
        });
    }

    #[test]
    fn work_that_ends_first_is_not_cut_and_none_begins_after_a_cut() {
        run(async {
            let cutter = Cutter::default();
            assert!(matches!(cutter.unless_cut(async { Ok(1) }).await, Ok(1)));
            cutter.cut(CutReason::Drained);
            let begun = std::cell::Cell::new(false);
            let work = async {
                begun.set(true);
                Ok(())
            };
            assert!(matches!(cutter.unless_cut(work).await, Err(ConnectionError::Drained)));
            assert!(!begun.get());
        });
    }
}
