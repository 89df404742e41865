//! What can be wrong with the configuration.

use std::path::PathBuf;

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {file}: {source}")]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not TOML, an unknown key, or a value of a wrong type.
    #[error("in the configuration file {file}: {source}")]
    Syntax {
        /// The file.
        file: PathBuf,
        /// Where and what: names line, key and what is allowed.
        source: Box<toml::de::Error>,
    },
    /// A value that is not allowed.
    #[error(
        "in the configuration file {file}{}: {section}.{key} = {given} is invalid; allowed: {allowed}",
        .line.map(|l| format!(", line {l}")).unwrap_or_default()
    )]
    Value {
        /// The file.
        file: PathBuf,
        /// The line of the key; none if the value is the default.
        line: Option<usize>,
        /// The section.
        section: &'static str,
        /// The key.
        key: &'static str,
        /// The value.
        given: String,
        /// What may stand there.
        allowed: String,
    },
}
