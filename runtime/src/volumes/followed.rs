//! What the daemon does for a pod's volumes while it runs: watches of ConfigMaps and Secrets, of
//! the sizes of volumes in memory, bridges of sockets. A pod owns its own; dropped, they end.

use std::collections::HashMap;

use super::{bridge::Bridge, size::SizeWatch, watch::Watch};

/// By the name that the guest knows each by.
#[derive(Debug, Default)]
pub struct Followed {
    pub(super) watches: HashMap<String, Watch>,
    pub(super) sizes: HashMap<String, SizeWatch>,
    pub(super) bridges: HashMap<String, Bridge>,
}
