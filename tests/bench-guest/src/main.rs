//! PID 1 of a guest that reads its disk: 4 KiB at random places, past the page cache, one at a
//! time. Tells how long that took in one line on the console, and waits to be killed.
#![forbid(unsafe_code)]

use std::{
    fs::{File, OpenOptions},
    io::{self, Seek, SeekFrom},
    os::unix::fs::{FileExt, OpenOptionsExt},
    time::Instant,
};

const READS: u64 = 4000;
const BLOCK: usize = 4096;
/// O_DIRECT on x86-64.
const DIRECT: i32 = 0x4000;

fn main() {
    match measure() {
        Ok(micros) => println!("bench: {READS} reads in {micros} us"),
        Err(error) => println!("bench: failed: {error}"),
    }
    loop {
        std::thread::park();
    }
}

fn measure() -> io::Result<u128> {
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("dev", "/dev", "devtmpfs", flags, None)?;
    let mut disk: File = OpenOptions::new()
        .read(true)
        .custom_flags(DIRECT)
        .open("/dev/vda")?;
    let blocks = disk.seek(SeekFrom::End(0))? / BLOCK as u64;
    if blocks == 0 {
        return Err(io::Error::other("the disk is empty"));
    }
    // Direct reads want an aligned buffer.
    let mut memory = vec![0_u8; 2 * BLOCK];
    let start = memory.as_ptr().align_offset(BLOCK);
    let buffer = &mut memory[start..start + BLOCK];
    // xorshift: the same places on every run.
    let mut place = 0x9e37_79b9_7f4a_7c15_u64;
    let began = Instant::now();
    for _ in 0..READS {
        place ^= place << 13;
        place ^= place >> 7;
        place ^= place << 17;
        disk.read_exact_at(buffer, (place % blocks) * BLOCK as u64)?;
    }
    Ok(began.elapsed().as_micros())
}
