//! AppArmor: which profile a container gets, and where the node has it.
//!
//! The profile confines in the guest's kernel, so its policy travels there with the container. A
//! node that runs AppArmor hands out what its own kernel has loaded, in the kernel's binary form;
//! on one that does not, the text below `/etc/apparmor.d` is compiled for the guest's kernel. What
//! is not here: the default profile of pods on the host (`host::profile`), loading a policy into a
//! guest and putting a process under a profile (the agent's).

use std::{
    io::Read as _,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use bulkhead_proto::cri::{self, security_profile::ProfileType};
use tokio::{process::Command, time::timeout};
use tonic::Code;

use super::OciError;
use crate::error::Grpc;

/// No real policy is near this.
const POLICY_LIMIT: u64 = 4 * 1024 * 1024;
/// Nor is a text.
const TEXT_LIMIT: u64 = 1024 * 1024;
/// A name is one file name for the kernel (`NAME_MAX`).
const NAME_LIMIT: usize = 255;
/// Compiling a large text takes seconds.
const PARSER_DEADLINE: Duration = Duration::from_secs(60);
/// What the guest's kernel (6.12) can mediate, in the form apparmor_parser reads.
const GUEST_FEATURES: &str = include_str!("apparmor_features.txt");

/// The default profile of pods on the host.
pub const DEFAULT: &str = "bulkhead-default";

/// Which profile is requested.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// None.
    Unconfined,
    /// The runtime's, which is [`DEFAULT`] on the node's kernel. In a guest there is none: what it would
    /// forbid is out of reach already, and the guest's kernel is the pod's own.
    RuntimeDefault,
    /// One of the node's, by its name.
    Localhost(String),
}

/// Reads CRI's choice. The older text field counts only when the newer one is absent, nothing said
/// is the default, and a privileged container has no profile whatever is said (as Kubernetes
/// documents it).
pub fn choose(context: &cri::LinuxContainerSecurityContext) -> Result<Choice, OciError> {
    if context.privileged {
        return Ok(Choice::Unconfined);
    }
    let Some(profile) = &context.apparmor else {
        #[allow(deprecated)] // Still in the contract; older clients set nothing else.
        return choose_by_text(&context.apparmor_profile);
    };
    match ProfileType::try_from(profile.profile_type) {
        Ok(ProfileType::RuntimeDefault) => Ok(Choice::RuntimeDefault),
        Ok(ProfileType::Unconfined) => Ok(Choice::Unconfined),
        Ok(ProfileType::Localhost) => localhost(&profile.localhost_ref),
        Err(_) => Err(OciError::Invalid {
            field: "apparmor.profile_type",
            value: profile.profile_type.to_string(),
            allowed: "RuntimeDefault (0), Unconfined (1) or Localhost (2)",
        }),
    }
}

fn choose_by_text(text: &str) -> Result<Choice, OciError> {
    match text {
        "" | "runtime/default" => Ok(Choice::RuntimeDefault),
        "unconfined" => Ok(Choice::Unconfined),
        other if other.starts_with("localhost/") => localhost(other),
        other => Err(OciError::Invalid {
            field: "apparmor_profile",
            value: other.to_owned(),
            allowed: "runtime/default, unconfined or localhost/<name of a profile>",
        }),
    }
}

fn localhost(text: &str) -> Result<Choice, OciError> {
    let name = text.strip_prefix("localhost/").unwrap_or(text);
    // The kernel takes "a//&b" as a stack of profiles and ":ns:a" as another namespace's.
    let plain = !name.contains(|c: char| c.is_control())
        && !name.contains("//")
        && !name.starts_with([':', '&']);
    if name.is_empty() || name.len() > NAME_LIMIT || !plain {
        return Err(OciError::Invalid {
            field: "apparmor.localhost_ref",
            value: text.to_owned(),
            allowed: "the name of one profile, at most 255 bytes",
        });
    }
    Ok(Choice::Localhost(name.to_owned()))
}

