//! The command line: `bulkhead COMMAND`. One file per command.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A Kubernetes container runtime in which every pod is a virtual machine.
#[derive(Debug, Parser)]
#[command(name = "bulkhead", version, disable_version_flag = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the version
    Version,
}

/// Runs the command that the arguments name.
pub fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Version => version(),
    }
}

#[allow(clippy::print_stdout)] // A command's output.
fn version() -> ExitCode {
    println!("bulkhead {}", env!("CARGO_PKG_VERSION"));
    ExitCode::SUCCESS
}
