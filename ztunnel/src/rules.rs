//! The `rules` command: a pod's packet rules, from a terminal or a script.
//!
//! Exit status: 0 done, or the rules are in place; 1 it failed; 3 the rules are not, or not all, in place.

use std::io::Write as _;
use std::process::ExitCode;

use redirect::rules::{
    Backend, DnsCapture, InboundCapture, Ipv6Capture, PodRules, RulesError, State, apply, check, remove,
};
use redirect::{Netns, NetnsError};

use crate::cli::{RulesAction, RulesArguments};
use crate::telemetry::with_causes;

/// Exit status of `check` when the rules are not as they should be.
const NOT_IN_PLACE: u8 = 3;

/// Why the command failed.
#[derive(Debug, thiserror::Error)]
enum CommandError {
    #[error("--netns")]
    Netns(#[from] NetnsError),
    #[error(transparent)]
    Rules(#[from] RulesError),
}

/// Carries out the command and says on standard output what was done.
pub fn run(action: &RulesAction) -> ExitCode {
    match carry_out(action) {
        Ok((report, status)) => {
            // Nobody is left to tell when the terminal is gone.
            drop(writeln!(std::io::stdout(), "{report}"));
            status
        }
        Err(error) => {
            drop(writeln!(std::io::stderr(), "ztunnel: {}", with_causes(&error)));
            ExitCode::FAILURE
        }
    }
}

fn carry_out(action: &RulesAction) -> Result<(String, ExitCode), CommandError> {
    match action {
        RulesAction::Apply(arguments) => {
            let (netns, rules, backend) = prepare(arguments)?;
            apply(&netns, &rules, backend)?;
            Ok((format!("applied by {backend}"), ExitCode::SUCCESS))
        }
        RulesAction::Check(arguments) => {
            let (netns, rules, backend) = prepare(arguments)?;
            let state = check(&netns, &rules, backend)?;
            let status = match state {
                State::Applied => ExitCode::SUCCESS,
                State::Clean | State::Drifted { .. } => NOT_IN_PLACE.into(),
            };
            Ok((state.to_string(), status))
        }
        RulesAction::Remove(arguments) => {
            let (netns, rules, backend) = prepare(arguments)?;
            remove(&netns, &rules, backend)?;
            Ok((format!("removed from {backend}"), ExitCode::SUCCESS))
        }
    }
}

fn prepare(arguments: &RulesArguments) -> Result<(Netns, PodRules, Backend), CommandError> {
    let netns = Netns::open(&arguments.netns)?;
    let rules = rules(arguments);
    let backend = arguments.backend.resolve(&Netns::current()?, rules.families())?;
    Ok((netns, rules, backend))
}

fn rules(arguments: &RulesArguments) -> PodRules {
    PodRules {
        ipv6: if arguments.no_ipv6 { Ipv6Capture::Off } else { Ipv6Capture::On },
        dns: if arguments.dns_capture { DnsCapture::On } else { DnsCapture::Off },
        inbound: if arguments.bypass_inbound { InboundCapture::Bypass } else { InboundCapture::Capture },
        virtual_interfaces: arguments.virtual_interfaces.clone(),
        ..PodRules::default()
    }
}
