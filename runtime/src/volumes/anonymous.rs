//! `Volumes` of an image's configuration: directories that are not to be part of the container's
//! root. Each becomes a directory of the container's own, unless the pod mounts something there.

use std::path::Path;

use super::{
    VolumeError,
    plan::{Kind, Plan, Volume},
    validate::{self, MAX_MOUNTS},
};

/// File systems of the kernel, in which no place for a mount can be made.
const KERNELS: [&str; 2] = ["/proc", "/sys"];
/// What the runtime itself has in every container.
const RUNTIMES: [&str; 7] = [
    "/dev",
    "/dev/pts",
    "/dev/shm",
    "/dev/mqueue",
    "/etc/hostname",
    "/etc/hosts",
    "/etc/resolv.conf",
];

/// Adds what an image asks for to a plan that has the pod's mounts. Paths are taken as containerd
/// takes them: cleaned, and from the root. What cannot be a volume is left out, with a warning, not
/// refused: the operator cannot change the image.
///
/// # Errors
/// When there are more than a container can have.
pub fn add(plan: &mut Plan, paths: &[String]) -> Result<(), VolumeError> {
    for path in paths {
        let destination = validate::clean(path);
        if !validate::is_possible(path) || is_taken(&destination) {
            let path: String = path.chars().take(200).collect();
            tracing::warn!(
                path,
                "the image declares a volume where none can be; it is left out"
            );
            continue;
        }
        // Of the node's own devices nothing is made for an image.
        let in_nodes_dev = destination.starts_with("/dev") && has(plan, Path::new("/dev"));
        if in_nodes_dev || has(plan, &destination) {
            continue;
        }
        if plan.volumes.len() >= MAX_MOUNTS {
            return Err(VolumeError::TooMany {
                what: "mounts and volumes of the image",
                requested: plan.volumes.len().saturating_add(1),
                limit: MAX_MOUNTS,
            });
        }
        plan.volumes.push(Volume {
            destination,
            options: ["rbind", "rw", "rprivate"].map(str::to_owned).to_vec(),
            kind: Kind::Anonymous,
        });
    }
    Ok(())
}

fn has(plan: &Plan, destination: &Path) -> bool {
    let mut volumes = plan.volumes.iter();
    volumes.any(|volume| volume.destination == destination)
}

fn is_taken(destination: &Path) -> bool {
    destination == Path::new("/")
        || KERNELS.iter().any(|at| destination.starts_with(at))
        || RUNTIMES.iter().any(|at| destination == Path::new(at))
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;
    use crate::error::Grpc as _;

    fn added(pods: &[&str], images: &[&str]) -> Vec<String> {
        let mut plan = Plan::default();
        for at in pods {
            plan.volumes.push(Volume {
                destination: at.into(),
                options: Vec::new(),
                kind: Kind::GuestNode("/dev/null".into()),
            });
        }
        let images: Vec<_> = images.iter().map(|path| (*path).to_owned()).collect();
        add(&mut plan, &images).unwrap();
        let own = plan.volumes.split_off(pods.len());
        assert!(own.iter().all(|own| matches!(own.kind, Kind::Anonymous)));
        let writable = |own: &Volume| own.options == ["rbind", "rw", "rprivate"];
        assert!(own.iter().all(writable));
        let shown = own.into_iter().map(|own| own.destination);
        shown.map(|at| at.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn each_path_once_and_only_where_the_pod_has_nothing() {
        assert_eq!(added(&[], &["/data", "/data/", "//data/."]), ["/data"]);
        assert_eq!(added(&[], &["data/x", "/a/../b"]), ["/data/x", "/b"]);
        assert_eq!(added(&["/data"], &["/data/", "/data/x"]), ["/data/x"]);
        assert_eq!(added(&["/data/x"], &["/data"]), ["/data"]);
        assert_eq!(added(&[], &["/etc", "/dev/data"]), ["/etc", "/dev/data"]);
        assert!(added(&["/dev"], &["/dev/data"]).is_empty());
    }

    #[test]
    fn what_cannot_be_a_volume_is_left_out() {
        let long = format!("/{}", "x".repeat(5_000));
        let junk = [
            "",
            "/",
            "..",
            "/a/..",
            "/proc",
            "/proc/x",
            "/sys/fs/cgroup",
            "/dev",
            "/dev/shm",
            "/etc/hosts",
            "/a\0b",
            &long,
        ];
        assert!(added(&[], &junk).is_empty());
    }

    #[test]
    fn there_is_a_limit() {
        let many: Vec<_> = (0..=MAX_MOUNTS).map(|n| format!("/{n}")).collect();
        let error = add(&mut Plan::default(), &many).unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
        add(&mut Plan::default(), many.get(1..).unwrap()).unwrap();
    }
}
