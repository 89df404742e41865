//! `bulkhead serve`: the daemon.

use std::{io::IsTerminal as _, path::PathBuf, process::ExitCode};

use clap::Args;
use tracing_subscriber::{EnvFilter, filter::Directive};

use super::output::fail;
use crate::{config, daemon};

/// Arguments of `serve`.
#[derive(Debug, Args)]
pub struct Serve {
    /// Read this configuration file, which must be there [default: /etc/bulkhead/config.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How much to log on standard error: error, warn, info, debug, trace, or
    /// MODULE=LEVEL, several with commas
    #[arg(long, value_name = "LEVEL", default_value = "info", value_parser = filter)]
    log_level: String,
    /// Print a configuration file with every key, its meaning and its default, and end
    #[arg(long)]
    print_default_config: bool,
}

fn filter(text: &str) -> Result<String, String> {
    for part in text.split(',') {
        part.parse::<Directive>()
            .map_err(|_| format!("{part:?} is neither a level nor MODULE=LEVEL"))?;
    }
    Ok(text.to_owned())
}

/// Runs it.
#[allow(clippy::print_stdout)] // The default configuration is this command's output.
pub fn run(args: Serve) -> ExitCode {
    if args.print_default_config {
        print!("{}", config::raw::default_file());
        return ExitCode::SUCCESS;
    }
    let config = match config::Config::load(args.config.as_deref()) {
        Ok(config) => config,
        Err(error) => return fail(&error),
    };
    // h2 and hyper narrate every frame from debug on.
    let quiet = format!("h2=info,hyper=info,tower=info,{}", args.log_level);
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(quiet))
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .with_target(false)
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(daemon::serve(config));
            // Blocking work (a pull's disk writes) is not waited for: the records stand.
            runtime.shutdown_background();
            result
        }
        Err(error) => return fail(&error),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}
