//! The AppArmor profile of containers on the host: loaded into the node's kernel when the first of
//! them is made, and again whenever it is gone (a restart of the node's AppArmor service takes out
//! what is in no file). Where the node has no AppArmor there is none. Not here: which containers
//! get it (`oci`), and putting a process under it (the agent's part).

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{
    io::AsyncWriteExt as _,
    process::Command,
    sync::Mutex,
    time::{Instant, timeout_at},
};
use tonic::Code;

use crate::{error::Grpc, oci::apparmor::DEFAULT};

/// Its text.
const TEXT: &str = include_str!("bulkhead-default.apparmor");
/// Compiling it takes a tenth of a second.
const DEADLINE: Duration = Duration::from_secs(60);
/// The parser's program.
const PARSER: &str = "apparmor_parser";

/// The profile cannot be had although the node has AppArmor.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// The kernel does not say what is loaded.
    #[error("cannot read the AppArmor profiles of the node's kernel in {}", path.display())]
    Read {
        /// Its list.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The parser could not be run.
    #[error(
        "cannot load the AppArmor profile {DEFAULT}: running {} failed; mend the node's AppArmor \
         tools, or set the container's appArmorProfile to Unconfined",
        parser.display()
    )]
    Run {
        /// The program.
        parser: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It took too long.
    #[error("{} did not load the AppArmor profile {DEFAULT} within {seconds} s", parser.display())]
    Deadline {
        /// The program.
        parser: PathBuf,
        /// How long it had.
        seconds: u64,
    },
    /// The parser or the kernel refuses it.
    #[error(
        "{} did not load the AppArmor profile {DEFAULT}: {complaint}; mend the node's AppArmor \
         tools, or set the container's appArmorProfile to Unconfined",
        parser.display()
    )]
    Refused {
        /// The program.
        parser: PathBuf,
        /// Its words.
        complaint: String,
    },
    /// The reading thread went away.
    #[error("the AppArmor profile {DEFAULT} was not loaded: the daemon is shutting down")]
    Ending,
}

impl Grpc for ProfileError {
    fn code(&self) -> Code {
        match self {
            Self::Read { .. } => Code::Internal,
            Self::Run { .. } | Self::Refused { .. } => Code::FailedPrecondition,
            Self::Deadline { .. } => Code::DeadlineExceeded,
            Self::Ending => Code::Unavailable,
        }
    }
}

/// Why containers on the host are without the profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Without {
    /// No AppArmor.
    #[error("the node's kernel has no AppArmor, or it is off")]
    Off,
    /// Its file system is not mounted.
    #[error("AppArmor's part of securityfs is not there: mount securityfs on /sys/kernel/security")]
    Unmounted,
    /// No parser.
    #[error("{PARSER} is not there: install the package apparmor")]
    NoParser,
}

/// Where the node has AppArmor.
#[derive(Debug, Clone)]
struct Node {
    /// "Y" where the kernel has it and it is on.
    enabled: PathBuf,
    /// What is loaded.
    profiles: PathBuf,
    /// Directories in which the parser may be.
    programs: Vec<PathBuf>,
    /// The features of AppArmor 3, by which newer versions read the text.
    features: PathBuf,
}

impl Default for Node {
    fn default() -> Self {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut programs: Vec<_> = std::env::split_paths(&path).collect();
        // A service's PATH may lack them.
        programs.extend(["/usr/sbin", "/sbin"].map(PathBuf::from));
        Self {
            enabled: "/sys/module/apparmor/parameters/enabled".into(),
            profiles: "/sys/kernel/security/apparmor/profiles".into(),
            programs,
            features: "/etc/apparmor.d/abi/3.0".into(),
        }
    }
}

/// Whether this node confines containers by the profile, and by which parser it is loaded. Blocks.
pub fn parser() -> Result<PathBuf, Without> {
    Node::default().parser()
}

