//! Runs one CNI plugin: its program, with the verb in the environment and the configuration on
//! standard input (CNI spec 1.1, "Execution of Network Configurations").

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use serde_json::{Map, Value};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::Command,
    time::timeout,
};

use super::children::{Children, KillOnDrop, MARK};
use crate::{id::new_id, network::NetworkError};

/// What a plugin may print.
const MAX_OUTPUT: u64 = 1 << 20;

/// For whom a plugin runs; for nobody in particular (STATUS, GC) all is empty.
#[derive(Debug, Clone, Default)]
pub struct Attachment {
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_NETNS`; empty if there is none any more.
    pub netns: PathBuf,
    /// `CNI_IFNAME`.
    pub ifname: &'static str,
    /// `CNI_ARGS`: `K=V;…`.
    pub args: String,
}

/// Runs `plugin` and gives its answer (`None` if it printed nothing).
///
/// # Errors
/// If there is no such program, it fails, does not end in time (then all that it started is killed
/// with it), or prints something other than JSON.
pub async fn run(
    plugin: &str,
    dirs: &[PathBuf],
    verb: &'static str,
    attachment: &Attachment,
    config: &Map<String, Value>,
    limit: Duration,
) -> Result<Option<Value>, NetworkError> {
    let program = find(plugin, dirs)?;
    let start = |source| NetworkError::PluginStart {
        program: program.clone(),
        verb,
        source,
    };
    let path = std::env::join_paths(dirs).unwrap_or_default();
    let mark = new_id().map_err(start)?;
    let mut child = Command::new(&program)
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", &attachment.container_id)
        .env("CNI_NETNS", &attachment.netns)
        .env("CNI_IFNAME", attachment.ifname)
        .env("CNI_ARGS", &attachment.args)
        .env("CNI_PATH", path)
        .env(MARK, &mark)
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(start)?;
    // Before it has its input: what it starts and leaves behind has the usual value, too, and not
    // that of the daemon, which the OOM killer spares.
    if let Some(pid) = child.id()
        && let Err(error) = std::fs::write(format!("/proc/{pid}/oom_score_adj"), "0")
    {
        tracing::debug!(plugin, "its oom_score_adj stays as the daemon's: {error}");
    }
    let children = Children {
        leader: child.id(),
        mark,
    };
    let mut guard = KillOnDrop(Some(children.clone()));
    let input = Value::Object(config.clone()).to_string();
    let (Some(mut stdin), Some(stdout), Some(stderr)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err(start(std::io::Error::other("no pipes")));
    };
    let (mut output, mut complaint) = (Vec::new(), Vec::new());
    let (mut stdout, mut stderr) = (stdout.take(MAX_OUTPUT), stderr.take(MAX_OUTPUT));
    let work = async {
        let feed = async {
            // A plugin that ends without reading shows in its exit status.
            let _ = stdin.write_all(input.as_bytes()).await;
            drop(stdin);
            Ok(())
        };
        tokio::try_join!(
            feed,
            stdout.read_to_end(&mut output),
            stderr.read_to_end(&mut complaint)
        )?;
        child.wait().await
    };
    let status = match timeout(limit, work).await {
        Ok(status) => status.map_err(start)?,
        Err(_) => {
            // A panic in it is in the log.
            let _ = tokio::task::spawn_blocking(move || children.end()).await;
            guard.0 = None;
            return Err(NetworkError::PluginTimeout {
                plugin: plugin.to_owned(),
                verb,
                limit,
            });
        }
    };
    // What it leaves behind when it ends by itself is its own affair.
    guard.0 = None;
    if status.success() {
        return answer(plugin, verb, &output);
    }
    let complaint = String::from_utf8_lossy(&complaint);
    Err(failure(
        plugin,
        verb,
        &output,
        &format!("{status}; it said {:?}", complaint.trim()),
    ))
}

/// Where the program of a plugin is.
///
/// # Errors
/// If it is in none of the directories.
pub fn find(plugin: &str, dirs: &[PathBuf]) -> Result<PathBuf, NetworkError> {
    dirs.iter()
        .map(|dir| dir.join(plugin))
        .find(|path: &PathBuf| Path::is_file(path))
        .ok_or_else(|| NetworkError::PluginMissing {
            plugin: plugin.to_owned(),
            dirs: dirs.to_vec(),
        })
}

fn answer(plugin: &str, verb: &'static str, output: &[u8]) -> Result<Option<Value>, NetworkError> {
    if output.trim_ascii().is_empty() {
        return Ok(None);
    }
    serde_json::from_slice(output)
        .map(Some)
        .map_err(|error| NetworkError::PluginOutput {
            plugin: plugin.to_owned(),
            verb,
            what: error.to_string(),
        })
}

/// The error object a plugin prints, or what else is known.
fn failure(plugin: &str, verb: &'static str, output: &[u8], otherwise: &str) -> NetworkError {
    let object = serde_json::from_slice::<Value>(output).unwrap_or(Value::Null);
    let text = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or("");
    let message = match (text("msg"), text("details")) {
        ("", "") => otherwise.to_owned(),
        (message, "") => message.to_owned(),
        (message, details) => format!("{message}: {details}"),
    };
    let error_code = object.get("code").and_then(Value::as_u64).unwrap_or(0);
    NetworkError::PluginFailed {
        plugin: plugin.to_owned(),
        verb,
        error_code,
        message,
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    async fn run_script(script: &str, limit: Duration) -> Result<Option<Value>, NetworkError> {
        let dir = tempfile::tempdir().unwrap();
        run_script_in(dir.path(), script, limit).await
    }

    async fn run_script_in(
        dir: &Path,
        script: &str,
        limit: Duration,
    ) -> Result<Option<Value>, NetworkError> {
        let program = dir.join("plug");
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let attachment = Attachment {
            container_id: "abc".to_owned(),
            netns: "/run/n".into(),
            ifname: "eth0",
            args: "IgnoreUnknown=1".to_owned(),
        };
        let config = serde_json::from_str(r#"{"name":"n"}"#).unwrap();
        run(
            "plug",
            &[dir.to_owned()],
            "ADD",
            &attachment,
            &config,
            limit,
        )
        .await
    }

    const LONG: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn the_plugin_sees_its_environment_and_configuration() {
        let answer = run_script(
            r#"printf '{"got":%s,"env":"%s %s %s %s %s"}' "$(cat)" \
               $CNI_COMMAND $CNI_CONTAINERID $CNI_NETNS $CNI_IFNAME $CNI_ARGS"#,
            LONG,
        )
        .await
        .unwrap()
        .unwrap();
        assert_eq!(answer["got"]["name"], "n");
        assert_eq!(answer["env"], "ADD abc /run/n eth0 IgnoreUnknown=1");
    }

    #[tokio::test]
    async fn failures_carry_what_the_plugin_said() {
        let error = run_script(
            r#"echo '{"code":11,"msg":"busy","details":"later"}'; exit 1"#,
            LONG,
        )
        .await;
        assert!(
            matches!(&error, Err(NetworkError::PluginFailed { error_code: 11, message, .. })
                if message == "busy: later"),
            "{error:?}"
        );
        let error = run_script("echo oops >&2; exit 3", LONG)
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("oops") && error.contains('3'), "{error}");
        let error = run_script("echo not json", LONG).await;
        assert!(
            matches!(error, Err(NetworkError::PluginOutput { .. })),
            "{error:?}"
        );
        assert!(run_script("true", LONG).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_plugin_that_hangs_is_killed() {
        let error = run_script("exec sleep 1000", Duration::from_millis(200)).await;
        assert!(
            matches!(error, Err(NetworkError::PluginTimeout { .. })),
            "{error:?}"
        );
    }

    /// What a plugin started, in every way to get away from it. Each writes its number down, and waits
    /// for a writer that never comes.
    const FAMILY: &str = r#"
        cd "$(dirname "$0")"
        stay() { echo $BASHPID >>pids; exec 3<never; }
        export -f stay
        (stay) &
        setsid bash -c stay &
        (setsid bash -c 'setsid bash -c stay & exit' &)
        exec 3<never"#;

    /// The script of a plugin that starts the family.
    fn with_family(dir: &Path) -> &'static str {
        fs::write(dir.join("family"), FAMILY).unwrap();
        let made = std::process::Command::new("mkfifo")
            .arg(dir.join("never"))
            .status();
        assert!(made.unwrap().success());
        r#"exec bash "$(dirname "$0")/family""#
    }

    /// Waits until the family of three is there, or gone (also what was still being born), as is wanted.
    async fn family(dir: &Path, wanted: usize) {
        let alive = || {
            let text = fs::read_to_string(dir.join("pids")).unwrap_or_default();
            let of = |pid: &&str| {
                let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
                !stat.is_empty() && !stat.contains(") Z ")
            };
            text.lines().filter(of).count()
        };
        let until = std::time::Instant::now() + LONG;
        let mut looks = tokio::time::interval(Duration::from_millis(10));
        while alive() != wanted {
            assert!(std::time::Instant::now() < until, "{:?}", alive());
            looks.tick().await;
        }
    }

    #[tokio::test]
    async fn a_plugin_that_hangs_is_killed_with_all_that_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let script = with_family(dir.path());
        let limit = Duration::from_secs(3);
        let error = run_script_in(dir.path(), script, limit).await;
        assert!(
            matches!(error, Err(NetworkError::PluginTimeout { .. })),
            "{error:?}"
        );
        family(dir.path(), 0).await;
    }

    #[tokio::test]
    async fn a_run_that_is_given_up_is_killed_with_all_that_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let script = with_family(dir.path());
        tokio::select! {
            ended = run_script_in(dir.path(), script, LONG) => panic!("{ended:?}"),
            () = family(dir.path(), 3) => {}
        }
        family(dir.path(), 0).await;
    }

    #[test]
    fn a_missing_plugin_is_named() {
        let error = find("nothere", &["/no/dir".into()])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("nothere") && error.contains("/no/dir"),
            "{error}"
        );
    }
}
