//! Envoy as east-west gateway: one tunnel inside another.

use http::{Method, Request, StatusCode};
use lab::istiod::{CLUSTER, IssuedFiles, from_pod, hostname, policy};
use lab::traffic::{self, Server};
use lab::{AccessLine, Driven, DrivenOptions, Envoy, EnvoyRole, Forwarded, HbonePeer, Pod};
use xds_client::security::{Action, Scope};

use crate::{HTTP, WEB};

/// The mesh that is reached through a gateway, and a pod of another network from which that is tried.
struct Scene {
    gateway: Pod,
    _envoy: Envoy,
    driven: Driven,
}

impl Scene {
    fn new() -> Self {
        let driven = Driven::with(&DrivenOptions::default(), |world, server| {
            world.service("web", &[WEB], HTTP, &[server])
        })
        .unwrap();
        let gateway = driven.lab.node("edge").unwrap().pod("gateway").unwrap();
        let forwarded = Forwarded { authority: authority(), target: driven.server.at(15008) };
        let envoy = Envoy::start(&gateway, &driven.istiod, &EnvoyRole::Gateway(vec![forwarded])).unwrap();
        Self { gateway, _envoy: envoy, driven }
    }

    /// Opens the outer tunnel as the client, and gives it to `work`.
    fn through<T: Send + 'static>(
        &self,
        work: impl AsyncFnOnce(HbonePeer) -> lab::Result<T> + Send + 'static,
    ) -> lab::Result<T> {
        let (target, expected) = (self.gateway.at(15008), self.gateway.identity());
        let own = self.certificate(&self.driven.client);
        self.driven.outsider.run(async move || {
            work(HbonePeer::over(traffic::connect(target).await?, &own, &expected).await?).await
        })
    }

    fn certificate(&self, pod: &Pod) -> IssuedFiles {
        self.driven.istiod.ca().issue(&pod.identity()).unwrap()
    }

    /// The status with which the server's proxy answers an inner CONNECT of the pod's identity, through which a byte goes
    /// there and back if it may.
    fn inner_status(&self, pod: &Pod) -> StatusCode {
        let (own, expected) = (self.certificate(pod), self.driven.server.identity());
        self.through(async move |mut outer| {
            let reply = outer.tunnel(&authority()).await?;
            anyhow::ensure!(reply.status == StatusCode::OK, "the gateway answers {}", reply.status);
            let mut inner = HbonePeer::over(reply.into_stream(), &own, &expected).await?;
            let request = Request::builder()
                .method(Method::CONNECT)
                .uri(authority())
                .header("x-forwarded-network", "remote")
                .header("baggage", format!("k8s.cluster.name={CLUSTER},k8s.deployment.name=far-away"))
                .body(())?;
            let mut reply = inner.request(request).await?;
            if reply.status == StatusCode::OK {
                reply.round_trip(b"from another network").await?;
            }
            Ok(reply.status)
        })
        .unwrap()
    }
}

/// What both tunnels ask for: the service, by its name.
fn authority() -> String {
    format!("{}:{}", hostname("web"), HTTP.0)
}

#[test]
fn the_inner_tunnel_leads_to_the_server_under_the_inner_identity() {
    let scene = Scene::new();
    let echo = Server::start(&scene.driven.server, HTTP.1, traffic::echo).unwrap();
    assert_eq!(scene.inner_status(&scene.driven.client), StatusCode::OK);
    assert_eq!(echo.accepted(), 1);
    let own = scene.driven.client.identity();
    let from_client = |line: &AccessLine| line.text("src.identity") == own;
    let line = scene.driven.west.ztunnel().unwrap().wait_for_access(from_client).unwrap();
    assert_eq!(line.text("dst.hbone_addr"), authority(), "{line:?}");
    assert_eq!(line.text("dst.service"), hostname("web"), "{line:?}");
    assert!(line.text("src.addr").starts_with(&format!("{}:", scene.gateway.ipv4())), "{line:?}");
    assert_ne!(line.text("src.workload"), "gateway", "the gateway is not the client: {line:?}");
}

#[test]
fn policies_judge_the_inner_identity_and_not_the_gateways() {
    let scene = Scene::new();
    let echo = Server::start(&scene.driven.server, HTTP.1, traffic::echo).unwrap();
    let only = policy("only-client", Scope::Namespace, Action::Allow, vec![from_pod(&scene.driven.client)]);
    scene.driven.push(|world| world.set_policy(&only)).unwrap();
    assert_eq!(scene.inner_status(&scene.gateway), StatusCode::UNAUTHORIZED);
    assert_eq!(scene.inner_status(&scene.driven.neighbour), StatusCode::UNAUTHORIZED);
    assert_eq!(echo.accepted(), 0);
    assert_eq!(scene.inner_status(&scene.driven.client), StatusCode::OK);
}

#[test]
fn the_gateway_forwards_nothing_that_it_has_not_been_told_of() {
    let scene = Scene::new();
    let server = scene.driven.server.at(HTTP.1).to_string();
    let statuses = scene
        .through(async move |mut outer| {
            let other = format!("{}:81", hostname("web"));
            Ok([outer.tunnel(&other).await?.status, outer.tunnel(&server).await?.status])
        })
        .unwrap();
    assert_eq!(statuses, [StatusCode::NOT_FOUND; 2]);
}
