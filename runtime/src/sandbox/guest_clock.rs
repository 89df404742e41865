//! The guest's clock, kept with the host's for all of the pod's life. A guest counts the processor's own
//! ticks, which no NTP corrects: a second in some hours, and all of it when the host was asleep.
//!
//! Each round asks the agent for the time, some times over, and believes the quickest answer: it was
//! wrong by half the time it took at most. Small errors are slewed, large ones stepped, and the
//! guest's rate is corrected by what it had drifted, so that it stays right when nobody asks.
//! CLOCK_MONOTONIC never jumps by any of it. What the agent says is a guest's word: it can spoil its
//! own clock with it, and nothing else.

use std::{
    io,
    os::fd::OwnedFd,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use bulkhead_common::back_off;
use bulkhead_proto::agent::{AdjustClockRequest, AdjustClockResponse};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::Semaphore,
};
use tonic::Code;

use super::Pod;
use crate::{agent::AgentError, app::App, clock::now_ns, error::chain, records::MachineKind};

/// Between the first round and the second, which knows the drift.
const FIRST: Duration = Duration::from_secs(16);
/// Between two rounds: at 100 ppm it drifts by 6 ms.
const EVERY: Duration = Duration::from_secs(60);
/// Questions of one round, if none is answered quickly.
const QUESTIONS: usize = 8;
/// An answer that took no longer needs no better one.
const QUICK_NS: i128 = 1_000_000;
/// For one answer; a slower one would be of no use.
const DEADLINE: Duration = Duration::from_secs(2);
/// Rounds at one time: more of them make each other's answers late.
static TURNS: Semaphore = Semaphore::const_new(4);

/// What no round corrects.
const FINE_NS: i128 = 100_000;
/// What may be wrong by this much is stepped; below it is slewed, within 20 seconds.
const STEP_NS: i128 = 10_000_000;
/// What the kernel slews in a second (adjtime(3)).
const SLEWED_PER_SECOND_NS: i128 = 500_000;
/// More is no drift: the guest stood still, or the host's clock was set.
const DRIFT_NS: i128 = 200_000_000;
/// The most that one round changes of the rate.
const RATE_PPB: i128 = 100_000;

/// Keeps a pod's clock right until the pod ends.
pub(super) fn keep(app: &Arc<App>, pod: &Arc<Pod>) {
    if pod.machine.kind() != MachineKind::Vm {
        return;
    }
    let mut host = app.pods.host_clock_set();
    let mut over = pod.over();
    let pod = Arc::downgrade(pod);
    tokio::spawn(async move {
        let mut last: Option<Round> = None;
        loop {
            let pause = if last.is_some() { EVERY } else { FIRST };
            let Some(pod) = pod.upgrade() else { return };
            match round(&pod, last).await {
                Ok(done) => last = done.or(last),
                Err(error) if is_unknown(&error) => {
                    tracing::info!(pod = %pod.id, "its agent is of a release that cannot correct its clock");
                    return;
                }
                // The next one may succeed.
                Err(error) => {
                    tracing::debug!(pod = %pod.id, "no round of its clock: {}", chain(&error))
                }
            }
            drop(pod);
            tokio::select! {
                _ = over.wait_for(|over| *over) => return,
                () = back_off(pause) => {}
                set = host.changed() => {
                    if set.is_err() {
                        return;
                    }
                    // What differs now is no drift.
                    last = None;
                }
            }
        }
    });
}

fn is_unknown(error: &AgentError) -> bool {
    matches!(error, AgentError::Call { status, .. } if status.code() == Code::Unimplemented)
}

/// What the last round has left.
#[derive(Debug, Clone, Copy)]
struct Round {
    at: Instant,
    /// What was still to be slewed then.
    slew_ns: i128,
}

/// One round; `None` if no answer was of use.
async fn round(pod: &Pod, last: Option<Round>) -> Result<Option<Round>, AgentError> {
    let _turn = TURNS.acquire().await;
    let Some(answer) = best_answer(pod).await? else {
        return Ok(None);
    };
    let at = Instant::now();
    let since = last.map(|last| Since {
        passed: at.saturating_duration_since(last.at),
        slew_ns: last.slew_ns,
    });
    let request = correction(&answer, since);
    if request != AdjustClockRequest::default() {
        ask(pod, request).await?;
        tracing::debug!(
            pod = %pod.id, offset_ns = answer.offset(), delay_ns = answer.delay(),
            step_ns = request.step_ns, slew_ns = request.slew_ns, rate_ppb = request.rate_ppb,
            "its clock is corrected"
        );
    }
    Ok(Some(Round {
        at,
        slew_ns: i128::from(request.slew_ns),
    }))
}

