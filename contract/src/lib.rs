//! What the processes of a node say to each other in JSON: types, and nothing that acts on them.
//!
//! [`vmm`] is the configuration and the control socket of a pod's VMM (docs/vmm-api.md), [`host`]
//! the configuration of the agent of a pod on the host, [`exit`] the report that either leaves when
//! it ends. Whether a value makes sense is for its reader to say. Calls to the agent are gRPC, in
//! `bulkhead-proto`.
//!
//! What the daemon says has no key that its reader does not know: what it asks for must not be passed
//! over. What it is told may have some, for a daemon of one release meets the machines of another: every document that was ever released is
//! kept in `tests/golden`, a directory for each version, and must still be read.
#![forbid(unsafe_code)]

pub mod exit;
pub mod host;
pub mod vmm;
