//! Converts a tar file (`-` for standard input) into an EROFS image, as a pull does with a layer:
//! `tar2erofs TAR IMAGE`. For looking at the converter by itself, and for measuring it.
#![allow(clippy::print_stdout, reason = "a command prints its result")]

use std::error::Error;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::Instant;

use bulkhead_images::layer::{Limits, convert};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args_os().skip(1);
    let (Some(tar), Some(image)) = (args.next(), args.next()) else {
        return Err("usage: tar2erofs TAR IMAGE".into());
    };
    let reader: Box<dyn Read> = if tar == "-" {
        Box::new(std::io::stdin())
    } else {
        Box::new(File::open(tar)?)
    };
    let image = std::path::absolute(image)?;
    let dir = image.parent().unwrap_or(Path::new("/"));
    let name = image
        .file_name()
        .and_then(|name| name.to_str())
        .ok_or("a name in UTF-8")?;
    let start = Instant::now();
    let (_, info) = convert(reader, dir, &Limits::default(), &mut |_| {})?.commit(name)?;
    let seconds = start.elapsed().as_secs_f64();
    let hex: String = info
        .diff_id
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    println!("sha256:{hex}");
    println!(
        "{} entries, {} bytes, image {} bytes",
        info.entries, info.bytes, info.erofs_size
    );
    println!("{} implicit directories", info.implicit_dirs.len());
    println!("{} attributes left out", info.dropped_xattrs);
    #[allow(clippy::cast_precision_loss, reason = "a figure for people")]
    let speed = info.bytes as f64 / seconds / 1e6;
    println!("{seconds:.3} s, {speed:.0} MB/s");
    Ok(())
}
