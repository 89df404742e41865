//! Random bytes, good enough for names that nobody may guess.

use std::io;

/// Random bytes from the kernel.
///
/// # Errors
/// getrandom(2) failed, or gave fewer bytes than were asked for.
pub fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    // Up to 256 bytes come whole once the pool is seeded (getrandom(2)).
    let got = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    if got == N {
        return Ok(bytes);
    }
    Err(io::Error::other("the kernel gave too few random bytes"))
}
