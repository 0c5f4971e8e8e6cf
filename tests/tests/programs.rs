//! Ordinary programs in the pods, which know nothing of the mesh.

#![allow(clippy::unwrap_used, reason = "a failure names its line")]

use std::net::{IpAddr, SocketAddr};

use lab::traffic::Server;
use lab::{BackendChoice, PATIENCE, Pod, TwoNodes, ZtunnelOptions};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Answers every HTTP/1.1 request on a connection with the peer's address.
async fn web(mut stream: TcpStream, peer: SocketAddr) -> lab::Result<()> {
    let body = peer.ip().to_canonical().to_string();
    let mut request = Vec::new();
    while stream.read_buf(&mut request).await? > 0 {
        while let Some(end) = request.windows(4).position(|window| window == b"\r\n\r\n") {
            request.drain(..end + 4);
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            stream.write_all(answer.as_bytes()).await?;
        }
    }
    Ok(())
}

/// Runs a program to its end in a pod and returns its output; anything but success fails the test.
fn run(pod: &Pod, program: &str, arguments: &[&str]) -> String {
    let mut command = pod.command(program);
    command.args(arguments);
    let output = pod.output(command).unwrap();
    let [stdout, stderr] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    assert!(output.status.success(), "{program} {arguments:?}: {}\n{stdout}\n{stderr}", output.status);
    stdout
}

#[test]
fn curl_reaches_a_pod_and_a_service_and_keeps_its_address() {
    let vip: IpAddr = "10.96.0.1".parse().unwrap();
    let scene = TwoNodes::with(BackendChoice::Nftables, &ZtunnelOptions::default(), |file, server| {
        file.service("web", &[vip], (80, 8080), &[server])
    })
    .unwrap();
    let server = Server::start(&scene.server, 8080, web).unwrap();
    for pod in [&scene.client, &scene.outsider] {
        let [direct, direct_ipv6] = [server.ipv4(), server.ipv6()].map(|target| format!("http://{target}/"));
        // The second request goes over the first one's connection.
        let answer = run(pod, "curl", &["-sSf", "--max-time", "20", "-w", "\n", &direct, &direct]);
        assert_eq!(answer, format!("{0}\n{0}", pod.ipv4()));
        assert_eq!(
            run(pod, "curl", &["-sSf", "-g", "--max-time", "20", &direct_ipv6]),
            pod.ipv6().to_string()
        );
    }
    assert_eq!(server.accepted(), 4);
    let by_service = run(&scene.client, "curl", &["-sSf", "--max-time", "20", "http://10.96.0.1/"]);
    assert_eq!(by_service, scene.client.ipv4().to_string());
}

#[test]
fn iperf3_measures_in_both_directions_over_several_connections() {
    let scene = TwoNodes::new(BackendChoice::Nftables).unwrap();
    let target = scene.server.ipv4().to_string();
    for (port, direction) in [("5201", "--"), ("5202", "--reverse"), ("5203", "--bidir")] {
        // A server for one test each: it takes a while to be ready for another.
        let mut command = scene.server.command("iperf3");
        command.args(["--server", "--one-off", "--forceflush", "--port", port]);
        let server = scene.server.start("iperf3", command).unwrap();
        server.stdout().wait_for(PATIENCE, |line| line.contains("listening").then_some(())).unwrap();
        let test = ["--client", &target, "--port", port, "--bytes", "20M", "--parallel", "4", direction];
        run(&scene.client, "iperf3", &test);
        assert!(server.wait(PATIENCE).unwrap().success());
    }
}
