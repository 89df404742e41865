//! What is wrong with the hosts' configuration, and reading its files.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Largest `hosts.toml` and certificate file read.
const LARGEST_FILE: u64 = 1 << 20;

/// What is wrong with the hosts' configuration.
#[derive(Debug, thiserror::Error)]
pub enum HostsError {
    /// A file is not readable.
    #[error("cannot read {path}, part of the registry hosts' configuration: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is not TOML of the right form.
    #[error("{path} is not a valid hosts.toml: {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Why, with the line.
        source: Box<toml::de::Error>,
    },
    /// A value that cannot be.
    #[error("{path}: {key} is {value:?}; {allowed}")]
    Value {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What it is.
        value: String,
        /// What it may be.
        allowed: &'static str,
    },
}

/// Reads a file of the configuration, which is small.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, HostsError> {
    use io::Read as _;
    let failed = |source| HostsError::Read {
        path: path.to_owned(),
        source,
    };
    let file = fs::File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(LARGEST_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > LARGEST_FILE {
        return Err(failed(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it is larger than {LARGEST_FILE} bytes"),
        )));
    }
    Ok(bytes)
}
