//! Whether a pod can be run as asked. Pure: looks at the request and the configuration alone.

use std::path::Path;

use bulkhead_proto::{
    agent,
    cri::{NamespaceMode, PodSandboxConfig, PodSandboxMetadata},
};

use super::SandboxError;
use crate::{
    config::{Config, HostNamespacePods},
    oci::userns,
    records::{KVM_FULL, MachineKind},
};

/// What a valid request asks for.
#[derive(Debug)]
pub(super) struct ValidatedPod {
    /// What it runs in.
    pub(super) machine: MachineKind,
    /// Which of the host's namespaces it is in; in a VM none.
    pub(super) node: NodeNamespaces,
    pub(super) metadata: PodSandboxMetadata,
    /// The guest's host name.
    pub(super) hostname: String,
    /// Containers share one PID namespace.
    pub(super) shared_pid: bool,
    /// The user namespace of all containers, if not the guest's own.
    pub(super) user_namespace: Option<agent::UserNamespace>,
}

/// The host's namespaces a pod is in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct NodeNamespaces {
    /// Network, and with it the host name.
    pub(super) network: bool,
    /// Processes.
    pub(super) pid: bool,
    /// System V IPC, message queues, /dev/shm.
    pub(super) ipc: bool,
}

impl NodeNamespaces {
    fn of(config: &PodSandboxConfig) -> Self {
        let linux = config.linux.as_ref();
        let security = linux.and_then(|l| l.security_context.as_ref());
        let Some(options) = security.and_then(|s| s.namespace_options.as_ref()) else {
            return Self::default();
        };
        let node = |mode| mode == i32::from(NamespaceMode::Node);
        Self {
            network: node(options.network),
            pid: node(options.pid),
            ipc: node(options.ipc),
        }
    }

    /// The fields of a pod's spec that ask for them.
    fn fields(self) -> Vec<&'static str> {
        let fields = [
            (self.network, "hostNetwork"),
            (self.pid, "hostPID"),
            (self.ipc, "hostIPC"),
        ];
        fields
            .into_iter()
            .filter_map(|(asked, field)| asked.then_some(field))
            .collect()
    }
}

/// Where a pod runs: where its handler says; without one in a VM, but for a pod that no VM can run,
/// which the policy sends to the host or refuses. Nothing else decides.
fn machine(
    handler: &str,
    node: NodeNamespaces,
    ours: &Config,
) -> Result<MachineKind, SandboxError> {
    let there = ours.handlers();
    if !there.contains(&handler) {
        let quoted: Vec<_> = there.iter().map(|name| format!("{name:?}")).collect();
        return Err(SandboxError::Handler {
            handler: handler.to_owned(),
            there: quoted.join(", "),
            advice: match handler {
                KVM_FULL => {
                    "; it is there where vmm.full_kernel names a guest kernel \
                     (make -C guest-kernel full)"
                }
                _ => "",
            },
        });
    }
    let fields = node.fields().join(", ");
    let refused = |advice: &str| {
        Err(SandboxError::Unsupported {
            what: format!(
                "the pod asks for namespaces of the host ({fields}), which a virtual machine \
                 cannot have: {advice}"
            ),
        })
    };
    match (handler, ours.sandbox.host_namespace_pods) {
        ("host", _) => Ok(MachineKind::Host),
        _ if fields.is_empty() => Ok(MachineKind::Vm),
        ("", HostNamespacePods::Host) => Ok(MachineKind::Host),
        ("", HostNamespacePods::Reject) => refused(
            "give it a RuntimeClass with the handler \"host\", or set \
             sandbox.host_namespace_pods = \"host\" on this node",
        ),
        _ => refused(
            "give it a RuntimeClass with the handler \"host\" or none, or unset these fields",
        ),
    }
}

