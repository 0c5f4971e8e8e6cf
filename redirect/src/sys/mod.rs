//! The three system calls that no dependency of ours wraps safely. All unsafe code of the workspace is here; what
//! comes out are safe functions on owned or borrowed descriptors.
#![allow(unsafe_code)]

pub(crate) mod message;
pub(crate) mod namespace;
pub(crate) mod queue;
