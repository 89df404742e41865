//! Pods: how one comes up, is asked about, and goes. One file per RPC, each reading validate,
//! plan, act, record; no lock is held while a VM boots.

mod dns;
mod ending;
mod error;
mod find;
mod guest;
mod list;
mod machine;
mod names;
mod pod;
mod pods;
mod recovery;
mod release;
mod remove;
mod resize;
mod run;
mod scratch;
mod settle;
mod sizing;
mod status;
mod stop;
mod timeline;
mod validate;

pub use error::SandboxError;
pub(crate) use find::find;
pub use list::list;
pub use machine::Machine;
pub use pod::Pod;
pub use pods::Pods;
pub use recovery::recover;
pub use remove::remove;
pub use resize::update;
pub(crate) use resize::{Change, fit};
pub use run::run;
pub(crate) use status::describe;
pub use status::status;
pub use stop::stop;

/// A new sandbox or container id: 32 random lower-case hexadecimal digits.
pub fn new_id() -> std::io::Result<String> {
    Ok(format!(
        "{:032x}",
        u128::from_ne_bytes(bulkhead_common::random()?)
    ))
}

/// Whether a text has the form of a sandbox or container id.
pub fn is_id(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Now, in nanoseconds since the epoch.
pub(crate) fn now_ns() -> i64 {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
