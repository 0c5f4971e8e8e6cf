//! What runs.

use serde::Serialize;

/// Where the program comes from. What the build was not told is `unknown`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BuildInfo {
    /// `debug` or `release`.
    pub build_profile: &'static str,
    /// `Clean` or `Modified`: the state of the sources.
    pub build_status: &'static str,
    /// The cryptographic provider.
    pub crypto_provider: &'static str,
    /// The commit.
    pub git_revision: &'static str,
    /// The Istio release that the process is part of.
    pub istio_version: String,
    /// The compiler.
    pub rust_version: &'static str,
    /// The version of the program.
    pub version: &'static str,
}

impl BuildInfo {
    /// This program. `istio_version` is `ISTIO_META_ISTIO_VERSION`. The environment of the build may have told the rest:
    /// `BUILD_STATUS`, `GIT_REVISION`, `RUST_VERSION`.
    pub fn of_this_program(istio_version: Option<&str>) -> Self {
        Self {
            build_profile: if cfg!(debug_assertions) { "debug" } else { "release" },
            build_status: option_env!("BUILD_STATUS").unwrap_or("unknown"),
            crypto_provider: "tls-aws-lc",
            git_revision: option_env!("GIT_REVISION").unwrap_or("unknown"),
            istio_version: istio_version.unwrap_or("unknown").to_owned(),
            rust_version: option_env!("RUST_VERSION").unwrap_or("unknown"),
            version: env!("CARGO_PKG_VERSION"),
        }
    }
}
