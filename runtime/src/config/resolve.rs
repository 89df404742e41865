//! From what the file says to what it means: defaults that depend on the host, limits.

use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
    time::Duration,
};

use bulkhead_contract::vmm::{MAX_MEMORY_MIB, MAX_VCPUS};

use super::{
    pinned::Pinned,
    raw::Raw,
    values::{
        Boot, Cgroup, Config, Host, HostNamespacePods, Images, Network, NetworkMode, Paths,
        Registry, Sandbox, Streaming, TlsFiles, VhostNet, Vmm, Volumes,
    },
};
use crate::cgroup::{self, CgroupDriver};

/// A value that is not allowed; the caller knows file and line.
#[derive(Debug)]
pub(super) struct Bad {
    pub(super) section: &'static str,
    pub(super) key: &'static str,
    pub(super) given: String,
    pub(super) allowed: String,
}

/// Names the place of a value, so that every check reads as one line.
#[derive(Clone, Copy)]
struct At(&'static str, &'static str);

impl At {
    fn bad(self, given: impl ToString, allowed: impl ToString) -> Bad {
        let At(section, key) = self;
        Bad {
            section,
            key,
            given: given.to_string(),
            allowed: allowed.to_string(),
        }
    }

    fn path(self, text: &str) -> Result<PathBuf, Bad> {
        let path = Path::new(text);
        let plain = path.components().all(|c| {
            matches!(
                c,
                std::path::Component::RootDir | std::path::Component::Normal(_)
            )
        });
        if !path.is_absolute() || !plain || text.contains('\0') {
            return Err(self.bad(format!("{text:?}"), "an absolute path without `..`"));
        }
        Ok(path.components().collect())
    }

    fn number<T: TryFrom<u64>>(self, value: u64, least: u64, most: u64) -> Result<T, Bad> {
        let allowed = || format!("a whole number from {least} to {most}");
        if value < least || value > most {
            return Err(self.bad(value, allowed()));
        }
        T::try_from(value).map_err(|_| self.bad(value, allowed()))
    }

    /// Bytes; at most what a layer's file can have (EROFS has 2^32 blocks of 4 KiB).
    fn gib(self, value: u64) -> Result<u64, Bad> {
        Ok(self.number::<u64>(value, 1, 16 << 10)? << 30)
    }

    fn seconds(self, value: u64, most: u64) -> Result<Duration, Bad> {
        Ok(Duration::from_secs(self.number(value, 1, most)?))
    }

    fn one_of<T: Copy>(self, text: &str, choices: &[(&str, T)]) -> Result<T, Bad> {
        choices
            .iter()
            .find(|(name, _)| *name == text)
            .map(|(_, value)| *value)
            .ok_or_else(|| {
                let names: Vec<_> = choices
                    .iter()
                    .map(|(name, _)| format!("{name:?}"))
                    .collect();
                self.bad(format!("{text:?}"), names.join(", "))
            })
    }
}

const HOUR: u64 = 3_600;
/// 16 TiB in MiB: beyond any host, and products with 2^20 stay far from overflow.
const MOST_MIB: u64 = 16 << 20;
/// sun_path holds 108 bytes; the longest socket below run_dir is
/// `/pods/<32 digits>/vm/vsock.sock_1025`.
const LONGEST_RUN_DIR: usize = 107 - 58;

