//! Lines on the guest's console (standard error), which the VMM keeps in the pod's console log.

use std::fmt::Write as _;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber, span};

use crate::clock;

/// Writes events of a level and above, one line each. A subscriber of our own: the agent needs
/// neither colours nor filters, and is a few hundred kilobytes smaller without them.
#[derive(Debug)]
struct Console {
    level: Level,
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.0, " {value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}

impl Subscriber for Console {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let ours = metadata.target().starts_with("bulkhead");
        metadata.is_event() && *metadata.level() <= if ours { self.level } else { Level::WARN }
    }

    fn max_level_hint(&self) -> Option<tracing::level_filters::LevelFilter> {
        Some(tracing::level_filters::LevelFilter::from_level(self.level))
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(format!("agent: {}:", event.metadata().level()));
        if self.level > Level::WARN {
            let microseconds = clock::boottime_ns() / 1000;
            line.0 = format!("[{microseconds:>10} us] {} ", std::process::id()) + &line.0;
        }
        event.record(&mut line);
        print(&line.0);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

/// The console, apart from standard error: a container's process has standard error redirected to
/// its own log before it is executed, where the agent's lines do not belong.
static CONSOLE: OnceLock<OwnedFd> = OnceLock::new();

fn print(line: &str) {
    let line = format!("{line}\n");
    // Without a console the line is lost.
    let _ = match CONSOLE.get() {
        Some(console) => rustix::io::write(console, line.as_bytes()),
        None => rustix::io::write(rustix::stdio::stderr(), line.as_bytes()),
    };
}

/// Sends the agent's warnings and errors to the console, or `everything` with time stamps.
pub fn log_to_stderr(everything: bool) {
    // Closed by the exec of a container's command.
    if let Ok(console) = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stderr(), 3) {
        let _ = CONSOLE.set(console);
    }
    let level = if everything {
        Level::DEBUG
    } else {
        Level::WARN
    };
    // Fails only if it is already set.
    let _ = tracing::subscriber::set_global_default(Console { level });
}

/// The last line before the agent ends.
pub fn fatal(error: &dyn std::fmt::Display) {
    print(&format!("agent: FATAL: {error}"));
}
