//! The AdjustClock call: the guest's clock is read and corrected as the daemon says, which compares it
//! with the host's.

use bulkhead_proto::agent::{AdjustClockRequest, AdjustClockResponse};

use super::agent::Agent;
use super::error::SandboxError;
use crate::clock;

/// More than this is stepped: at 500 microseconds a second it would take a quarter of an hour.
const MAX_SLEW_NS: u64 = 500_000_000;
/// The kernel's own bound (MAXFREQ).
const MAX_RATE_PPB: u64 = 500_000;

impl Agent {
    /// Corrects the clock, and says what time it was before and is now.
    ///
    /// # Errors
    /// If a value cannot be, the agent is on the host, or the kernel refuses.
    pub(super) fn adjust_clock(
        &self,
        request: AdjustClockRequest,
    ) -> Result<AdjustClockResponse, SandboxError> {
        // Before anything else: the daemon halves the time between.
        let received_unix_ns = clock::realtime_ns();
        let AdjustClockRequest {
            step_ns,
            slew_ns,
            rate_ppb,
        } = request;
        let invalid = |field, expected| Err(SandboxError::Invalid { field, expected });
        if self.containers().paths.host().is_some() {
            return invalid("clock", "a guest's: the host's clock is not the pod's");
        }
        if slew_ns.unsigned_abs() > MAX_SLEW_NS {
            return invalid("slew_ns", "at most half a second in either direction");
        }
        if rate_ppb.unsigned_abs() > MAX_RATE_PPB {
            return invalid("rate_ppb", "at most 500,000 in either direction");
        }
        let done = |what, result: std::io::Result<()>| {
            result.map_err(|error| SandboxError::Clock { what, error })
        };
        if step_ns != 0 {
            done("stepping the clock", clock::step_by(step_ns))?;
        }
        if slew_ns != 0 {
            done("slewing the clock", clock::slew_by(slew_ns))?;
        }
        if rate_ppb != 0 {
            done("changing the clock's rate", clock::run_faster(rate_ppb))?;
        }
        Ok(AdjustClockResponse {
            received_unix_ns,
            answered_unix_ns: clock::realtime_ns(),
        })
    }
}
