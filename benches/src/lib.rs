//! Micro-benchmarks and the two-node benchmark.