pub(super) fn validate(
    config: &PodSandboxConfig,
    handler: &str,
    ours: &Config,
) -> Result<ValidatedPod, SandboxError> {
    let node = NodeNamespaces::of(config);
    let machine = machine(handler, node, ours)?;
    let metadata = config
        .metadata
        .clone()
        .ok_or_else(|| invalid("metadata is missing"))?;
    if metadata.name.is_empty() {
        return Err(invalid("metadata.name is empty"));
    }
    let hostname = match config.hostname.as_str() {
        // The host's own.
        "" if node.network => String::new(),
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
        shared_pid = options.pid == i32::from(NamespaceMode::Pod);
        if options.pid == i32::from(NamespaceMode::Target) {
            return Err(invalid("a sandbox's PID namespace cannot be TARGET"));
        }
        user_namespace = userns::of_pod(options.userns_options.as_ref())
            .map_err(|error| invalid(error.to_string()))?;
    }
    if security.is_some_and(|s| s.run_as_group.is_some() && s.run_as_user.is_none()) {
        return Err(invalid("run_as_group is given without run_as_user"));
    }
    for key in config.linux.iter().flat_map(|l| l.sysctls.keys()) {
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/');
        if key.is_empty() || key.contains("..") || !key.chars().all(good) {
            return Err(invalid(format!("{key:?} is not the name of a sysctl")));
        }
        if machine == MachineKind::Host {
            namespaced(key, node)?;
        }
    }
    if user_namespace.is_some() && !node.fields().is_empty() {
        return Err(invalid(format!(
            "a pod with a user namespace of its own (hostUsers: false) cannot be in the host's other \
             namespaces ({})",
            node.fields().join(", ")
        )));
    }
    Ok(ValidatedPod {
        machine,
        node,
        metadata,
        hostname,
        shared_pid,
        user_namespace,
    })
}

/// Refuses a sysctl that would be set for more than the pod: on the host there are others.
fn namespaced(key: &str, node: NodeNamespaces) -> Result<(), SandboxError> {
    let name = key.replace('/', ".");
    let network = name.starts_with("net.");
    // The parameters of ipc_namespaces(7).
    let ipc = name.starts_with("fs.mqueue.")
        || name.starts_with("kernel.msg")
        || name.starts_with("kernel.shm")
        || name == "kernel.sem";
    let why = match (network, ipc) {
        (true, _) if node.network => "the pod is in the host's network namespace",
        (_, true) if node.ipc => "the pod is in the host's IPC namespace",
        (true, _) | (_, true) => return Ok(()),
        _ => "it is not of a namespace, and would be set for the whole host",
    };
    Err(invalid(format!(
        "the sysctl {key:?} cannot be set for a pod on the host (handler \"host\"): {why}"
    )))
}

fn invalid(what: impl Into<String>) -> SandboxError {
    SandboxError::Invalid { what: what.into() }
}

#[cfg(test)]
mod tests {
    use bulkhead_proto::cri::{
        IdMapping, Int64Value, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceOption,
        UserNamespace,
    };
    use tonic::Code;

    use super::*;
    use crate::error::Grpc as _;

    fn validate(config: &PodSandboxConfig, handler: &str) -> Result<ValidatedPod, SandboxError> {
        super::validate(config, handler, &ours(""))
    }

    /// A node's configuration.
    fn ours(text: &str) -> Config {
        Config::parse(Path::new("t"), text).unwrap()
    }

    const REJECT: &str = "[sandbox]\nhost_namespace_pods = \"reject\"\n";
    const FULL: &str = "[vmm]\nfull_kernel = \"/full\"\n";

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
    fn only_pods_that_need_it_go_to_the_host_and_only_by_policy() {
        let machine = |config: &PodSandboxConfig, handler: &str, text: &str| {
            super::validate(config, handler, &ours(text)).map(|wanted| wanted.machine)
        };
        let network = with_namespaces(NamespaceMode::Node, NamespaceMode::Pod);
        let pid = with_namespaces(NamespaceMode::Pod, NamespaceMode::Node);
        for pod in [&network, &pid] {
            assert_eq!(machine(pod, "", "").unwrap(), MachineKind::Host);
            assert_eq!(machine(pod, "host", REJECT).unwrap(), MachineKind::Host);
            let refused = [("", REJECT), ("kvm", ""), ("kvm", REJECT), (KVM_FULL, FULL)];
            for (handler, text) in refused {
                let code = machine(pod, handler, text).unwrap_err().code();
                assert_eq!(code, Code::FailedPrecondition);
            }
        }
        assert_eq!(machine(&config(), "", "").unwrap(), MachineKind::Vm);
        assert_eq!(machine(&config(), "kvm", "").unwrap(), MachineKind::Vm);
        assert_eq!(
            machine(&config(), "host", REJECT).unwrap(),
            MachineKind::Host
        );
    }

