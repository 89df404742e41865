//! What a host needs to run pods, and what it lacks: for `bulkhead check` and the Status RPC.

use std::{
    fs::{self, OpenOptions},
    io,
    path::Path,
};

use rustix::{
    io::Errno,
    mount::{FsOpenFlags, fsconfig_set_string, fsopen},
};

use crate::{
    cgroup,
    config::{Config, NetworkMode, VhostNet},
    machine::host,
    oci::apparmor::DEFAULT,
    records::KVM_FULL,
};

/// One requirement and whether it is met.
#[derive(Debug, Clone)]
pub struct Check {
    /// What was looked at.
    pub what: String,
    /// What was found.
    pub result: Found,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// As needed; with a word about it.
    Good(String),
    /// Pods run without it, slower or with less.
    Missing(String),
    /// No pod runs without it; says how to get it.
    Fatal(String),
}

/// Everything a host needs, looked at one by one. Blocks.
pub fn all(config: &Config) -> Vec<Check> {
    let mut checks = vec![
        check("processor virtualization", processor()),
        check(
            "/dev/kvm",
            device(
                &config.vmm.kvm,
                "load the module kvm_intel or kvm_amd, and run the daemon as root",
            ),
        ),
        check(
            "cgroup version 2",
            match cgroup::check_v2(&config.cgroup.root) {
                Ok(()) => Found::Good(format!("at {}", config.cgroup.root.display())),
                Err(e) => Found::Fatal(e.to_string()),
            },
        ),
        check("the VMM", file(&config.vmm.binary, "vmm.binary")),
        check("the guest kernel", file(&config.vmm.kernel, "vmm.kernel")),
        check(
            "the agent's initramfs",
            file(&config.vmm.initramfs, "vmm.initramfs"),
        ),
        check(
            "mkfs.ext4",
            program("mkfs.ext4", "install the package e2fsprogs"),
        ),
        check("user namespaces", user_namespaces()),
        check("the agent of pods on the host", host_agent(config)),
        check("loop devices and EROFS for pods on the host", loop_mounts()),
        check("AppArmor for pods on the host", host_profile()),
    ];
    if config.network.mode == NetworkMode::Cni {
        checks.push(check(
            "/dev/net/tun",
            device(Path::new("/dev/net/tun"), "load the module tun"),
        ));
        checks.push(check("CNI plugins", cni_plugins(config)));
        checks.push(check("CNI configuration", cni_configuration(config)));
    }
    if let Some(kernel) = &config.vmm.full_kernel {
        let found = match file(kernel, "vmm.full_kernel") {
            Found::Fatal(why) => Found::Missing(format!(
                "{why}; pods of the handler {KVM_FULL:?} do not start without it"
            )),
            found => found,
        };
        checks.push(check("the full guest kernel", found));
    }
    if config.vmm.vhost_net != VhostNet::Never {
        let found = device(Path::new("/dev/vhost-net"), "load the module vhost_net");
        checks.push(check(
            "/dev/vhost-net",
            match (found, config.vmm.vhost_net) {
                (Found::Fatal(why), VhostNet::Auto) => {
                    Found::Missing(format!("{why}; the pods' network is slower without it"))
                }
                (found, _) => found,
            },
        ));
    }
    checks
}

/// What is missing without which no pod starts; for the RuntimeReady condition, asked every few
/// seconds. The network has its own condition. Blocks.
pub fn lacking(config: &Config) -> Vec<String> {
    let needed = [
        device(&config.vmm.kvm, "load the module kvm_intel or kvm_amd"),
        file(&config.vmm.binary, "vmm.binary"),
        file(&config.vmm.kernel, "vmm.kernel"),
        file(&config.vmm.initramfs, "vmm.initramfs"),
        match cgroup::check_v2(&config.cgroup.root) {
            Ok(()) => Found::Good(String::new()),
            Err(e) => Found::Fatal(e.to_string()),
        },
    ];
    let fatal = needed.into_iter().filter_map(|found| match found {
        Found::Fatal(why) => Some(why),
        Found::Good(_) | Found::Missing(_) => None,
    });
    fatal.collect()
}

