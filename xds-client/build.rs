//! Compiles the protobuf without `protoc`: protox parses, prost-build generates.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let files = ["proto/workload.proto", "proto/authorization.proto", "proto/discovery.proto"];
    let descriptors = protox::compile(files, ["proto"])?;
    prost_build::Config::new()
        // Sorted maps, so that one message has one encoding.
        .btree_map(["."])
        // Payloads and addresses are slices of the message that they came in, not copies.
        .bytes(["."])
        .compile_fds(descriptors)?;
    Ok(())
}
