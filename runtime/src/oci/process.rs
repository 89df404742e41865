//! The container's process: its arguments, environment, directory and user.

use bulkhead_proto::{agent, cri};

use super::OciError;

/// What an image says about the process to run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageProcess {
    /// `User` of the image's config.
    pub user: String,
    /// `Env`.
    pub env: Vec<String>,
    /// `Entrypoint`.
    pub entrypoint: Vec<String>,
    /// `Cmd`.
    pub cmd: Vec<String>,
    /// `WorkingDir`.
    pub working_dir: String,
    /// `StopSignal`.
    pub stop_signal: String,
}

/// Where commands are looked for when neither image nor pod says.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The most that Linux passes to a program, whatever its limits: three quarters of 8 MiB, for
/// arguments and environment with a zero byte and a pointer each (execve(2), "Limits on size").
const MOST_PASSED: usize = 6 << 20;

/// The arguments, as Kubernetes has it: `command` stands for the image's entrypoint and puts its
/// cmd out of use; `args` stand for the cmd only. An entrypoint of one empty word counts as absent, as in
/// Docker. Any other empty command is not found when it is started.
pub fn args(config: &cri::ContainerConfig, image: &ImageProcess) -> Result<Vec<String>, OciError> {
    let mut result = Vec::new();
    if config.command.is_empty() {
        if image.entrypoint != [""] {
            result.extend_from_slice(&image.entrypoint);
        }
        let rest = if config.args.is_empty() {
            &image.cmd
        } else {
            &config.args
        };
        result.extend_from_slice(rest);
    } else {
        result.extend_from_slice(&config.command);
        result.extend_from_slice(&config.args);
    }
    if result.is_empty() {
        return Err(OciError::NoCommand);
    }
    for arg in &result {
        no_nul("command and args", arg)?;
    }
    Ok(result)
}

/// The environment: a default PATH, the image's, the pod's host name, then the request's; a later
/// value replaces an earlier one in its place.
pub fn env(
    config: &cri::ContainerConfig,
    image: &ImageProcess,
    hostname: &str,
) -> Result<Vec<String>, OciError> {
    let mut result = Environment(vec![DEFAULT_PATH.to_owned()]);
    if config.tty {
        result.set("TERM=xterm".to_owned());
    }
    // An entry without '=' or without a name sets nothing; old images have some.
    let sets = |entry: &&String| entry.find('=').is_some_and(|at| at > 0);
    for entry in image.env.iter().filter(sets) {
        no_nul("the image's Env", entry)?;
        result.set(entry.clone());
    }
    if !hostname.is_empty() {
        result.set(format!("HOSTNAME={hostname}"));
    }
    for pair in &config.envs {
        if pair.key.is_empty() || pair.key.contains('=') {
            return Err(OciError::Invalid {
                field: "envs",
                value: pair.key.clone(),
                allowed: "names that are not empty and hold no '='",
            });
        }
        let value = std::str::from_utf8(&pair.value).map_err(|_| OciError::Invalid {
            field: "envs",
            value: pair.key.clone(),
            allowed: "values in UTF-8 (the OCI runtime spec is JSON and can carry no others)",
        })?;
        let entry = format!("{}={value}", pair.key);
        no_nul("envs", &entry)?;
        result.set(entry);
    }
    Ok(result.0)
}

/// Refuses what no kernel would pass to a program. What is less may still be too much for the
/// container's limits: starting it shows.
pub fn check_size(args: &[String], env: &[String]) -> Result<(), OciError> {
    let pointer = size_of::<u64>();
    let texts = args.iter().chain(env);
    let bytes = texts.fold(0_usize, |sum, text| {
        sum.saturating_add(text.len()).saturating_add(1 + pointer)
    });
    if bytes > MOST_PASSED {
        return Err(OciError::TooLong {
            bytes,
            most: MOST_PASSED,
        });
    }
    Ok(())
}

struct Environment(Vec<String>);

impl Environment {
    fn set(&mut self, entry: String) {
        let name = |text: &str| text.split('=').next().unwrap_or_default().to_owned();
        let wanted = name(&entry);
        match self.0.iter_mut().find(|old| name(old) == wanted) {
            Some(old) => *old = entry,
            None => self.0.push(entry),
        }
    }
}

/// The working directory: the request's, else the image's, else the root.
pub fn cwd(config: &cri::ContainerConfig, image: &ImageProcess) -> Result<String, OciError> {
    let wanted = [&config.working_dir, &image.working_dir]
        .into_iter()
        .find(|dir| !dir.is_empty());
    let dir = wanted.map_or("/", String::as_str);
    no_nul("working_dir", dir)?;
    // An image may say "app" and mean "/app"; runc-based runtimes take it so.
    Ok(if dir.starts_with('/') {
        dir.to_owned()
    } else {
        format!("/{dir}")
    })
}

