//! What the daemon says to the VMM, read from JSON: the configuration and the control requests. The
//! types are `bulkhead_contract::vmm`; here is which of their values are valid.

mod config;
mod control;

pub use config::{ConfigError, parse as parse_config};
pub use control::parse as parse_request;
