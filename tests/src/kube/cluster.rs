//! What cases talk to: `kubectl`, and the words that most of them need: apply, wait, exec.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use serde_json::Value;
use tokio::{
    io::AsyncWriteExt,
    process::{Child, Command},
    sync::{Mutex, OnceCell},
    time::{Instant, timeout},
};

use super::{certificates::Certificates, directory, test_host::TestHost};
use crate::{Failure, Outcome, check, waiting::pause};

/// How long a pod may take to become what it shall, several side by side on an emulated node.
pub const POD: Duration = Duration::from_secs(240);
/// How long a call of kubectl may take that waits for nothing.
const CALL: Duration = Duration::from_secs(90);

/// kubectl with the administrator's certificate.
#[derive(Debug, Clone)]
pub struct Kubectl {
    program: PathBuf,
    config: String,
}

impl Kubectl {
    /// That of `BULKHEAD_KUBE_TOOLS`.
    ///
    /// # Errors
    /// If there is none.
    pub fn new(made: &Certificates) -> Result<Self, Failure> {
        Ok(Self {
            program: directory("BULKHEAD_KUBE_TOOLS")?.join("kubectl"),
            config: made.kubeconfig("admin"),
        })
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(args)
            .env("KUBECONFIG", &self.config)
            // It keeps what it has found there. No path that others take for one without files.
            .env("HOME", Path::new(&self.config).with_file_name("home"))
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Runs it and gives what it printed.
    ///
    /// # Errors
    /// If it fails, with what it said.
    pub async fn run(&self, args: &[&str]) -> Result<String, Failure> {
        self.with_input(args, b"").await
    }

    /// The same with a standard input; what is printed is bytes of text.
    ///
    /// # Errors
    /// If it fails, with what it said.
    pub async fn with_input(&self, args: &[&str], input: &[u8]) -> Result<String, Failure> {
        let (status, out, err) = self.outcome(args, input).await?;
        if status == 0 {
            return Ok(out);
        }
        let out = out.trim();
        let args: Vec<&str> = args
            .iter()
            .map(|arg| arg.get(..80).unwrap_or(arg))
            .collect();
        Err(format!(
            "kubectl {}: status {status}: {out} {}",
            args.join(" "),
            err.trim()
        )
        .into())
    }

    /// How it ends, and what it prints on both streams.
    ///
    /// # Errors
    /// If it cannot be run or does not end.
    pub async fn outcome(
        &self,
        args: &[&str],
        input: &[u8],
    ) -> Result<(i32, String, String), Failure> {
        let mut command = self.command(args);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        if !input.is_empty() {
            command.stdin(Stdio::piped());
        }
        let mut child = command.spawn()?;
        let stdin = child.stdin.take();
        let feed = async {
            if let Some(mut stdin) = stdin {
                // Who does not read it says why by its status.
                let _ = stdin.write_all(input).await;
            }
        };
        let both = async { tokio::join!(feed, child.wait_with_output()).1 };
        let limit = if args.contains(&"wait") || args.contains(&"drain") {
            POD + CALL
        } else {
            CALL
        };
        let done = timeout(limit, both)
            .await
            .map_err(|_| format!("kubectl {} did not end within {limit:?}", args.join(" ")))??;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok((
            done.status.code().unwrap_or(-1),
            text(&done.stdout),
            text(&done.stderr),
        ))
    }

    /// Starts it with its streams as pipes; it is killed with the child's owner.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(&self, args: &[&str]) -> Result<Child, Failure> {
        let mut command = self.command(args);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Ok(command.spawn()?)
    }
}

/// A cluster with one node, which cases share.
#[derive(Debug)]
pub struct Cluster {
    /// kubectl.
    pub kubectl: Kubectl,
    /// The node.
    pub host: Mutex<TestHost>,
    /// The Deployment that several cases look at, once one of them has made it.
    pub web: OnceCell<()>,
    /// kube-proxy, once a case has made it.
    pub proxy: OnceCell<()>,
}

impl Cluster {
    /// Applies a manifest.
    ///
    /// # Errors
    /// What the API server has against it.
    pub async fn apply(&self, manifest: &str) -> Outcome {
        self.kubectl
            .with_input(&["apply", "-f", "-"], manifest.as_bytes())
            .await?;
        Ok(())
    }

    /// An object by `kind/name`.
    ///
    /// # Errors
    /// If there is none.
    pub async fn get(&self, object: &str) -> Result<Value, Failure> {
        let text = self.kubectl.run(&["get", object, "-o", "json"]).await?;
        Ok(serde_json::from_str(&text)?)
    }

