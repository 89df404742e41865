//! Waiting for disks to appear.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::device::{self, BlockDevice};
use super::error::DiskError;
use super::uevent::Uevents;
use crate::blocking;

/// The devices of serials: those that are there, then those a rescan finds, then those that come.
///
/// # Errors
/// [`DiskError::Missing`] at the deadline, [`DiskError::Scan`] if the kernel's lists cannot be
/// read.
pub(super) async fn wait_for(
    serials: &[String],
    deadline: Duration,
) -> Result<HashMap<String, BlockDevice>, DiskError> {
    if serials.is_empty() {
        return Ok(HashMap::new());
    }
    // Subscribed before the first look, so that nothing can come in between unseen.
    let events = Uevents::open().map_err(|error| DiskError::Scan {
        what: "uevents",
        error,
    })?;
    let wanted = serials.to_vec();
    let look = |rescan: bool| {
        let wanted = wanted.clone();
        blocking::run(move || {
            if rescan {
                device::rescan()?;
            }
            device::find(&wanted)
        })
    };
    let mut found = look(false).await?;
    tracing::debug!("disks: looked");
    if found.len() < wanted.len() {
        found = look(true).await?;
        tracing::debug!("disks: rescanned");
    }
    // From here on: a rescan probes what it finds before it returns, and that takes as long as
    // there are devices.
    let end = Instant::now() + deadline;
    while wanted.iter().any(|serial| !found.contains_key(serial)) {
        match timeout_at(end, events.block_device_added()).await {
            Ok(result) => result.map_err(|error| DiskError::Scan {
                what: "uevents",
                error,
            })?,
            Err(_) => {
                let missing = wanted
                    .iter()
                    .filter(|serial| !found.contains_key(*serial))
                    .cloned()
                    .collect();
                return Err(DiskError::Missing {
                    missing,
                    waited: deadline,
                });
            }
        }
        found = look(false).await?;
    }
    Ok(found)
}
