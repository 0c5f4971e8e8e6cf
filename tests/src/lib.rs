//! The namespace laboratory and the end-to-end suites that use it.
