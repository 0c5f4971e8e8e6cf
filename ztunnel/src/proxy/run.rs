//! Starting and stopping the proxy of one pod, from the control thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use redirect::Netns;
use redirect::socket::{ConnectOptions, DEFAULT_BACKLOG, ListenError, ListenOptions, Listening, PortSharing};
use tokio::sync::oneshot;

use super::accept::Listener;
use super::listen::{Binding, listen};
use super::pod::{LocalPod, Pod, Stop};
use crate::config::{Config, WorkloadName};
use crate::dns::{self, DnsHandle, DnsSocket};
use crate::worker::WorkerHandle;

/// The running proxy of one pod. It runs until it is stopped, also when this value is dropped.
#[derive(Debug)]
pub(crate) struct RunningPod {
    pod: Arc<Pod>,
    workers: Arc<[WorkerHandle]>,
    /// The worker that accepts the pod's connections.
    home: usize,
    dns: DnsHandle,
}

/// The sockets of a pod's proxy, bound and not yet served.
#[derive(Debug)]
pub(crate) struct BoundPod {
    pod: Arc<Pod>,
    listeners: Vec<(Binding, Listening)>,
    dns: Vec<DnsSocket>,
}

impl BoundPod {
    /// Binds all listeners of the pod, in its namespace. All or nothing: the first failure releases the others.
    pub(crate) fn bind(
        workload: WorkloadName,
        netns: Option<Netns>,
        config: &Config,
    ) -> Result<Self, ListenError> {
        let sockets = &config.sockets;
        if let (Some(netns), PortSharing::ReusePort) = (&netns, sockets.sharing)
            && let Err(error) = netns.migrate_waiting_connections()
        {
            // Then a few of the connections that arrive just as this proxy hands over to the next one are reset.
            tracing::debug!(%error, "connections in the queue of a closing listener will not be taken over");
        }
        let options = Arc::new(ListenOptions {
            // In a pod of its own namespace, a listener's mark would only confuse the rules of others.
            mark: sockets.mark.filter(|_| netns.is_some()),
            port_sharing: sockets.sharing,
            transparent: sockets.transparency,
            keepalive: sockets.keepalive,
            user_timeout: sockets.user_timeout,
            backlog: DEFAULT_BACKLOG,
        });
        let listeners = Listener::ALL
            .into_iter()
            .map(|listener| {
                let address = sockets.families.wildcard(listener.port());
                let binding = Binding { listener, address, options: options.clone() };
                let listening = binding.bind(netns.as_ref())?;
                Ok((binding, listening))
            })
            .collect::<Result<_, ListenError>>()?;
        let dns = dns::bind_all(config, netns.as_ref(), &options)?;
        let connect = ConnectOptions {
            mark: sockets.mark,
            keepalive: sockets.keepalive,
            user_timeout: sockets.user_timeout,
            ..ConnectOptions::default()
        };
        let pod = Pod::new(workload, netns, connect);
        Ok(Self { pod: Arc::new(pod), listeners, dns })
    }

    /// Whose sockets they are.
    pub(crate) fn pod(&self) -> &Pod {
        &self.pod
    }

    /// Starts to accept connections and to answer DNS queries.
    pub(crate) async fn serve(self, workers: &Arc<[WorkerHandle]>, dns: &DnsHandle) -> RunningPod {
        static NEXT_HOME: AtomicUsize = AtomicUsize::new(0);
        let Self { pod, listeners, dns: sockets } = self;
        // Every worker knows the pod before the first connection can be given to it: queues keep their order.
        for worker in workers.iter() {
            let pod = pod.clone();
            worker.run(move |worker| worker.add_pod(pod.instance, LocalPod::new(worker, pod))).await;
        }
        let home = NEXT_HOME.fetch_add(1, Ordering::Relaxed) % workers.len();
        let instance = pod.instance;
        let accepting = workers[home].run(move |worker| {
            let Some(pod) = worker.pod(instance) else { return };
            for (binding, listening) in listeners {
                pod.spawn_listener(|place| listen(pod.clone(), binding, listening, place));
            }
        });
        accepting.await;
        dns.serve(pod.clone(), sockets).await;
        RunningPod { pod, workers: workers.clone(), home, dns: dns.clone() }
    }
}

impl RunningPod {
    /// Whose proxy it is.
    pub(crate) fn pod(&self) -> &Arc<Pod> {
        &self.pod
    }

    /// Closes the listeners, then ends the connections. Returns when nothing of the pod is left.
    pub(crate) async fn stop(self, stop: Stop) {
        let instance = self.pod.instance;
        let dns = self.dns.stop(instance, stop).await;
        let (closed, listeners) = oneshot::channel();
        let closing = self.workers[self.home].run(move |worker| {
            let Some(pod) = worker.pod(instance) else { return };
            tokio::task::spawn_local(async move {
                pod.close_listeners(stop).await;
                let _ = closed.send(());
            });
        });
        closing.await;
        drop(listeners.await);
        let mut ends = Vec::with_capacity(self.workers.len());
        for worker in self.workers.iter() {
            let (ended, end) = oneshot::channel::<()>();
            let stopping = worker.run(move |worker| {
                let Some(pod) = worker.remove_pod(instance) else { return };
                tokio::task::spawn_local(async move {
                    pod.stop(stop).await;
                    drop(ended);
                });
            });
            stopping.await;
            ends.push(end);
        }
        for end in ends.into_iter().chain([dns]) {
            // Resolves, as an error, when the worker drops its side.
            drop(end.await);
        }
    }
}
