//! What can be checked of CRI's mounts and devices without looking at the host. Pure.

use std::path::{Component, Path, PathBuf};

use bulkhead_proto::cri;

use super::VolumeError;

/// Linux's own limit of a path (PATH_MAX).
const MAX_PATH: usize = 4_096;
/// More than any pod has; each is a few system calls.
pub(super) const MAX_MOUNTS: usize = 1_024;

/// Options of a bind mount that a client may ask for beside `readonly` (mount(8)).
const OPTIONS: &[&str] = &[
    "nosuid",
    "suid",
    "nodev",
    "dev",
    "noexec",
    "exec",
    "noatime",
    "atime",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
    "nodiratime",
    "diratime",
    "nosymfollow",
    "symfollow",
];

/// Where pods run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handler {
    /// In a virtual machine.
    Kvm,
    /// On the host.
    Host,
}

/// Refuses what no host could mount; the error names the field.
pub fn check(config: &cri::ContainerConfig, handler: Handler) -> Result<(), VolumeError> {
    for (what, requested) in [
        ("mounts", config.mounts.len()),
        ("devices", config.devices.len()),
    ] {
        if requested > MAX_MOUNTS {
            return Err(VolumeError::TooMany {
                what,
                requested,
                limit: MAX_MOUNTS,
            });
        }
    }
    for (number, mount) in config.mounts.iter().enumerate() {
        let at = |field: &str| format!("mounts[{number}].{field}");
        container_path(at("container_path"), &mount.container_path)?;
        check_mount(mount, handler, &at)?;
    }
    for (number, device) in config.devices.iter().enumerate() {
        let at = |field: &str| format!("devices[{number}].{field}");
        container_path(at("container_path"), &device.container_path)?;
        host_path(at("host_path"), &device.host_path)?;
        let mut letters: Vec<char> = device.permissions.chars().collect();
        letters.sort_unstable();
        letters.dedup();
        let known = letters.iter().all(|letter| "mrw".contains(*letter));
        if !known || letters.len() != device.permissions.len() || letters.is_empty() {
            return Err(VolumeError::Invalid {
                field: at("permissions"),
                value: device.permissions.clone(),
                allowed: "each of r, w and m at most once, and one of them at least",
            });
        }
    }
    Ok(())
}

fn check_mount(
    mount: &cri::Mount,
    handler: Handler,
    at: &impl Fn(&str) -> String,
) -> Result<(), VolumeError> {
    let invalid = |field: &str, value: String, allowed| {
        Err(VolumeError::Invalid {
            field: at(field),
            value,
            allowed,
        })
    };
    let Ok(propagation) = cri::MountPropagation::try_from(mount.propagation) else {
        return invalid(
            "propagation",
            mount.propagation.to_string(),
            "allowed are PRIVATE (0), HOST_TO_CONTAINER (1) and BIDIRECTIONAL (2)",
        );
    };
    if mount.recursive_read_only && !mount.readonly {
        return invalid(
            "recursive_read_only",
            "true".to_owned(),
            "readonly must be true with it",
        );
    }
    let private = propagation == cri::MountPropagation::PropagationPrivate;
    if mount.recursive_read_only && !private {
        return invalid(
            "recursive_read_only",
            "true".to_owned(),
            "propagation must be PROPAGATION_PRIVATE with it",
        );
    }
    for option in &mount.mount_options {
        if !OPTIONS.contains(&option.as_str()) {
            return invalid(
                "mount_options",
                option.clone(),
                "allowed are [no]suid, [no]dev, [no]exec, [no]atime, [no]relatime, \
                 [no]strictatime, [no]diratime and [no]symfollow",
            );
        }
    }
    match &mount.image {
        Some(image) => {
            if image.image.is_empty() {
                return invalid("image.image", String::new(), "it must name an image");
            }
            if !mount.host_path.is_empty() {
                return invalid(
                    "host_path",
                    mount.host_path.clone(),
                    "an image volume has none",
                );
            }
            if !mount.readonly {
                return invalid(
                    "readonly",
                    "false".to_owned(),
                    "an image volume cannot be written; it must be true",
                );
            }
            if !private {
                return invalid(
                    "propagation",
                    propagation.as_str_name().to_owned(),
                    "an image volume's is PROPAGATION_PRIVATE",
                );
            }
            sub_path(at("image_sub_path"), &mount.image_sub_path)?;
        }
        None => {
            if !mount.image_sub_path.is_empty() {
                return invalid(
                    "image_sub_path",
                    mount.image_sub_path.clone(),
                    "only an image volume has one",
                );
            }
            host_path(at("host_path"), &mount.host_path)?;
        }
    }
    let bidirectional = propagation == cri::MountPropagation::PropagationBidirectional;
    if bidirectional && handler == Handler::Kvm {
        return Err(VolumeError::Unsupported {
            what: format!(
                "{} PROPAGATION_BIDIRECTIONAL at {:?}",
                at("propagation"),
                mount.container_path
            ),
            advice: "a mount made inside a pod's virtual machine cannot appear on the host; run \
                     the pod with the RuntimeClass handler \"host\"",
        });
    }
    Ok(())
}

