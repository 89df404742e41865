//! What the tests of volumes share: sources that go with the test, and mounts of them.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use bulkhead_proto::cri::{ContainerConfig, Mount, MountPropagation};

use crate::{Failure, Outcome, check};

/// A directory of the test host's own (in memory), away with all that is mounted in it at the end.
pub(in crate::cases) struct Scratch(pub(in crate::cases) PathBuf);

impl Scratch {
    pub(in crate::cases) fn new(name: &str) -> Result<Self, Failure> {
        let path = Path::new("/tmp").join(format!("volumes-{name}-{}", std::process::id()));
        fs::create_dir_all(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(Self(path))
    }

    pub(in crate::cases) fn dir(&self, name: &str) -> Result<PathBuf, Failure> {
        let path = self.0.join(name);
        fs::create_dir_all(&path)?;
        Ok(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = Command::new("sh")
            .arg("-c")
            .arg("grep -o \" $0[^ ]*\" /proc/self/mountinfo | sort -ur | xargs -r umount -R -l 2>/dev/null")
            .arg(&self.0)
            .status();
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A file as a block device, until it is dropped.
pub(in crate::cases) struct Loop(pub(in crate::cases) String);

impl Loop {
    pub(in crate::cases) fn new(file: &Path) -> Result<Self, Failure> {
        Ok(Self(run("losetup", &["-f", "--show", &text(file)])?))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.0]).status();
    }
}

pub(in crate::cases) fn run(program: &str, args: &[&str]) -> Result<String, Failure> {
    let done = Command::new(program).args(args).output()?;
    let complaint = String::from_utf8_lossy(&done.stderr);
    check_status(done.status.success(), program, &complaint)?;
    Ok(String::from_utf8_lossy(&done.stdout).trim().to_owned())
}

pub(in crate::cases) fn check_status(good: bool, program: &str, complaint: &str) -> Outcome {
    check!(good, "{program}: {complaint}");
    Ok(())
}

pub(in crate::cases) fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

pub(in crate::cases) fn mount(host: &Path, at: &str) -> Mount {
    Mount {
        container_path: at.to_owned(),
        host_path: text(host),
        ..Mount::default()
    }
}

pub(in crate::cases) fn read_only(mount: Mount) -> Mount {
    Mount {
        readonly: true,
        ..mount
    }
}

pub(in crate::cases) fn following(mount: Mount) -> Mount {
    Mount {
        propagation: MountPropagation::PropagationHostToContainer.into(),
        ..mount
    }
}

pub(in crate::cases) fn with(mut config: ContainerConfig, mounts: Vec<Mount>) -> ContainerConfig {
    config.mounts = mounts;
    config
}
