//! `bulkhead export IMAGE...`: images of this node as an archive.

use std::{
    io::{self, IsTerminal as _, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use bulkhead_proto::archives::ExportRequest;
use clap::Args;
use tempfile::NamedTempFile;

use super::{
    client::{ClientError, Daemon, block_on, failed},
    output::fail,
};
use crate::config::Config;

/// Arguments of `export`.
#[derive(Debug, Args)]
pub struct Export {
    /// The images: tags, digests or ids
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// Write to this file, which appears when it is whole; "-" is the standard output
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    output: PathBuf,
    /// Read this configuration file [default: /etc/bulkhead/config.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
enum ExportError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("an archive is nothing for a terminal: give --output FILE, or a pipe")]
    Terminal,
    #[error("cannot write {path}")]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Runs it.
pub fn run(args: Export) -> ExitCode {
    let config = match Config::load(args.config.as_deref()) {
        Ok(config) => config,
        Err(error) => return fail(&error),
    };
    match block_on(export(args, &config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

async fn export(args: Export, config: &Config) -> Result<(), ExportError> {
    let path = args.output;
    let unwritable = |source| ExportError::Write {
        path: path.clone(),
        source,
    };
    let daemon = Daemon::connect(&config.paths.socket).await?;
    if path.as_os_str() == "-" {
        let mut out = io::stdout().lock();
        if out.is_terminal() {
            return Err(ExportError::Terminal);
        }
        receive(&daemon, args.images, &mut out, &unwritable).await?;
        return out.flush().map_err(unwritable);
    }
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    // A device or a pipe is written as it is.
    if path.exists() && !path.is_file() {
        let mut file = std::fs::File::options()
            .write(true)
            .open(&path)
            .map_err(unwritable)?;
        return receive(&daemon, args.images, &mut file, &unwritable).await;
    }
    let mut file = NamedTempFile::new_in(dir).map_err(unwritable)?;
    receive(&daemon, args.images, &mut file, &unwritable).await?;
    file.as_file().sync_all().map_err(unwritable)?;
    file.persist(&path)
        .map_err(|error| unwritable(error.error))?;
    Ok(())
}

async fn receive(
    daemon: &Daemon,
    images: Vec<String>,
    to: &mut impl Write,
    unwritable: &impl Fn(io::Error) -> ExportError,
) -> Result<(), ExportError> {
    let answer = daemon.archives().export(ExportRequest { images }).await;
    let mut chunks = answer.map_err(failed("export the images"))?.into_inner();
    while let Some(message) = chunks
        .message()
        .await
        .map_err(failed("export the images"))?
    {
        to.write_all(&message.chunk).map_err(unwritable)?;
    }
    Ok(())
}
