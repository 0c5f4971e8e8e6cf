//! xDS wire types and the delta ADS client.
