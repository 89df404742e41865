//! The daemon's configuration: what the file says ([`raw`]) and what it means ([`Config`]).
//!
//! An unknown key, a wrong type, a missing file or an impossible value is an error that names the
//! file, the line, the key and what is allowed. Nothing is taken from the environment.

mod error;
mod pinned;
pub mod raw;
mod resolve;
mod values;

use std::path::Path;

use crate::records::KVM_FULL;

pub use error::ConfigError;
pub use pinned::Pinned;
pub use values::{
    Boot, Cgroup, Config, Host, HostNamespacePods, Network, NetworkMode, Paths, Registry, Sandbox,
    Streaming, TlsFiles, VhostNet, Vmm, Volumes,
};

/// The file that is read when none is named; it may be absent, which means all defaults.
pub const DEFAULT_FILE: &str = "/etc/bulkhead/config.toml";

impl Config {
    /// The RuntimeClass handlers of this node. "" is for pods without a RuntimeClass.
    pub fn handlers(&self) -> Vec<&'static str> {
        let full = self.vmm.full_kernel.as_ref().map(|_| KVM_FULL);
        ["", "kvm"]
            .into_iter()
            .chain(full)
            .chain(["host"])
            .collect()
    }

    /// Reads a file. With `None` the default file, which may be absent. Blocks.
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        let path = file.unwrap_or(Path::new(DEFAULT_FILE));
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if file.is_none() && e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(source) => {
                return Err(ConfigError::Read {
                    file: path.to_owned(),
                    source,
                });
            }
        };
        Self::parse(path, &text)
    }

    /// Reads the text of a file; `path` is for messages.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let raw: raw::Raw = toml::from_str(text).map_err(|source| ConfigError::Syntax {
            file: path.to_owned(),
            source: Box::new(source),
        })?;
        resolve::resolve(raw).map_err(|bad| ConfigError::Value {
            file: path.to_owned(),
            line: resolve::line_of(text, bad.section, bad.key),
            section: bad.section,
            key: bad.key,
            given: bad.given,
            allowed: bad.allowed,
        })
    }
}

#[cfg(test)]
mod tests;
