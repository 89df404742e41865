//! Locks, and what a panic under one means here.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks `mutex`, poisoned or not: a panic aborts the process (`panic = "abort"` in the release
/// profile), so nobody is left to see a half-done change. Only tests unwind.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
