//! Kernel parameters by name.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::NetError;

/// The file of a parameter. `.` separates, unless the name has a `/`: then `/` does, and `.` is
/// part of a word (an interface name), as sysctl(8) has it.
///
/// # Errors
/// For names that lead elsewhere.
pub fn path(name: &str) -> Result<PathBuf, NetError> {
    let bad = || NetError::BadSysctl(name.to_owned());
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/');
    if !name.chars().all(good) {
        return Err(bad());
    }
    let separator = if name.contains('/') { '/' } else { '.' };
    let mut path = PathBuf::from("/proc/sys");
    for part in name.split(separator) {
        if part.is_empty() || part == "." || part == ".." {
            return Err(bad());
        }
        path.push(part);
    }
    if path.components().count() > Path::new("/proc/sys/x").components().count() {
        Ok(path)
    } else {
        Err(bad())
    }
}

/// Sets parameters.
///
/// # Errors
/// For a bad name, one the kernel does not have, or a value it does not take.
pub fn set_all(parameters: &HashMap<String, String>) -> Result<(), NetError> {
    for (name, value) in parameters {
        let path = path(name)?;
        fs::write(&path, value).map_err(|error| NetError::Sysctl {
            name: name.clone(),
            value: value.clone(),
            error,
        })?;
    }
    Ok(())
}

/// Sets parameters that the node's network has. This kernel is another one: what it does not take is
/// logged and left.
pub fn set_as_possible(parameters: &[(PathBuf, String)]) {
    for (path, value) in parameters {
        if let Err(error) = set_if_other(path, value) {
            tracing::warn!(
                "the network's {} = {value:?} is left as this kernel has it: {error}",
                path.display()
            );
        }
    }
}

/// Writing some parameters costs more than reading them, or has effects of its own.
fn set_if_other(path: &Path, value: &str) -> std::io::Result<()> {
    if fs::read_to_string(path).is_ok_and(|now| now.trim_end_matches('\n') == value) {
        return Ok(());
    }
    fs::write(path, value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sysctl_names_map_to_files() {
        let file = |name| path(name).map(|path| path.display().to_string()).ok();
        assert_eq!(
            file("net.core.somaxconn").unwrap(),
            "/proc/sys/net/core/somaxconn"
        );
        assert_eq!(
            file("net/ipv4/conf/eth0.1/forwarding").unwrap(),
            "/proc/sys/net/ipv4/conf/eth0.1/forwarding"
        );
        for bad in [
            "",
            "kernel",
            "..",
            "a..b",
            "a/../../b",
            "/etc/passwd",
            "a b.c",
            "kernel.",
        ] {
            assert_eq!(file(bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn no_sysctl_name_leaves_proc_sys(name in "[a-z./]{0,20}") {
            if let Ok(path) = path(&name) {
                prop_assert!(path.starts_with("/proc/sys"));
                prop_assert!(path.components().all(|c| c != std::path::Component::ParentDir));
            }
        }
    }
}
