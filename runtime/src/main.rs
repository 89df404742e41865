//! `bulkhead`: the daemon and its command line.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    bulkhead_runtime::cli::main()
}