fn check(what: &str, result: Found) -> Check {
    Check {
        what: what.to_owned(),
        result,
    }
}

fn processor() -> Found {
    let text = match fs::read_to_string("/proc/cpuinfo") {
        Ok(text) => text,
        Err(e) => return Found::Fatal(format!("cannot read /proc/cpuinfo: {e}")),
    };
    let flags = text
        .lines()
        .find_map(|line| line.strip_prefix("flags"))
        .unwrap_or_default();
    let has = |flag| flags.split_whitespace().any(|f| f == flag);
    match (has("vmx"), has("svm")) {
        (true, _) => Found::Good("Intel VT-x (vmx)".to_owned()),
        (_, true) => Found::Good("AMD-V (svm)".to_owned()),
        _ => Found::Fatal(
            "the processor shows neither vmx nor svm: enable virtualization in the firmware, or, \
             in a virtual machine, nested virtualization on its host"
                .to_owned(),
        ),
    }
}

fn device(path: &Path, hint: &str) -> Found {
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => Found::Good("opens".to_owned()),
        Err(e) => Found::Fatal(format!("{} does not open ({e}): {hint}", path.display())),
    }
}

fn file(path: &Path, key: &str) -> Found {
    match fs::metadata(path) {
        Ok(data) if data.is_file() && data.len() > 0 => Found::Good(path.display().to_string()),
        Ok(_) => Found::Fatal(format!(
            "{} is missing or empty: install it or set {key}",
            path.display()
        )),
        Err(e) => Found::Fatal(format!(
            "{} cannot be read ({e}): install it or set {key}",
            path.display()
        )),
    }
}

fn program(name: &str, hint: &str) -> Found {
    let path = std::env::var_os("PATH").unwrap_or_default();
    match std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|p| p.is_file())
    {
        Some(found) => Found::Good(found.display().to_string()),
        None => Found::Fatal(format!("{name} is not in the PATH: {hint}")),
    }
}

/// VMMs live in user namespaces of their own.
fn user_namespaces() -> Found {
    let limit = "/proc/sys/user/max_user_namespaces";
    match fs::read_to_string(limit) {
        Ok(text) if text.trim() == "0" => {
            Found::Fatal(format!("{limit} is 0: set it to 10000 or more with sysctl"))
        }
        Ok(text) => Found::Good(format!("up to {}", text.trim())),
        Err(e) => Found::Fatal(format!("the kernel has no user namespaces ({limit}: {e})")),
    }
}

fn cni_plugins(config: &Config) -> Found {
    let dirs = &config.network.cni_bin_dirs;
    let missing: Vec<&str> = ["bridge", "host-local", "portmap", "loopback"]
        .into_iter()
        .filter(|name| !dirs.iter().any(|dir| dir.join(name).is_file()))
        .collect();
    let places: Vec<String> = dirs.iter().map(|d| d.display().to_string()).collect();
    match missing.as_slice() {
        [] => Found::Good(places.join(", ")),
        missing => Found::Missing(format!(
            "not in {}: {}; install the package containernetworking-plugins (a network that uses \
             other plugins does without these)",
            places.join(", "),
            missing.join(", ")
        )),
    }
}

fn host_agent(config: &Config) -> Found {
    match file(&config.host.agent, "host.agent") {
        Found::Fatal(why) => Found::Missing(format!("{why}; pods on the host do not start")),
        found => found,
    }
}

fn host_profile() -> Found {
    match host::apparmor_parser() {
        Ok(parser) => Found::Good(format!("{}, by {}", DEFAULT, parser.display())),
        Err(without) => Found::Missing(format!(
            "{without}; containers on the host run without an AppArmor profile"
        )),
    }
}

