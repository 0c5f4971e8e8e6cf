//! Services.

use xds_client::workload as wire;

use super::convert::{Converter, ServiceAddress, ports, service_address};
use super::rejection::{Rejection, known};
use crate::state::model::{
    BalanceMode, HealthPolicy, IpFamilies, LoadBalancer, Scope, Service, Visibility, WeightedWaypoint,
};

impl Converter {
    /// Converts a service.
    pub(crate) fn service(&mut self, service: &wire::Service) -> Result<Service, Rejection> {
        let (mut vips, mut cidr_vips) = (Vec::new(), Vec::new());
        for given in &service.addresses {
            match service_address(self, given)? {
                ServiceAddress::Exact(vip) => vips.push(vip),
                ServiceAddress::Range(cidr) => cidr_vips.push(cidr),
            }
        }
        let host = self.host(&service.namespace, &service.hostname);
        let names = service.subject_alt_names.iter().filter_map(|name| {
            let parsed = name.parse();
            if let Err(error) = &parsed {
                tracing::warn!(service = %host, name, %error, "leaving out a subject name that is no SPIFFE identity");
            }
            parsed.ok()
        });
        Ok(Service {
            name: self.shared.intern(&service.name),
            subject_alt_names: names.collect(),
            host,
            vips: vips.into(),
            cidr_vips: cidr_vips.into(),
            ports: ports(&service.ports),
            waypoint: self.gateway("waypoint", service.waypoint.as_ref())?,
            weighted_waypoints: self.weighted_waypoints(&service.weighted_waypoints)?,
            load_balancer: load_balancer(service.load_balancing.as_ref())?,
            ip_families: match known("ip_families", service.ip_families)? {
                wire::IpFamilies::Automatic => IpFamilies::Automatic,
                wire::IpFamilies::Ipv4Only => IpFamilies::Ipv4,
                wire::IpFamilies::Ipv6Only => IpFamilies::Ipv6,
                wire::IpFamilies::Dual => IpFamilies::Dual,
            },
            canonical: service.canonical,
            // What every proxy does with a visibility it does not know.
            visibility: match wire::service::Visibility::try_from(service.visibility) {
                Ok(wire::service::Visibility::Namespace) => Visibility::Namespace,
                Ok(wire::service::Visibility::Public) | Err(_) => Visibility::Public,
            },
            endpoints: Box::default(),
        })
    }

    fn weighted_waypoints(
        &mut self,
        waypoints: &[wire::WeightedWaypoint],
    ) -> Result<Box<[WeightedWaypoint]>, Rejection> {
        let waypoints = waypoints.iter().map(|waypoint| {
            let destination = self.gateway("weighted_waypoints", waypoint.destination.as_ref())?;
            let field = "weighted_waypoints";
            let destination = destination.ok_or(Rejection::GatewayWithoutAddress { field })?;
            Ok(WeightedWaypoint { destination, weight: waypoint.weight })
        });
        waypoints.collect()
    }
}

fn load_balancer(given: Option<&wire::LoadBalancing>) -> Result<LoadBalancer, Rejection> {
    use wire::load_balancing as lb;
    let Some(given) = given else { return Ok(LoadBalancer::default()) };
    let preferences = given.routing_preference.iter().map(|scope| {
        Ok(match known("load_balancing.routing_preference", *scope)? {
            lb::Scope::UnspecifiedScope => return Err(Rejection::Unsupported("invalid target")),
            lb::Scope::Region => Scope::Region,
            lb::Scope::Zone => Scope::Zone,
            lb::Scope::Subzone => Scope::Subzone,
            lb::Scope::Node => Scope::Node,
            lb::Scope::Cluster => Scope::Cluster,
            lb::Scope::Network => Scope::Network,
        })
    });
    Ok(LoadBalancer {
        preferences: preferences.collect::<Result<_, _>>()?,
        mode: match known("load_balancing.mode", given.mode)? {
            lb::Mode::UnspecifiedMode => BalanceMode::Standard,
            lb::Mode::Strict => BalanceMode::Strict,
            lb::Mode::Failover => BalanceMode::Failover,
            lb::Mode::Passthrough => BalanceMode::Passthrough,
        },
        health_policy: match known("load_balancing.health_policy", given.health_policy)? {
            lb::HealthPolicy::OnlyHealthy => HealthPolicy::OnlyHealthy,
            lb::HealthPolicy::AllowAll => HealthPolicy::AllowAll,
        },
    })
}
