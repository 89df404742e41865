//! Container logs: the kubelet's file format, the files, and the task that carries a process's
//! output from the agent into its file, every byte once.
//!
//! How "once" survives `kill -9`: the agent keeps what is not acknowledged; acknowledged is only
//! what stands in the log as whole lines. A small checkpoint beside the records says how far the
//! streams were at some length of the file; after a restart the lines beyond that length are read
//! again and counted ([`recover`]), a torn last line is cut off, and the agent is asked to resume
//! from exactly there.

mod error;
mod file;
mod format;
mod offsets;
mod pump;
pub mod recover;
mod tee;
mod time;

pub use error::LogError;
pub use file::{LogFile, LogPath};
pub use format::{CONTENT_LIMIT, Encoder, Line, parse_line};
pub use offsets::Offsets;
pub use pump::{Pump, Target};
pub use recover::{Checkpoint, Checkpoints};
pub use tee::{Copied, OutputCopy};

#[cfg(test)]
mod tests;