fn loop_mounts() -> Found {
    let without = |why: &str| Found::Missing(format!("{why}; pods on the host do not start"));
    if !Path::new("/dev/loop-control").exists() {
        return without("/dev/loop-control is not there: load the module loop");
    }
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let module = |name: &str| {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let modules = Path::new("/lib/modules").join(release.trim());
        modules.join("kernel/fs").join(name).is_dir()
    };
    for name in ["erofs", "overlay", "ext4"] {
        let listed = known
            .lines()
            .any(|line| line.split_whitespace().last() == Some(name));
        // The kernel loads a module with the first mount; overlay's directory has another name.
        let directory = if name == "overlay" { "overlayfs" } else { name };
        if !listed && !module(directory) {
            return without(&format!("the kernel has no {name}"));
        }
    }
    let overlay = takes_layers(add_layer());
    if let Found::Missing(why) = overlay {
        return without(&why);
    }
    Found::Good("/dev/loop-control, erofs, overlay, ext4".to_owned())
}

/// Asks the kernel's overlayfs for what the agent asks of it: an overlay that is given its layers one
/// by one. Nothing is mounted.
fn add_layer() -> rustix::io::Result<()> {
    let overlay = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&overlay, "lowerdir+", "/")
}

fn takes_layers(tried: rustix::io::Result<()>) -> Found {
    match tried {
        // The kernel does not know the option.
        Err(Errno::INVAL) => Found::Missing(
            "the kernel's overlayfs does not take layers one by one (lowerdir+): use Linux 6.8 or later"
                .to_owned(),
        ),
        // Other errors (no root, for one) say nothing about it.
        _ => Found::Good("lowerdir+".to_owned()),
    }
}

fn cni_configuration(config: &Config) -> Found {
    let dir = &config.network.cni_conf_dir;
    let none = |why: String| {
        Found::Fatal(format!(
            "{why}: install a network plugin, or write a configuration list, or set network.mode \
             to \"none\""
        ))
    };
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return none(format!("{} is not there", dir.display()));
        }
        Err(e) => return none(format!("{} cannot be read ({e})", dir.display())),
    };
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| {
            [".conflist", ".conf", ".json"]
                .iter()
                .any(|end| name.ends_with(end))
        })
        .collect();
    names.sort();
    match names.first() {
        Some(first) => Found::Good(dir.join(first).display().to_string()),
        None => none(format!(
            "{} holds no .conflist, .conf or .json",
            dir.display()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_the_files_lacks_them_by_name() {
        let text = "[vmm]\nbinary = \"/nonexistent/vmm\"\nkernel = \"/nonexistent/kernel\"\n";
        let config = Config::parse(Path::new("t"), text).unwrap();
        let lacking = lacking(&config).join("\n");
        for part in [
            "/nonexistent/vmm",
            "vmm.binary",
            "/nonexistent/kernel",
            "vmm.kernel",
        ] {
            assert!(lacking.contains(part), "{lacking}");
        }
        assert!(all(&config).len() >= lacking.lines().count());
    }

    #[test]
    fn a_kernel_too_old_for_overlays_of_many_layers_is_named() {
        let found = takes_layers(Err(Errno::INVAL));
        assert!(
            matches!(&found, Found::Missing(why) if why.contains("6.8")),
            "{found:?}"
        );
        for tried in [Ok(()), Err(Errno::PERM), Err(Errno::NODEV)] {
            assert!(matches!(takes_layers(tried), Found::Good(_)), "{tried:?}");
        }
    }

    #[test]
    fn other_pods_run_where_the_full_kernel_is_missing() {
        let with = |text: &str| Config::parse(Path::new("t"), text).unwrap();
        let about = |config: &Config| {
            let checks = all(config);
            let found = checks.into_iter().find(|check| check.what.contains("full"));
            found.map(|check| check.result)
        };
        assert!(about(&with("")).is_none());
        let missing = with("[vmm]\nfull_kernel = \"/nonexistent/full\"\n");
        match about(&missing) {
            Some(Found::Missing(why)) => {
                assert!(
                    why.contains("/nonexistent/full") && why.contains("kvm-full"),
                    "{why}"
                );
            }
            other => panic!("{other:?}"),
        }
        let lacking = lacking(&missing).join("\n");
        assert!(!lacking.contains("full"), "{lacking}");
    }
}
