//! How a pod's process ended: what it wrote into exit.json before it went, or that it wrote nothing.

use std::{io, io::Read as _, path::Path};

use bulkhead_contract::exit::{Reason, Report};

use super::vm::jail;
use crate::records::VmExit;

/// The VMM writes 4 KiB of console and a message; JSON escapes may make six of one.
const LONGEST: u64 = 64 * 1024;
const TAIL: u32 = 4 * 1024;
const LONGEST_WORD: usize = 4 * 1024;

/// Reads how a pod's process ended, from the file it writes at its end; what it says while it runs
/// is in `console`. Blocks. `at` is nanoseconds since the epoch.
pub fn read(who: &str, exit: &Path, console: &Path, at: i64) -> VmExit {
    match written(exit) {
        Ok(Some(exit)) => VmExit {
            reason: exit.reason,
            message: short(&exit.message),
            console_tail: jail::printable(exit.console_tail.as_bytes()),
            at,
        },
        Ok(None) => killed(console, format!("{who} was killed"), at),
        Err(e) => killed(
            console,
            format!("{who} left an exit.json that cannot be read: {e}"),
            at,
        ),
    }
}

fn killed(console: &Path, message: String, at: i64) -> VmExit {
    let console_tail = jail::tail(console, TAIL).unwrap_or_default();
    VmExit {
        reason: Reason::Killed,
        message,
        console_tail,
        at,
    }
}

fn written(exit: &Path) -> io::Result<Option<Report>> {
    let file = match jail::open_file(exit) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let mut bytes = Vec::new();
    file.take(LONGEST).read_to_end(&mut bytes)?;
    Ok(Some(serde_json::from_slice(&bytes)?))
}

fn short(text: &str) -> String {
    jail::printable(text.as_bytes())
        .chars()
        .take(LONGEST_WORD)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_ways_to_leave() {
        let dir = tempfile::tempdir().unwrap();
        let jail = jail::JailDir::of_pod(dir.path());
        let read = |at| read("the VMM process", &jail.exit(), &jail.console(), at);
        std::fs::create_dir(jail.root()).unwrap();
        std::fs::write(jail.console(), "Kernel panic - not syncing").unwrap();

        let exit = read(5);
        assert_eq!((exit.reason, exit.at), (Reason::Killed, 5));
        assert_eq!(exit.console_tail, "Kernel panic - not syncing");

        std::fs::write(
            jail.exit(),
            r#"{"reason":"panic","message":"m","console_tail":"t"}"#,
        )
        .unwrap();
        let exit = read(5);
        assert_eq!((exit.reason, exit.message.as_str()), (Reason::Panic, "m"));

        std::fs::write(jail.exit(), "{").unwrap();
        let exit = read(5);
        assert_eq!(exit.reason, Reason::Killed);
        assert!(exit.message.contains("cannot be read"));
    }
}
