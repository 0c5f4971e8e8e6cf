//! The command line.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::builder::styling::Style;
use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use redirect::rules::{BackendChoice, InterfaceName};

use crate::config::settings;

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
    /// Print the version
    Version,
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

/// Every setting with its default and meaning, as the help shows them.
fn settings_help() -> String {
    let (bold, plain) = (Style::new().bold(), Style::new());
    let mut help = format!("{bold}{}Settings (environment variables):{plain:#}\n", bold.underline());
    for setting in settings::ALL {
        let default = match setting.default {
            None => String::new(),
            Some("") => " [default: nothing]".to_owned(),
            Some(default) => format!(" [default: {default}]"),
        };
        write!(
            help,
            "\n  {bold}{}{bold:#}\n          {}\n          Value: {}{default}\n",
            setting.name, setting.meaning, setting.expected
        )
        .expect("writing to a string cannot fail");
    }
    help
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
        assert!(settings::ALL.iter().all(|setting| help.contains(setting.name)));
    }
}
