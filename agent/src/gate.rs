//! Who may connect to the agent, and how many at a time. Whoever speaks to the agent is root in its
//! guest.
//!
//! Not here: accepting and serving (`serve`).

use std::sync::{Arc, Mutex};

use tokio_vsock::VMADDR_CID_HOST;

use crate::mutex::lock;

/// Connections at one time: what the VMM lets through (vmm: devices/vsock), which are the daemon's
/// channel and a session for each command, log and forwarded connection.
const MAX_OPEN: usize = 512;
/// Of these, connections that have not sent their first bytes yet. The daemon sends them at once.
const MAX_SILENT: usize = 128;

/// Where a connection comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// By vsock, from this context.
    Context(u32),
    /// By a Unix socket, whose mode has decided who may connect.
    Local,
}

/// Why a connection is closed at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not the host.
    #[error("it comes from vsock context {0}; only the host may connect")]
    NotTheHost(u32),
    /// Too many.
    #[error("{MAX_OPEN} connections are open")]
    TooMany,
    /// Too many that have not sent anything.
    #[error("{MAX_SILENT} connections have not said what they are")]
    TooManySilent,
}

#[derive(Debug, Default)]
struct Counts {
    /// All that are open, silent ones included.
    open: usize,
    silent: usize,
    refused: u64,
}

fn decide(peer: Peer, counts: &Counts) -> Result<(), Refusal> {
    match peer {
        Peer::Context(VMADDR_CID_HOST) | Peer::Local => {}
        Peer::Context(other) => return Err(Refusal::NotTheHost(other)),
    }
    if counts.open >= MAX_OPEN {
        return Err(Refusal::TooMany);
    }
    if counts.silent >= MAX_SILENT {
        return Err(Refusal::TooManySilent);
    }
    Ok(())
}

/// Counts the connections of a listener.
#[derive(Debug, Clone, Default)]
pub struct Gate(Arc<Mutex<Counts>>);

impl Gate {
    /// A place for a new connection, which is silent so far; none if it is to be closed.
    pub fn admit(&self, peer: Peer) -> Option<Place> {
        let mut counts = lock(&self.0);
        match decide(peer, &counts) {
            Ok(()) => {
                counts.open += 1;
                counts.silent += 1;
                Some(Place {
                    gate: self.clone(),
                    silent: true,
                })
            }
            Err(refusal) => {
                counts.refused = counts.refused.saturating_add(1);
                let refused = counts.refused;
                drop(counts);
                // Logged at powers of two: a flood of connections must not become a flood of log
                // lines.
                if refused.is_power_of_two() {
                    tracing::warn!(refused, "a connection to the agent was closed: {refusal}");
                }
                None
            }
        }
    }
}

/// A connection's place, until it is dropped.
#[derive(Debug)]
pub struct Place {
    gate: Gate,
    silent: bool,
}

impl Place {
    /// The connection has sent its first bytes.
    pub fn spoke(&mut self) {
        if std::mem::take(&mut self.silent) {
            lock(&self.gate.0).silent -= 1;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.spoke();
        lock(&self.gate.0).open -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: Peer = Peer::Context(2);

    #[test]
    fn only_the_host_may_connect() {
        let none = Counts::default();
        assert_eq!(decide(HOST, &none), Ok(()));
        assert_eq!(decide(Peer::Local, &none), Ok(()));
        // The hypervisor, the guest itself by either name, another guest, anybody.
        for other in [0, 1, 3, 4, u32::MAX - 1, u32::MAX] {
            let decided = decide(Peer::Context(other), &none);
            assert_eq!(decided, Err(Refusal::NotTheHost(other)));
        }
    }

    #[test]
    fn silent_connections_do_not_crowd_out_others() {
        let gate = Gate::default();
        let silent: Vec<_> = (0..MAX_SILENT).map(|_| gate.admit(HOST)).collect();
        assert!(silent.iter().all(Option::is_some));
        assert!(gate.admit(HOST).is_none());
        // One that has spoken makes room, once.
        let mut silent: Vec<Place> = silent.into_iter().flatten().collect();
        let mut one = silent.pop().unwrap();
        one.spoke();
        one.spoke();
        let next = gate.admit(HOST);
        assert!(next.is_some() && gate.admit(HOST).is_none());
        drop((one, next, silent));
        let counts = lock(&gate.0);
        assert_eq!((counts.open, counts.silent, counts.refused), (0, 0, 2));
    }

    #[test]
    fn connections_are_bounded_and_places_are_returned() {
        let gate = Gate::default();
        let mut places = Vec::new();
        for _ in 0..MAX_OPEN {
            let mut place = gate.admit(HOST).unwrap();
            place.spoke();
            places.push(place);
        }
        assert!(gate.admit(HOST).is_none());
        assert_eq!(decide(HOST, &lock(&gate.0)), Err(Refusal::TooMany));
        places.pop();
        assert!(gate.admit(HOST).is_some());
    }
}
