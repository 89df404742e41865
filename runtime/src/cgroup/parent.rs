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
    /// With the systemd driver it must be a slice. The words begin as runc's do.
    #[error(
        "expected cgroupsPath to be of format \"slice:prefix:name\" for systemd cgroups: with the \
         systemd driver the cgroup parent is a slice, by its name or its path, and ends in .slice"
    )]
    NotASlice,
    /// A slice whose dashes do not make sense. The words begin as runc's do.
    #[error(
        "invalid slice name: {name}: the parts between the dashes are not empty, and there is no \
         dash at the beginning or the end"
    )]
    BadSlice {
        /// The slice.
        name: String,
    },
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
/// systemd: `a-b-c.slice` lies in `a.slice/a-b.slice/a-b-c.slice` (systemd.slice(5)). The kubelet
/// sends that path, other clients the last name. The last name alone counts, as in containerd
/// (`getCgroupsPath`): whatever path it came with, a slice lies where its name says.
/// cgroupfs: the path as it stands.
///
/// # Errors
/// If it names no cgroup of the driver's.
pub fn parent_path(driver: CgroupDriver, parent: &str) -> Result<PathBuf, ParentError> {
    match driver {
        CgroupDriver::Systemd => slice_path(parent),
        CgroupDriver::Cgroupfs => plain_path(parent),
    }
}

fn slice_path(parent: &str) -> Result<PathBuf, ParentError> {
    let parent = parent.trim_end_matches('/');
    let name = parent.rsplit('/').next().unwrap_or(parent);
    let stem = name.strip_suffix(".slice").ok_or(ParentError::NotASlice)?;
    // The root slice is called "-.slice" and is the root itself.
    if stem == "-" {
        return Ok(PathBuf::new());
    }
    if stem.contains('\0') || stem.split('-').any(str::is_empty) {
        let name = name.to_owned();
        return Err(ParentError::BadSlice { name });
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
        let pod = "kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podab_cd.slice";
        for (given, expected) in [
            ("kubepods-besteffort-podab_cd.slice", pod),
            // As the kubelet sends it.
            (&format!("/{pod}"), pod),
            (pod, pod),
            (&format!("/{pod}/"), pod),
            (&format!("//{}", pod.replace('/', "//")), pod),
            // A wrong nesting: the name counts.
            ("/system.slice/kubepods-besteffort-podab_cd.slice", pod),
            ("/a/../../kubepods-besteffort-podab_cd.slice", pod),
            ("/kubepods/kubepods-besteffort-podab_cd.slice", pod),
            ("a/b.slice", "b.slice"),
            ("-.slice", ""),
            ("/-.slice", ""),
        ] {
            let path = parent_path(CgroupDriver::Systemd, given).unwrap();
            assert_eq!(path, PathBuf::from(expected), "{given}");
        }
    }

    #[test]
    fn what_is_no_slice_is_refused_in_runcs_words() {
        for (words, parents) in [
            (
                "expected cgroupsPath to be of format \"slice:prefix:name\" for systemd cgroups",
                [
                    "",
                    "/",
                    "a",
                    "/k/p",
                    "..",
                    "/kubepods.slice/pod",
                    "a.slice/..",
                ]
                .as_slice(),
            ),
            (
                "invalid slice name: ",
                &[
                    ".slice",
                    "-a.slice",
                    "a-.slice",
                    "a--b.slice",
                    "--.slice",
                    "/a.slice/.slice",
                ],
            ),
        ] {
            for parent in parents {
                let error = parent_path(CgroupDriver::Systemd, parent).unwrap_err();
                assert!(error.to_string().starts_with(words), "{parent}: {error}");
            }
        }
        let error = parent_path(CgroupDriver::Systemd, "/x.slice/x-.slice").unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("invalid slice name: x-.slice")
        );
    }

    #[test]
    fn paths_stay_below_the_root() {
        let path = parent_path(CgroupDriver::Cgroupfs, "/kubepods/besteffort/pod1").unwrap();
        assert_eq!(path, PathBuf::from("kubepods/besteffort/pod1"));
        // A slice's path is a path.
        let path = parent_path(
            CgroupDriver::Cgroupfs,
            "/kubepods.slice/kubepods-pod1.slice",
        );
        assert_eq!(
            path.unwrap(),
            PathBuf::from("kubepods.slice/kubepods-pod1.slice")
        );
        for bad in ["/a/../b", "..", "./a", "kubepods-x.slice"] {
            assert!(parent_path(CgroupDriver::Cgroupfs, bad).is_err(), "{bad}");
        }
    }
}
