//! `ztunnel rules`: a pod's packet rules from the command line.

#![allow(clippy::unwrap_used, reason = "a failure names its line")]

use std::os::fd::{AsFd as _, AsRawFd as _};

use lab::traffic::{self, Outcome, Server};
use lab::{Lab, Pod, Ztunnel, hello};

/// Runs `ztunnel rules <action>` for the pod, and returns exit code and both outputs.
fn rules(pod: &Pod, action: &str, backend: &str) -> (i32, String) {
    // As a runtime would name the namespace of a pod: by a path.
    let netns = format!("/proc/{}/fd/{}", std::process::id(), pod.netns().as_fd().as_raw_fd());
    let mut command = pod.node().command(Ztunnel::binary().unwrap());
    command.args(["rules", action, "--netns", &netns, "--backend", backend]);
    let output = pod.node().output(command).unwrap();
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    (output.status.code().unwrap(), text)
}

const IN_PLACE: i32 = 0;
const FAILED: i32 = 1;
const NOT_IN_PLACE: i32 = 3;

#[test]
fn rules_are_applied_checked_repaired_and_removed() {
    for backend in ["nftables", "iptables", "auto"] {
        let lab = Lab::new().unwrap();
        let node = lab.node("node").unwrap();
        let (pod, other) = (node.pod("pod").unwrap(), node.pod("other").unwrap());
        let echo = Server::start(&other, 8080, traffic::echo).unwrap();
        let status = |action: &str| rules(&pod, action, backend).0;

        assert_eq!(status("check"), NOT_IN_PLACE, "{backend}");
        for _again in 0..2 {
            assert_eq!(rules(&pod, "apply", backend).0, IN_PLACE, "{backend}");
            assert_eq!(status("check"), IN_PLACE, "{backend}");
        }
        // Captured, and no proxy listens.
        assert_eq!(hello(&pod, echo.ipv4()).unwrap(), Outcome::Refused, "{backend}");

        pod.ip("rule del fwmark 0x111/0xfff").unwrap();
        let (code, report) = rules(&pod, "check", backend);
        assert_eq!(code, NOT_IN_PLACE, "{backend}");
        assert!(
            report.starts_with("drifted:") && report.contains("missing IPv4 policy rule"),
            "{backend}: {report}"
        );
        assert_eq!(status("apply"), IN_PLACE, "{backend}");
        assert_eq!(status("check"), IN_PLACE, "{backend}");

        for _again in 0..2 {
            assert_eq!(status("remove"), IN_PLACE, "{backend}");
            assert_eq!(status("check"), NOT_IN_PLACE, "{backend}");
        }
        assert_eq!(hello(&pod, echo.ipv4()).unwrap(), Outcome::answered("hello"), "{backend}");
    }
}

#[test]
fn a_path_that_is_no_network_namespace_is_an_error_that_says_so() {
    let lab = Lab::new().unwrap();
    let node = lab.node("node").unwrap();
    for (path, reason) in [("/nowhere/netns", "vanished"), ("/dev/null", "network namespace")] {
        let mut command = node.command(Ztunnel::binary().unwrap());
        command.args(["rules", "check", "--netns", path]);
        let output = node.output(command).unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(FAILED), "{message}");
        assert!(message.contains(reason), "{message}");
    }
}
