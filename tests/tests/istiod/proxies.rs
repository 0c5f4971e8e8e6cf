//! What a proxy finds when it is started to be driven by it.

use std::os::unix::fs::PermissionsExt as _;

use lab::istiod::HOST;
use lab::{ControlPlane, Dial, PATIENCE, Ztunnel, ZtunnelOptions};

use crate::Scene;

#[test]
fn a_driven_proxy_finds_istiod_by_its_name_and_none_of_the_settings_of_a_static_mesh() {
    let scene = Scene::new();
    // In place of the proxy, something that tells what it finds.
    let binary = scene.east.directory().join("tell");
    std::fs::write(&binary, "#!/bin/sh\necho pid $$\ncat /etc/hosts\nexec env\n").unwrap();
    std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(0o755)).unwrap();
    let options = ZtunnelOptions { binary: Some(binary), ..ZtunnelOptions::default() };
    let mut control = ControlPlane::new(&scene.istiod, &scene.east, "ztunnel-east").unwrap();
    for dial in [Dial::Name, Dial::Address] {
        control.dial = dial;
        let told = Ztunnel::driven(&scene.east, &control, &options).unwrap();
        let status = told.process().wait(PATIENCE).unwrap();
        assert!(status.success(), "{}", told.output());
        let lines = told.log().all();
        let has = |line: &str| lines.iter().any(|known| known == line);
        let address = scene.istiod.address();
        assert!(has(&format!("{} {HOST}", address.ip())), "{lines:?}");
        let endpoint = match dial {
            Dial::Name => format!("https://{HOST}:15012"),
            Dial::Address => format!("https://{address}"),
        };
        assert!(
            has(&format!("XDS_ADDRESS={endpoint}")) && has(&format!("CA_ADDRESS={endpoint}")),
            "{lines:?}"
        );
        assert!(has("NODE_NAME=east") && has("POD_NAME=ztunnel-east"), "{lines:?}");
        assert!(!lines.iter().any(|line| line.starts_with("LOCAL_")), "{lines:?}");
        // Signals reach the proxy itself, and not a shell before it.
        assert!(has(&format!("pid {}", told.process().id())), "{lines:?}");
    }
    // The machine's own hosts file is as it was.
    assert!(!std::fs::read_to_string("/etc/hosts").unwrap().contains(HOST));
}