pub(super) fn resolve(raw: Raw) -> Result<Config, Bad> {
    let cpus = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let host_cpus = u32::try_from(cpus).unwrap_or(u32::MAX);

    let run_dir = At("paths", "run_dir").path(&raw.paths.run_dir)?;
    if run_dir.as_os_str().len() > LONGEST_RUN_DIR {
        return Err(At("paths", "run_dir").bad(
            format!("{run_dir:?}"),
            format!("a path of at most {LONGEST_RUN_DIR} bytes, because Unix sockets lie below it"),
        ));
    }
    let socket = match raw.paths.socket.as_str() {
        "" => run_dir.join("bulkhead.sock"),
        text if text.len() > 107 => {
            return Err(At("paths", "socket").bad(text, "a path of at most 107 bytes"));
        }
        text => At("paths", "socket").path(text)?,
    };
    let paths = Paths {
        state_dir: At("paths", "state_dir").path(&raw.paths.state_dir)?,
        run_dir,
        socket,
    };

    let vmm = Vmm {
        binary: At("vmm", "binary").path(&raw.vmm.binary)?,
        kvm: At("vmm", "kvm").path(&raw.vmm.kvm)?,
        kernel: At("vmm", "kernel").path(&raw.vmm.kernel)?,
        full_kernel: match raw.vmm.full_kernel.as_str() {
            "" => None,
            text => Some(At("vmm", "full_kernel").path(text)?),
        },
        initramfs: At("vmm", "initramfs").path(&raw.vmm.initramfs)?,
        cmdline: cmdline(raw.vmm.cmdline)?,
        // 0 and small ids belong to people; 2^32-1 is "no user".
        uid_base: At("vmm", "uid_base").number(raw.vmm.uid_base, 65_536, 4_294_900_000)?,
        uid_count: At("vmm", "uid_count").number(
            raw.vmm.uid_count,
            1,
            4_294_967_294_u64
                .saturating_sub(raw.vmm.uid_base)
                .min(1 << 20),
        )?,
        overhead_mib: At("vmm", "overhead_mib").number(raw.vmm.overhead_mib, 4, 1_024)?,
        console_limit_bytes: 1_024
            * At("vmm", "console_limit_kib").number::<u64>(
                raw.vmm.console_limit_kib,
                16,
                1 << 20,
            )?,
        vhost_net: At("vmm", "vhost_net").one_of(
            &raw.vmm.vhost_net,
            &[
                ("auto", VhostNet::Auto),
                ("always", VhostNet::Always),
                ("never", VhostNet::Never),
            ],
        )?,
    };

    let max_vcpus =
        match At("sandbox", "max_vcpus").number(raw.sandbox.max_vcpus, 0, u64::from(MAX_VCPUS))? {
            0 => host_cpus.min(u32::from(MAX_VCPUS)),
            n => n,
        };
    let min_memory_mib =
        At("sandbox", "min_memory_mib").number(raw.sandbox.min_memory_mib, 32, MAX_MEMORY_MIB)?;
    let sandbox = Sandbox {
        vcpus: match At("sandbox", "vcpus").number(raw.sandbox.vcpus, 0, u64::from(max_vcpus))? {
            0 => host_cpus.min(max_vcpus),
            n => n,
        },
        max_vcpus,
        memory_mib: At("sandbox", "memory_mib").number(
            raw.sandbox.memory_mib,
            min_memory_mib,
            MAX_MEMORY_MIB,
        )?,
        max_memory_mib: match At("sandbox", "max_memory_mib").number(
            raw.sandbox.max_memory_mib,
            0,
            MAX_MEMORY_MIB,
        )? {
            0 => host_memory_mib(),
            n => n,
        },
        min_memory_mib,
        guest_overhead_mib: At("sandbox", "guest_overhead_mib").number(
            raw.sandbox.guest_overhead_mib,
            16,
            1_024,
        )?,
        scratch_mib: At("sandbox", "scratch_mib").number(raw.sandbox.scratch_mib, 16, MOST_MIB)?,
        volumes: raw.sandbox.volumes,
        stop_timeout: At("sandbox", "stop_timeout_secs")
            .seconds(raw.sandbox.stop_timeout_secs, HOUR)?,
        host_namespace_pods: At("sandbox", "host_namespace_pods").one_of(
            &raw.sandbox.host_namespace_pods,
            &[
                ("host", HostNamespacePods::Host),
                ("reject", HostNamespacePods::Reject),
            ],
        )?,
    };
    let host = Host {
        agent: At("host", "agent").path(&raw.host.agent)?,
        allow_io_uring: raw.host.allow_io_uring,
    };

    let boot = Boot {
        parallel: match At("boot", "parallel").number(raw.boot.parallel, 0, 1_024)? {
            0 => cpus.saturating_mul(2),
            n => n,
        },
        timeout: At("boot", "timeout_secs").seconds(raw.boot.timeout_secs, HOUR)?,
    };

    let network = Network {
        mode: At("network", "mode").one_of(
            &raw.network.mode,
            &[("cni", NetworkMode::Cni), ("none", NetworkMode::None)],
        )?,
        cni_bin_dirs: raw
            .network
            .cni_bin_dirs
            .iter()
            .map(|dir| At("network", "cni_bin_dirs").path(dir))
            .collect::<Result<_, _>>()?,
        cni_conf_dir: At("network", "cni_conf_dir").path(&raw.network.cni_conf_dir)?,
        netns_dir: At("network", "netns_dir").path(&raw.network.netns_dir)?,
        cni_timeout: At("network", "cni_timeout_secs")
            .seconds(raw.network.cni_timeout_secs, HOUR)?,
    };

    let driver = match raw.cgroup.driver.as_str() {
        // The test systemd's own sd_booted(3) makes.
        "auto" if Path::new("/run/systemd/system").is_dir() => CgroupDriver::Systemd,
        "auto" => CgroupDriver::Cgroupfs,
        text => At("cgroup", "driver").one_of(
            text,
            &[
                ("auto", CgroupDriver::Cgroupfs),
                ("systemd", CgroupDriver::Systemd),
                ("cgroupfs", CgroupDriver::Cgroupfs),
            ],
        )?,
    };
    let cgroup = Cgroup {
        driver,
        root: At("cgroup", "root").path(&raw.cgroup.root)?,
        default_parent: match (raw.cgroup.default_parent.as_str(), driver) {
            ("", CgroupDriver::Systemd) => "bulkhead.slice".to_owned(),
            ("", CgroupDriver::Cgroupfs) => "/bulkhead".to_owned(),
            (text, _) => text.to_owned(),
        },
    };
    if let Err(reason) = cgroup::parent_path(driver, &cgroup.default_parent) {
        return Err(At("cgroup", "default_parent").bad(&cgroup.default_parent, reason));
    }

    let images = Images {
        pinned: Pinned::parse(&raw.images.pinned).map_err(|name| {
            At("images", "pinned").bad(name, "names of images; the last character may be *")
        })?,
        max_image_bytes: At("images", "max_image_gib").gib(raw.images.max_image_gib)?,
        max_layer_bytes: At("images", "max_layer_gib").gib(raw.images.max_layer_gib)?,
        max_layer_entries: At("images", "max_layer_entries").number(
            raw.images.max_layer_entries,
            1_000,
            1_000_000_000,
        )?,
        max_layer_memory: At("images", "max_layer_memory_mib").number::<u64>(
            raw.images.max_layer_memory_mib,
            16,
            MOST_MIB,
        )? << 20,
        keep_unfinished: At("images", "keep_unfinished_secs")
            .seconds(raw.images.keep_unfinished_secs, 7 * 24 * HOUR)?,
    };
    let streaming = streaming(&raw.streaming)?;
    let sockets = raw.volumes.sockets.iter();
    let volumes = Volumes {
        sockets: sockets
            .map(|socket| At("volumes", "sockets").path(socket))
            .collect::<Result<_, _>>()?,
    };

    let registry = Registry {
        config_dir: At("registry", "config_dir").path(&raw.registry.config_dir)?,
        parallel_layers: At("registry", "parallel_layers").number(
            raw.registry.parallel_layers,
            1,
            64,
        )?,
        stall_timeout: At("registry", "stall_timeout_secs")
            .seconds(raw.registry.stall_timeout_secs, HOUR)?,
    };

    Ok(Config {
        paths,
        vmm,
        sandbox,
        host,
        boot,
        network,
        volumes,
        cgroup,
        streaming,
        registry,
        images,
    })
}

