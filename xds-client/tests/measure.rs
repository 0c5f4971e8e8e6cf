//! What a large mesh costs. Prints figures; run with
//! `cargo test --profile quick -p xds-client --test measure -- --ignored --nocapture`.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::fs;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use xds_client::discovery::{DeltaDiscoveryResponse, Node, Resource};
use xds_client::prost::Message;
use xds_client::prost_types::Any;
use xds_client::{Event, Handler, Mode, Progress, Rejected, ResourceType, Session};

/// Keeps nothing but the names, as the keeper of the resources does.
#[derive(Default)]
struct Names {
    names: Vec<Arc<str>>,
    updates: usize,
}

impl Handler for Names {
    fn begin(&mut self, _: ResourceType) {}

    fn update(&mut self, _: ResourceType, name: &Arc<str>, _: Bytes) -> Result<(), Rejected> {
        self.names.push(Arc::clone(name));
        self.updates += 1;
        Ok(())
    }

    fn restore(&mut self, _: ResourceType, _: &str) {}

    fn remove(&mut self, _: ResourceType, _: &str) {}

    fn commit(&mut self, _: ResourceType) {}

    fn observe(&mut self, _: &Event<'_>) {}
}

/// A push of workloads of about 400 bytes each.
fn push(count: usize) -> Bytes {
    let resource = |n: usize| Resource {
        name: format!("Kubernetes//Pod/namespace-{}/deployment-name-5d4f8c7b9-{n:06}", n % 100),
        version: format!("{:x}", (n as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)),
        resource: Some(Any {
            type_url: ResourceType::Address.url().into(),
            value: [n.to_le_bytes().as_slice(), &[7; 392]].concat(),
        }),
        ..Resource::default()
    };
    // Messages that follow one another are one message; so no second copy of the resources is needed, whose memory
    // would be counted.
    let mut message = Vec::with_capacity(count * 600);
    for n in 0..count {
        let part =
            DeltaDiscoveryResponse { resources: vec![resource(n)], ..DeltaDiscoveryResponse::default() };
        part.encode(&mut message).unwrap();
    }
    let end = DeltaDiscoveryResponse {
        type_url: ResourceType::Address.url().into(),
        nonce: "N".into(),
        ..DeltaDiscoveryResponse::default()
    };
    end.encode(&mut message).unwrap();
    message.into()
}

fn apply(session: &mut Session, names: &mut Names, message: Bytes) {
    let mut transaction = session.receive(message, names).unwrap();
    while transaction.step(names, 256) == Progress::More {}
    transaction.commit(names);
}

/// A line of `/proc/self/status`, in bytes.
fn status(field: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
#[ignore = "a measurement"]
fn an_unchanged_resource_in_a_resend() {
    let count = 50_000;
    let message = push(count);
    let mut session = Session::new(Node::default(), Mode::Wildcard, 1);
    let mut names = Names::default();
    apply(&mut session, &mut names, message.clone());
    let best = (0..10)
        .map(|_| {
            let begin = Instant::now();
            apply(&mut session, &mut names, message.clone());
            begin.elapsed()
        })
        .min()
        .unwrap();
    assert_eq!(names.updates, count, "the resends changed nothing");
    println!("{} ns per unchanged resource of 400 bytes", best.as_nanos() / count as u128);
}

#[test]
#[ignore = "a measurement"]
fn retained_memory_for_a_mesh_of_300_000() {
    let count = 300_000;
    let message = push(count);
    let size = message.len() as u64;
    let mut session = Session::new(Node::default(), Mode::Wildcard, 1);
    // The keeper's own memory is there from the beginning, so that it does not count.
    let mut names = Names { names: vec![Arc::from(""); count], updates: 0 };
    names.names.clear();
    let before = status("VmRSS");
    apply(&mut session, &mut names, message.clone());
    let after = status("VmRSS");
    let shared: usize = names.names.iter().map(|name| name.len() + 16).sum();
    println!("message of {} MiB", size >> 20);
    println!("{} bytes retained per resource, names included", (after - before) / count as u64);
    println!("{} of them are the names, which the keeper shares", shared / count);
    assert_eq!(session.retained(ResourceType::Address), count);
}
