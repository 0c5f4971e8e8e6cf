//! Workloads that are known by a hostname alone.

use hickory_proto::rr::RecordType;
use lab::traffic::{self, Outcome, Server};
use lab::{BackendChoice, ZtunnelOptions, hello};

use crate::resolver::{Asked, address, no_such_name, octets, response};
use crate::scene::Scene;

/// The server's address, which the laboratory gives to the second pod of the second node.
fn script(asked: &Asked) -> Vec<Vec<u8>> {
    let query = hickory_proto::op::Message::from_vec(&asked.octets).unwrap();
    match (&*asked.name, query.queries[0].query_type) {
        ("vm.search.example.", RecordType::A) => {
            let mut answer = response(asked);
            let mut record = address(asked, 0, 300);
            record.data = hickory_proto::rr::RData::A(hickory_proto::rr::rdata::A::new(10, 2, 0, 2));
            answer.add_answer(record);
            octets(&answer)
        }
        ("vm.search.example.", _) | ("empty.example.", _) => {
            let mut empty = no_such_name(asked, 60);
            empty.metadata.response_code = hickory_proto::op::ResponseCode::NoError;
            octets(&empty)
        }
        _ => octets(&no_such_name(asked, 60)),
    }
}

#[test]
fn a_workload_is_looked_up_with_the_search_list_once_and_counted_each_time() {
    let vip = |last| std::net::IpAddr::from([10, 96, 1, last]);
    let scene = Scene::with(BackendChoice::Nftables, ZtunnelOptions::default(), script, |file, server| {
        for (last, hostname) in [(1, "vm"), (2, "empty.example"), (3, "absent.example")] {
            let name = format!("{}-service", hostname.replace('.', "-"));
            file.service(&name, &[vip(last)], (80, 8080), &[])?;
            let mut workload = file.workload(server)?.clone();
            workload.uid = format!("cluster1//WorkloadEntry/default/{name}");
            workload.name = name.clone();
            workload.workload_ips.clear();
            workload.hostname = hostname.to_owned();
            workload.protocol = lab::Protocol::Tcp;
            let host = format!("default/{name}.default.svc.cluster.local");
            workload.services = [(host, [(80, 8080)].into())].into();
            file.workloads.push(workload);
        }
        Ok(())
    })
    .unwrap();
    let _echo = Server::start(&scene.server, 8080, traffic::echo).unwrap();
    for _ in 0..2 {
        assert_eq!(hello(&scene.client, (vip(1), 80).into()).unwrap(), Outcome::answered("hello"));
    }
    let counted = |hostname: &str| {
        let labels = format!(r#"hostname="{hostname}""#);
        scene.ztunnel.metric("istio_on_demand_dns_total", &labels).unwrap()
    };
    assert_eq!(counted("vm"), 2.0);
    assert_eq!(scene.resolver.count("vm.search.example."), 2, "once for each family");
    let asked = scene.resolver.asked();
    let node = std::net::IpAddr::from(scene.east.ipv4());
    assert!(
        asked.iter().all(|asked| asked.from.ip().to_canonical() == node),
        "from the proxy's own namespace"
    );
    for (last, hostname, error) in [
        (2, "empty.example", "no ip addresses were resolved for empty.example: the name has none"),
        (3, "absent.example", "no ip addresses were resolved for absent.example"),
    ] {
        assert_eq!(hello(&scene.client, (vip(last), 80).into()).unwrap(), Outcome::Cut);
        let failed = |line: &lab::AccessLine| line.text("error") == error;
        scene.ztunnel.wait_for_access(failed).unwrap();
        assert_eq!(counted(hostname), 1.0);
    }
}