/// A path in the container as containerd takes it: cleaned, and from the root if it is not. Nothing
/// and the root itself are refused.
pub fn container_path(field: String, path: &str) -> Result<PathBuf, VolumeError> {
    possible(&field, path)?;
    let clean = clean(path);
    if path.is_empty() || clean == Path::new("/") {
        return Err(VolumeError::Invalid {
            field,
            value: shown(path),
            allowed: "a container's root is its image; mount below it",
        });
    }
    Ok(clean)
}

/// As Go's `path.Clean` has it of `/` and the path: no empty parts and no `.`, and each `..` takes
/// the part before it away. Links are not looked at.
pub(super) fn clean(path: &str) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                clean.pop();
            }
            name => clean.push(name),
        }
    }
    clean
}

/// Used as it is: the kernel finds its way through `..` and links.
fn host_path(field: String, path: &str) -> Result<(), VolumeError> {
    possible(&field, path)?;
    if path.starts_with('/') {
        return Ok(());
    }
    Err(VolumeError::Invalid {
        field,
        value: shown(path),
        allowed: "it must be an absolute path",
    })
}

fn possible(field: &str, path: &str) -> Result<(), VolumeError> {
    if is_possible(path) {
        return Ok(());
    }
    Err(VolumeError::Invalid {
        field: field.to_owned(),
        value: shown(path),
        allowed: "a path has at most 4096 bytes and contains no NUL byte",
    })
}

/// Whether the kernel could take it for a path at all.
pub(super) fn is_possible(path: &str) -> bool {
    path.len() <= MAX_PATH && !path.contains('\0')
}

fn shown(path: &str) -> String {
    path.chars().take(200).collect()
}

