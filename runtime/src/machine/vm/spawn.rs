//! Starting a VMM: opens what needs privilege, passes the descriptors, writes the configuration,
//! and waits for the jailed process's pid.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::OwnedFd,
        unix::fs::{OpenOptionsExt as _, PermissionsExt as _, chown},
    },
    path::PathBuf,
    process::Stdio,
    time::Duration,
};

use bulkhead_contract::vmm::{
    Config, Console, ControlSocket, Disk, Failure, Fs, Jail, Net, Started, Vsock,
};
use command_fds::{CommandFdExt as _, FdMapping};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::{Child, Command},
};

use super::{
    VmmError,
    device::{NET_QUEUE_SIZE, fitting, hardware_address, open_device, open_file, vhost_net},
    jail::JailDir,
};
use crate::{config::Vmm, machine::Process, network::Nic};

/// Making the jail is a fork and some mounts.
const START_DEADLINE: Duration = Duration::from_secs(20);
/// One line with a pid or an error.
const LONGEST_LINE: u64 = 64 * 1024;
/// Descriptors a VMM may hold: its devices, the vsock connections, a disk per image layer.
const MAX_FILES: u64 = 4_096;
/// The name by which the guest mounts its share.
pub const FS_TAG: &str = "bulkhead";
/// Files of the share a guest may have looked up, and open, at one time. Its kernel forgets a file
/// as soon as nothing uses it, so these bound open files, not the size of volumes.
const FS_FILES: u64 = 16_384;
/// vsock addresses are per VM here (the back end is the VMM's own), so all guests have the same:
/// the first that is not reserved (virtio 1.2 §5.10.4).
const GUEST_CID: u64 = 3;

/// A guest kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// An ELF vmlinux.
    pub path: PathBuf,
    /// What to do where it does not open.
    pub hint: &'static str,
}

/// What a VM is to be.
#[derive(Debug)]
pub struct Plan {
    /// The pod, for messages.
    pub id: String,
    /// The user the VMM becomes.
    pub uid: u32,
    /// Its jail, made and empty.
    pub jail: JailDir,
    /// The cgroup's cgroup.procs, open for writing.
    pub cgroup_procs: OwnedFd,
    /// Its kernel.
    pub kernel: Kernel,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// How many there can be after a resize.
    pub max_vcpus: u32,
    /// Guest memory.
    pub memory_mib: u64,
    /// How much there can be after a resize.
    pub max_memory_mib: u64,
    /// Disks it starts with: serial, file, read-only.
    pub disks: Vec<(String, File, bool)>,
    /// Network devices.
    pub nics: Vec<Nic>,
    /// Whether it serves the jail's share by virtio-fs; the share is made then.
    pub share: bool,
}

/// Makes the jail's directory, empty and the VMM's own. Blocks.
pub fn make_jail(jail: &JailDir, uid: u32) -> io::Result<()> {
    std::fs::create_dir(jail.root())?;
    std::fs::set_permissions(jail.root(), std::fs::Permissions::from_mode(0o700))?;
    chown(jail.root(), Some(uid), Some(uid))
}

/// Starts a VM. When this fails nothing runs.
pub async fn spawn(vmm: &Vmm, plan: Plan) -> Result<Process, VmmError> {
    let (document, files, log) = {
        let vmm = vmm.clone();
        tokio::task::spawn_blocking(move || prepare(&vmm, plan))
            .await
            .map_err(|e| VmmError::Os {
                action: "open the VM's files",
                source: io::Error::other(e),
            })??
    };
    let spawn_failed = |source| VmmError::Spawn {
        binary: vmm.binary.clone(),
        source,
    };
    let mut command = Command::new(&vmm.binary);
    command
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(log)
        .kill_on_drop(true);
    command
        .fd_mappings(files)
        .map_err(|e| spawn_failed(io::Error::other(e)))?;
    let mut child = command.spawn().map_err(spawn_failed)?;
    drop(command);

    let line = match tokio::time::timeout(START_DEADLINE, start(&mut child, &document)).await {
        Ok(line) => line.map_err(spawn_failed),
        Err(_) => Err(VmmError::Deadline {
            during: "making the jail",
            seconds: START_DEADLINE.as_secs(),
        }),
    };
    let line = match line {
        Ok(line) => line,
        Err(e) => {
            // Whatever it forked is in the pod's cgroup, which the release of the pod empties.
            let _gone = child.start_kill();
            return Err(e);
        }
    };
    let pid = outcome(&line)?;
    Process::adopt(pid).map_err(|source| VmmError::Os {
        action: "hold the VMM's process",
        source,
    })
}

/// Writes the configuration, reads the answer to its end, reaps the outer process.
async fn start(child: &mut Child, document: &[u8]) -> io::Result<Vec<u8>> {
    let mut stdin = child.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
    let stdout = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
    let write = async move {
        match stdin.write_all(document).await {
            // It may have failed before it read all; its answer says why.
            Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(e),
            _ => Ok(()),
        }
    };
    let read = async move {
        let mut line = Vec::new();
        stdout.take(LONGEST_LINE).read_to_end(&mut line).await?;
        Ok(line)
    };
    let ((), line) = tokio::try_join!(write, read)?;
    child.wait().await?;
    Ok(line)
}

