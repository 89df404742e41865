//! Writes every test image as an OCI layout: `bulkhead-test-images PARTS OUT`, where PARTS is what
//! `tests/images/parts.sh` printed. Prints a line per image: its folder and its name.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::{env, path::PathBuf, process::ExitCode};

use bulkhead_tests::images::recipes;

fn main() -> ExitCode {
    let mut args = env::args_os().skip(1).map(PathBuf::from);
    let (Some(parts), Some(out), None) = (args.next(), args.next(), args.next()) else {
        eprintln!("usage: bulkhead-test-images PARTS OUT");
        return ExitCode::from(2);
    };
    let images = match recipes::all(&parts) {
        Ok(images) => images,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    for image in images {
        let dir = out.join(image.name.replace(':', "_"));
        if let Err(error) = image.write_layout(&dir) {
            eprintln!("{}: {error}", image.name);
            return ExitCode::FAILURE;
        }
        println!("{} {}", dir.display(), image.name);
    }
    ExitCode::SUCCESS
}