/// Who the process is. Names are resolved in the guest, against the image's own files.
pub fn user(
    context: &cri::LinuxContainerSecurityContext,
    image: &ImageProcess,
) -> Result<agent::User, OciError> {
    let gid = context
        .run_as_group
        .as_ref()
        .map(|v| id("run_as_group", v.value))
        .transpose()?;
    let uid = context
        .run_as_user
        .as_ref()
        .map(|v| id("run_as_user", v.value))
        .transpose()?;
    let name = match (uid, context.run_as_username.as_str()) {
        (Some(_), _) => String::new(),
        (None, "") if gid.is_some() => {
            // CRI: run_as_group only together with run_as_user or run_as_username.
            return Err(OciError::Invalid {
                field: "run_as_group",
                value: gid.unwrap_or_default().to_string(),
                allowed: "a group only together with run_as_user or run_as_username",
            });
        }
        (None, "") => image.user.clone(),
        (None, username) => username.to_owned(),
    };
    no_nul("the user", &name)?;
    let supplemental_gids = context
        .supplemental_groups
        .iter()
        .map(|gid| id("supplemental_groups", *gid))
        .collect::<Result<_, _>>()?;
    let policy = cri::SupplementalGroupsPolicy::try_from(context.supplemental_groups_policy)
        .map_err(|_| OciError::Invalid {
            field: "supplemental_groups_policy",
            value: context.supplemental_groups_policy.to_string(),
            allowed: "Merge (0) or Strict (1)",
        })?;
    Ok(agent::User {
        name,
        uid,
        gid,
        supplemental_gids,
        strict_groups: policy == cri::SupplementalGroupsPolicy::Strict,
    })
}

fn id(field: &'static str, value: i64) -> Result<u32, OciError> {
    // The last value is (uid_t)-1, "no change" to the kernel.
    u32::try_from(value)
        .ok()
        .filter(|id| *id != u32::MAX)
        .ok_or_else(|| OciError::Invalid {
            field,
            value: value.to_string(),
            allowed: "0 to 4294967294",
        })
}