/// A profile that the node cannot provide.
#[derive(Debug, thiserror::Error)]
pub enum AppArmorError {
    /// Neither the kernel nor a file has it.
    #[error(
        "the AppArmor profile {name:?} is not on this node: its kernel has not loaded it ({}), \
         and no file in {} defines it; load it with `apparmor_parser --replace FILE`, or put its \
         text there",
        kernel.display(), texts.display()
    )]
    Missing {
        /// The profile.
        name: String,
        /// Where loaded ones are.
        kernel: PathBuf,
        /// Where texts are.
        texts: PathBuf,
    },
    /// A file that should have it cannot be read.
    #[error("cannot read the AppArmor profile {name:?} from {}", path.display())]
    Read {
        /// The profile.
        name: String,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The compiler could not be run.
    #[error(
        "cannot compile the AppArmor profile {name:?} from {}: running {parser:?} failed; install \
         the node's AppArmor tools",
        path.display()
    )]
    Parser {
        /// The profile.
        name: String,
        /// Its text.
        path: PathBuf,
        /// The program.
        parser: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The compiler does not take the text.
    #[error("the AppArmor profile {name:?} in {} does not compile: {complaint}", path.display())]
    Compile {
        /// The profile.
        name: String,
        /// Its text.
        path: PathBuf,
        /// The compiler's words.
        complaint: String,
    },
    /// The reading thread went away.
    #[error("the AppArmor profile was not read: the daemon is shutting down")]
    Ending,
}

impl Grpc for AppArmorError {
    fn code(&self) -> Code {
        match self {
            Self::Missing { .. } => Code::NotFound,
            Self::Compile { .. } => Code::InvalidArgument,
            Self::Parser { .. } => Code::FailedPrecondition,
            Self::Read { .. } => Code::Internal,
            Self::Ending => Code::Unavailable,
        }
    }
}

/// Where a node keeps profiles.
#[derive(Debug, Clone)]
pub struct NodeProfiles {
    /// What its kernel has loaded: one directory per profile.
    kernel: PathBuf,
    /// Their texts.
    texts: PathBuf,
    /// The compiler.
    parser: PathBuf,
}

impl Default for NodeProfiles {
    fn default() -> Self {
        Self {
            kernel: "/sys/kernel/security/apparmor/policy/profiles".into(),
            texts: "/etc/apparmor.d".into(),
            parser: "apparmor_parser".into(),
        }
    }
}

impl NodeProfiles {
    /// The policy that holds a profile, in the kernel's binary form.
    pub async fn policy(&self, name: &str) -> Result<Vec<u8>, AppArmorError> {
        let (node, wanted) = (self.clone(), name.to_owned());
        let found = tokio::task::spawn_blocking(move || {
            Ok(match node.loaded(&wanted)? {
                Some(policy) => Found::Policy(policy),
                None => Found::Texts(node.texts_with(&wanted)),
            })
        });
        match found.await.map_err(|_| AppArmorError::Ending)?? {
            Found::Policy(policy) => return Ok(policy),
            Found::Texts(texts) => {
                let mut broken = None;
                for text in texts {
                    match self.defines(&text, name).await {
                        Ok(true) => return self.compile(&text, name).await,
                        Ok(false) => {}
                        // Another file may still have it.
                        Err(error @ AppArmorError::Compile { .. }) => {
                            broken = broken.or(Some(error))
                        }
                        Err(error) => return Err(error),
                    }
                }
                if let Some(error) = broken {
                    return Err(error);
                }
            }
        }
        Err(AppArmorError::Missing {
            name: name.to_owned(),
            kernel: self.kernel.clone(),
            texts: self.texts.clone(),
        })
    }

    /// What the node's kernel has loaded. A kernel may keep no binary form
    /// (`CONFIG_SECURITY_APPARMOR_EXPORT_BINARY`); then there is nothing.
    fn loaded(&self, name: &str) -> Result<Option<Vec<u8>>, AppArmorError> {
        let Ok(profiles) = std::fs::read_dir(&self.kernel) else {
            return Ok(None);
        };
        for profile in profiles.flatten() {
            // The directory's own name is mangled and numbered.
            let known = std::fs::read_to_string(profile.path().join("name"));
            if known.is_ok_and(|known| known.trim_end_matches('\n') == name) {
                let path = profile.path().join("raw_data");
                return match read_limited(&path, POLICY_LIMIT) {
                    Ok(policy) if policy.is_empty() => Ok(None),
                    Ok(policy) => Ok(Some(policy)),
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
                    Err(source) => Err(AppArmorError::Read {
                        name: name.to_owned(),
                        path,
                        source,
                    }),
                };
            }
        }
        Ok(None)
    }

