//! Both ends of ZDS over a real socket, and ends that break the rules.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{IoSlice, PipeReader, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use redirect::Netns;
use redirect::zds::server::{Listener, Peer, PeerError};
use redirect::zds::{Connection, Recovery, Request, RequestMessage, WorkloadInfo, ZdsError, decode_request};
use socket2::{Domain, SockAddr, Socket, Type};
use tempfile::TempDir;
use tokio::time::timeout;

fn info() -> WorkloadInfo {
    let [name, namespace, service_account] = ["p", "n", "s"].map(str::to_owned);
    WorkloadInfo { name, namespace, service_account }
}

fn add(uid: &str) -> Request {
    Request::Add { uid: uid.to_owned(), workload: info(), netns: Netns::current().unwrap() }
}

fn socket_path() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ztunnel.sock");
    (directory, path)
}

/// A proxy and an agent that have said hello.
async fn connected() -> (TempDir, Connection, Peer) {
    let (directory, path) = socket_path();
    let listener = Listener::bind(&path).unwrap();
    let mut proxy = Connection::dial(&path).await.unwrap();
    proxy.announce().await.unwrap();
    let mut agent = listener.accept().await.unwrap();
    assert_eq!(agent.hello().await.unwrap(), 1);
    (directory, proxy, agent)
}

/// One end made of bare system calls, which can send anything.
struct Raw(Socket);

impl Raw {
    fn send(&self, bytes: &[u8], descriptors: &[OwnedFd]) {
        let raw: Vec<_> = descriptors.iter().map(|descriptor| descriptor.as_raw_fd()).collect();
        let control = if raw.is_empty() { vec![] } else { vec![ControlMessage::ScmRights(&raw)] };
        sendmsg::<()>(self.0.as_raw_fd(), &[IoSlice::new(bytes)], &control, MsgFlags::empty(), None).unwrap();
    }

    fn receive(&self) -> Vec<u8> {
        self.0.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut buffer = [0; 4096];
        let length = (&self.0).read(&mut buffer).unwrap();
        buffer[..length].to_vec()
    }
}

/// A proxy whose agent can send anything.
async fn with_raw_agent() -> (TempDir, Connection, Raw) {
    let (directory, path) = socket_path();
    let listener = Socket::new(Domain::UNIX, Type::SEQPACKET, None).unwrap();
    listener.bind(&SockAddr::unix(&path).unwrap()).unwrap();
    listener.listen(1).unwrap();
    let proxy = Connection::dial(&path).await.unwrap();
    let (agent, _) = listener.accept().unwrap();
    (directory, proxy, Raw(agent))
}

/// An agent whose proxy can send anything.
async fn with_raw_proxy() -> (TempDir, Raw, Peer) {
    let (directory, path) = socket_path();
    let listener = Listener::bind(&path).unwrap();
    let proxy = Socket::new(Domain::UNIX, Type::SEQPACKET, None).unwrap();
    proxy.connect(&SockAddr::unix(&path).unwrap()).unwrap();
    (directory, Raw(proxy), listener.accept().await.unwrap())
}

/// Ends of pipes, and their other ends, which read to the end only once every copy of the first ends is closed.
fn pipes(count: usize) -> (Vec<PipeReader>, Vec<OwnedFd>) {
    (0..count).map(|_| std::io::pipe().unwrap()).map(|(reader, writer)| (reader, writer.into())).unzip()
}

const ADD: &[u8] = b"\x0a\x0f\x0a\x02u1\x12\x09\x0a\x01p\x12\x01n\x1a\x01s";

