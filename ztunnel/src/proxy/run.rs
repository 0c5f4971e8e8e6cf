//! Starting and stopping the proxy of one pod, from the control thread.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use redirect::Netns;
use redirect::socket::{
    ConnectOptions, DEFAULT_BACKLOG, ListenError, ListenOptions, Listening, PortSharing, Transparency,
};
use tokio::sync::oneshot;

use super::accept::Listener;
use super::listen::{Binding, listen};
use super::pod::{LocalPod, Pod, Stop};
use crate::config::{Config, SocketConfig, WorkloadName};
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
        let listeners: Vec<_> =
            Listener::ALWAYS.into_iter().chain(sockets.socks5.then_some(Listener::Socks)).collect();
        let listeners = bind_all(&listeners, netns.as_ref(), sockets, &options)?;
        let dns = dns::bind_all(config, netns.as_ref(), &options)?;
        let pod = Pod::new(workload, netns, connect_options(sockets, sockets.mark));
        Ok(Self { pod: Arc::new(pod), listeners, dns })
    }

    /// Binds the listener of the proxy's own pod, in the process's namespace: only for tunnels, since nothing is redirected
    /// there. So what the process serves, such as its metrics, can be reached through the mesh.
    ///
    /// Neither marks nor foreign source addresses: there are no rules there that would know what to do with them.
    pub(crate) fn bind_own(workload: WorkloadName, sockets: &SocketConfig) -> Result<Self, ListenError> {
        let options = Arc::new(ListenOptions {
            mark: None,
            port_sharing: PortSharing::ReuseAddress,
            transparent: Transparency::Off,
            keepalive: sockets.keepalive,
            user_timeout: sockets.user_timeout,
            backlog: DEFAULT_BACKLOG,
        });
        let listeners = bind_all(&[Listener::Tunnel], None, sockets, &options)?;
        let pod = Pod::new(workload, None, connect_options(sockets, None));
        Ok(Self { pod: Arc::new(pod), listeners, dns: Vec::new() })
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

/// The first failure releases those that were bound before.
fn bind_all(
    listeners: &[Listener],
    netns: Option<&Netns>,
    sockets: &SocketConfig,
    options: &Arc<ListenOptions>,
) -> Result<Vec<(Binding, Listening)>, ListenError> {
    let bind = |listener: &Listener| {
        let (address, options) = match listener {
            Listener::Outbound | Listener::Tunnel | Listener::Plaintext => {
                (sockets.families.wildcard(listener.port()), options.clone())
            }
            // The pod's own applications alone, whose going away the kernel tells.
            Listener::Socks => {
                let without = ListenOptions { keepalive: None, user_timeout: None, ..**options };
                ((Ipv4Addr::LOCALHOST, listener.port()).into(), Arc::new(without))
            }
        };
        let binding = Binding { listener: *listener, address, options };
        let listening = binding.bind(netns)?;
        Ok((binding, listening))
    };
    listeners.iter().map(bind).collect()
}

fn connect_options(sockets: &SocketConfig, mark: Option<u32>) -> ConnectOptions {
    ConnectOptions {
        mark,
        keepalive: sockets.keepalive,
        user_timeout: sockets.user_timeout,
        ..ConnectOptions::default()
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
