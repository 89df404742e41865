//! What the file may say: every section and key with its documentation and default, in one table
//! from which the types, the defaults and the printed default file are made. What the values mean
//! and which are allowed is in `super::resolve`.

use serde::Deserialize;

/// A key's value as TOML, for the printed default file.
trait AsToml {
    fn as_toml(&self) -> String;
}

impl AsToml for String {
    fn as_toml(&self) -> String {
        toml::Value::String(self.clone()).to_string()
    }
}

impl AsToml for Vec<String> {
    fn as_toml(&self) -> String {
        toml::Value::Array(self.iter().cloned().map(toml::Value::String).collect()).to_string()
    }
}

impl AsToml for bool {
    fn as_toml(&self) -> String {
        self.to_string()
    }
}

impl AsToml for u64 {
    fn as_toml(&self) -> String {
        self.to_string()
    }
}

macro_rules! sections {
    ($(
        $(#[doc = $section_doc:literal])+
        $section:ident: $type:ident {
            $( $(#[doc = $doc:literal])+ $key:ident: $value:ty = $default:expr; )+
        }
    )+) => {
        /// The configuration file as written.
        #[derive(Debug, Clone, Default, PartialEq, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct Raw {
            $( $(#[doc = $section_doc])+ pub $section: $type, )+
        }

        $(
            $(#[doc = $section_doc])+
            #[derive(Debug, Clone, PartialEq, Deserialize)]
            #[serde(deny_unknown_fields, default)]
            pub struct $type {
                $( $(#[doc = $doc])+ pub $key: $value, )+
            }

            impl Default for $type {
                fn default() -> Self {
                    Self { $( $key: $default, )+ }
                }
            }
        )+

        /// The default configuration file: every key with its documentation and default.
        pub fn default_file() -> String {
            let mut text = String::from(
                "# Bulkhead's configuration: /etc/bulkhead/config.toml.\n\
                 # Every key below stands with its default; leave out what you do not change.\n",
            );
            let defaults = Raw::default();
            $(
                text.push('\n');
                $( text.push_str(concat!("#", $section_doc, "\n")); )+
                text.push_str(concat!("[", stringify!($section), "]\n"));
                $(
                    $( text.push_str(concat!("#", $doc, "\n")); )+
                    text.push_str(&format!(
                        "{} = {}\n", stringify!($key), defaults.$section.$key.as_toml()
                    ));
                )+
            )+
            text
        }
    };
}

sections! {
    /// Where the daemon keeps its files.
    paths: Paths {
        /// Records, images and the pods' writable disks.
        state_dir: String = "/var/lib/bulkhead".into();
        /// Sockets and the pods' directories: gone after a reboot.
        run_dir: String = "/run/bulkhead".into();
        /// The CRI socket; empty means bulkhead.sock in run_dir.
        socket: String = String::new();
    }

    /// The virtual machines' programs and limits.
    vmm: Vmm {
        /// The virtual machine monitor, one process per pod.
        binary: String = "/usr/lib/bulkhead/bulkhead-vmm".into();
        /// The KVM device.
        kvm: String = "/dev/kvm".into();
        /// The guest kernel, an ELF vmlinux.
        kernel: String = "/usr/lib/bulkhead/vmlinux".into();
        /// A second guest kernel, for pods of the RuntimeClass handler "kvm-full": the full one, with
        /// what eBPF tools ask for. Empty means that there is no such handler.
        full_kernel: String = String::new();
        /// The initramfs that holds the agent.
        initramfs: String = "/usr/lib/bulkhead/initramfs.cpio".into();
        /// Words added to the guest kernel's command line.
        cmdline: String = String::new();
        /// First user id of the range from which each pod's VMM gets its own.
        uid_base: u64 = 2_000_000_000;
        /// How many user ids are in the range: the most pods at one time.
        uid_count: u64 = 65_536;
        /// Memory in MiB that a VMM may take beyond its guest's memory and the page tables for it: it
        /// is kept free of the pod's cgroup limit. Measured: 3 to 5 MiB, with its share of the kernel.
        overhead_mib: u64 = 12;
        /// Size in KiB to which a guest's console log is kept.
        console_limit_kib: u64 = 1_024;
        /// Use the kernel's vhost-net for the pods' network: "auto", "always" or "never".
        vhost_net: String = "auto".into();
    }

    /// Pods, where the kubelet does not say.
    sandbox: Sandbox {
        /// Virtual CPUs of a pod without a CPU limit; 0 means as many as the host has.
        vcpus: u64 = 0;
        /// The most virtual CPUs a pod gets, at most 64; 0 means as many as the host has.
        max_vcpus: u64 = 0;
        /// Guest memory in MiB that a pod without a memory limit starts with; it gets more when its
        /// containers need it, up to max_memory_mib.
        memory_mib: u64 = 512;
        /// The most guest memory in MiB a pod can have, at most 1048576; 0 means as much as the host
        /// has. Address space only, until a pod uses it.
        max_memory_mib: u64 = 0;
        /// Guest memory in MiB below which no pod is started: less does not boot.
        min_memory_mib: u64 = 80;
        /// Guest memory in MiB for the guest's kernel and agent: it comes on top of what a pod's
        /// containers may use.
        guest_overhead_mib: u64 = 64;
        /// Size limit in MiB of a pod's writable disk (its file grows as it is used).
        scratch_mib: u64 = 10_240;
        /// Give pods a file server (virtio-fs) for volumes of the host. Without, a pod with such a
        /// volume is refused, and its VMM has no capability at all.
        volumes: bool = true;
        /// Seconds a VMM gets to end its VM before it is killed.
        stop_timeout_secs: u64 = 10;
        /// Pods that ask for the host's network, PID or IPC namespace and for no handler: "host" runs
        /// them on the host, without a virtual machine; "reject" refuses them.
        host_namespace_pods: String = "host".into();
    }

    /// Pods on the host: those of the handler "host".
    host: Host {
        /// The agent, one process per pod; the guests' agent is in vmm.initramfs.
        agent: String = "/usr/lib/bulkhead/bulkhead-agent".into();
        /// Let containers without a seccomp profile use io_uring of the node's kernel. In a virtual
        /// machine they always can.
        allow_io_uring: bool = false;
    }

    /// Starting virtual machines.
    boot: Boot {
        /// How many start at one time; 0 means two per host CPU.
        parallel: u64 = 0;
        /// Seconds from the VMM's start to the agent's report after which a start is given up.
        timeout_secs: u64 = 60;
    }

    /// Pods' network.
    network: Network {
        /// "cni": by the CNI plugins. "none": pods have a loopback interface only.
        mode: String = "cni".into();
        /// Where the CNI plugins are, tried in order.
        cni_bin_dirs: Vec<String> = vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()];
        /// Where the CNI configuration is: the first file in alphabetical order is used.
        cni_conf_dir: String = "/etc/cni/net.d".into();
        /// Where pods' network namespaces are: CNI daemons on the node look for them there.
        netns_dir: String = "/var/run/netns".into();
        /// Seconds a CNI plugin gets.
        cni_timeout_secs: u64 = 60;
    }

    /// Volumes of the host in pods.
    volumes: Volumes {
        /// Unix sockets of the host that pods may connect to when they mount them (hostPath).
        sockets: Vec<String> = Vec::new();
    }

    /// Control groups of the host (version 2 only).
    cgroup: Cgroup {
        /// "systemd", "cgroupfs", or "auto": systemd where it runs.
        driver: String = "auto".into();
        /// Where version 2 is mounted.
        root: String = "/sys/fs/cgroup".into();
        /// Parent for pods for which CRI names none, in the driver's form: a slice's name or path, or
        /// a path; empty means bulkhead.slice (systemd) or /bulkhead (cgroupfs).
        default_parent: String = String::new();
    }

    /// Images on the node.
    images: Images {
        /// Names of images that the kubelet's cleaning up leaves alone (CRI's `pinned`); a name may
        /// end in "*".
        pinned: Vec<String> = Vec::new();
        /// GiB that the layers of one image may have together, as a registry has them.
        max_image_gib: u64 = 1_024;
        /// GiB that one layer may have, unpacked. A layer that turns out larger is thrown away.
        max_layer_gib: u64 = 1_024;
        /// Files and directories that one layer may have.
        max_layer_entries: u64 = 2_000_000;
        /// MiB of memory that the names in one layer may take while it is unpacked.
        max_layer_memory_mib: u64 = 512;
        /// Seconds that finished layers of an unfinished pull are kept for the next try.
        keep_unfinished_secs: u64 = 3_600;
    }

    /// Exec, attach and port-forward: a kubelet asks for a URL and connects to it.
    streaming: Streaming {
        /// Address and port that the streaming server listens on; port 0 takes a free one. Only the
        /// kubelet connects to it.
        address: String = "127.0.0.1:0".into();
        /// PEM file with the server's certificate and those that sign it; empty means no TLS.
        tls_certificate: String = String::new();
        /// PEM file with the certificate's private key.
        tls_key: String = String::new();
        /// Seconds without a byte in either direction after which a connection is closed.
        idle_timeout_secs: u64 = 14_400;
        /// Seconds that a client gets to open the streams it has asked for.
        creation_timeout_secs: u64 = 30;
    }

    /// Pulling images.
    registry: Registry {
        /// Directory of per-registry settings (HOST/hosts.toml).
        config_dir: String = "/etc/bulkhead/certs.d".into();
        /// How many layers are pulled at one time.
        parallel_layers: u64 = 3;
        /// Seconds without a byte after which a transfer is given up.
        stall_timeout_secs: u64 = 60;
    }
}