#[tokio::test]
async fn a_session_from_hello_to_the_end() {
    let (_directory, mut proxy, mut agent) = connected().await;
    let proxy_side = async {
        let mut seen = Vec::new();
        while let Some(request) = proxy.next_request().await.unwrap() {
            let outcome = if seen.len() == 4 { Err("cannot bind") } else { Ok(()) };
            seen.push(request);
            proxy.respond(outcome).await.unwrap();
        }
        seen
    };
    let agent_side = async {
        let here = Netns::current().unwrap();
        agent.add("u1", &info(), &here).await.unwrap();
        agent.keep("u2").await.unwrap();
        agent.snapshot_sent().await.unwrap();
        agent.delete("u2").await.unwrap();
        let refused = agent.add("u3", &info(), &here).await.unwrap_err();
        assert!(matches!(&refused, PeerError::Refused(text) if text == "cannot bind"));
        assert!(refused.leaves_connection_usable());
        agent.delete("u1").await.unwrap();
        drop(agent);
    };
    let (seen, ()) = tokio::join!(proxy_side, agent_side);
    let uid = |uid: &str| uid.to_owned();
    let expected = [
        add("u1"),
        Request::Keep { uid: uid("u2") },
        Request::SnapshotSent,
        Request::Delete { uid: uid("u2") },
        add("u3"),
        Request::Delete { uid: uid("u1") },
    ];
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn packets_are_the_bytes_that_istio_exchanges() {
    let (_directory, mut proxy, agent) = with_raw_agent().await;
    proxy.announce().await.unwrap();
    assert_eq!(agent.receive(), b"\x08\x01");
    agent.send(ADD, &[Netns::current().unwrap().as_fd().try_clone_to_owned().unwrap()]);
    assert_eq!(proxy.next_request().await.unwrap(), Some(add("u1")));
    proxy.respond(Ok(())).await.unwrap();
    assert_eq!(agent.receive(), b"\x0a\x00");
    agent.send(b"\x12\x04\x12\x02u1", &[]);
    assert_eq!(proxy.next_request().await.unwrap(), Some(Request::Delete { uid: "u1".to_owned() }));
    proxy.respond(Err("x")).await.unwrap();
    assert_eq!(agent.receive(), b"\x0a\x03\x0a\x01x");
    proxy.respond(Err(&"long ".repeat(1000))).await.unwrap();
    assert_eq!(agent.receive().len(), 1023);
}

#[tokio::test]
async fn a_received_namespace_is_not_inherited_by_programs_we_start() {
    let (_directory, mut proxy, agent) = with_raw_agent().await;
    agent.send(ADD, &[Netns::current().unwrap().as_fd().try_clone_to_owned().unwrap()]);
    let Some(Request::Add { netns, .. }) = proxy.next_request().await.unwrap() else { panic!("no Add") };
    let flags = fcntl(netns.as_fd(), FcntlArg::F_GETFD).unwrap();
    assert!(FdFlag::from_bits_retain(flags).contains(FdFlag::FD_CLOEXEC));
}

#[tokio::test]
async fn surplus_descriptors_are_refused_and_all_closed() {
    // Two fit the control buffer thanks to its padding; of three the kernel cuts one off.
    for count in [2, 3, 20] {
        let (_directory, mut proxy, agent) = with_raw_agent().await;
        let (readers, writers) = pipes(count);
        agent.send(ADD, &writers);
        drop(writers);
        let error = proxy.next_request().await.unwrap_err();
        assert!(matches!(error, ZdsError::TooManyDescriptors), "{count}: {error:?}");
        assert_eq!(error.recovery(), Recovery::Reconnect);
        for mut reader in readers {
            // Would wait for ever for a descriptor that nobody closes.
            let end = timeout(
                Duration::from_secs(10),
                tokio::task::spawn_blocking(move || reader.read(&mut [0]).unwrap()),
            );
            assert_eq!(end.await.expect("a descriptor leaked").unwrap(), 0);
        }
    }
}

#[tokio::test]
async fn a_descriptor_of_something_else_is_refused_and_the_session_goes_on() {
    let (_directory, mut proxy, agent) = with_raw_agent().await;
    let (_readers, writers) = pipes(1);
    agent.send(ADD, &writers);
    let error = proxy.next_request().await.unwrap_err();
    assert_eq!(error.recovery(), Recovery::Continue);
    proxy.respond(Err(&error.to_string())).await.unwrap();
    assert!(agent.receive().len() > 4);
    agent.send(b"\x1a\x00", &[]);
    assert_eq!(proxy.next_request().await.unwrap(), Some(Request::SnapshotSent));
}

#[tokio::test]
async fn a_packet_of_1024_bytes_is_read_and_a_longer_one_refused() {
    let (_directory, mut proxy, agent) = with_raw_agent().await;
    // A Delete whose uid fills the packet: two nested fields with three bytes in front each.
    let packet = |uid: usize| {
        let length = |length: usize| [(length & 0x7f | 0x80) as u8, (length >> 7) as u8];
        let head = [&[0x12][..], &length(uid + 3), &[0x12], &length(uid)].concat();
        [head, vec![b'u'; uid]].concat()
    };
    assert_eq!(packet(1018).len(), 1024);
    agent.send(&packet(1018), &[]);
    assert_eq!(proxy.next_request().await.unwrap(), Some(Request::Delete { uid: "u".repeat(1018) }));
    agent.send(&packet(1019), &[]);
    let error = proxy.next_request().await.unwrap_err();
    assert!(matches!(error, ZdsError::PacketTooLong));
    assert_eq!(error.recovery(), Recovery::Reconnect);
}

#[tokio::test]
async fn an_empty_packet_reads_as_the_end() {
    let (_directory, mut proxy, agent) = with_raw_agent().await;
    agent.send(b"", &[]);
    assert_eq!(proxy.next_request().await.unwrap(), None);
}

#[tokio::test]
async fn waiting_for_a_request_can_be_given_up_and_taken_up_again() {
    let (_directory, mut proxy, agent) = with_raw_agent().await;
    assert!(timeout(Duration::from_millis(10), proxy.next_request()).await.is_err());
    agent.send(b"\x1a\x00", &[]);
    assert_eq!(proxy.next_request().await.unwrap(), Some(Request::SnapshotSent));
}

#[tokio::test]
async fn nobody_listening_and_a_peer_that_left_are_errors_to_dial_again() {
    let (_directory, path) = socket_path();
    let error = Connection::dial(&path).await.unwrap_err();
    assert_eq!(error.recovery(), Recovery::Reconnect);
    assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");

    let (_directory, mut proxy, agent) = with_raw_agent().await;
    drop(agent);
    let error = proxy.announce().await.unwrap_err();
    assert!(matches!(error, ZdsError::Send(_)));
    assert_eq!(error.recovery(), Recovery::Reconnect);
}

#[tokio::test]
async fn the_agent_replaces_a_stale_socket_but_no_other_file() {
    let (_directory, path) = socket_path();
    drop(Listener::bind(&path).unwrap());
    assert!(path.exists());
    let listener = Listener::bind(&path).unwrap();
    let _proxy = Connection::dial(&path).await.unwrap();
    listener.accept().await.unwrap();

    let precious = path.with_file_name("precious");
    std::fs::write(&precious, "data").unwrap();
    assert!(Listener::bind(&precious).is_err());
    assert_eq!(std::fs::read(&precious).unwrap(), b"data");
}

#[tokio::test(start_paused = true)]
async fn after_a_missing_answer_a_late_one_is_not_taken_for_the_next() {
    let (_directory, proxy, mut agent) = with_raw_proxy().await;
    assert!(matches!(agent.delete("u1").await, Err(PeerError::TimedOut)));
    proxy.send(b"\x0a\x00", &[]);
    let error = agent.delete("u2").await.unwrap_err();
    assert!(matches!(error, PeerError::OutOfStep));
    assert!(!error.leaves_connection_usable());
    assert!(matches!(agent.lost().await, PeerError::OutOfStep));
}

#[tokio::test]
async fn an_idle_proxy_that_leaves_or_speaks_unasked_is_noticed() {
    let (_directory, proxy, mut agent) = with_raw_proxy().await;
    assert!(timeout(Duration::from_millis(10), agent.lost()).await.is_err(), "an idle proxy is fine");
    proxy.send(b"\x0a\x00", &[]);
    assert!(matches!(agent.lost().await, PeerError::Protocol(None)));
    assert!(matches!(agent.delete("u1").await, Err(PeerError::OutOfStep)));

    let (_directory, proxy, mut agent) = with_raw_proxy().await;
    drop(proxy);
    assert!(matches!(agent.lost().await, PeerError::Closed));

    let (_directory, proxy, mut agent) = with_raw_proxy().await;
    drop(proxy);
    assert!(matches!(agent.snapshot_sent().await, Err(PeerError::Closed)));
}

#[tokio::test]
async fn a_request_that_does_not_fit_is_not_sent() {
    let (_directory, mut proxy, mut agent) = connected().await;
    let error = agent.delete(&"u".repeat(1100)).await.unwrap_err();
    assert!(matches!(error, PeerError::TooLong(_)));
    let exchange = async {
        assert_eq!(proxy.next_request().await.unwrap(), Some(Request::SnapshotSent));
        proxy.respond(Ok(())).await.unwrap();
    };
    let (outcome, ()) = tokio::join!(agent.snapshot_sent(), exchange);
    outcome.unwrap();
}

#[tokio::test]
async fn an_add_without_its_namespace_is_refused() {
    let (_directory, mut proxy, mut agent) = connected().await;
    let message = RequestMessage::Add { uid: "u1".to_owned(), workload: Some(info()) };
    let exchange = async {
        let error = proxy.next_request().await.unwrap_err();
        assert!(matches!(error, ZdsError::MissingDescriptor { .. }));
        proxy.respond(Err(&error.to_string())).await.unwrap();
    };
    let (outcome, ()) = tokio::join!(agent.request(&message, None), exchange);
    assert!(matches!(outcome, Err(PeerError::Refused(_))));
}

#[tokio::test]
async fn every_wrong_request_is_answered_and_then_costs_what_it_should() {
    let keep = b"\x2a\x04\x0a\x02u1".as_slice();
    let snapshot = b"\x1a\x00".as_slice();
    /// What comes before, the wrong request, how many namespaces come along, and how to go on.
    type Case<'a> = (&'a [&'a [u8]], &'a [u8], usize, Recovery);
    let table: [Case<'_>; 9] = [
        (&[], b"\x0a\xff", 0, Recovery::Reconnect),
        (&[], b"\x7a\x00", 0, Recovery::Reconnect),
        (&[], ADD, 0, Recovery::Reconnect),
        (&[], ADD, 2, Recovery::Reconnect),
        (&[], keep, 1, Recovery::Reconnect),
        (&[snapshot], b"\x12\x04\x12\x02u1", 1, Recovery::Reconnect),
        (&[], b"\x0a\x04\x0a\x02u1", 1, Recovery::Exit),
        (&[keep, snapshot], keep, 0, Recovery::Exit),
        (&[snapshot], snapshot, 0, Recovery::Exit),
    ];
    for (before, wrong, descriptors, recovery) in table {
        let (_directory, mut proxy, agent) = with_raw_agent().await;
        for packet in before {
            agent.send(packet, &[]);
            proxy.next_request().await.unwrap().unwrap();
            proxy.respond(Ok(())).await.unwrap();
            assert_eq!(agent.receive(), b"\x0a\x00");
        }
        let namespace = || Netns::current().unwrap().as_fd().try_clone_to_owned().unwrap();
        agent.send(wrong, &(0..descriptors).map(|_| namespace()).collect::<Vec<_>>());
        let error = proxy.next_request().await.unwrap_err();
        assert_eq!(error.recovery(), recovery, "{wrong:?}: {error:?}");
        proxy.respond(Err(&error.to_string())).await.unwrap();
        assert!(agent.receive().len() > 4, "{wrong:?}");
    }
}

/// The inputs that fuzzing starts from (`fuzz/`), and a flipped bit at every place of each.
#[test]
fn the_fuzzing_corpus_is_read_without_a_panic() {
    let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/zds_request");
    let files: Vec<_> = std::fs::read_dir(corpus).unwrap().map(|file| file.unwrap().path()).collect();
    assert!(files.len() >= 10, "the corpus is missing");
    for file in files {
        let packet = std::fs::read(&file).unwrap();
        let decoded = decode_request(&packet);
        if file.ends_with("add-real") {
            assert!(matches!(decoded, Ok(RequestMessage::Add { workload: Some(_), .. })), "{decoded:?}");
        }
        for bit in 0..packet.len() * 8 {
            let mut flipped = packet.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let _ = decode_request(&flipped);
        }
    }
}
