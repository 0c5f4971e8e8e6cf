//! A connection that many calls share.

use std::mem;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use tonic::metadata::MetadataMap;

use super::roots::Roots;
use super::{ConnectError, ControlPlane, H2Channel};
use crate::telemetry::with_causes;

/// One connection for all calls to a server: opened by the first, and anew when it closed or when the roots changed.
///
/// Calls under way keep the connection they began on. Calls that come while an attempt is made wait for that attempt and share
/// its outcome, so a server that does not answer fails all of them by one deadline.
#[derive(Clone, Debug)]
pub struct SharedChannel {
    control_plane: ControlPlane,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    open: Option<Open>,
    attempt: Option<Attempt>,
    /// Whether the last reading of the roots failed, so that it is told once.
    unreadable: bool,
}

/// A connection and the roots by which its server was verified.
#[derive(Clone, Debug)]
struct Open {
    channel: H2Channel,
    roots: Roots,
}

type Dial = BoxFuture<'static, Result<H2Channel, Arc<ConnectError>>>;

/// An attempt under way. It ends when nobody waits for it any more.
#[derive(Debug)]
struct Attempt {
    roots: Roots,
    dial: WeakShared<Dial>,
}

impl SharedChannel {
    /// Connects when the first call asks for it.
    pub fn new(control_plane: ControlPlane) -> Self {
        Self { control_plane, state: Arc::default() }
    }

    /// The control plane behind it.
    pub fn control_plane(&self) -> &ControlPlane {
        &self.control_plane
    }

    /// A connection and the metadata for one call on it: the token is read anew, and so are the roots, to compare them.
    ///
    /// Roots that cannot be read, or hold no certificate, as in the middle of their replacement, are an error only when
    /// there is no open connection. Dropping the future abandons the attempt, unless others wait for it.
    pub async fn open(&self) -> Result<(H2Channel, MetadataMap), Arc<ConnectError>> {
        let metadata = self.control_plane.metadata().await?;
        Ok((self.channel().await?, metadata))
    }

    async fn channel(&self) -> Result<H2Channel, Arc<ConnectError>> {
        let roots = self.control_plane.roots().await;
        let roots = match roots.and_then(|roots| match roots.store() {
            Ok(_) => Ok(roots),
            Err(error) => Err(ConnectError::Roots(error)),
        }) {
            Ok(roots) => roots,
            Err(error) => return self.despite(error),
        };
        let dial = match self.begin(&roots) {
            Begun::Open(channel) => return Ok(channel),
            Begun::Dial(dial) => dial,
        };
        let channel = dial.await?;
        self.locked(|state| state.open = Some(Open { channel: channel.clone(), roots }));
        Ok(channel)
    }

    /// The open connection, or an attempt to make one: that under way with the same roots, or a new one.
    fn begin(&self, roots: &Roots) -> Begun {
        self.locked(|state| {
            state.unreadable = false;
            if let Some(open) = &state.open
                && !open.channel.is_closed()
                && open.roots == *roots
            {
                return Begun::Open(open.channel.clone());
            }
            let under_way = state.attempt.as_ref().filter(|attempt| attempt.roots == *roots);
            if let Some(dial) = under_way.and_then(|attempt| attempt.dial.upgrade())
                && dial.peek().is_none()
            {
                return Begun::Dial(dial);
            }
            let dial = self.dial(roots.clone());
            let weak = dial.downgrade();
            state.attempt = weak.map(|dial| Attempt { roots: roots.clone(), dial });
            Begun::Dial(dial)
        })
    }

    fn dial(&self, roots: Roots) -> Shared<Dial> {
        let control_plane = self.control_plane.clone();
        async move { control_plane.connect_trusting(&roots).await.map_err(Arc::new) }.boxed().shared()
    }

    /// The connection made with the roots that were good, if it is open.
    fn despite(&self, error: ConnectError) -> Result<H2Channel, Arc<ConnectError>> {
        let (open, told) = self.locked(|state| {
            let open = state.open.as_ref().filter(|open| !open.channel.is_closed());
            (open.map(|open| open.channel.clone()), mem::replace(&mut state.unreadable, true))
        });
        let Some(channel) = open else { return Err(Arc::new(error)) };
        if !told {
            let error = with_causes(&error);
            tracing::warn!(error, "the roots cannot be used: the open connection stays as it is");
        }
        Ok(channel)
    }

    /// Nothing is awaited with the state locked. A panic in between leaves nothing half done.
    fn locked<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

enum Begun {
    Open(H2Channel),
    Dial(Shared<Dial>),
}
