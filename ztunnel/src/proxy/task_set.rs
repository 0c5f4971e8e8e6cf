//! Tasks of one thread that belong together and end together.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::rc::Rc;

use tokio::sync::Notify;
use tokio::task::AbortHandle;

use crate::worker::Occupied;

/// A set of tasks that remove themselves as they end.
#[derive(Debug, Default)]
pub(super) struct TaskSet {
    next: Cell<u64>,
    tasks: RefCell<HashMap<u64, AbortHandle>>,
    empty: Notify,
    /// Takes no more tasks.
    closed: Cell<bool>,
}

impl TaskSet {
    /// Starts a task, unless the set has been closed. The task is given its place rather than wrapped together with it: a
    /// future inside a future takes its space twice.
    pub(super) fn spawn<F>(self: &Rc<Self>, occupied: Option<Occupied>, task: impl FnOnce(Place) -> F)
    where
        F: Future<Output = ()> + 'static,
    {
        if self.closed.get() {
            return;
        }
        let id = self.next.get();
        self.next.set(id + 1);
        let place = Place { set: self.clone(), id, _occupied: occupied };
        let task = tokio::task::spawn_local(task(place));
        self.tasks.borrow_mut().insert(id, task.abort_handle());
    }

    /// Ends all tasks where they wait, and takes no more. They are gone once [`ended`](Self::ended) resolves.
    pub(super) fn close(&self) {
        self.closed.set(true);
        self.tasks.borrow().values().for_each(AbortHandle::abort);
    }

    /// Resolves when there are no tasks.
    pub(super) async fn ended(&self) {
        while !self.tasks.borrow().is_empty() {
            self.empty.notified().await;
        }
    }
}

/// A task's place in its set, and in its worker's load. Dropped with the task, also when it never ran.
#[derive(Debug)]
pub(crate) struct Place {
    set: Rc<TaskSet>,
    id: u64,
    _occupied: Option<Occupied>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut tasks = self.set.tasks.borrow_mut();
        tasks.remove(&self.id);
        if tasks.is_empty() {
            // Hands its memory back after a burst.
            tasks.shrink_to_fit();
            self.set.empty.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::LocalSet;

    use super::*;

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(LocalSet::new().run_until(test));
    }

    #[test]
    fn a_set_is_empty_once_its_tasks_have_ended() {
        run(async {
            let set = Rc::new(TaskSet::default());
            for _ in 0..3 {
                set.spawn(None, |place| async move {
                    tokio::task::yield_now().await;
                    drop(place);
                });
            }
            set.ended().await;
            assert!(set.tasks.borrow().is_empty());
        });
    }

    #[test]
    fn closing_ends_tasks_that_would_wait_for_ever_and_refuses_others() {
        run(async {
            let set = Rc::new(TaskSet::default());
            let started = Rc::new(Cell::new(0));
            for _ in 0..2 {
                let started = started.clone();
                set.spawn(None, |place| async move {
                    started.set(started.get() + 1);
                    std::future::pending::<()>().await;
                    drop(place);
                });
                tokio::task::yield_now().await;
                set.close();
            }
            set.ended().await;
            assert_eq!(started.get(), 1);
        });
    }
}
