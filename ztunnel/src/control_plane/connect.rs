//! The two users of the control plane reach it in their own ways.

use identity::{CaChannel, CaConnect};
use xds_client::{Connect, Connection};

use super::{ControlPlane, H2Channel, SharedChannel};

/// A stream of xDS gets a connection of its own.
impl Connect for ControlPlane {
    type Service = H2Channel;

    async fn connect(&self) -> Result<Connection<H2Channel>, xds_client::BoxError> {
        let (service, metadata) = self.open().await?;
        Ok(Connection { service, metadata })
    }
}

/// Certificate requests share one.
impl CaConnect for SharedChannel {
    type Service = H2Channel;

    async fn channel(&self) -> Result<CaChannel<H2Channel>, identity::BoxError> {
        let (service, metadata) = self.open().await?;
        Ok(CaChannel { service, metadata })
    }
}
