//! The command line.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::builder::styling::Style;
use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};
use redirect::rules::{BackendChoice, InterfaceName};

use crate::config::settings::{self, Described};

/// The node proxy for ambient service mesh.
///
/// Intercepts the TCP traffic of enrolled pods, carries it in mutual-TLS HBONE tunnels under SPIFFE identities, and
/// enforces layer-4 authorization. Settings are environment variables, listed below.
#[derive(Debug, Parser)]
#[command(name = "ztunnel", version)]
pub struct Cli {
    /// What to do; the proxy runs when nothing is said.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the proxy
    Proxy {
        /// Ignored, as deployments have always been able to name the component here
        #[arg(hide = true)]
        names: Vec<String>,
    },
    /// Put in place, check or take away the packet rules of a pod
    Rules {
        /// Which of these
        #[command(subcommand)]
        action: RulesAction,
    },
    /// Print what the settings amount to, without secrets; exit status 1 and all faults when they are wrong
    Config {
        /// In which form
        #[arg(long, short, value_enum, default_value_t = OutputForm::Yaml)]
        output: OutputForm,
    },
    /// Print the version
    Version {
        /// Ignored, like those of `proxy`
        #[arg(hide = true)]
        names: Vec<String>,
    },
}

/// The form in which values are printed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum OutputForm {
    /// For people
    Yaml,
    /// For programs
    Json,
}

impl OutputForm {
    /// `value` in this form.
    pub fn text(self, value: &serde_json::Value) -> Result<String, serde_yaml_ng::Error> {
        match self {
            Self::Yaml => serde_yaml_ng::to_string(value),
            Self::Json => Ok(format!("{value:#}")),
        }
    }
}

/// What `version` prints, one line in the form that Istio's programs share. `istio_version` is that of the release which
/// the program came with. The environment of the build may have told the rest: `GIT_REVISION`, `RUST_VERSION` and
/// `BUILD_STATUS`.
pub fn version_line(istio_version: Option<String>) -> String {
    let parts = [
        ("Version", env!("CARGO_PKG_VERSION")),
        ("GitRevision", option_env!("GIT_REVISION").unwrap_or("unknown")),
        ("RustVersion", option_env!("RUST_VERSION").unwrap_or("unknown")),
        ("BuildProfile", if cfg!(debug_assertions) { "debug" } else { "release" }),
        ("BuildStatus", option_env!("BUILD_STATUS").unwrap_or("unknown")),
        ("IstioVersion", istio_version.as_deref().unwrap_or("unknown")),
        ("CryptoProvider", "tls-aws-lc"),
    ];
    let parts: Vec<_> = parts.iter().map(|(name, value)| format!("{name}:{value:?}")).collect();
    format!("version.BuildInfo{{{}}}", parts.join(", "))
}

/// What to do with a pod's packet rules.
#[derive(Debug, Subcommand)]
pub enum RulesAction {
    /// Put the rules in place; also repairs and updates them
    Apply(RulesArguments),
    /// Compare what is in place with what should be; exit status 3 when they differ
    Check(RulesArguments),
    /// Take the rules away
    Remove(RulesArguments),
}

/// Which rules, and where.
#[derive(Args, Debug)]
pub struct RulesArguments {
    /// Network namespace of the pod, such as /var/run/netns/NAME or /proc/PID/ns/net
    #[arg(long, value_name = "PATH")]
    pub netns: PathBuf,
    /// Which packet filter to use [default: auto, which is nftables where it works]
    #[arg(
        long,
        value_name = "auto|nftables|iptables|iptables-nft|iptables-legacy",
        default_value = "auto",
        hide_default_value = true
    )]
    pub backend: BackendChoice,
    /// Redirect DNS to the proxy too
    #[arg(long)]
    pub dns_capture: bool,
    /// Leave inbound connections alone
    #[arg(long)]
    pub bypass_inbound: bool,
    /// Interface inside the pod, such as a VM's, whose traffic counts as outbound; repeatable
    #[arg(long = "virtual-interface", value_name = "NAME")]
    pub virtual_interfaces: Vec<InterfaceName>,
    /// Leave IPv6 alone
    #[arg(long)]
    pub no_ipv6: bool,
}

impl Cli {
    /// Reads the command line of this process. Help and version requests, and mistakes, are `Err`.
    pub fn read() -> Result<Self, clap::Error> {
        let matches = Self::command().after_long_help(settings_help()).try_get_matches()?;
        Self::from_arg_matches(&matches)
    }
}

/// Every setting with its default and meaning, section by section, as the help shows them.
fn settings_help() -> String {
    let (bold, plain) = (Style::new().bold(), Style::new());
    let mut help = format!("{bold}{}Settings (environment variables):{plain:#}\n", bold.underline());
    let mut sections: Vec<&str> = Vec::new();
    for setting in settings::ALL {
        if !sections.contains(&setting.section) {
            sections.push(setting.section);
        }
    }
    for section in sections {
        write!(help, "\n{bold}{section}{bold:#}\n").expect("writing to a string cannot fail");
        let all = settings::ALL.iter().chain(settings::PREFIXES);
        all.filter(|setting| setting.section == section).for_each(|setting| describe(setting, &mut help));
    }
    help
}

fn describe(setting: &Described, help: &mut String) {
    let bold = Style::new().bold();
    let default = match setting.default {
        None => String::new(),
        Some("") => " [default: nothing]".to_owned(),
        Some(default) => format!(" [default: {default}]"),
    };
    let Described { name, meaning, expected, .. } = setting;
    write!(help, "\n  {bold}{name}{bold:#}\n          {meaning}\n          Value: {expected}{default}\n")
        .expect("writing to a string cannot fail");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_words_of_existing_deployments_run_the_proxy() {
        for words in [&["ztunnel"][..], &["ztunnel", "proxy"], &["ztunnel", "proxy", "ztunnel"]] {
            let cli = Cli::try_parse_from(words).unwrap();
            assert!(matches!(cli.command, None | Some(Command::Proxy { .. })), "{words:?}");
        }
    }

    #[test]
    fn the_help_lists_every_setting() {
        let help = settings_help();
        let mut all = settings::ALL.iter().chain(settings::PREFIXES);
        assert!(all.all(|setting| help.contains(setting.name) && help.contains(setting.section)));
    }

    #[test]
    fn the_version_is_one_line_in_the_form_of_the_reference() {
        let line = version_line(Some("1.30.1".to_owned()));
        assert!(line.starts_with("version.BuildInfo{Version:\"") && line.ends_with('}'), "{line}");
        assert!(line.contains("IstioVersion:\"1.30.1\", CryptoProvider:\"tls-aws-lc\""), "{line}");
        assert!(version_line(None).contains("IstioVersion:\"unknown\""));
    }

    #[test]
    fn an_unknown_command_is_a_mistake_and_extra_words_are_not() {
        let unknown = Cli::try_parse_from(["ztunnel", "ztunnel"]).unwrap_err();
        assert!(unknown.use_stderr() && unknown.to_string().contains("Usage:"), "{unknown}");
        for words in [&["ztunnel", "version", "more"][..], &["ztunnel", "proxy", "ztunnel", "more"]] {
            assert!(Cli::try_parse_from(words).is_ok(), "{words:?}");
        }
    }
}
