//! Compiles the .proto files. The descriptor set goes beside the code, for the test that holds it
//! against the checked-in table.
use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

fn main() -> Result<(), Box<dyn Error>> {
    let files = [
        "proto/cri/v1.proto",
        "proto/agent/v1.proto",
        "proto/archives/v1.proto",
    ];
    let set = protox::compile(files, ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), set.encode_to_vec())?;
    tonic_prost_build::configure()
        .build_transport(false)
        .bytes(".bulkhead.agent.v1")
        .bytes(".bulkhead.archives.v1")
        // It has a secret (src/lib.rs).
        .skip_debug([".bulkhead.agent.v1.SocketVolume"])
        .compile_fds(set)?;
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    Ok(())
}
