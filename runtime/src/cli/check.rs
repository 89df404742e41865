//! `bulkhead check`: what this host lacks to run pods, and how to get it.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;

use super::output::fail;
use crate::{
    checks::{self, Found},
    config::Config,
};

/// Arguments of `check`.
#[derive(Debug, Args)]
pub struct Check {
    /// Read this configuration file [default: /etc/bulkhead/config.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Runs it: exit code 1 if pods cannot run.
#[allow(clippy::print_stdout)] // A command's output.
pub fn run(args: Check) -> ExitCode {
    let config = match Config::load(args.config.as_deref()) {
        Ok(config) => config,
        Err(error) => return fail(&error),
    };
    let mut fatal = 0;
    for check in checks::all(&config) {
        let (mark, word) = match &check.result {
            Found::Good(word) => ("ok     ", word),
            Found::Missing(word) => ("missing", word),
            Found::Fatal(word) => {
                fatal += 1;
                ("FAILED ", word)
            }
        };
        println!("{mark}  {:<26} {word}", check.what);
    }
    if fatal == 0 {
        println!("\nThis host can run pods.");
        return ExitCode::SUCCESS;
    }
    println!("\nThis host cannot run pods: {fatal} of the checks failed.");
    ExitCode::FAILURE
}