async fn best_answer(pod: &Pod) -> Result<Option<Answer>, AgentError> {
    let mut best: Option<Answer> = None;
    for _ in 0..QUESTIONS {
        let began = Instant::now();
        let sent = now_ns();
        let times = ask(pod, AdjustClockRequest::default()).await?;
        let heard = now_ns();
        let answer = Answer {
            sent,
            received: times.received_unix_ns,
            answered: times.answered_unix_ns,
            heard,
        };
        if answer.is_whole(began.elapsed()) && best.is_none_or(|best| answer.delay() < best.delay())
        {
            best = Some(answer);
        }
        if best.is_some_and(|best| best.delay() <= QUICK_NS) {
            break;
        }
    }
    Ok(best)
}

async fn ask(pod: &Pod, request: AdjustClockRequest) -> Result<AdjustClockResponse, AgentError> {
    let answered = pod.agent.call(
        "compare the guest's clock",
        DEADLINE,
        |mut agent| async move { agent.adjust_clock(request).await },
    );
    answered.await
}

/// A question and its answer: the host's times at the ends, the guest's between; nanoseconds since
/// the epoch.
#[derive(Debug, Clone, Copy)]
struct Answer {
    sent: i64,
    received: i64,
    answered: i64,
    heard: i64,
}

impl Answer {
    /// By how much the guest is ahead, give or take half the delay (RFC 5905 §8).
    fn offset(&self) -> i128 {
        let [sent, received, answered, heard] = self.times();
        (received - sent + answered - heard) / 2
    }

    /// How long it was on its way, there and back.
    fn delay(&self) -> i128 {
        let [sent, received, answered, heard] = self.times();
        (heard - sent) - (answered - received)
    }

    /// Whether neither clock was set meanwhile. `took` is by a clock that is not.
    fn is_whole(&self, took: Duration) -> bool {
        let [sent, received, answered, heard] = self.times();
        let took = i128::try_from(took.as_nanos()).unwrap_or(i128::MAX);
        let host = heard - sent;
        (0..=host).contains(&(answered - received)) && (took - host).abs() < QUICK_NS
    }

    fn times(&self) -> [i128; 4] {
        [self.sent, self.received, self.answered, self.heard].map(i128::from)
    }
}

/// Since the last round.
#[derive(Debug, Clone, Copy)]
struct Since {
    passed: Duration,
    /// What was still to be slewed.
    slew_ns: i128,
}

/// What the guest is to do about it. Nothing that may make it worse: an error that the delay alone
/// may be is left.
fn correction(answer: &Answer, since: Option<Since>) -> AdjustClockRequest {
    let (offset, unsure) = (answer.offset(), answer.delay() / 2);
    let mut request = AdjustClockRequest::default();
    if offset.abs() <= unsure.max(FINE_NS) {
        return request;
    }
    let ns = i64::try_from(-offset).unwrap_or_default();
    if offset.abs() + unsure >= STEP_NS {
        request.step_ns = ns;
    } else {
        request.slew_ns = ns;
    }
    request.rate_ppb = since.map_or(0, |since| rate(offset, since));
    request
}

/// By how much the guest's rate is to change. Half of what it seems, so that one late answer does
/// not lead it astray.
fn rate(offset: i128, since: Since) -> i64 {
    let passed = i128::try_from(since.passed.as_nanos()).unwrap_or(i128::MAX);
    let slewed = passed / 1_000_000_000 * SLEWED_PER_SECOND_NS;
    if since.passed < FIRST || since.slew_ns.abs() > slewed || offset.abs() > DRIFT_NS {
        return 0;
    }
    let ppb = -offset * 1_000_000_000 / passed / 2;
    i64::try_from(ppb.clamp(-RATE_PPB, RATE_PPB)).unwrap_or_default()
}

/// Tells all pods when the host's wall clock is set, which it is also when the host has slept.
pub(super) async fn watch_host(app: Weak<App>) {
    let watch = async {
        let timer = host_timer()?;
        loop {
            let mut ready = timer.readable().await?;
            // ECANCELED: it was set (timerfd_create(2)); the timer itself ends in another century.
            let mut count = [0; 8];
            let read =
                |timer: &AsyncFd<OwnedFd>| Ok(rustix::io::read(timer.get_ref(), &mut count)?);
            if ready.try_io(read).is_ok() {
                match app.upgrade() {
                    Some(app) => app.pods.note_host_clock(),
                    None => return Ok(()),
                }
            }
        }
    };
    let result: io::Result<()> = watch.await;
    if let Err(error) = result {
        tracing::warn!(
            "guests learn within a minute, not at once, that the host's clock is set: {error}"
        );
    }
}

