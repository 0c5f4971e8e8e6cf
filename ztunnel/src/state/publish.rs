//! The current view of the mesh, shared by all threads.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio::time::timeout;

use super::mesh::Mesh;
use super::model::Workload;

/// Publishes one [`Mesh`] after another.
///
/// Readers take the current view and keep it as long as they like; they never wait for a writer. Writers wait for one
/// another. Everything that one [`MeshState::update`] changes becomes visible at once.
#[derive(Debug)]
pub struct MeshState {
    current: ArcSwap<Mesh>,
    /// Held while a successor of `current` is made.
    writing: Mutex<()>,
    changed: watch::Sender<()>,
}

impl MeshState {
    /// Begins with `mesh`.
    pub fn new(mesh: Mesh) -> Self {
        Self {
            current: ArcSwap::from_pointee(mesh),
            writing: Mutex::new(()),
            changed: watch::Sender::new(()),
        }
    }

    /// The current view. Cheap; take one per decision, so that the decision rests on one moment.
    pub fn load(&self) -> Arc<Mesh> {
        self.current.load_full()
    }

    /// Begins a successor of the current view, to be changed bit by bit and then published. There may be one at a time:
    /// what others publish meanwhile is lost with it.
    pub(crate) fn draft(&self) -> Mesh {
        Mesh::clone(&self.current.load())
    }

    /// Makes `next` the current view, then wakes everybody who watches.
    pub(crate) fn publish(&self, next: Mesh) {
        self.current.store(Arc::new(next));
        self.changed.send_replace(());
    }

    /// Changes the mesh and publishes the result, then wakes everybody who watches.
    ///
    /// Cost: proportional to the number of changed resources, not to the size of the mesh. If `change` panics, nothing
    /// is published.
    pub fn update<R>(&self, change: impl FnOnce(&mut Mesh) -> R) -> R {
        // The lock protects no data, so a writer that panicked left nothing behind.
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = self.draft();
        let result = change(&mut next);
        self.publish(next);
        result
    }

    /// Reports every change from now on; changes that follow quickly upon each other may be reported as one.
    pub fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// This node's workload with exactly these names, as soon as it is known; None if it is not within `patience`.
    ///
    /// A pod can be enrolled before the control plane has described it. Dropping the future leaves nothing behind.
    pub async fn wait_for_workload(
        &self,
        name: &str,
        namespace: &str,
        service_account: &str,
        patience: Duration,
    ) -> Option<Arc<Workload>> {
        let find = || self.load().local_workload(name, namespace, service_account).cloned();
        if let Some(workload) = find() {
            return Some(workload);
        }
        let mut changes = self.subscribe();
        let found = async {
            loop {
                // Subscribed before looking, so no change falls in between.
                if let Some(workload) = find() {
                    return Some(workload);
                }
                changes.changed().await.ok()?;
            }
        };
        timeout(patience, found).await.ok().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    fn workload(name: &str) -> Arc<Workload> {
        Arc::new(Workload {
            uid: format!("c//Pod/ns/{name}").into(),
            name: name.into(),
            namespace: "ns".into(),
            service_account: "sa".into(),
            node: "here".into(),
            ..Workload::default()
        })
    }

    fn state() -> Arc<MeshState> {
        Arc::new(MeshState::new(Mesh::new(Some("here".into()))))
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
    }

    #[test]
    fn a_known_workload_is_returned_without_waiting() {
        let state = state();
        state.update(|mesh| mesh.upsert_workload(workload("a")));
        let found = runtime().block_on(state.wait_for_workload("a", "ns", "sa", Duration::ZERO));
        assert_eq!(found.unwrap().uid, workload("a").uid);
    }

    #[test]
    fn an_absent_workload_is_none_at_the_deadline() {
        let state = state();
        let found = runtime().block_on(state.wait_for_workload("a", "ns", "sa", Duration::from_millis(5)));
        assert!(found.is_none());
    }

    #[test]
    fn a_workload_that_arrives_after_an_unrelated_one_is_returned() {
        let state = state();
        let found = runtime().block_on(async {
            let insert = async {
                state.update(|mesh| mesh.upsert_workload(workload("other")));
                tokio::task::yield_now().await;
                state.update(|mesh| mesh.upsert_workload(workload("a")));
            };
            tokio::join!(state.wait_for_workload("a", "ns", "sa", LONG), insert).0
        });
        assert_eq!(found.unwrap().name, workload("a").name);
    }

    #[test]
    fn a_workload_of_another_node_is_never_ours() {
        let state = state();
        let elsewhere = Workload { node: "elsewhere".into(), ..Workload::clone(&workload("a")) };
        state.update(|mesh| mesh.upsert_workload(Arc::new(elsewhere)));
        assert!(state.load().local_workload("a", "ns", "sa").is_none());
        assert!(!state.load().has_local_account("ns", "sa"));
        assert!(state.load().workload("c//Pod/ns/a").is_some());
    }

    #[test]
    fn a_view_taken_before_an_update_does_not_change() {
        let state = state();
        let before = state.load();
        let mut changes = state.subscribe();
        state.update(|mesh| mesh.upsert_workload(workload("a")));
        assert_eq!(before.workload_count(), 0);
        assert_eq!(state.load().workload_count(), 1);
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();
    }
}
