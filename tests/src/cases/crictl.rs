//! The life cycle by hand, with the tool an operator has.

use std::{env, fs, path::PathBuf, process::Command};

use serde_json::{Value, json};

use super::BUSYBOX;
use crate::{
    Failure, Outcome, check,
    suite::{Context, Skip, Test},
    test,
};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!("crictl", the_whole_life_cycle).with_crictl(),
        test!("crictl", bulkhead_itself_runs_pulls_and_lists),
    ]
}

pub(super) struct Crictl {
    program: PathBuf,
    endpoint: String,
}

impl Crictl {
    pub(super) fn new(context: &Context) -> Result<Self, Failure> {
        let dir = env::var_os("BULKHEAD_GO_TOOLS").map(PathBuf::from);
        let program = dir
            .map(|dir| dir.join("crictl"))
            .filter(|path| path.exists());
        let program = program.ok_or_else(|| Skip("BULKHEAD_GO_TOOLS has no crictl".to_owned()))?;
        Ok(Self {
            program,
            endpoint: format!("unix://{}", context.host.socket().display()),
        })
    }

    /// To be given more arguments, and run.
    pub(super) fn program(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args([
                "--runtime-endpoint",
                &self.endpoint,
                "--image-endpoint",
                &self.endpoint,
            ])
            .args(["--timeout", "120s"])
            .args(args);
        command
    }

    pub(super) fn call(&self, args: &[&str]) -> Result<String, Failure> {
        let done = self.program(args).output()?;
        let text = String::from_utf8_lossy(&done.stdout).into_owned();
        if !done.status.success() {
            let complaint = String::from_utf8_lossy(&done.stderr);
            return Err(format!("crictl {args:?}: {text}{complaint}").into());
        }
        Ok(text.trim().to_owned())
    }

    pub(super) fn json(&self, args: &[&str]) -> Result<Value, Failure> {
        Ok(serde_json::from_str(&self.call(args)?)?)
    }
}

async fn the_whole_life_cycle(context: &mut Context) -> Outcome {
    let crictl = Crictl::new(context)?;
    let dir = context.host.dir().join("crictl");
    fs::create_dir_all(&dir)?;
    let file = |name: &str, value: Value| -> Result<String, Failure> {
        let path = dir.join(name);
        fs::write(&path, value.to_string())?;
        Ok(path.display().to_string())
    };
    let sandbox = file(
        "pod.json",
        json!({
            "metadata": {"name": "hand", "namespace": "default", "uid": "hand-uid", "attempt": 1},
            "log_directory": dir.join("logs"),
            "linux": {},
        }),
    )?;
    let container = file(
        "container.json",
        json!({
            "metadata": {"name": "shell"},
            "image": {"image": BUSYBOX},
            "command": ["/bin/sh", "-c", "echo hello from $(uname -s); sleep 1000"],
            "log_path": "shell.log",
            "linux": {},
        }),
    )?;
    let version = crictl.call(&["version"])?;
    check!(version.contains("bulkhead"), "{version}");
    check!(
        crictl.json(&["info"])?["status"]["conditions"].is_array(),
        "info"
    );
    crictl.call(&["pull", BUSYBOX])?;
    check!(crictl.call(&["images"])?.contains("busybox"), "images");
    check!(
        crictl.call(&["inspecti", BUSYBOX])?.contains("sha256:"),
        "inspecti"
    );
    let pod = crictl.call(&["runp", &sandbox])?;
    check!(crictl.call(&["pods"])?.contains("hand"), "pods");
    check!(
        crictl.json(&["inspectp", &pod])?["status"]["state"] == "SANDBOX_READY",
        "inspectp"
    );
    let made = crictl.call(&["create", &pod, &container, &sandbox])?;
    crictl.call(&["start", &made])?;
    check!(crictl.call(&["ps"])?.contains("shell"), "ps");
    let ran = crictl.call(&["exec", "-s", &made, "echo", "by", "exec"])?;
    check!(ran == "by exec", "{ran}");
    let logs = crictl.call(&["logs", &made])?;
    check!(logs.contains("hello from Linux"), "{logs}");
    let stats = crictl.call(&["stats", "-o", "json"])?;
    check!(stats.contains(&made), "{stats}");
    let status = crictl.json(&["inspect", &made])?;
    check!(status["status"]["state"] == "CONTAINER_RUNNING", "{status}");
    crictl.call(&["update", "--memory", "67108864", &made])?;
    crictl.call(&["imagefsinfo"])?;
    crictl.call(&["stop", "-t", "1", &made])?;
    check!(crictl.call(&["ps", "-a"])?.contains("Exited"), "ps -a");
    crictl.call(&["rm", &made])?;
    crictl.call(&["stopp", &pod])?;
    crictl.call(&["rmp", &pod])?;
    check!(!crictl.call(&["pods"])?.contains("hand"), "pods after");
    crictl.call(&["rmi", BUSYBOX])?;
    check!(
        !crictl.call(&["images"])?.contains("5000/busybox "),
        "images after"
    );
    Ok(())
}

async fn bulkhead_itself_runs_pulls_and_lists(context: &mut Context) -> Outcome {
    let config = context.host.config_file().display().to_string();
    let call = |args: &[&str]| -> Result<(i32, String), Failure> {
        let done = Command::new(context.host.bulkhead())
            .args(&args[..1])
            .args(["--config", &config])
            .args(&args[1..])
            .output()?;
        let text = String::from_utf8_lossy(&done.stdout).into_owned()
            + &String::from_utf8_lossy(&done.stderr);
        Ok((done.status.code().unwrap_or(-1), text))
    };
    let (code, text) = call(&["pull", BUSYBOX])?;
    check!(code == 0, "pull: {text}");
    let (code, text) = call(&["images"])?;
    check!(code == 0 && text.contains("busybox"), "images: {text}");
    let (code, text) = call(&[
        "run",
        BUSYBOX,
        "/bin/sh",
        "-c",
        "echo seen $(uname -s); exit 5",
    ])?;
    check!(
        code == 5 && text.contains("seen Linux"),
        "run exited {code}: {text}"
    );
    let (code, text) = call(&["check"])?;
    check!(code == 0, "check: {text}");
    let done = Command::new(context.host.bulkhead())
        .arg("version")
        .output()?;
    check!(done.status.success() && !done.stdout.is_empty(), "version");
    Ok(())
}