impl Node {
    fn parser(&self) -> Result<PathBuf, Without> {
        let on = fs::read_to_string(&self.enabled).is_ok_and(|text| text.starts_with('Y'));
        if !on {
            return Err(Without::Off);
        }
        if !self.profiles.exists() {
            return Err(Without::Unmounted);
        }
        let mut programs = self.programs.iter().map(|dir| dir.join(PARSER));
        programs
            .find(|program| program.is_file())
            .ok_or(Without::NoParser)
    }

    fn loaded(&self) -> Result<bool, ProfileError> {
        let list = fs::read_to_string(&self.profiles).map_err(|source| ProfileError::Read {
            path: self.profiles.clone(),
            source,
        })?;
        // Lines are `NAME (MODE)`.
        let mut names = list.lines().filter_map(|line| line.rsplit_once(" ("));
        Ok(names.any(|(name, _)| name == DEFAULT))
    }

    fn text(&self) -> String {
        // Else a newer parser takes what is not named for forbidden, of what newer kernels mediate.
        let features = if self.features.exists() {
            "abi <abi/3.0>,\n"
        } else {
            ""
        };
        format!("{features}{TEXT}")
    }

    async fn load(&self, parser: &Path) -> Result<(), ProfileError> {
        let failed = |source| ProfileError::Run {
            parser: parser.to_owned(),
            source,
        };
        let text = self.text();
        let deadline = Instant::now() + DEADLINE;
        let run = async {
            let mut child = Command::new(parser)
                .args(["--replace", "--skip-cache"])
                .current_dir("/")
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .kill_on_drop(true)
                .spawn()?;
            let mut stdin = child.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
            // A parser that ends before it has read has something to say.
            let _unread = stdin.write_all(text.as_bytes()).await;
            drop(stdin);
            child.wait_with_output().await
        };
        let output = timeout_at(deadline, run)
            .await
            .map_err(|_| ProfileError::Deadline {
                parser: parser.to_owned(),
                seconds: DEADLINE.as_secs(),
            })?
            .map_err(failed)?;
        if output.status.success() {
            return Ok(());
        }
        let words = String::from_utf8_lossy(&output.stderr);
        let words: String = words.trim().chars().take(1000).collect();
        Err(ProfileError::Refused {
            parser: parser.to_owned(),
            complaint: if words.is_empty() {
                format!("it ended with {} and no word", output.status)
            } else {
                words
            },
        })
    }
}

/// The profile in the node's kernel.
#[derive(Debug, Default)]
pub struct DefaultProfile {
    node: Node,
    // Whether this daemon has loaded its version of it; one loads at a time.
    loaded: Mutex<bool>,
}

