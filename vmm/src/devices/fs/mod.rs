//! virtio-fs (virtio 1.2 §5.11): a directory of the host, served to the guest by FUSE.
//!
//! The messages are parsed in `request` (pure) and answered by `server`, on threads of their own
//! (`workers`), so that a slow disk of the host stops neither the network nor the vsock device, and
//! the capabilities that file ownership needs are on those threads alone. `device` is what the
//! transport sees.
//!
//! Nothing the guest says becomes a path. A file is looked up by one name in a directory that the
//! guest has looked up before, without following links, and from then on is an `O_PATH` descriptor
//! behind a number; it is opened through /proc/self/fd, of which the jail keeps that directory
//! alone. Names are checked to be one component and never `..`, so no sequence of requests leaves
//! the share.
//!
//! Why not fuse-backend-rs: its 0.14 pins vm-memory 0.17 and virtio-queue 0.17 beside the VMM's
//! 0.18, and brings nix 0.24, mio, caps and radix_trie into the jailed process; its pass-through
//! bounds neither the inode table nor descriptors, keeps /proc open as a whole, and changes ids for
//! creation by real setresuid calls. What is left of it for this device, the structures of the
//! protocol, is the smaller part.
//!
//! The guest's view: entry and attribute times are zero and data is invalidated on change, so what
//! the host does is seen at the next system call. A guest's kernel drops a file's entry, and with it
//! the node here, as soon as nothing uses it, which keeps the table small. Locks are the guest's own
//! (between its processes, not towards the host). A write takes set-id bits and file capabilities away
//! where the guest's kernel says that its writer may not keep them.
//!
//! A file is one to the guest by whatever mount it was looked up (`nodes`), so that locks, FIFOs,
//! sockets and mappings meet; except that a file by a read-only mount is one of its own, unless the
//! guest itself keeps its containers from writing (a sealed entry of the share). A directory is
//! another one by each mount.
//!
//! What would mean something to the host's kernel is kept as data: extended attributes below
//! `user.bulkhead.` (`escape`), devices as regular files (`special`). The guest's kernel decides by
//! ACLs and file capabilities, and opens devices, which are never opened here.

mod abi;
pub mod acl;
mod attributes;
mod caller;
mod device;
pub mod escape;
mod files;
mod handles;
mod mapped;
mod metrics;
mod names;
pub mod nodes;
mod persist;
mod reader;
mod reply;
pub mod request;
mod server;
pub mod special;
mod workers;
mod xattrs;

pub use device::{FsConfig, FsDevice, FsError, MAX_TAG};
pub use metrics::FsMetrics;
pub use persist::SavedFs;
pub use server::{Limits, Server};
pub use workers::Workers;

#[cfg(test)]
mod tests;