    /// `kubectl wait --for=CONDITION`; the error tells of the object.
    ///
    /// # Errors
    /// If it does not come true within [`POD`].
    pub async fn wait(&self, object: &str, condition: &str) -> Outcome {
        let limit = format!("--timeout={}s", POD.as_secs());
        let condition = format!("--for={condition}");
        match self
            .kubectl
            .run(&["wait", object, &condition, &limit])
            .await
        {
            Ok(_) => Ok(()),
            Err(error) => Err(format!("{error}\n{}", self.told(object).await).into()),
        }
    }

    /// Waits until `look` sees what it wants at an object.
    ///
    /// # Errors
    /// If it does not within [`POD`]; the error tells of the object.
    pub async fn until(
        &self,
        object: &str,
        what: &str,
        look: impl Fn(&Value) -> bool,
    ) -> Result<Value, Failure> {
        let deadline = Instant::now() + POD;
        loop {
            match self.get(object).await {
                Ok(value) if look(&value) => return Ok(value),
                seen => {
                    if let Err(late) = pause(deadline, &format!("{object}: {what}")).await {
                        let seen = seen
                            .err()
                            .map_or_else(String::new, |error| error.to_string());
                        let told = self.told(object).await;
                        return Err(format!("{late}: {seen}\n{told}").into());
                    }
                }
            }
            // kubectl takes a tenth of a second of a processor.
            pause(deadline, what).await?;
        }
    }

    /// Waits for a pod to be ready.
    ///
    /// # Errors
    /// If it does not become so.
    pub async fn ready(&self, pod: &str) -> Outcome {
        self.wait(&format!("pod/{pod}"), "condition=Ready").await
    }

    /// Runs a shell's command in a pod's container (`POD` or `POD -c CONTAINER`) and gives what it printed.
    ///
    /// # Errors
    /// If it fails.
    pub async fn exec(&self, pod: &str, command: &str) -> Result<String, Failure> {
        let mut args = vec!["exec"];
        args.extend(pod.split(' '));
        args.extend(["--", "sh", "-c", command]);
        self.kubectl.run(&args).await
    }

    /// Waits until a command in a pod prints what `look` wants.
    ///
    /// # Errors
    /// If it does not within [`POD`].
    pub async fn exec_until(
        &self,
        pod: &str,
        command: &str,
        look: impl Fn(&str) -> bool,
    ) -> Result<String, Failure> {
        let deadline = Instant::now() + POD;
        loop {
            let seen = match self.exec(pod, command).await {
                Ok(text) if look(&text) => return Ok(text),
                Ok(text) => text,
                Err(error) => error.to_string(),
            };
            let late = pause(deadline, &format!("`{command}` in {pod}")).await;
            late.map_err(|late| format!("{late}: {seen}"))?;
            pause(deadline, command).await?;
        }
    }

    /// Waits for a pod's end and gives the name of the phase.
    ///
    /// # Errors
    /// If it does not end.
    pub async fn ended(&self, pod: &str) -> Result<Value, Failure> {
        self.until(&format!("pod/{pod}"), "its end", |pod| {
            matches!(
                pod["status"]["phase"].as_str(),
                Some("Succeeded" | "Failed")
            )
        })
        .await
    }

    /// Runs a pod to its end, which has to be a good one, and gives its log.
    ///
    /// # Errors
    /// If it fails; the error has the log.
    pub async fn succeeds(&self, pod: &str, manifest: &str) -> Result<String, Failure> {
        self.apply(manifest).await?;
        let ended = self.ended(pod).await?;
        let log = self.kubectl.run(&["logs", pod]).await?;
        let phase = &ended["status"]["phase"];
        check!(phase == "Succeeded", "{pod} {phase}: {log}");
        self.delete(&format!("pod/{pod}")).await?;
        Ok(log)
    }

    /// Deletes an object without waiting for its end, with what grace the object has.
    ///
    /// # Errors
    /// What the API server has against it.
    pub async fn delete(&self, object: &str) -> Outcome {
        self.kubectl
            .run(&["delete", object, "--wait=false", "--ignore-not-found"])
            .await?;
        Ok(())
    }

    /// What the API knows of an object: its status, and what happened to it.
    pub async fn told(&self, object: &str) -> String {
        let name = object.rsplit('/').next().unwrap_or(object);
        let status = match self.get(object).await {
            Ok(value) => value["status"].to_string(),
            Err(error) => error.to_string(),
        };
        let columns = "custom-columns=REASON:.reason,OBJECT:.involvedObject.name,MESSAGE:.message";
        let events = [
            "get",
            "events",
            "--sort-by=.lastTimestamp",
            "--no-headers",
            "-o",
            columns,
        ];
        let events = self.kubectl.run(&events).await.unwrap_or_default();
        let events: Vec<&str> = events.lines().filter(|line| line.contains(name)).collect();
        let last = &events[events.len().saturating_sub(12)..];
        format!("    {status}\n    {}", last.join("\n    "))
    }
}
