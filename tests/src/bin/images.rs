//! Writes every test image as an OCI layout: `bulkhead-test-images PARTS OUT [TOOLS]`, where PARTS is what
//! `tests/images/parts.sh` printed; with TOOLS, what `tests/kube-tools.sh` printed, those for Kubernetes instead. Prints a line per image: its folder and its name.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::{env, path::PathBuf, process::ExitCode};

use bulkhead_tests::images::recipes;

fn main() -> ExitCode {
    let mut args = env::args_os().skip(1).map(PathBuf::from);
    let (Some(parts), Some(out), tools, None) =
        (args.next(), args.next(), args.next(), args.next())
    else {
        eprintln!("usage: bulkhead-test-images PARTS OUT [TOOLS]");
        return ExitCode::from(2);
    };
    let images = match tools {
        Some(tools) => recipes::for_kubernetes(&parts, &tools),
        None => recipes::all(&parts),
    };
    let images = match images {
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
