//! Network namespaces as values, and making something inside one.
//!
//! A thread is in one network namespace at a time, and a socket belongs to the one in which it was created. So to
//! own a socket in a pod, a thread enters the pod's namespace, creates the socket and goes home again: two setns(2)
//! calls. [`Netns::run`] is that excursion. Nothing may be awaited on the way, since other tasks of the thread would
//! run abroad; that the closure is synchronous rules it out.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::hash::{Hash, Hasher};
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::fstat;

use crate::sys;

/// An open network namespace: it exists at least as long as this value or a clone of it.
///
/// Equality is the identity of the namespace, not of the descriptor or the path it was opened by.
#[derive(Clone)]
pub struct Netns {
    inner: Arc<Inner>,
}

struct Inner {
    descriptor: OwnedFd,
    id: NetnsId,
}

/// What tells two namespaces apart: device and inode of the nsfs file (namespaces(7)). Unique only among namespaces
/// that are alive; holding a [`Netns`] keeps its number from being given to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NetnsId {
    /// `st_dev`.
    pub device: u64,
    /// `st_ino`: the number in `net:[4026531840]`.
    pub inode: u64,
}

/// Why there is no namespace to be had.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// The path is gone: the process ended or the pod's sandbox was removed.
    #[error("network namespace {} has vanished", path.display())]
    Vanished {
        /// Where it was looked for.
        path: PathBuf,
        /// What opening it said.
        source: io::Error,
    },
    /// The path exists but cannot be opened.
    #[error("cannot open network namespace {}", path.display())]
    Open {
        /// Where it was looked for.
        path: PathBuf,
        /// What opening it said.
        source: io::Error,
    },
    /// A descriptor of something else: another kind of namespace, a pidfd, a plain file.
    #[error("the descriptor does not refer to a network namespace")]
    NotANetworkNamespace,
    /// The descriptor cannot be examined.
    #[error("cannot examine a namespace descriptor")]
    Examine(#[source] io::Error),
    /// No new namespace could be made.
    #[error("cannot create a network namespace")]
    Create(#[source] io::Error),
}

/// The most addresses that [`Netns::addresses`] returns. Pods have a few; one with more than this gave them to itself.
pub const MOST_ADDRESSES: usize = 64;

impl Netns {
    /// Opens the namespace at `path`: a bind mount such as `/var/run/netns/x`, or `/proc/<pid>/ns/net`.
    pub fn open(path: impl AsRef<Path>) -> Result<Netns, NetnsError> {
        let path = path.as_ref();
        let file = File::open(path).map_err(|source| match source.raw_os_error() {
            // ESRCH is what the links of a process say that has ended in between.
            Some(libc::ENOENT | libc::ESRCH) => NetnsError::Vanished { path: path.to_owned(), source },
            _ => NetnsError::Open { path: path.to_owned(), source },
        })?;
        Netns::from_fd(file.into())
    }

    /// Takes over a descriptor received from elsewhere, after checking that it is a network namespace.
    pub fn from_fd(descriptor: OwnedFd) -> Result<Netns, NetnsError> {
        match sys::namespace::kind(descriptor.as_fd()) {
            Ok(libc::CLONE_NEWNET) => {}
            Ok(_) | Err(Errno::ENOTTY) => return Err(NetnsError::NotANetworkNamespace),
            Err(errno) => return Err(NetnsError::Examine(errno.into())),
        }
        let stat = fstat(&descriptor).map_err(|errno| NetnsError::Examine(errno.into()))?;
        let id = NetnsId { device: stat.st_dev, inode: stat.st_ino };
        Ok(Netns { inner: Arc::new(Inner { descriptor, id }) })
    }

    /// The namespace the calling thread is in.
    pub fn current() -> Result<Netns, NetnsError> {
        Netns::open("/proc/thread-self/ns/net")
    }

    /// A new, empty namespace: its loopback interface is down and it has no other. It ends with the last handle,
    /// socket and interface that refer to it. Needs `CAP_SYS_ADMIN`.
    pub fn create() -> Result<Netns, NetnsError> {
        // On a thread of its own, because unshare(2) leaves the calling thread in the new namespace.
        let unshared = std::thread::Builder::new().spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| NetnsError::Create(errno.into()))?;
            Netns::current()
        });
        match unshared.map_err(NetnsError::Create)?.join() {
            Ok(created) => created,
            Err(_) => Err(NetnsError::Create(io::Error::other("the thread creating it panicked"))),
        }
    }

    /// Runs `work` inside the namespace, on the calling thread, and returns to where the thread was. Costs two
    /// system calls; the first time on each thread a few more, to find the way back and make sure of it.
    ///
    /// The thread also returns when `work` panics. Calls may be nested: the inner one returns to the outer
    /// namespace. A thread whose namespace is changed by other means must not use this.
    ///
    /// # Errors
    /// The namespace cannot be entered, or the thread could not return (`EPERM` without `CAP_SYS_ADMIN`); `work` has
    /// then not run.
    ///
    /// # Aborts
    /// The process, if the thread cannot return: every later socket of this thread would belong to somebody else's
    /// pod, and no error handling could tell.
    pub fn run<T>(&self, work: impl FnOnce() -> T) -> io::Result<T> {
        let _visit = Visit::begin(self)?;
        Ok(work())
    }

    /// Whether sockets on `::1` can exist in the namespace: the loopback interface has IPv6. When that cannot be
    /// read (`/proc/sys` not mounted) the answer is yes.
    pub fn loopback_has_ipv6(&self) -> io::Result<bool> {
        // /proc/sys/net shows the namespace of the thread that looks.
        let disabled = self.run(|| std::fs::read("/proc/sys/net/ipv6/conf/lo/disable_ipv6"))?;
        Ok(!disabled.is_ok_and(|value| value.trim_ascii() == b"1"))
    }

    /// The addresses that interfaces in the namespace have at this moment, canonical, each once, in no particular order;
    /// of many, the first [`MOST_ADDRESSES`] that the kernel lists. Left out are loopback and IPv6 link-local ones, which
    /// say nothing about whose namespace it is: every one has them.
    ///
    /// A few system calls that answer at once: some 50 microseconds for a pod. Their work grows with the addresses that
    /// the namespace has, which is up to whoever rules in it: not for a thread that others wait for.
    ///
    /// # Errors
    /// As [`Netns::run`]; or the kernel does not answer, for want of a descriptor or of memory.
    pub fn addresses(&self) -> io::Result<Vec<IpAddr>> {
        let interfaces = self.run(getifaddrs)??;
        let listed = interfaces
            .filter_map(|interface| {
                let address = interface.address?;
                let ipv4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
                ipv4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
            })
            .map(|address| address.to_canonical())
            .filter(|address| match address {
                IpAddr::V4(address) => !address.is_loopback(),
                IpAddr::V6(address) => !address.is_loopback() && !Ipv6Addr::is_unicast_link_local(address),
            });
        let mut addresses = BTreeSet::new();
        for address in listed {
            addresses.insert(address);
            if addresses.len() == MOST_ADDRESSES {
                break;
            }
        }
        Ok(addresses.into_iter().collect())
    }

    /// Has connections that wait on a closing listener taken over by another listener of the same port
    /// (`net.ipv4.tcp_migrate_req`, Linux 5.14, IPv6 too), in this namespace, from now on. Without it the kernel resets
    /// those whose handshake ends while the listener closes.
    ///
    /// # Errors
    /// As [`Netns::run`]; `ReadOnlyFilesystem` or `PermissionDenied` where `/proc/sys` cannot be written, as in most
    /// containers; `NotFound` on an older kernel.
    pub fn migrate_waiting_connections(&self) -> io::Result<()> {
        // /proc/sys/net is that of the namespace of the thread that looks.
        self.run(|| std::fs::write("/proc/sys/net/ipv4/tcp_migrate_req", "1"))?
    }

    /// What tells this namespace from others.
    pub fn id(&self) -> NetnsId {
        self.inner.id
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.descriptor.as_fd()
    }
}