/// The pid or the error of the line the outer process wrote.
pub(super) fn outcome(line: &[u8]) -> Result<i32, VmmError> {
    match serde_json::from_slice(line) {
        // 0 and below address groups and everyone (kill(2)); 1 is never a VMM.
        Ok(Started::Pid { pid }) if pid > 1 => Ok(pid),
        Ok(Started::Error {
            error: Failure { kind, message },
        }) => Err(VmmError::Refused { kind, message }),
        Ok(Started::Pid { .. }) | Err(_) => Err(VmmError::Protocol {
            during: "starting",
            what: match line {
                [] => "it ended without a word; its log may say why".to_owned(),
                line => format!(
                    "it wrote {:?}",
                    super::jail::printable(line.get(..200).unwrap_or(line))
                ),
            },
        }),
    }
}

/// Opens all files and writes the configuration that names them.
fn prepare(vmm: &Vmm, plan: Plan) -> Result<(Vec<u8>, Vec<FdMapping>, File), VmmError> {
    let mut files = Passed::default();
    let kvm = open_device(
        "KVM",
        &vmm.kvm,
        "run `bulkhead check`, it says what this host lacks",
    )?;
    let kernel = open_file("the guest kernel", &plan.kernel.path, plan.kernel.hint)?;
    let initramfs = open_file(
        "the agent's initramfs",
        &vmm.initramfs,
        "install it or set vmm.initramfs",
    )?;
    let log = OpenOptions::new()
        .append(true)
        .create_new(true)
        .mode(0o600)
        .open(plan.jail.log())
        .map_err(|source| VmmError::Os {
            action: "create the VMM's log",
            source,
        })?;

    let mut disks = Vec::new();
    for (id, file, read_only) in plan.disks {
        disks.push(Disk {
            id,
            fd: files.pass(file.into()),
            read_only,
            queues: 1,
        });
    }
    let mut nets = Vec::new();
    for nic in plan.nics {
        let vhost_fd = vhost_net(vmm.vhost_net)?.map(|fd| files.pass(fd));
        nets.push(Net {
            id: nic.id,
            tap_fd: files.pass(nic.tap),
            vhost_fd,
            mac: hardware_address(&nic.mac)?,
            mtu: fitting("nets[].mtu", nic.mtu)?,
            queue_size: NET_QUEUE_SIZE,
        });
    }
    let config = Config {
        id: plan.id,
        jail: Some(Jail {
            uid: plan.uid,
            gid: plan.uid,
            root: plan.jail.root().to_owned(),
            cgroup_procs_fds: vec![files.pass(plan.cgroup_procs)],
            max_files: match plan.share {
                true => MAX_FILES + 2 * FS_FILES,
                false => MAX_FILES,
            },
            log_fd: 2,
        }),
        kvm_fd: files.pass(kvm.into()),
        kernel_fd: Some(files.pass(kernel.into())),
        initramfs_fd: Some(files.pass(initramfs.into())),
        cmdline: vmm.cmdline.clone(),
        vcpus: fitting("vcpus", plan.vcpus)?,
        max_vcpus: Some(fitting("max_vcpus", plan.max_vcpus)?),
        memory_mib: plan.memory_mib,
        max_memory_mib: Some(plan.max_memory_mib),
        disks,
        nets,
        vsock: Some(Vsock {
            cid: GUEST_CID,
            path: "vsock.sock".into(),
        }),
        fs: plan.share.then(|| Fs {
            tag: FS_TAG.to_owned(),
            share: JailDir::SHARE.into(),
            max_inodes: FS_FILES,
            max_handles: FS_FILES,
        }),
        console: Console {
            path: "console.log".into(),
            limit_bytes: vmm.console_limit_bytes,
        },
        control: Some(ControlSocket {
            path: "control.sock".into(),
        }),
        restore_fds: None,
        hold: false,
    };
    let document = serde_json::to_vec(&config).map_err(|e| VmmError::Configuration {
        key: "(all)",
        what: e.to_string(),
    })?;
    Ok((document, files.0, log))
}

/// Descriptors on their way to the VMM: the n-th becomes 3 + n there.
#[derive(Default)]
struct Passed(Vec<FdMapping>);

impl Passed {
    fn pass(&mut self, parent_fd: OwnedFd) -> i32 {
        let child_fd = i32::try_from(self.0.len()).unwrap_or(i32::MAX - 3) + 3;
        self.0.push(FdMapping {
            parent_fd,
            child_fd,
        });
        child_fd
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_is_a_pid_or_an_error() {
        assert_eq!(outcome(br#"{"pid": 77}"#).unwrap(), 77);
        for nobody in [
            &br#"{"pid": 0}"#[..],
            br#"{"pid": -1}"#,
            br#"{"pid": 1}"#,
            b"",
            b"hello",
        ] {
            assert!(matches!(outcome(nobody), Err(VmmError::Protocol { .. })));
        }
        let refused = outcome(br#"{"error": {"kind": "io", "message": "no kernel"}}"#).unwrap_err();
        assert!(refused.to_string().contains("no kernel"));
    }
}