    /// The files that mention the name; only the compiler knows which of them defines it.
    fn texts_with(&self, name: &str) -> Vec<PathBuf> {
        let Ok(entries) = std::fs::read_dir(&self.texts) else {
            return Vec::new();
        };
        let mut texts: Vec<PathBuf> = entries
            .flatten()
            .filter(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."))
            .map(|entry| entry.path())
            .filter(|path| path.is_file())
            .filter(|path| {
                read_limited(path, TEXT_LIMIT)
                    .is_ok_and(|text| String::from_utf8_lossy(&text).contains(name))
            })
            .collect();
        texts.sort();
        texts
    }

    async fn defines(&self, text: &Path, name: &str) -> Result<bool, AppArmorError> {
        let (success, names, complaint) = self.run(&["--names"], text, name).await?;
        if !success {
            return Err(AppArmorError::Compile {
                name: name.to_owned(),
                path: text.to_owned(),
                complaint,
            });
        }
        let names = String::from_utf8_lossy(&names);
        Ok(names.lines().any(|line| line == name))
    }

    async fn compile(&self, text: &Path, name: &str) -> Result<Vec<u8>, AppArmorError> {
        let failed = |complaint| AppArmorError::Compile {
            name: name.to_owned(),
            path: text.to_owned(),
            complaint,
        };
        let features = tempfile::NamedTempFile::new().and_then(|mut file| {
            std::io::Write::write_all(&mut file, GUEST_FEATURES.as_bytes())?;
            Ok(file)
        });
        let features = features.map_err(|source| AppArmorError::Read {
            name: name.to_owned(),
            path: "the features of the guest's kernel".into(),
            source,
        })?;
        let kernel = format!("--kernel-features={}", features.path().display());
        let policy = format!("--policy-features={}", features.path().display());
        let arguments = [
            "--skip-kernel-load",
            "--skip-cache",
            "--stdout",
            kernel.as_str(),
            policy.as_str(),
        ];
        let (success, policy, complaint) = self.run(&arguments, text, name).await?;
        if !success || policy.is_empty() {
            return Err(failed(complaint));
        }
        if policy.len() as u64 > POLICY_LIMIT {
            return Err(failed("the policy is larger than 4 MiB".to_owned()));
        }
        Ok(policy)
    }

    async fn run(
        &self,
        arguments: &[&str],
        text: &Path,
        name: &str,
    ) -> Result<(bool, Vec<u8>, String), AppArmorError> {
        let failed = |source| AppArmorError::Parser {
            name: name.to_owned(),
            path: text.to_owned(),
            parser: self.parser.clone(),
            source,
        };
        let output = Command::new(&self.parser)
            .args(arguments)
            .arg(text)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = timeout(PARSER_DEADLINE, output)
            .await
            .map_err(|_| failed(std::io::ErrorKind::TimedOut.into()))?
            .map_err(failed)?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        let complaint = complaint.trim().chars().take(1000).collect();
        Ok((output.status.success(), output.stdout, complaint))
    }
}

enum Found {
    Policy(Vec<u8>),
    Texts(Vec<PathBuf>),
}

fn read_limited(path: &Path, limit: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?
        .take(limit + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(std::io::Error::other(format!(
            "it is larger than {limit} bytes"
        )));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    fn context(kind: ProfileType, name: &str) -> cri::LinuxContainerSecurityContext {
        cri::LinuxContainerSecurityContext {
            apparmor: Some(cri::SecurityProfile {
                profile_type: kind.into(),
                localhost_ref: name.into(),
            }),
            ..Default::default()
        }
    }

    #[test]
    #[allow(deprecated)]
    fn choices() {
        let chosen = |context: &cri::LinuxContainerSecurityContext| choose(context).unwrap();
        let named = |name: &str| Choice::Localhost(name.to_owned());
        let mut old = cri::LinuxContainerSecurityContext::default();
        assert_eq!(chosen(&old), Choice::RuntimeDefault);
        for (text, choice) in [
            ("runtime/default", Choice::RuntimeDefault),
            ("unconfined", Choice::Unconfined),
            ("localhost/a b", named("a b")),
        ] {
            old.apparmor_profile = text.into();
            assert_eq!(chosen(&old), choice);
        }
        old.apparmor_profile = "whatever".into();
        assert!(choose(&old).is_err());

        let mut new = context(ProfileType::Localhost, "localhost/x");
        new.apparmor_profile = "localhost/other".into();
        assert_eq!(chosen(&new), named("x"), "the newer field goes first");
        assert_eq!(
            chosen(&context(ProfileType::RuntimeDefault, "")),
            Choice::RuntimeDefault
        );
        assert_eq!(
            chosen(&context(ProfileType::Unconfined, "")),
            Choice::Unconfined
        );
        for bad in [
            "",
            "localhost/",
            "a\nb",
            "a//&b",
            ":root:a",
            &"x".repeat(256),
        ] {
            assert!(
                choose(&context(ProfileType::Localhost, bad)).is_err(),
                "{bad:?}"
            );
        }
        new.privileged = true;
        assert_eq!(chosen(&new), Choice::Unconfined);
    }

    fn node() -> (tempfile::TempDir, NodeProfiles) {
        let dir = tempfile::tempdir().unwrap();
        let (kernel, texts) = (dir.path().join("profiles"), dir.path().join("texts"));
        let profile = kernel.join("usr.bin.x.3");
        fs::create_dir_all(&profile).unwrap();
        fs::create_dir_all(&texts).unwrap();
        fs::write(profile.join("name"), "/usr/bin/x\n").unwrap();
        fs::write(profile.join("raw_data"), "binary").unwrap();
        fs::write(texts.join("mentions"), "# not profile written").unwrap();
        fs::write(texts.join("written"), "profile written {}").unwrap();
        // Stands in for the compiler: what matters is how it is called and what is made of it.
        let parser = dir.path().join("parser");
        fs::write(
            &parser,
            "#!/bin/sh\nfor last; do :; done\ncase $1 in\n\
             --names) grep -q unparsable $last && { echo 'syntax error' >&2; exit 1; }; case $last in */written) echo written;; *) echo other;; esac;;\n\
             *) grep -q broken $last && { echo 'no such rule' >&2; exit 1; }; cat $last;;\nesac\n",
        )
        .unwrap();
        fs::set_permissions(&parser, fs::Permissions::from_mode(0o755)).unwrap();
        let node = NodeProfiles {
            kernel,
            texts,
            parser,
        };
        (dir, node)
    }

    #[tokio::test]
    async fn what_the_kernel_has_loaded_goes_before_a_text() {
        let (_dir, node) = node();
        assert_eq!(node.policy("/usr/bin/x").await.unwrap(), b"binary");
        assert_eq!(node.policy("written").await.unwrap(), b"profile written {}");
        // A kernel that keeps no binary form.
        fs::remove_file(node.kernel.join("usr.bin.x.3/raw_data")).unwrap();
        let missing = node.policy("/usr/bin/x").await.unwrap_err();
        assert!(matches!(missing, AppArmorError::Missing { .. }));
    }

    #[tokio::test]
    async fn what_cannot_be_had_says_why() {
        let (dir, mut node) = node();
        let code = |error: AppArmorError| error.code();
        let absent = node.policy("absent").await.unwrap_err();
        assert!(absent.to_string().contains("absent"), "{absent}");
        assert_eq!(code(absent), Code::NotFound);
        fs::write(node.texts.join("written"), "profile written broken").unwrap();
        let broken = node.policy("written").await.unwrap_err();
        assert!(broken.to_string().contains("no such rule"), "{broken}");
        assert_eq!(code(broken), Code::InvalidArgument);
        // One that does not parse could have it; one that has it wins.
        fs::write(node.texts.join("half"), "profile written unparsable").unwrap();
        fs::write(node.texts.join("written"), "profile written {}").unwrap();
        assert!(node.policy("written").await.is_ok());
        fs::remove_file(node.texts.join("written")).unwrap();
        let half = node.policy("written").await.unwrap_err();
        assert!(half.to_string().contains("syntax error"), "{half}");
        assert_eq!(code(half), Code::InvalidArgument);
        let huge = vec![b' '; usize::try_from(POLICY_LIMIT).unwrap() + 1];
        fs::write(node.kernel.join("usr.bin.x.3/raw_data"), huge).unwrap();
        let huge = node.policy("/usr/bin/x").await.unwrap_err();
        assert!(matches!(huge, AppArmorError::Read { .. }), "{huge}");
        node.parser = dir.path().join("none");
        let none = node.policy("written").await.unwrap_err();
        assert_eq!(code(none), Code::FailedPrecondition);
    }
}