impl PartialEq for Netns {
    fn eq(&self, other: &Netns) -> bool {
        self.inner.id == other.inner.id
    }
}

impl Eq for Netns {}

impl Hash for Netns {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.inner.id.hash(state);
    }
}

impl fmt::Debug for Netns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Netns({self})")
    }
}

/// As the kernel writes it: `net:[4026531840]`.
impl fmt::Display for Netns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "net:[{}]", self.inner.id.inode)
    }
}

thread_local! {
    /// The namespace this thread is in: unknown before its first excursion, from then on kept by [`Visit`]. So the
    /// way home is opened once per thread, not once per socket.
    static HERE: RefCell<Option<Netns>> = const { RefCell::new(None) };
}

/// A stay in another namespace; dropping it brings the thread back.
struct Visit {
    origin: Netns,
}

impl Visit {
    fn begin(destination: &Netns) -> io::Result<Visit> {
        let origin = match HERE.take() {
            Some(here) => here,
            None => {
                let here = Netns::current().map_err(io::Error::other)?;
                // Never leave without knowing that there is a way back: a process in a user namespace of its own may
                // enter what belongs to that, but not the namespace it was started in.
                setns(&here, CloneFlags::CLONE_NEWNET)?;
                here
            }
        };
        let entered = setns(destination, CloneFlags::CLONE_NEWNET);
        if let Err(errno) = entered {
            HERE.set(Some(origin));
            return Err(errno.into());
        }
        HERE.set(Some(destination.clone()));
        Ok(Visit { origin })
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        if let Err(errno) = setns(&self.origin, CloneFlags::CLONE_NEWNET) {
            tracing::error!(%errno, origin = %self.origin, "a thread cannot leave a pod's network namespace: aborting");
            std::process::abort();
        }
        HERE.set(Some(self.origin.clone()));
    }
}
