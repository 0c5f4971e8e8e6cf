//! The local authority as several processes see it.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::env;
use std::fs;
use std::process::{Command, Stdio};

use identity::{Issuer, LocalCa, PrivateKey, SpiffeId, certificate_request};

const DIRECTORY: &str = "IDENTITY_TEST_CA_DIR";

/// Opens the authority in the directory that its parent process names, and prints its roots. Does nothing as an
/// ordinary test.
#[test]
fn child_process_of_the_next_test() {
    let Some(dir) = env::var_os(DIRECTORY) else { return };
    let authority = LocalCa::open(dir.as_ref(), LocalCa::DEFAULT_LIFETIME).unwrap();
    let identity: SpiffeId = "spiffe://cluster.local/ns/default/sa/client".parse().unwrap();
    let request = certificate_request(&identity, &PrivateKey::generate().unwrap()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let chain = runtime.block_on(async { authority.issue(&identity, &request).await }).unwrap();
    println!("{}", chain.0[1]);
}

#[test]
fn processes_that_start_at_once_end_with_one_authority() {
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca");
    let spawn = || {
        Command::new(env::current_exe().unwrap())
            .args(["--exact", "child_process_of_the_next_test", "--nocapture"])
            .env(DIRECTORY, &ca)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let children: Vec<_> = (0..8).map(|_| spawn()).collect();
    let outputs: Vec<_> = children.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
    let made = fs::read_to_string(ca.join("ca-cert.pem")).unwrap();
    for output in outputs {
        let printed = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && printed.contains(&made), "{printed}");
    }
}
