//! Volumes of the host in pods. Here is what the tests share: sources that go with the test, and
//! mounts of them.

mod files;
mod follow;
mod kinds;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use bulkhead_proto::cri::{ContainerConfig, Mount, MountPropagation};

use crate::{Failure, Outcome, check, suite::Test};

pub(super) fn tests() -> Vec<Test> {
    [files::tests(), follow::tests(), kinds::tests()].concat()
}

/// A directory of the test host's own (in memory), away with all that is mounted in it at the end.
pub(super) struct Scratch(pub(super) PathBuf);

impl Scratch {
    pub(super) fn new(name: &str) -> Result<Self, Failure> {
        let path = Path::new("/tmp").join(format!("volumes-{name}-{}", std::process::id()));
        fs::create_dir_all(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(Self(path))
    }

    pub(super) fn dir(&self, name: &str) -> Result<PathBuf, Failure> {
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

fn run(program: &str, args: &[&str]) -> Result<String, Failure> {
    let done = Command::new(program).args(args).output()?;
    let complaint = String::from_utf8_lossy(&done.stderr);
    check_status(done.status.success(), program, &complaint)?;
    Ok(String::from_utf8_lossy(&done.stdout).trim().to_owned())
}

pub(super) fn check_status(good: bool, program: &str, complaint: &str) -> Outcome {
    check!(good, "{program}: {complaint}");
    Ok(())
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

pub(super) fn mount(host: &Path, at: &str) -> Mount {
    Mount {
        container_path: at.to_owned(),
        host_path: text(host),
        ..Mount::default()
    }
}

pub(super) fn read_only(mount: Mount) -> Mount {
    Mount {
        readonly: true,
        ..mount
    }
}

fn following(mount: Mount) -> Mount {
    Mount {
        propagation: MountPropagation::PropagationHostToContainer.into(),
        ..mount
    }
}

pub(super) fn with(mut config: ContainerConfig, mounts: Vec<Mount>) -> ContainerConfig {
    config.mounts = mounts;
    config
}
