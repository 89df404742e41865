//! The guest's network as the daemon gives it: addresses, routes, rules and neighbours by netlink,
//! name resolution by files, sysctls. [`model`] checks what is asked; [`apply`] makes it so.

pub mod apply;
pub mod files;
pub mod model;
mod routes;
pub mod sysctl;

use std::collections::HashMap;
use std::path::PathBuf;

/// Why the network could not be set.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// An invalid field.
    #[error("{field} {value:?}: {expected}")]
    Invalid {
        /// Which field of the request.
        field: &'static str,
        /// Its value.
        value: String,
        /// What it may be.
        expected: &'static str,
    },
    /// No device has that MAC address.
    #[error("no network device has the MAC address {mac}; did the VMM get this interface?")]
    NoDevice {
        /// The address.
        mac: String,
    },
    /// A route or neighbour names an interface that is not among the given ones.
    #[error("interface {0:?} is not one of the network's interfaces")]
    UnknownInterface(String),
    /// The kernel refused.
    #[error("{what}")]
    Netlink {
        /// What was attempted.
        what: String,
        /// The kernel's answer.
        #[source]
        error: rtnetlink::Error,
    },
    /// The netlink socket could not be opened.
    #[error("opening a netlink socket")]
    Socket(#[source] std::io::Error),
    /// A file could not be written.
    #[error("writing {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        error: std::io::Error,
    },
    /// A sysctl name that is none.
    #[error(
        "sysctl {0:?} is not a name of letters, digits, '_', '-', '.' and '/' without empty or '..' parts"
    )]
    BadSysctl(String),
    /// A parameter the kernel does not have, or a value it does not take.
    #[error("setting the sysctl {name} to {value:?}")]
    Sysctl {
        /// Which.
        name: String,
        /// What it was to be.
        value: String,
        /// The kernel's answer.
        #[source]
        error: std::io::Error,
    },
}

/// An error of the kernel's, with what was attempted.
fn failed(what: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> NetError {
    let what = what.into();
    move |error| NetError::Netlink { what, error }
}

/// The number of an interface.
fn index_of(indexes: &HashMap<&str, u32>, name: &str) -> Result<u32, NetError> {
    indexes
        .get(name)
        .copied()
        .ok_or_else(|| NetError::UnknownInterface(name.to_owned()))
}
