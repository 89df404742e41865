//! What the processes of a node say to each other in JSON: types, and nothing that acts on them.
//!
//! [`vmm`] is the configuration and the control socket of a pod's VMM (docs/vmm-api.md), [`host`]
//! the configuration of the agent of a pod on the host, [`exit`] the report that either leaves when
//! it ends. Whether a value makes sense is for its reader to say. Calls to the agent are gRPC, in
//! `bulkhead-proto`.
//!
//! Readers refuse unknown keys in what the daemon says, because what it asks for must not be ignored.
//! The daemon ignores unknown keys in what it is told: a daemon of one release meets the machines of
//! another. So every document that was ever released is kept in `tests/golden`, a directory for each
//! version, and must still be read.
#![forbid(unsafe_code)]

pub mod exit;
pub mod host;
pub mod vmm;
