//! The ResizeGuest call: processors, how many processes there may be, and the look for a memory device the VMM has plugged. The
//! guest's kernel then brings up that device by itself; the VMM knows how far it is.

use std::path::Path;

use bulkhead_proto::agent::{ResizeGuestRequest, ResizeGuestResponse};

use super::agent::Agent;
use super::error::SandboxError;
use crate::container::cgroup;
use crate::{blocking, cpus, disk, stats};

impl Agent {
    /// Brings processors online or offline.
    ///
    /// # Errors
    /// If the kernel refuses; what was changed before stays changed, and the call can be repeated.
    pub(super) async fn resize(
        &self,
        request: ResizeGuestRequest,
    ) -> Result<ResizeGuestResponse, SandboxError> {
        if self.containers().paths.host().is_some() {
            return Err(SandboxError::Invalid {
                field: "online_cpus",
                expected: "a guest's: the host's processors are not the pod's",
            });
        }
        if let Some(limit) = request.pids_limit {
            cgroup::limit_pids(&self.containers().paths.cgroup_of_pod(), limit)?;
        }
        // One at a time, and not while the sandbox is being set up.
        let _alone = self.0.sandbox.lock().await;
        blocking::run(move || {
            if request.rescan {
                disk::rescan()?;
            }
            if request.online_cpus > 0 {
                cpus::online(Path::new(cpus::SYSFS), request.online_cpus)?;
            }
            Ok::<_, SandboxError>(())
        })
        .await?;
        if let Some(policy) = &request.memory {
            self.0.memory.set(policy).await?;
        }
        Ok(ResizeGuestResponse {
            online_cpus: stats::online_cpus(),
        })
    }
}
