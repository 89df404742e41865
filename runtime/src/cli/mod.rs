//! The command line: `bulkhead COMMAND`. One file per command.

mod check;
mod client;
mod console;
mod export;
mod images;
mod import;
mod output;
mod pull;
mod run;
mod serve;

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
    /// Run the daemon: serve CRI to a kubelet until stopped; pods outlive it
    Serve(serve::Serve),
    /// Say what this host lacks to run pods, and how to get it
    Check(check::Check),
    /// Pull an image from its registry
    Pull(pull::Pull),
    /// List the images of this node
    Images(images::ImagesArgs),
    /// Make the images of an archive images of this node
    Import(import::Import),
    /// Write images of this node into an archive
    Export(export::Export),
    /// Run one container in a pod of its own, attached; the exit code is the container's
    Run(run::Run),
    /// Show a pod's serial console, and follow it
    Console(console::Console),
    /// Print the version
    Version,
}

/// Runs the command that the arguments name.
pub fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Serve(args) => serve::run(args),
        Command::Check(args) => check::run(args),
        Command::Pull(args) => pull::run(args),
        Command::Images(args) => images::run(args),
        Command::Import(args) => import::run(args),
        Command::Export(args) => export::run(args),
        Command::Run(args) => run::run(args),
        Command::Console(args) => console::run(args),
        Command::Version => version(),
    }
}

#[allow(clippy::print_stdout)] // A command's output.
fn version() -> ExitCode {
    println!("bulkhead {}", env!("CARGO_PKG_VERSION"));
    ExitCode::SUCCESS
}
