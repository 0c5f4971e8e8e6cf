//! The shape of the workspace: which crate may know which, and where unsafe code may be.

#![allow(clippy::unwrap_used, reason = "a failure names its line")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_yaml_ng::Value;

/// Who may use whom. A leaf knows no crate of the workspace.
const ARROWS: [(&str, &[&str]); 8] = [
    ("ztunnel", &["hbone", "identity", "xds-client", "redirect"]),
    ("hbone", &[]),
    ("identity", &[]),
    ("xds-client", &[]),
    ("redirect", &[]),
    ("benches", &["tests", "ztunnel", "hbone", "identity", "xds-client", "redirect"]),
    ("tests", &["ztunnel", "hbone", "identity", "xds-client", "redirect"]),
    ("playground", &["tests"]),
];

/// The only folder with unsafe code.
const UNSAFE_HOME: &str = "redirect/src/sys";

#[test]
fn crates_depend_on_one_another_only_along_the_drawn_arrows() {
    let packages = packages();
    let members: BTreeSet<&str> = packages.iter().map(|package| package.name.as_str()).collect();
    let drawn: BTreeSet<&str> = ARROWS.iter().map(|(name, _)| *name).collect();
    assert_eq!(members, drawn, "the crates of the workspace, and the ones with arrows here");
    for package in &packages {
        let (_, allowed) = ARROWS.iter().find(|(name, _)| *name == package.name).unwrap();
        let used = package.dependencies.iter().filter(|name| members.contains(name.as_str()));
        let surplus: Vec<_> = used.filter(|name| !allowed.contains(&name.as_str())).collect();
        assert!(surplus.is_empty(), "{} may not depend on {surplus:?}", package.name);
    }
}

#[test]
fn unsafe_code_is_only_in_the_folder_for_it() {
    let root = root();
    let mut files = Vec::new();
    for package in packages() {
        rust_files(package.manifest.parent().unwrap(), &mut files);
    }
    assert!(files.len() > 20, "only {} source files were found", files.len());
    let mut offenders = Vec::new();
    for file in files {
        let relative = file.strip_prefix(&root).unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        if !relative.starts_with(UNSAFE_HOME) && text.lines().any(has_unsafe_code) {
            offenders.push(relative.to_owned());
        }
    }
    assert!(offenders.is_empty(), "unsafe code outside {UNSAFE_HOME}: {offenders:?}");
}

/// Forbidding by lint is the real protection; this finds the crate or module that relaxes the lint as well.
fn has_unsafe_code(line: &str) -> bool {
    let uncommented = line.split("//").next().unwrap_or_default();
    // Every other piece between quotes is a string.
    let code: String = uncommented.split('"').step_by(2).collect();
    let uses = [
        "unsafe {",
        "unsafe fn",
        "unsafe impl",
        "unsafe extern",
        "unsafe trait",
        "unsafe(",
        "allow(unsafe_code)",
    ];
    uses.iter().any(|word| code.contains(word))
}

#[test]
fn the_search_for_unsafe_code_finds_it() {
    assert!(has_unsafe_code("    let x = unsafe { *p };"));
    assert!(has_unsafe_code("#![allow(unsafe_code)]"));
    assert!(!has_unsafe_code("// unsafe { } is not allowed here"));
    // Strings: this file is full of them, and is itself searched.
}

struct Package {
    name: String,
    manifest: PathBuf,
    /// Of every kind: normal, for tests, and for building.
    dependencies: Vec<String>,
}

fn packages() -> Vec<Package> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = std::process::Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // JSON is YAML.
    let metadata: Value = serde_yaml_ng::from_slice(&output.stdout).unwrap();
    let text = |value: &Value, key: &str| value[key].as_str().unwrap().to_owned();
    let packages = metadata["packages"].as_sequence().unwrap().iter();
    packages
        .map(|package| Package {
            name: text(package, "name"),
            manifest: text(package, "manifest_path").into(),
            dependencies: package["dependencies"]
                .as_sequence()
                .unwrap()
                .iter()
                .map(|dependency| text(dependency, "name"))
                .collect(),
        })
        .collect()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn rust_files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("target") {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}
