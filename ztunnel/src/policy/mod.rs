//! Layer-4 authorization of connections that arrive at a local workload.
//!
//! A policy arrives as a [`PolicySpec`], is compiled once into a [`Policy`], is kept in the mesh, and is evaluated for
//! every connection without allocating. See Istio's `AuthorizationPolicy` reference for what users write; the control
//! plane reduces it to the form below, and turns `PeerAuthentication` in strict mode into DENY policies.
//!
//! ```text
//! policy = OR  over rules      no rules:    never matches
//! rule   = AND over clauses    no clauses:  matches everything
//! clause = OR  over matches    no matches:  matches everything
//! match  = AND over fields     no fields:   never matches
//! field  = (no positive values, or one of them matches) AND no negative value matches
//! ```
//!
//! What cannot be understood never widens access: see [`compile`] for values, and [`PolicySet::evaluate`] for policies
//! that a workload names but that are not known.

mod compile;
mod evaluate;
mod spec;
mod store;

pub(crate) use compile::compile_as;
pub use compile::{Clause, CompileWarning, Conditions, Field, Match, Policy, Rule, compile};
pub use evaluate::{Access, Decider, Denied, DryRun, Evaluation, Permit};
pub use spec::{
    Action, Enforcement, MatchSpec, PolicyScope, PolicySpec, Readable, ServiceAccountMatch, StringMatch,
    Unreadable,
};
pub(crate) use store::Policies;
pub use store::PolicySet;
