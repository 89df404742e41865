//! CRI's `cgroup_parent` as a path below the cgroup root. Pure.

use std::path::PathBuf;

use tonic::Code;

use crate::error::Grpc;

/// The manager of the host's cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupDriver {
    /// Slice names, nested by their dashes.
    Systemd,
    /// Plain paths.
    Cgroupfs,
}

/// A `cgroup_parent` that names no cgroup.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParentError {
    /// With the systemd driver it must be a slice.
    #[error("with the systemd driver the cgroup parent is the name of a slice ending in .slice")]
    NotASlice,
    /// A slice whose dashes do not make sense.
    #[error("a slice name has no empty part, no slash and no leading or trailing dash")]
    BadSlice,
    /// With cgroupfs it is a path.
    #[error(
        "with the cgroupfs driver the cgroup parent is a path without `.` and `..`, and no slice"
    )]
    NotAPath,
}

impl Grpc for ParentError {
    fn code(&self) -> Code {
        Code::InvalidArgument
    }
}

/// The directory of a cgroup parent, relative to the root of the hierarchy.
///
/// systemd: `a-b-c.slice` lies in `a.slice/a-b.slice/a-b-c.slice` (systemd.slice(5)); the kubelet
/// sends only the last name. cgroupfs: the path as it stands.
pub fn parent_path(driver: CgroupDriver, parent: &str) -> Result<PathBuf, ParentError> {
    match driver {
        CgroupDriver::Systemd => slice_path(parent),
        CgroupDriver::Cgroupfs => plain_path(parent),
    }
}

fn slice_path(name: &str) -> Result<PathBuf, ParentError> {
    let stem = name.strip_suffix(".slice").ok_or(ParentError::NotASlice)?;
    // The root slice is called "-.slice" and is the root itself.
    if stem == "-" {
        return Ok(PathBuf::new());
    }
    if stem.contains(['/', '\0']) || stem.split('-').any(str::is_empty) {
        return Err(ParentError::BadSlice);
    }
    let mut path = PathBuf::new();
    let mut prefix = String::new();
    for part in stem.split('-') {
        if !prefix.is_empty() {
            prefix.push('-');
        }
        prefix.push_str(part);
        path.push(format!("{prefix}.slice"));
    }
    Ok(path)
}

fn plain_path(text: &str) -> Result<PathBuf, ParentError> {
    // A slice name here means that kubelet and daemon are set to different drivers.
    if text.contains('\0') || (!text.contains('/') && text.ends_with(".slice")) {
        return Err(ParentError::NotAPath);
    }
    let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty()).collect();
    if parts.iter().any(|part| matches!(*part, "." | "..")) {
        return Err(ParentError::NotAPath);
    }
    Ok(parts.iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_nest_by_their_dashes() {
        let path =
            parent_path(CgroupDriver::Systemd, "kubepods-besteffort-podab_cd.slice").unwrap();
        assert_eq!(
            path,
            PathBuf::from(
                "kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podab_cd.slice"
            )
        );
        assert_eq!(
            parent_path(CgroupDriver::Systemd, "-.slice").unwrap(),
            PathBuf::new()
        );
        for bad in [
            "",
            "a",
            ".slice",
            "-a.slice",
            "a-.slice",
            "a--b.slice",
            "a/b.slice",
            "/k/p",
        ] {
            assert!(parent_path(CgroupDriver::Systemd, bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn paths_stay_below_the_root() {
        let path = parent_path(CgroupDriver::Cgroupfs, "/kubepods/besteffort/pod1").unwrap();
        assert_eq!(path, PathBuf::from("kubepods/besteffort/pod1"));
        for bad in ["/a/../b", "..", "./a", "kubepods-x.slice"] {
            assert!(parent_path(CgroupDriver::Cgroupfs, bad).is_err(), "{bad}");
        }
    }
}
