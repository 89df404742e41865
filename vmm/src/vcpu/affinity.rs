//! Which of the host's processors a thread runs on.
//!
//! Not by rustix's or libc's set of processors: those end at number 1023.

use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::thread::JoinHandle;

/// The kernel's own bound on x86 (`CONFIG_NR_CPUS` with `MAXSMP`).
pub const MAX_CPUS: u16 = 8192;
const BITS: u16 = 64;

/// Has a thread run on `cpus`, or with `None` on all that its cgroup allows.
///
/// # Errors
/// When a number is too high, or the cgroup allows none of them.
pub fn set(thread: &JoinHandle<()>, cpus: Option<&[u16]>) -> io::Result<()> {
    let mask = cpus.map_or_else(|| Ok(all()), mask)?;
    // SAFETY: the thread is not joined, as its handle is there, so that its identifier is valid; the
    // kernel reads as many bytes from the mask as the second argument says, which it has.
    let error = unsafe {
        libc::pthread_setaffinity_np(
            thread.as_pthread_t(),
            size_of_val(mask.as_slice()),
            mask.as_ptr().cast(),
        )
    };
    match error {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

fn all() -> Vec<u64> {
    vec![u64::MAX; usize::from(MAX_CPUS / BITS)]
}

/// One bit for each processor.
fn mask(cpus: &[u16]) -> io::Result<Vec<u64>> {
    let mut mask = vec![0u64; usize::from(MAX_CPUS / BITS)];
    for cpu in cpus {
        let word = mask.get_mut(usize::from(cpu / BITS));
        let word = word.ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
        *word |= 1 << (cpu % BITS);
    }
    Ok(mask)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// What a thread of ours may run on, as the kernel says it.
    fn allowed(tid: u32) -> String {
        let status = std::fs::read_to_string(format!("/proc/self/task/{tid}/status")).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        line.unwrap().trim().to_owned()
    }

    #[test]
    fn bits_are_the_kernels() {
        let mask = mask(&[0, 63, 64, 8191]).unwrap();
        assert_eq!(mask[0], 1 | 1 << 63);
        assert_eq!(mask[1], 1);
        assert_eq!(mask[127], 1 << 63);
        assert_eq!(mask.iter().map(|word| word.count_ones()).sum::<u32>(), 4);
        assert!(super::mask(&[8192]).is_err());
    }

    #[test]
    fn a_thread_is_pinned_and_let_go() {
        let (tell, told) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            tell.send(rustix::thread::gettid().as_raw_nonzero().get())
                .unwrap();
            let _ = ended.recv();
        });
        let tid = told.recv().unwrap().unsigned_abs();
        let free = allowed(tid);
        // The first of those the test itself may use.
        let first: u16 = free
            .split([',', '-'])
            .next()
            .and_then(|first| first.parse().ok())
            .unwrap();
        set(&thread, Some(&[first])).unwrap();
        assert_eq!(allowed(tid), first.to_string());
        // None that there is: it stays where it is.
        assert!(set(&thread, Some(&[8191])).is_err());
        assert!(set(&thread, Some(&[])).is_err());
        assert_eq!(allowed(tid), first.to_string());
        set(&thread, None).unwrap();
        assert_eq!(allowed(tid), free);
        drop(end);
        thread.join().unwrap();
    }
}