/// Readable when the host's wall clock was set.
fn host_timer() -> io::Result<AsyncFd<OwnedFd>> {
    // 2255: KTIME_MAX is in 2262.
    const FAR: i64 = 9_000_000_000;
    let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
    let timer = timerfd_create(TimerfdClockId::Realtime, flags)?;
    let never = Itimerspec {
        it_interval: Timespec::default(),
        it_value: Timespec {
            tv_sec: FAR,
            tv_nsec: 0,
        },
    };
    let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
    timerfd_settime(&timer, flags, &never)?;
    // As in `machine::Process`: tokio's other constructor is unsafe.
    #[allow(deprecated)]
    AsyncFd::with_interest(timer, Interest::READABLE)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: i64 = 1_000_000;

    /// A guest `ahead` of the host, asked over a way that takes `there` and `back`.
    fn answer(ahead: i64, there: i64, back: i64) -> Answer {
        let sent = 1_800_000_000_000 * MS;
        let received = sent + there + ahead;
        Answer {
            sent,
            received,
            answered: received + 20_000,
            heard: sent + there + 20_000 + back,
        }
    }

    fn after(seconds: u64) -> Option<Since> {
        Some(Since {
            passed: Duration::from_secs(seconds),
            slew_ns: 0,
        })
    }

    #[test]
    fn small_errors_are_slewed_and_large_ones_stepped() {
        let near = |ahead| correction(&answer(ahead, 100_000, 100_000), None);
        assert_eq!(near(50_000), AdjustClockRequest::default());
        assert_eq!((near(3 * MS).step_ns, near(3 * MS).slew_ns), (0, -3 * MS));
        assert_eq!((near(-3 * MS).step_ns, near(-3 * MS).slew_ns), (0, 3 * MS));
        assert_eq!(near(10 * MS).step_ns, -10 * MS);
        // The host has slept for a day.
        assert_eq!(near(-86_400_000 * MS).step_ns, 86_400_000 * MS);
        // The rate is not known from one round.
        assert_eq!(near(3 * MS).rate_ppb, 0);
    }

    #[test]
    fn what_a_slow_answer_may_be_is_left() {
        let slow = answer(0, 40 * MS, 0);
        assert_eq!((slow.offset(), slow.delay()), (20_000_000, 40_000_000));
        assert_eq!(correction(&slow, after(60)), AdjustClockRequest::default());
        // What cannot be its fault is not.
        let wrong = correction(&answer(900 * MS, 40 * MS, 0), None);
        assert_eq!(wrong.step_ns, -920 * MS);
    }

    #[test]
    fn the_rate_follows_what_was_drifted() {
        let rate = |ahead, since| correction(&answer(ahead, 100_000, 100_000), since).rate_ppb;
        // 3 ms in a minute are 50 ppm; half of it at a time.
        assert_eq!(rate(3 * MS, after(60)), -25_000);
        assert_eq!(rate(-3 * MS, after(60)), 25_000);
        assert_eq!(rate(30 * MS, after(60)), -100_000);
        // Too soon; not slewed yet; no drift at all.
        assert_eq!(rate(3 * MS, after(5)), 0);
        let slewing = Since {
            passed: Duration::from_secs(16),
            slew_ns: 9_000_000,
        };
        assert_eq!(rate(3 * MS, Some(slewing)), 0);
        assert_eq!(rate(5_000 * MS, after(60)), 0);
    }

    #[test]
    fn answers_over_a_clock_that_is_set_are_not_believed() {
        let good = answer(5 * MS, 100_000, 100_000);
        let took = Duration::from_nanos(220_000);
        assert!(good.is_whole(took));
        let host_set = Answer {
            heard: good.heard + 50 * MS,
            ..good
        };
        assert!(!host_set.is_whole(took));
        for answered in [good.received - 1, good.received + MS, i64::MIN, i64::MAX] {
            assert!(!Answer { answered, ..good }.is_whole(took), "{answered}");
        }
    }

    #[tokio::test]
    async fn the_hosts_timer_waits_until_its_clock_is_set() {
        let timer = host_timer().unwrap();
        let early = tokio::time::timeout(Duration::from_millis(50), timer.readable()).await;
        assert!(early.is_err());
    }

    proptest! {
        /// Any correction leaves at most half the delay, or the tenth of a millisecond that is fine.
        #[test]
        fn a_correction_is_as_good_as_the_answer(
            ahead in -100_000 * MS..100_000 * MS, there in 0..50 * MS, back in 0..50 * MS,
        ) {
            let answer = answer(ahead, there, back);
            let request = correction(&answer, None);
            let changed = request.step_ns + request.slew_ns;
            let left = i128::from(ahead + changed).abs();
            let unchanged = changed == 0 && left <= answer.delay().max(FINE_NS);
            prop_assert!(left <= answer.delay() / 2 + 1 || unchanged, "{request:?}");
        }

        #[test]
        fn no_word_of_a_guest_overflows(times in any::<[i64; 4]>(), passed in any::<u64>()) {
            let [sent, received, answered, heard] = times;
            let answer = Answer { sent, received, answered, heard };
            let _whole = answer.is_whole(Duration::from_secs(1));
            let since = Since { passed: Duration::from_secs(passed), slew_ns: 0 };
            let request = correction(&answer, Some(since));
            prop_assert!(request.rate_ppb.abs() <= 100_000);
        }
    }
}