fn sub_path(field: String, path: &str) -> Result<(), VolumeError> {
    let inside = Path::new(path)
        .components()
        .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if inside && is_possible(path) {
        return Ok(());
    }
    Err(VolumeError::Invalid {
        field,
        value: shown(path),
        allowed: "it must be relative to the image's root and must not contain \"..\"",
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tonic::Code;

    use super::*;
    use crate::error::Grpc as _;

    fn mount(at: &str) -> cri::Mount {
        cri::Mount {
            container_path: at.to_owned(),
            host_path: "/srv".to_owned(),
            ..cri::Mount::default()
        }
    }

    fn checked(mounts: Vec<cri::Mount>, handler: Handler) -> Result<(), Code> {
        let config = cri::ContainerConfig {
            mounts,
            ..cri::ContainerConfig::default()
        };
        check(&config, handler).map_err(|error| error.code())
    }

    #[test]
    fn the_usual_ones_pass() {
        let slave = cri::Mount {
            propagation: cri::MountPropagation::PropagationHostToContainer as i32,
            ..mount("/a/./b//../c")
        };
        let relative = cri::Mount {
            host_path: "/srv/../srv".to_owned(),
            ..mount("data")
        };
        let recursive = cri::Mount {
            readonly: true,
            recursive_read_only: true,
            mount_options: vec!["noexec".to_owned()],
            ..mount("/etc/hosts")
        };
        let image = cri::Mount {
            host_path: String::new(),
            readonly: true,
            image: Some(cri::ImageSpec {
                image: "x".to_owned(),
                ..Default::default()
            }),
            image_sub_path: "etc/./x".to_owned(),
            ..mount("/image")
        };
        assert_eq!(
            checked(
                vec![mount("/a"), slave, recursive, image, relative, mount("/a/")],
                Handler::Kvm
            ),
            Ok(())
        );
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        let image = cri::Mount {
            host_path: String::new(),
            readonly: true,
            image: Some(cri::ImageSpec {
                image: "x".to_owned(),
                ..Default::default()
            }),
            ..mount("/image")
        };
        let propagated = |propagation, recursive| cri::Mount {
            readonly: true,
            recursive_read_only: recursive,
            propagation,
            ..mount("/x")
        };
        let bad = [
            vec![mount("")],
            vec![mount("/")],
            vec![mount("/.//")],
            vec![mount("/a/..")],
            vec![mount("..")],
            vec![mount("/a\0")],
            vec![mount(&format!("/{}", "x".repeat(5_000)))],
            vec![cri::Mount {
                host_path: "srv".to_owned(),
                ..mount("/x")
            }],
            vec![cri::Mount {
                host_path: String::new(),
                ..mount("/x")
            }],
            vec![cri::Mount {
                recursive_read_only: true,
                ..mount("/x")
            }],
            vec![propagated(1, true)],
            vec![propagated(2, true)],
            vec![propagated(7, false)],
            vec![cri::Mount {
                mount_options: vec!["loop".to_owned()],
                ..mount("/x")
            }],
            vec![cri::Mount {
                image_sub_path: "x".to_owned(),
                ..mount("/x")
            }],
            vec![cri::Mount {
                readonly: false,
                ..image.clone()
            }],
            vec![cri::Mount {
                propagation: 1,
                ..image.clone()
            }],
            vec![cri::Mount {
                host_path: "/x".to_owned(),
                ..image.clone()
            }],
            vec![cri::Mount {
                image: Some(cri::ImageSpec::default()),
                ..image.clone()
            }],
            vec![cri::Mount {
                image_sub_path: "../x".to_owned(),
                ..image.clone()
            }],
            vec![cri::Mount {
                image_sub_path: "/x".to_owned(),
                ..image
            }],
            vec![mount("/x"); 1_025],
        ];
        for mounts in bad {
            assert_eq!(
                checked(mounts.clone(), Handler::Host),
                Err(Code::InvalidArgument),
                "{mounts:?}"
            );
        }
    }

    #[test]
    fn only_on_the_host_do_mounts_come_back() {
        let both = cri::Mount {
            propagation: cri::MountPropagation::PropagationBidirectional as i32,
            ..mount("/x")
        };
        assert_eq!(
            checked(vec![both.clone()], Handler::Kvm),
            Err(Code::Unimplemented)
        );
        assert_eq!(checked(vec![both], Handler::Host), Ok(()));
    }

    #[test]
    fn a_devices_permissions_are_letters() {
        let config = |permissions: &str| cri::ContainerConfig {
            devices: vec![cri::Device {
                container_path: "/dev/x".to_owned(),
                host_path: "/dev/loop0".to_owned(),
                permissions: permissions.to_owned(),
            }],
            ..cri::ContainerConfig::default()
        };
        for good in ["r", "rw", "mrw"] {
            assert!(check(&config(good), Handler::Kvm).is_ok());
        }
        for bad in ["", "x", "rr", "rwx"] {
            assert!(check(&config(bad), Handler::Kvm).is_err());
        }
    }

    /// What a path means word by word, counted from the root.
    fn cleaned(path: &str) -> String {
        let mut words = Vec::new();
        for word in path.split('/') {
            match word {
                "" | "." => {}
                ".." => drop(words.pop()),
                word => words.push(word),
            }
        }
        format!("/{}", words.join("/"))
    }

    #[test]
    fn paths_are_cleaned() {
        for (path, expected) in [
            ("/data/", "/data"),
            ("data", "/data"),
            ("/a/../b", "/b"),
            ("/../../a", "/a"),
            ("../a", "/a"),
            ("/a//b/./c/", "/a/b/c"),
            ("/a/..", "/"),
            ("/...", "/..."),
            ("/..a/.b", "/..a/.b"),
            ("", "/"),
        ] {
            assert_eq!(clean(path), Path::new(expected), "{path}");
            assert_eq!(cleaned(path), expected, "{path}");
        }
    }

    proptest! {
        #[test]
        fn cleaning_is_gos(path in "[/.a-c]{0,24}|(/|\\.|\\.\\.|[ab]|é){0,12}") {
            let expected = cleaned(&path);
            prop_assert_eq!(clean(&path), Path::new(&expected));
            match container_path("x".to_owned(), &path) {
                Ok(clean) => prop_assert_eq!(clean, Path::new(&expected)),
                Err(_) => prop_assert_eq!(expected, "/"),
            }
        }
    }
}