impl DefaultProfile {
    /// Sees to it that the profile is loaded; false where the node has no AppArmor.
    pub async fn ready(&self) -> Result<bool, ProfileError> {
        let mut loaded = self.loaded.lock().await;
        let node = self.node.clone();
        let look = tokio::task::spawn_blocking(move || match node.parser() {
            Ok(parser) => Ok::<_, ProfileError>(Ok((parser, node.loaded()?))),
            Err(without) => Ok(Err(without)),
        });
        let (parser, there) = match look.await.map_err(|_| ProfileError::Ending)?? {
            Ok(found) => found,
            Err(without) => {
                tracing::debug!(%without, "containers on the host have no AppArmor profile");
                return Ok(false);
            }
        };
        // One that an older daemon has loaded is replaced once.
        if !*loaded || !there {
            self.node.load(&parser).await?;
            *loaded = true;
            tracing::info!(profile = DEFAULT, "the AppArmor profile is loaded");
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// A node whose parser writes down what it is given, says `words` and ends with `status`.
    fn node(words: &str, status: u8) -> (tempfile::TempDir, DefaultProfile) {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("enabled"), "Y\n").unwrap();
        fs::write(at("profiles"), "bulkhead-default-not (enforce)\n").unwrap();
        let parser = format!(
            "#!/bin/sh\ncat >>{dir}/given\necho \"$*\" >>{dir}/calls\necho '{words}' >&2\n\
             [ {status} -ne 0 ] || echo 'bulkhead-default (enforce)' >>{dir}/profiles\nexit {status}\n",
            dir = dir.path().display()
        );
        fs::write(at(PARSER), parser).unwrap();
        fs::set_permissions(at(PARSER), fs::Permissions::from_mode(0o755)).unwrap();
        let node = Node {
            enabled: at("enabled"),
            profiles: at("profiles"),
            programs: vec![at("none"), dir.path().to_owned()],
            features: at("abi"),
        };
        let profile = DefaultProfile {
            node,
            loaded: Mutex::default(),
        };
        (dir, profile)
    }

    #[tokio::test]
    async fn it_is_loaded_once_and_again_when_it_is_gone() {
        let (dir, profile) = node("", 0);
        let calls =
            || fs::read_to_string(dir.path().join("calls")).map_or(0, |t| t.lines().count());
        for _ in 0..2 {
            assert!(profile.ready().await.unwrap());
            assert_eq!(calls(), 1);
        }
        let given = fs::read_to_string(dir.path().join("given")).unwrap();
        assert_eq!(given, TEXT);
        fs::write(dir.path().join("profiles"), "").unwrap();
        fs::write(dir.path().join("abi"), "").unwrap();
        assert!(profile.ready().await.unwrap());
        assert_eq!(calls(), 2);
        let given = fs::read_to_string(dir.path().join("given")).unwrap();
        assert!(given.ends_with(&format!("abi <abi/3.0>,\n{TEXT}")));
        // A daemon's first look replaces what is there: it may be an older one's.
        let next = DefaultProfile {
            node: profile.node.clone(),
            loaded: Mutex::default(),
        };
        assert!(next.ready().await.unwrap());
        assert_eq!(calls(), 3);
    }

    #[tokio::test]
    async fn a_node_without_apparmor_has_none_and_says_why() {
        let (dir, profile) = node("", 0);
        let without = || profile.node.parser().unwrap_err();
        fs::remove_file(dir.path().join(PARSER)).unwrap();
        assert_eq!(without(), Without::NoParser);
        assert!(!profile.ready().await.unwrap());
        fs::remove_file(dir.path().join("profiles")).unwrap();
        assert_eq!(without(), Without::Unmounted);
        fs::write(dir.path().join("enabled"), "N\n").unwrap();
        assert_eq!(without(), Without::Off);
        assert!(!profile.ready().await.unwrap());
    }

    #[tokio::test]
    async fn a_parser_that_fails_is_quoted() {
        let (_dir, profile) = node("syntax error in line 7", 1);
        let error = profile.ready().await.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition);
        assert!(error.to_string().contains("line 7"), "{error}");
        let (dir, profile) = node("", 0);
        fs::set_permissions(dir.path().join(PARSER), fs::Permissions::from_mode(0o644)).unwrap();
        let error = profile.ready().await.unwrap_err();
        assert!(matches!(error, ProfileError::Run { .. }), "{error}");
    }

    /// What the real parser says of the text, where there is one.
    #[test]
    fn the_text_compiles() {
        let node = Node::default();
        let mut programs = node.programs.iter().map(|dir| dir.join(PARSER));
        let Some(parser) = programs.find(|program| program.is_file()) else {
            return;
        };
        let mut text = tempfile::NamedTempFile::new().unwrap();
        io::Write::write_all(&mut text, node.text().as_bytes()).unwrap();
        let features = concat!(env!("CARGO_MANIFEST_DIR"), "/src/oci/apparmor_features.txt");
        let done = std::process::Command::new(parser)
            .args(["--skip-kernel-load", "--skip-cache", "--stdout"])
            .arg(format!("--kernel-features={features}"))
            .arg(text.path())
            .output()
            .unwrap();
        assert!(done.status.success() && !done.stdout.is_empty(), "{done:?}");
    }
}
