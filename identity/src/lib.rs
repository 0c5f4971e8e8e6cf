//! SPIFFE identities, certificates and the TLS configurations made from them.
