//! What ends when it has taken too long.

use std::time::Instant;

use super::{Muxer, Peer, TICK};
use crate::devices::vsock::connection::State;

impl Muxer {
    /// Ends what has waited too long.
    pub(super) fn expire(&mut self, now: Instant) {
        let late: Vec<u64> = self
            .peers
            .iter()
            .filter(|(_, p)| p.deadline().is_some_and(|d| d <= now))
            .map(|(id, _)| *id)
            .collect();
        for id in late {
            self.metrics.timeouts += 1;
            // The host's side ends now; the guest hears of it when it takes the reset.
            if let Some(Peer::Connection(c)) = self.peers.get(&id)
                && c.state != State::Draining
            {
                let (key, asked) = (c.key, !c.is_unasked());
                self.keys.remove(&key);
                if asked {
                    self.plan_reset(key);
                }
            }
            self.forget(id);
        }
        self.count();
    }

    /// Runs the timer while there are deadlines.
    pub(super) fn keep_time(&mut self) {
        let wanted = self.peers.values().any(|p| p.deadline().is_some());
        if wanted != self.timer_on {
            let done = if wanted {
                self.timer.reset(TICK, Some(TICK))
            } else {
                self.timer.clear()
            };
            if done.is_ok() {
                self.timer_on = wanted;
            }
        }
    }
}

impl Peer {
    fn deadline(&self) -> Option<Instant> {
        match self {
            Peer::Handshake(h) => Some(h.deadline),
            Peer::Connection(c) => c.deadline,
        }
    }
}