/// C strings end at a NUL: one inside would silently cut the text.
pub(super) fn no_nul(field: &'static str, text: &str) -> Result<(), OciError> {
    if text.contains('\0') {
        return Err(OciError::Invalid {
            field,
            value: text.replace('\0', "\\0"),
            allowed: "text without NUL bytes",
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(|s| (*s).to_owned()).collect()
    }

    #[test]
    fn command_and_args_against_entrypoint_and_cmd() {
        // The table of the Kubernetes documentation.
        for (entrypoint, cmd, command, given, expected) in [
            (
                vec!["/ep-1"],
                vec!["foo", "bar"],
                vec![],
                vec![],
                vec!["/ep-1", "foo", "bar"],
            ),
            (
                vec!["/ep-1"],
                vec!["foo", "bar"],
                vec!["/ep-2"],
                vec![],
                vec!["/ep-2"],
            ),
            (
                vec!["/ep-1"],
                vec!["foo", "bar"],
                vec![],
                vec!["zoo"],
                vec!["/ep-1", "zoo"],
            ),
            (
                vec!["/ep-1"],
                vec!["foo"],
                vec!["/ep-2"],
                vec!["zoo"],
                vec!["/ep-2", "zoo"],
            ),
            (vec![], vec!["sh"], vec![], vec![], vec!["sh"]),
            // An entrypoint of one empty word counts as absent; a longer one does not.
            (
                vec![""],
                vec!["echo", "hi"],
                vec![],
                vec![],
                vec!["echo", "hi"],
            ),
            (
                vec![""],
                vec!["echo", "hi"],
                vec![],
                vec!["ls", "/"],
                vec!["ls", "/"],
            ),
            (vec![""], vec![], vec!["id"], vec![], vec!["id"]),
            (vec!["", "x"], vec![], vec![], vec![], vec!["", "x"]),
            // No program has this name: starting it fails.
            (vec![], vec![""], vec![], vec![], vec![""]),
            (vec!["/ep"], vec![], vec![""], vec![], vec![""]),
        ] {
            let image = ImageProcess {
                entrypoint: strings(&entrypoint),
                cmd: strings(&cmd),
                ..Default::default()
            };
            let config = cri::ContainerConfig {
                command: strings(&command),
                args: strings(&given),
                ..Default::default()
            };
            assert_eq!(args(&config, &image).unwrap(), strings(&expected));
        }
        let empty = ImageProcess {
            entrypoint: strings(&[""]),
            ..Default::default()
        };
        for image in [ImageProcess::default(), empty] {
            let none = args(&cri::ContainerConfig::default(), &image).unwrap_err();
            assert!(matches!(none, OciError::NoCommand));
            assert!(none.to_string().contains("no command specified"), "{none}");
        }
        let nul = cri::ContainerConfig {
            command: strings(&["a\0b"]),
            ..Default::default()
        };
        assert!(args(&nul, &ImageProcess::default()).is_err());
    }

    fn pair(key: &str, value: &[u8]) -> cri::KeyValue {
        cri::KeyValue {
            key: key.into(),
            value: value.into(),
        }
    }

    #[test]
    fn the_request_overrides_the_image_and_the_image_the_default() {
        let image = ImageProcess {
            env: strings(&["PATH=/opt", "A=1", "HOSTNAME=x"]),
            ..Default::default()
        };
        let config = cri::ContainerConfig {
            envs: vec![pair("A", b"2"), pair("B", b"x=y"), pair("B", b"z")],
            tty: true,
            ..Default::default()
        };
        assert_eq!(
            env(&config, &image, "pod").unwrap(),
            strings(&["PATH=/opt", "TERM=xterm", "A=2", "HOSTNAME=pod", "B=z"])
        );
        for bad in [
            pair("", b""),
            pair("A=B", b""),
            pair("A", b"\xff"),
            pair("A", b"\0"),
        ] {
            let config = cri::ContainerConfig {
                envs: vec![bad],
                ..Default::default()
            };
            assert!(env(&config, &image, "pod").is_err());
        }
    }

    #[test]
    fn environments_of_every_shape_and_size() {
        let long = format!("LONG={}", "x".repeat(100_000));
        let image = ImageProcess {
            env: strings(&["A=1", "=x", "=", "NOTHING", "A=2", "B=", "C=a\nb\n", &long]),
            ..Default::default()
        };
        let config = cri::ContainerConfig {
            envs: vec![pair("C", b"1\n2"), pair("D", "\u{1}é".as_bytes())],
            ..Default::default()
        };
        let found = env(&config, &image, "").unwrap();
        let expected = [DEFAULT_PATH, "A=2", "B=", "C=1\n2", &long, "D=\u{1}é"];
        assert_eq!(found, strings(&expected));
        // What the agent asks of an entry.
        let named = |entry: &String| {
            entry
                .split_once('=')
                .is_some_and(|(name, _)| !name.is_empty())
        };
        assert!(found.iter().all(named));

        let many = vec!["x".repeat(100_000); 20];
        check_size(&[], &many).unwrap();
        let more = vec!["x".repeat(100_000); 70];
        for (args, env) in [
            (&more[..], &[][..]),
            (&[], &more),
            (&more[..35], &more[..35]),
        ] {
            let error = check_size(args, env).unwrap_err().to_string();
            assert!(error.contains("argument list too long"), "{error}");
        }
        // Short ones count by their pointers.
        let crowd = vec![String::new(); 1 << 20];
        check_size(&crowd, &[]).unwrap_err();
    }

    #[test]
    fn users() {
        let image = ImageProcess {
            user: "www-data:1004".into(),
            ..Default::default()
        };
        let mut context = cri::LinuxContainerSecurityContext::default();
        assert_eq!(user(&context, &image).unwrap().name, "www-data:1004");
        context.run_as_group = Some(cri::Int64Value { value: 5 });
        assert!(user(&context, &image).is_err(), "a group without a user");
        context.run_as_username = "nobody".into();
        let named = user(&context, &image).unwrap();
        assert_eq!(
            (named.name.as_str(), named.uid, named.gid),
            ("nobody", None, Some(5))
        );
        context.run_as_user = Some(cri::Int64Value { value: 1000 });
        context.supplemental_groups = vec![1234];
        context.supplemental_groups_policy = 1;
        let plain = user(&context, &image).unwrap();
        assert_eq!((plain.name.as_str(), plain.uid), ("", Some(1000)));
        assert_eq!(plain.supplemental_gids, vec![1234]);
        assert!(plain.strict_groups);
        for impossible in [-1, i64::from(u32::MAX), i64::MAX] {
            context.run_as_user = Some(cri::Int64Value { value: impossible });
            assert!(user(&context, &image).is_err(), "{impossible}");
        }
    }

    #[test]
    fn directories() {
        let image = ImageProcess {
            working_dir: "app".into(),
            ..Default::default()
        };
        assert_eq!(
            cwd(&cri::ContainerConfig::default(), &image).unwrap(),
            "/app"
        );
        let config = cri::ContainerConfig {
            working_dir: "/srv".into(),
            ..Default::default()
        };
        assert_eq!(cwd(&config, &image).unwrap(), "/srv");
        assert_eq!(
            cwd(&cri::ContainerConfig::default(), &ImageProcess::default()).unwrap(),
            "/"
        );
    }
}
