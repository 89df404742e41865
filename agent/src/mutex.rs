//! Locking mutexes that no panic leaves halfway through a change.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a mutex, poisoned or not: the agent's critical sections do not panic between two steps of one
/// change, so what a mutex guards is whole even after a panic.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
