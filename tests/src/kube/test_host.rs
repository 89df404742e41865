//! The test host of a node, as the machine's side sees it: booted by `tests/host/run.sh`, asked by files and
//! by `tests/host/exec.sh`.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{
    process::{Child, Command},
    time::{Instant, timeout},
};

use super::{KUBELET_PORT, certificates::Certificates, directory, node, part};
use crate::{Failure, Outcome, waiting::pause};

/// The host ends by itself after this.
const LIFE: Duration = Duration::from_secs(6 * 3600);
/// Daemon and kubelet are up again within this.
const RESTART: Duration = Duration::from_secs(180);

/// A booted host; it ends when this is dropped.
#[derive(Debug)]
pub struct TestHost {
    name: String,
    dir: PathBuf,
    scripts: PathBuf,
    child: Child,
}

impl TestHost {
    /// Boots the host of the node number `number` (from 1), which then comes up by itself.
    ///
    /// # Errors
    /// If the host cannot be started at all.
    pub fn boot(number: u8, work: &Path, made: &Certificates) -> Result<Self, Failure> {
        let name = node_name(number);
        let dir = work.join(&name);
        fs::create_dir_all(&dir)?;
        let programs = work.join("node-programs");
        if !programs.exists() {
            fs::create_dir(&programs)?;
            let tools = directory("BULKHEAD_KUBE_TOOLS")?;
            for program in ["kubelet", "kube-proxy"] {
                fs::copy(tools.join(program), programs.join(program))?;
            }
            fs::copy(env::current_exe()?, programs.join("bulkhead-kube"))?;
        }
        let bin = directory("BULKHEAD_BIN_DIR")?;
        let scripts = directory("BULKHEAD_TEST_SCRIPTS")?.join("host");
        let address = node_address(number);
        let log = fs::File::create(dir.join("host.log"))?;
        let child = Command::new(scripts.join("run.sh"))
            .args(["--timeout", &LIFE.as_secs().to_string()])
            .args(["--net", &format!("{address}:{KUBELET_PORT}")])
            .arg("--share")
            .arg(&dir)
            .arg("--ro")
            .arg(made.file(""))
            .arg("--copy")
            .arg(&bin)
            .arg("--copy")
            .arg(&programs)
            .arg("--")
            .arg("env")
            .arg(format!("BULKHEAD_KUBE_NODE={}", programs.display()))
            .arg(programs.join("bulkhead-kube"))
            .args(["node", &name, &address])
            .arg(&dir)
            .arg(made.file(""))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()?;
        let pid = child.id().ok_or("the test host ended at once")?;
        Ok(Self {
            name: format!("run-{pid}"),
            dir,
            scripts,
            child,
        })
    }

    /// Runs a command of the shell on the node and gives what it printed.
    ///
    /// # Errors
    /// If it fails, with what it said.
    pub async fn shell(&self, command: &str) -> Result<String, Failure> {
        let run = Command::new(self.scripts.join("exec.sh"))
            .args([&self.name, "--timeout", "120", "--", "sh", "-c", command])
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let done = timeout(Duration::from_secs(150), run)
            .await
            .map_err(|_| format!("not done on the node within 150 s: {command}"))??;
        if done.status.success() {
            return Ok(String::from_utf8_lossy(&done.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&done.stderr);
        Err(format!("on the node, {command}: {}: {said}", done.status).into())
    }

    /// Kills the node's daemon and kubelet and waits until both run again.
    ///
    /// # Errors
    /// If they do not.
    pub async fn restart_node(&mut self) -> Outcome {
        let asked = self.dir.join(node::RESTART);
        fs::write(&asked, "")?;
        let deadline = Instant::now() + RESTART;
        while asked.exists() {
            self.alive()?;
            pause(deadline, "daemon and kubelet to be started again")
                .await
                .map_err(|late| format!("{late}:\n{}", self.said()))?;
        }
        Ok(())
    }

    /// Fails if the host, or what keeps the node up, has ended.
    ///
    /// # Errors
    /// What it said.
    pub fn alive(&mut self) -> Outcome {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => {
                Err(format!("the node's test host ended with {status}:\n{}", self.said()).into())
            }
        }
    }

    /// The last lines of the node's logs.
    #[must_use]
    pub fn said(&self) -> String {
        let name = self.dir.file_name().unwrap_or_default();
        let daemon = Path::new(name).join("daemon.log");
        ["host.log".into(), "kubelet.log".into(), daemon]
            .map(|log: PathBuf| {
                let tail = part::tail(&self.dir.join(&log));
                format!("{}:\n{tail}", log.display())
            })
            .concat()
    }
}

/// The name of a node by its number.
#[must_use]
pub fn node_name(number: u8) -> String {
    format!("node{number}")
}

fn node_address(number: u8) -> String {
    format!("10.0.2.{}", 14 + number)
}
