//! `cargo run -q -p bulkhead-circles [DIRECTORY]`: the import circles between the source files of the
//! workspace that DIRECTORY (the current one) lies in. Prints each with the names that tie it, and
//! exits with 1 if there is one, with 2 if the sources cannot be read.
//!
//! A file imports from another when it names, in a `use` or in any other path, an item which the
//! other defines. What counts:
//!
//! - A name is charged to the file that defines it, through any number of re-exports. A module is
//!   only a way to names: `mod child;` and `use crate::module;` tie nothing by themselves.
//! - `pub use child::Name;` passes a name on; it is an import only where the file uses the name, too.
//! - A parent that imports from its child, and a child that imports what its parent defines, are a
//!   circle like any other.
//! - What another crate defines ties no files, and neither does what only tests (or fuzz targets)
//!   see: items under `#[cfg(test)]`, and the files reached only through them.
//!
//! Paths inside macro calls and in serde's attributes are read as paths, too. Methods and fields are
//! not imports, and neither are links in comments. A name that a macro defines in a module is taken to
//! be that module's own.
//!
//! `tree` reads the modules, `references` what they name, `names` finds what a name stands for, `graph` the
//! circles.

mod graph;
mod names;
mod references;
mod tree;
mod workspace;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use graph::Graph;
use tree::Crate;

#[allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command: this is its output"
)]
fn main() -> ExitCode {
    let start = std::env::args_os()
        .nth(1)
        .map_or_else(|| PathBuf::from("."), PathBuf::from);
    match circles(&start) {
        Ok(report) if report.is_empty() => ExitCode::SUCCESS,
        Ok(report) => {
            print!("{report}");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("bulkhead-circles: {error}");
            ExitCode::from(2)
        }
    }
}

/// The circles of the workspace around `start`, as text; empty where there is none.
fn circles(start: &Path) -> Result<String, workspace::Error> {
    let workspace = workspace::root(start)?;
    let mut report = String::new();
    let mut found = 0;
    for root in workspace::roots(&workspace)? {
        let read = |path: &Path| std::fs::read_to_string(workspace.join(path)).ok();
        let graph = Graph::of(&Crate::read(&root, &read)?);
        for circle in graph.circles() {
            found += 1;
            report.push_str(&circle.to_string());
        }
    }
    if found > 0 {
        report.push_str(&format!(
            "{found} import circle{}\n",
            if found == 1 { "" } else { "s" }
        ));
    }
    Ok(report)
}
