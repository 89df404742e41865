//! Readings of the guest's clocks as plain nanoseconds, and nothing else.

use rustix::time::{ClockId, Timespec, clock_gettime};

const NANOS: i64 = 1_000_000_000;

fn nanoseconds(time: Timespec) -> i64 {
    time.tv_sec
        .saturating_mul(NANOS)
        .saturating_add(time.tv_nsec)
}

/// CLOCK_REALTIME, nanoseconds since the epoch.
pub fn realtime_ns() -> i64 {
    nanoseconds(clock_gettime(ClockId::Realtime))
}

/// CLOCK_BOOTTIME, nanoseconds since the guest's kernel started its clock.
pub fn boottime_ns() -> u64 {
    nanoseconds(clock_gettime(ClockId::Boottime))
        .try_into()
        .unwrap_or(0)
}

/// Steps CLOCK_REALTIME.
///
/// # Errors
/// If the kernel refuses; EPERM outside a guest without the capability.
pub fn step_realtime(unix_ns: i64) -> rustix::io::Result<()> {
    rustix::time::clock_settime(
        ClockId::Realtime,
        Timespec {
            tv_sec: unix_ns.div_euclid(NANOS),
            tv_nsec: unix_ns.rem_euclid(NANOS),
        },
    )
}

/// Lets time pass before something is tried again. Not for waiting until something has happened:
/// wait for that.
pub async fn back_off(time: std::time::Duration) {
    // Nothing completes this; the deadline is the wait.
    let _ = tokio::time::timeout(time, std::future::pending::<()>()).await;
}