fn streaming(raw: &super::raw::Streaming) -> Result<Streaming, Bad> {
    let at = |key| At("streaming", key);
    let address = raw.address.parse().map_err(|_| {
        at("address").bad(
            format!("{:?}", raw.address),
            "an IP address and a port, as in \"127.0.0.1:0\" or \"[::1]:10010\"",
        )
    })?;
    let tls = match (raw.tls_certificate.as_str(), raw.tls_key.as_str()) {
        ("", "") => None,
        ("", _) => {
            return Err(at("tls_certificate").bad("\"\"", "a path, because tls_key is set"));
        }
        (_, "") => {
            return Err(at("tls_key").bad("\"\"", "a path, because tls_certificate is set"));
        }
        (certificate, key) => Some(TlsFiles {
            certificate: at("tls_certificate").path(certificate)?,
            key: at("tls_key").path(key)?,
        }),
    };
    Ok(Streaming {
        address,
        tls,
        idle_timeout: at("idle_timeout_secs").seconds(raw.idle_timeout_secs, 7 * 24 * HOUR)?,
        creation_timeout: at("creation_timeout_secs").seconds(raw.creation_timeout_secs, HOUR)?,
    })
}

fn cmdline(text: String) -> Result<String, Bad> {
    // The kernel cuts a longer line silently (COMMAND_LINE_SIZE is 2048 on x86).
    if text.len() > 1_024 || !text.bytes().all(|b| (b' '..=b'~').contains(&b)) {
        return Err(At("vmm", "cmdline").bad(
            format!("{text:?}"),
            "at most 1024 printable ASCII characters",
        ));
    }
    Ok(text)
}

/// The line (from 1) on which a key stands in the file, if it does.
pub(super) fn line_of(text: &str, section: &str, key: &str) -> Option<usize> {
    let document = toml::de::DeTable::parse(text).ok()?;
    let table = document.get_ref().get(section)?.get_ref().as_table()?;
    let (found, _) = table.iter().find(|(name, _)| name.get_ref() == key)?;
    Some(text.get(..found.span().start)?.matches('\n').count() + 1)
}

/// The host's memory; none where it cannot be read, so that no pod can be grown.
fn host_memory_mib() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|line| {
        line.trim()
            .trim_end_matches("kB")
            .trim()
            .parse::<u64>()
            .ok()
    });
    (kib.unwrap_or(0) / 1_024).min(MAX_MEMORY_MIB)
}