    #[test]
    fn users_of_its_own_are_not_for_a_pod_in_the_hosts_namespaces() {
        let range = IdMapping {
            container_id: 0,
            host_id: 200_000,
            length: 65_536,
        };
        let pod = |network: NamespaceMode, pid: NamespaceMode, ipc: NamespaceMode| {
            let options = NamespaceOption {
                network: network.into(),
                pid: pid.into(),
                ipc: ipc.into(),
                userns_options: Some(UserNamespace {
                    mode: NamespaceMode::Pod.into(),
                    uids: vec![range],
                    gids: vec![range],
                }),
                ..Default::default()
            };
            with_security(LinuxSandboxSecurityContext {
                namespace_options: Some(options),
                ..Default::default()
            })
        };
        use NamespaceMode::{Container, Node, Pod};
        for handler in ["", "host"] {
            for (config, field) in [
                (pod(Pod, Node, Pod), "hostPID"),
                (pod(Node, Pod, Pod), "hostNetwork"),
                (pod(Pod, Container, Node), "hostIPC"),
            ] {
                let error = validate(&config, handler).unwrap_err();
                assert_eq!(error.code(), Code::InvalidArgument, "{field}");
                let text = error.to_string();
                assert!(text.contains("hostUsers") && text.contains(field), "{text}");
            }
            let own = validate(&pod(Pod, Container, Pod), handler).unwrap();
            assert!(own.user_namespace.is_some());
        }
    }

    #[test]
    fn the_handler_of_the_full_kernel_is_there_exactly_if_one_is_configured() {
        let on = |text: &str| super::validate(&config(), KVM_FULL, &ours(text));
        assert_eq!(on(FULL).unwrap().machine, MachineKind::Vm);
        let refused = on("").unwrap_err();
        assert_eq!(refused.code(), Code::NotFound);
        let words = refused.to_string();
        for part in ["\"kvm-full\"", "\"kvm\", \"host\"", "vmm.full_kernel"] {
            assert!(words.contains(part), "{words}");
        }
        // Others are told what there is, and nothing of a kernel.
        let other = super::validate(&config(), "runc", &ours(FULL)).unwrap_err();
        let words = other.to_string();
        assert!(
            words.ends_with("there are \"\", \"kvm\", \"kvm-full\", \"host\""),
            "{words}"
        );
        assert_eq!(ours("").handlers(), ["", "kvm", "host"]);
        assert_eq!(ours(FULL).handlers(), ["", "kvm", KVM_FULL, "host"]);
    }

    #[test]
    fn sysctls_of_the_host_are_not_set_for_a_pod_on_it() {
        let with = |mode, key: &str| {
            let mut config = with_namespaces(mode, NamespaceMode::Pod);
            let linux = config.linux.get_or_insert_default();
            linux.sysctls = [(key.to_owned(), "1".to_owned())].into();
            config
        };
        let own = |key| validate(&with(NamespaceMode::Pod, key), "host");
        for key in [
            "net.ipv4.ip_unprivileged_port_start",
            "kernel.shm_rmid_forced",
            "kernel/sem",
        ] {
            own(key).unwrap();
        }
        for key in [
            "kernel.panic",
            "vm.swappiness",
            "fs.file-max",
            "user.max_user_namespaces",
        ] {
            assert_eq!(own(key).unwrap_err().code(), Code::InvalidArgument, "{key}");
            validate(&with(NamespaceMode::Pod, key), "kvm").unwrap();
        }
        let node = with(NamespaceMode::Node, "net.core.somaxconn");
        assert_eq!(
            validate(&node, "host").unwrap_err().code(),
            Code::InvalidArgument
        );
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
