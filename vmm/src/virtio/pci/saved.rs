//! The saved form of a function.

use serde::{Deserialize, Serialize};

use super::common::Common;
use crate::pci::Address;
use crate::pci::config::SavedConfig;
use crate::pci::msix::{self, SavedMsix};
use crate::virtio::device::{DeviceError, SavedDevice};

/// Everything of one function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedFunction {
    /// The device's id.
    pub id: String,
    /// Where it sat.
    pub address: Address,
    /// Its virtio device type.
    pub device_type: u32,
    /// Configuration space.
    pub config: SavedConfig,
    /// Vectors.
    pub msix: SavedMsix,
    /// The common configuration.
    pub common: Common,
    /// The vector of configuration changes, then one per queue.
    pub vectors: Vec<u16>,
    /// Whether the driver ran it.
    pub active: bool,
    /// The device's own part.
    pub device: SavedDevice,
}

/// Why a saved function could not be put back.
#[derive(Debug, thiserror::Error)]
pub enum TransportRestoreError {
    /// The saved form is of another device.
    #[error("the saved form of device {id} does not fit the device there is now: {what} differs")]
    Differs {
        /// The device's id.
        id: String,
        /// What differs.
        what: &'static str,
    },
    /// A saved ring is invalid.
    #[error("queue {index} of the saved device {id} is invalid: {source}")]
    Queue {
        /// The device's id.
        id: String,
        /// Which queue.
        index: u16,
        /// Why.
        #[source]
        source: virtio_queue::Error,
    },
    /// The vectors could not be put back.
    #[error("device {id}: {source}")]
    Msix {
        /// The device's id.
        id: String,
        /// Why.
        #[source]
        source: msix::RestoreError,
    },
    /// The device did not start.
    #[error(transparent)]
    Device(#[from] DeviceError),
}
