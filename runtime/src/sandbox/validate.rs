//! Whether a pod can be run as asked. Pure: looks at the request alone.

use std::path::Path;

use bulkhead_proto::{
    agent,
    cri::{NamespaceMode, PodSandboxConfig, PodSandboxMetadata},
};

use super::SandboxError;
use crate::oci::userns;

/// Handlers of this release; both are the same.
pub(super) const HANDLERS: [&str; 2] = ["", "kvm"];

/// What a valid request asks for.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) metadata: PodSandboxMetadata,
    /// The guest's host name.
    pub(super) hostname: String,
    /// Containers share one PID namespace.
    pub(super) shared_pid: bool,
    /// The user namespace of all containers, if not the guest's own.
    pub(super) user_namespace: Option<agent::UserNamespace>,
}

pub(super) fn validate(config: &PodSandboxConfig, handler: &str) -> Result<Wanted, SandboxError> {
    if !HANDLERS.contains(&handler) {
        return Err(SandboxError::Handler {
            handler: handler.to_owned(),
        });
    }
    let metadata = config
        .metadata
        .clone()
        .ok_or_else(|| invalid("metadata is missing"))?;
    if metadata.name.is_empty() {
        return Err(invalid("metadata.name is empty"));
    }
    let hostname = match config.hostname.as_str() {
        "" => metadata.name.chars().take(63).collect(),
        name => name.to_owned(),
    };
    // The kernel's limit (sethostname(2)), and what can stand in /etc/hosts.
    if hostname.len() > 64
        || hostname
            .chars()
            .any(|c| c.is_whitespace() || c.is_control())
    {
        return Err(invalid(format!(
            "hostname {hostname:?} is longer than 64 bytes or holds blanks"
        )));
    }
    if !config.log_directory.is_empty() && !Path::new(&config.log_directory).is_absolute() {
        return Err(invalid(format!(
            "log_directory {:?} is not absolute",
            config.log_directory
        )));
    }

    crate::network::validate(config)?;

    let security = config
        .linux
        .as_ref()
        .and_then(|l| l.security_context.as_ref());
    let (mut shared_pid, mut user_namespace) = (true, None);
    if let Some(options) = security.and_then(|s| s.namespace_options.as_ref()) {
        for (what, field, mode) in [
            ("network", "hostNetwork", options.network),
            ("PID", "hostPID", options.pid),
            ("IPC", "hostIPC", options.ipc),
        ] {
            if mode == i32::from(NamespaceMode::Node) {
                return Err(SandboxError::Unsupported {
                    what: format!(
                        "the pod asks for the host's {what} namespace ({field}), and a virtual \
                         machine cannot have it; this release has no handler for such pods: run \
                         them with another runtime on this node, or unset {field}"
                    ),
                });
            }
        }
        shared_pid = options.pid == i32::from(NamespaceMode::Pod);
        if options.pid == i32::from(NamespaceMode::Target) {
            return Err(invalid("a sandbox's PID namespace cannot be TARGET"));
        }
        user_namespace = userns::of_pod(options.userns_options.as_ref())
            .map_err(|error| invalid(error.to_string()))?;
    }
    if let Some(security) = security {
        if security.run_as_group.is_some() && security.run_as_user.is_none() {
            return Err(invalid("run_as_group is given without run_as_user"));
        }
    }
    for key in config.linux.iter().flat_map(|l| l.sysctls.keys()) {
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/');
        if key.is_empty() || key.contains("..") || !key.chars().all(good) {
            return Err(invalid(format!("{key:?} is not the name of a sysctl")));
        }
    }
    Ok(Wanted {
        metadata,
        hostname,
        shared_pid,
        user_namespace,
    })
}

fn invalid(what: impl Into<String>) -> SandboxError {
    SandboxError::Invalid { what: what.into() }
}

#[cfg(test)]
mod tests {
    use bulkhead_proto::cri::{
        Int64Value, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceOption,
    };
    use tonic::Code;

    use super::*;
    use crate::error::Grpc as _;

    fn config() -> PodSandboxConfig {
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: "p".into(),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn with_security(security: LinuxSandboxSecurityContext) -> PodSandboxConfig {
        let linux = LinuxPodSandboxConfig {
            security_context: Some(security),
            ..Default::default()
        };
        PodSandboxConfig {
            linux: Some(linux),
            ..config()
        }
    }

    fn with_namespaces(network: NamespaceMode, pid: NamespaceMode) -> PodSandboxConfig {
        let options = NamespaceOption {
            network: network.into(),
            pid: pid.into(),
            ..Default::default()
        };
        with_security(LinuxSandboxSecurityContext {
            namespace_options: Some(options),
            ..Default::default()
        })
    }

    #[test]
    fn ordinary_pods_pass() {
        let wanted = validate(&config(), "").unwrap();
        assert_eq!((wanted.hostname.as_str(), wanted.shared_pid), ("p", true));
        let own = with_namespaces(NamespaceMode::Pod, NamespaceMode::Container);
        assert!(!validate(&own, "kvm").unwrap().shared_pid);
    }

    #[test]
    fn bad_requests_have_the_right_code() {
        let code = |config: &PodSandboxConfig, handler: &str| {
            validate(config, handler).unwrap_err().code()
        };
        assert_eq!(code(&config(), "runc"), Code::NotFound);
        assert_eq!(
            code(&PodSandboxConfig::default(), ""),
            Code::InvalidArgument
        );
        let host = with_namespaces(NamespaceMode::Node, NamespaceMode::Pod);
        assert_eq!(code(&host, ""), Code::FailedPrecondition);
        let host = with_namespaces(NamespaceMode::Pod, NamespaceMode::Node);
        assert_eq!(code(&host, "kvm"), Code::FailedPrecondition);
        let group = with_security(LinuxSandboxSecurityContext {
            run_as_group: Some(Int64Value { value: 1 }),
            ..Default::default()
        });
        assert_eq!(code(&group, ""), Code::InvalidArgument);
        let long = PodSandboxConfig {
            hostname: "x".repeat(65),
            ..config()
        };
        assert_eq!(code(&long, ""), Code::InvalidArgument);
        let relative = PodSandboxConfig {
            log_directory: "logs".into(),
            ..config()
        };
        assert_eq!(code(&relative, ""), Code::InvalidArgument);
        let linux = LinuxPodSandboxConfig {
            sysctls: [("../../x".to_owned(), "1".to_owned())].into(),
            ..Default::default()
        };
        let sysctl = PodSandboxConfig {
            linux: Some(linux),
            ..config()
        };
        assert_eq!(code(&sysctl, ""), Code::InvalidArgument);
    }
}
