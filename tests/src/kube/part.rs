//! A program of the cluster: started with its output in a log, ended with its owner, and quoted where it
//! fails.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
};

use tokio::{
    process::{Child, Command},
    time::Instant,
};

use crate::{Failure, waiting::pause};

/// Lines of a log that are shown.
const TAIL: usize = 15;

/// A running program.
#[derive(Debug)]
pub struct Part {
    name: String,
    log: PathBuf,
    child: Child,
}

impl Part {
    /// Starts `program`, which is called `name` and writes to `NAME.log` in `dir`, again and again after the
    /// last lines.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(dir: &Path, name: &str, program: &Path, args: &[String]) -> Result<Self, Failure> {
        let log = dir.join(format!("{name}.log"));
        let output = File::options().create(true).append(true).open(&log)?;
        let child = Command::new(program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("starting {}: {error}", program.display()))?;
        Ok(Self {
            name: name.to_owned(),
            log,
            child,
        })
    }

    /// Its process id, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// If that cannot be asked.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>, Failure> {
        Ok(self.child.try_wait()?)
    }

    /// Kills it and waits for its end.
    ///
    /// # Errors
    /// If it cannot be killed.
    pub async fn kill(&mut self) -> Result<(), Failure> {
        Ok(self.child.kill().await?)
    }

    /// Waits until `ready` says so; the error has the end of its log.
    ///
    /// # Errors
    /// If it ends, or is not ready at the deadline.
    pub async fn wait(
        &mut self,
        what: &str,
        deadline: Instant,
        mut ready: impl AsyncFnMut() -> bool,
    ) -> Result<(), Failure> {
        while !ready().await {
            if let Some(status) = self.ended()? {
                let (name, tail) = (&self.name, tail(&self.log));
                return Err(format!("{name} ended with {status}:\n{tail}").into());
            }
            if let Err(late) = pause(deadline, what).await {
                return Err(format!("{late}; {} says:\n{}", self.name, tail(&self.log)).into());
            }
        }
        Ok(())
    }
}

/// The last lines of a log.
#[must_use]
pub fn tail(log: &Path) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(TAIL)..];
    last.iter().map(|line| format!("    {line}\n")).collect()
}
