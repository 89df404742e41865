//! The guest's clocks in plain nanoseconds: read, stepped, slewed. How far they are off is for the
//! daemon to find out.

use std::io;

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

/// Adds to CLOCK_REALTIME at once; CLOCK_MONOTONIC does not notice.
///
/// # Errors
/// If the kernel refuses: a time before 1970 or beyond 2262.
pub fn step_by(ns: i64) -> io::Result<()> {
    let mut change = timex(libc::ADJ_SETOFFSET | libc::ADJ_NANO);
    change.time.tv_sec = ns.div_euclid(NANOS);
    // Nanoseconds, as ADJ_NANO says; never negative (clock_adjtime(2)).
    change.time.tv_usec = ns.rem_euclid(NANOS);
    adjust(&mut change)
}

/// Adds to CLOCK_REALTIME by and by, 500 microseconds a second; CLOCK_MONOTONIC runs as much faster or
/// slower meanwhile. What is left of an earlier call is given up.
///
/// # Errors
/// If the kernel refuses.
pub fn slew_by(ns: i64) -> io::Result<()> {
    let mut change = timex(libc::ADJ_OFFSET_SINGLESHOT);
    change.offset = ns / 1_000;
    adjust(&mut change)
}

/// Makes the clocks run faster by so many nanoseconds a second, slower if negative; the kernel stops
/// at 500 microseconds from the processor's own rate.
///
/// # Errors
/// If the kernel refuses.
pub fn run_faster(ppb: i64) -> io::Result<()> {
    let mut change = timex(0);
    adjust(&mut change)?;
    let now = change.freq;
    let mut change = timex(libc::ADJ_FREQUENCY);
    // Parts per million with 16 bits behind the point (adjtimex(2)).
    change.freq = now.saturating_add(ppb.saturating_mul(1 << 16) / 1_000);
    adjust(&mut change)
}

fn timex(modes: libc::c_uint) -> libc::timex {
    // SAFETY: a timex is integers; all zeros is a valid value of each.
    let mut timex = unsafe { std::mem::zeroed::<libc::timex>() };
    timex.modes = modes;
    timex
}

fn adjust(change: &mut libc::timex) -> io::Result<()> {
    // SAFETY: the kernel reads and writes a timex at the pointer, which is valid for the call.
    match unsafe { libc::adjtimex(change) } {
        -1 => Err(io::Error::last_os_error()),
        // What it says of the clock's state.
        _ => Ok(()),
    }
}

/// Lets time pass before something is tried again. Not for waiting until something has happened:
/// wait for that.
pub async fn back_off(time: std::time::Duration) {
    // Nothing completes this; the deadline is the wait.
    let _ = tokio::time::timeout(time, std::future::pending::<()>()).await;
}
