//! Virtual machines by themselves: the same kernel, initramfs, command line and disk under
//! bulkhead-vmm and under another VMM, in turn, so that a busy host troubles both alike.
//!
//! The mark of a start is the agent's first line on the serial console (`agent_debug` makes it
//! speak); of the reads, the line of tests/bench-guest.

use std::{
    fs::{self, File},
    io::Write as _,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use command_fds::{CommandFdExt as _, FdMapping};
use serde_json::json;
use tokio::time::Instant;

use super::figures::Figures;
use crate::{Failure, Outcome, check};

const MEMORY_MIB: u64 = 256;
const DISK_BYTES: usize = 64 << 20;
/// In the emulated host a start takes seconds.
const PATIENCE: Duration = Duration::from_secs(120);
/// As bulkhead-vmm's own words (docs/vmm-api.md), for the others.
const CMDLINE: &str = "console=ttyS0 quiet panic=-1 maxcpus=1 noreplace-smp random.trust_cpu=on \
                       cryptomgr.notests nf_conntrack.hashsize=16384 8250.nr_uarts=1";
const AGENT_WORDS: &str = "agent_debug";
const AGENT_MARK: &str = "agent:";
const READS_MARK: &str = "bench: ";

/// With whom bulkhead-vmm is compared.
#[derive(Debug, Clone)]
pub enum Peer {
    /// QEMU's microvm machine, with PCI as our kernel needs.
    Qemu,
    /// Firecracker 1.13 or later (PCI), a binary the user has.
    Firecracker(PathBuf),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind<'a> {
    Bulkhead,
    Qemu,
    Firecracker(&'a Path),
}

impl Kind<'_> {
    fn name(self) -> &'static str {
        match self {
            Kind::Bulkhead => "bulkhead-vmm",
            Kind::Qemu => "qemu microvm",
            Kind::Firecracker(_) => "firecracker",
        }
    }
}

/// What is booted.
#[derive(Debug)]
struct Guest<'a> {
    vmm: &'a Path,
    kernel: &'a Path,
    initramfs: &'a Path,
    words: &'a str,
    disk: &'a Path,
    /// Made for this start alone.
    dir: &'a Path,
    cid: u32,
}

/// Ended with the value.
#[derive(Debug)]
struct Running {
    child: Child,
    /// bulkhead-vmm's process is a child of the one that was started, which ends at once.
    vmm: Option<u32>,
    console: PathBuf,
    log: PathBuf,
    began: Instant,
}

impl Drop for Running {
    fn drop(&mut self) {
        // Already ended is fine.
        if let Some(pid) = self.vmm {
            let _ = Command::new("kill")
                .args(["-KILL", &pid.to_string()])
                .status();
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Compares: `bin` holds what a node runs, `reader` is tests/bench-guest, `work` a directory on a
/// real disk.
///
/// # Errors
/// If a guest does not come to its mark.
pub async fn compare(
    peer: &Peer,
    bin: &Path,
    reader: &Path,
    work: &Path,
    repeat: usize,
    figures: &mut Figures,
) -> Outcome {
    fs::create_dir_all(work)?;
    let disk = work.join("disk.img");
    fs::write(&disk, noise(DISK_BYTES))?;
    let reading = work.join("reader.cpio");
    fs::write(&reading, initramfs(&fs::read(reader)?)?)?;
    let (vmm, kernel, agent) = (
        bin.join("bulkhead-vmm"),
        bin.join("vmlinux"),
        bin.join("initramfs.cpio"),
    );
    let other = match peer {
        Peer::Qemu => Kind::Qemu,
        Peer::Firecracker(path) => Kind::Firecracker(path),
    };
    let mut cid = 1000;
    for turn in 1..=repeat {
        for kind in [Kind::Bulkhead, other] {
            println!("==> {} ({turn} of {repeat})", kind.name());
            for start in [true, false] {
                cid += 1;
                let dir = work.join(format!("vm{cid}"));
                fs::create_dir_all(&dir)?;
                let guest = Guest {
                    vmm: &vmm,
                    kernel: &kernel,
                    initramfs: if start { &agent } else { &reading },
                    words: if start { AGENT_WORDS } else { "" },
                    disk: &disk,
                    dir: &dir,
                    cid,
                };
                let mut running = guest.start(kind)?;
                let mark = if start { AGENT_MARK } else { READS_MARK };
                let line = running.line_with(mark).await?;
                if start {
                    let took = running.began.elapsed().as_secs_f64() * 1e3;
                    figures.add(&start_name(kind), "ms", took);
                } else {
                    figures.add(&reads_name(kind), "us", reads_took(&line)?);
                }
                drop(running);
                fs::remove_dir_all(&dir)?;
            }
        }
    }
    ratios(other, figures)?;
    fs::remove_dir_all(work)?;
    Ok(())
}

fn start_name(kind: Kind<'_>) -> String {
    format!("{}: process start to agent's first line", kind.name())
}

fn reads_name(kind: Kind<'_>) -> String {
    format!("{}: a random 4 KiB read", kind.name())
}

fn ratios(other: Kind<'_>, figures: &mut Figures) -> Outcome {
    for (name, ours, theirs) in [
        ("start", start_name(Kind::Bulkhead), start_name(other)),
        (
            "random 4 KiB reads",
            reads_name(Kind::Bulkhead),
            reads_name(other),
        ),
    ] {
        let (Some(ours), Some(theirs)) = (figures.median(&ours), figures.median(&theirs)) else {
            return Err("nothing was measured".into());
        };
        let title = format!("{name}, against {}", other.name());
        figures.add(&title, "ratio", ours / theirs);
        if name == "start" {
            let at_most = if other == Kind::Qemu { 0.5 } else { 1.0 };
            figures.hold(&title, ours / theirs, at_most);
        }
    }
    Ok(())
}

/// Microseconds per read, of "bench: 4000 reads in 123 us".
fn reads_took(line: &str) -> Result<f64, Failure> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let at = words.iter().position(|word| *word == "reads");
    let number = |index: Option<usize>| index.and_then(|i| words.get(i)?.parse::<f64>().ok());
    match (
        number(at.and_then(|i| i.checked_sub(1))),
        number(at.map(|i| i + 2)),
    ) {
        (Some(count), Some(micros)) if count > 0.0 => Ok(micros / count),
        _ => Err(format!("the reading guest said {line:?}").into()),
    }
}

impl Guest<'_> {
    fn start(&self, kind: Kind<'_>) -> Result<Running, Failure> {
        let (console, log) = (self.dir.join("console.log"), self.dir.join("vmm.log"));
        let mut command = match kind {
            Kind::Bulkhead => self.bulkhead(&console)?,
            Kind::Qemu => self.qemu(&console),
            Kind::Firecracker(path) => self.firecracker(path, &console)?,
        };
        let stdout = self.dir.join("stdout");
        if !matches!(kind, Kind::Firecracker(_)) {
            command.stdout(File::create(&stdout)?);
        }
        command.stderr(File::create(&log)?);
        let began = Instant::now();
        let mut child = command.spawn()?;
        let vmm = if kind == Kind::Bulkhead {
            Some(inner_pid(&mut child, &stdout)?)
        } else {
            None
        };
        Ok(Running {
            child,
            vmm,
            console,
            log,
            began,
        })
    }

    /// Without a jail: the others have none either.
    fn bulkhead(&self, console: &Path) -> Result<Command, Failure> {
        let kvm = File::options().read(true).write(true).open("/dev/kvm")?;
        let files = [
            kvm,
            File::open(self.kernel)?,
            File::open(self.initramfs)?,
            File::open(self.disk)?,
        ];
        let mappings = files
            .into_iter()
            .zip(10..)
            .map(|(file, child_fd)| FdMapping {
                parent_fd: OwnedFd::from(file),
                child_fd,
            });
        let config = json!({
            "id": "bench", "jail": null, "kvm_fd": 10, "kernel_fd": 11, "initramfs_fd": 12,
            "cmdline": self.words, "vcpus": 1, "memory_mib": MEMORY_MIB,
            "disks": [{"id": "bench", "fd": 13, "read_only": true, "queues": 1}], "nets": [],
            "vsock": {"cid": 3, "path": self.dir.join("v.sock")},
            "console": {"path": console, "limit_bytes": 1_048_576},
            "control": {"path": self.dir.join("control.sock")},
            "restore_fds": null, "hold": false,
        });
        let path = self.dir.join("config.json");
        fs::write(&path, config.to_string())?;
        let mut command = Command::new(self.vmm);
        // It writes its exit.json where it is.
        command.current_dir(self.dir).stdin(File::open(path)?);
        command.fd_mappings(mappings.collect())?;
        Ok(command)
    }

    fn qemu(&self, console: &Path) -> Command {
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args([
                "-M",
                "microvm,accel=kvm,pcie=on,pit=off,pic=off,rtc=off,x-option-roms=off",
            ])
            .args([
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
                "-no-reboot",
            ])
            .args(["-cpu", "host", "-smp", "1", "-m", &format!("{MEMORY_MIB}M")])
            .arg("-kernel")
            .arg(self.kernel)
            .arg("-initrd")
            .arg(self.initramfs)
            .args(["-append", &format!("{CMDLINE} {}", self.words)])
            .args(["-serial", &format!("file:{}", console.display())])
            .args([
                "-device",
                &format!("vhost-vsock-pci,guest-cid={}", self.cid),
            ])
            .args([
                "-device",
                "virtio-rng-pci",
                "-device",
                "virtio-blk-pci,drive=bench",
            ])
            .arg("-drive")
            .arg(format!(
                "id=bench,file={},format=raw,if=none,readonly=on,aio=io_uring",
                self.disk.display()
            ))
            .stdin(Stdio::null());
        command
    }

    /// As its documentation describes a start without the API: one JSON file; the serial console
    /// is its standard output.
    fn firecracker(&self, program: &Path, console: &Path) -> Result<Command, Failure> {
        let config = json!({
            "boot-source": {
                "kernel_image_path": self.kernel,
                "initrd_path": self.initramfs,
                "boot_args": format!("{CMDLINE} {}", self.words),
            },
            "machine-config": {"vcpu_count": 1, "mem_size_mib": MEMORY_MIB},
            "drives": [{
                "drive_id": "bench", "path_on_host": self.disk, "is_root_device": false,
                "is_read_only": true,
            }],
            "vsock": {"guest_cid": 3, "uds_path": self.dir.join("v.sock")},
            "entropy": {},
        });
        let path = self.dir.join("firecracker.json");
        fs::write(&path, config.to_string())?;
        let mut command = Command::new(program);
        command
            .args(["--no-api", "--enable-pci", "--config-file"])
            .arg(path)
            .stdin(Stdio::null())
            .stdout(File::create(console)?);
        Ok(command)
    }
}

impl Running {
    /// Waits for a whole line that contains `mark`.
    async fn line_with(&mut self, mark: &str) -> Result<String, Failure> {
        let deadline = self.began + PATIENCE;
        // Looking costs time that the guest does not get: on one emulated processor, looking every
        // 5 ms made a start a fifth slower.
        let mut turn = tokio::time::interval(Duration::from_millis(20));
        loop {
            let bytes = fs::read(&self.console).unwrap_or_default();
            let text = String::from_utf8_lossy(&bytes);
            let whole = text.rfind('\n').map_or("", |end| &text[..end]);
            if let Some(line) = whole.lines().find(|line| line.contains(mark)) {
                return Ok(line.to_owned());
            }
            let log = || fs::read_to_string(&self.log).unwrap_or_default();
            let gone = match self.vmm {
                Some(pid) => !Path::new(&format!("/proc/{pid}")).exists(),
                None => self.child.try_wait()?.is_some(),
            };
            if gone {
                let log = log();
                return Err(format!("the VMM ended: {log}{text}").into());
            }
            check!(
                Instant::now() < deadline,
                "no {mark:?} in time: {}{text}",
                log()
            );
            turn.tick().await;
        }
    }
}

/// What bulkhead-vmm says when it runs (docs/vmm-api.md). Its start has a limit of its own.
fn inner_pid(child: &mut Child, stdout: &Path) -> Result<u32, Failure> {
    let status = child.wait()?;
    let said = fs::read_to_string(stdout)?;
    check!(
        status.success(),
        "bulkhead-vmm did not start, {status}: {said}"
    );
    let said: serde_json::Value = serde_json::from_str(said.trim())?;
    let pid = said["pid"].as_u64().ok_or("bulkhead-vmm named no pid")?;
    Ok(u32::try_from(pid)?)
}

/// Bytes that no host can store in less space.
fn noise(count: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.take(count / 8).flatten().collect()
}

/// A "newc" archive with /dev, its console, and /init.
fn initramfs(init: &[u8]) -> Result<Vec<u8>, Failure> {
    let mut out = Vec::new();
    for (name, mode, device, data) in [
        ("dev", 0o040_755, (0, 0), &[][..]),
        ("dev/console", 0o020_600, (5, 1), &[]),
        ("init", 0o100_755, (0, 0), init),
        ("TRAILER!!!", 0, (0, 0), &[]),
    ] {
        let (major, minor): (usize, usize) = device;
        let inode = out.len() + 1;
        write!(
            out,
            "070701{inode:08x}{mode:08x}{:08x}{:08x}{:08x}{:08x}",
            0, 0, 1, 0
        )?;
        write!(
            out,
            "{:08x}{:08x}{:08x}{major:08x}{minor:08x}",
            data.len(),
            0,
            0
        )?;
        write!(out, "{:08x}{:08x}{name}\0", name.len() + 1, 0)?;
        out.resize(out.len().next_multiple_of(4), 0);
        out.extend_from_slice(data);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::float_cmp)]
    fn the_reading_guests_line_is_understood() {
        assert_eq!(reads_took("bench: 4000 reads in 8000 us").unwrap(), 2.0);
        assert!(reads_took("bench: failed: no such device").is_err());
    }

    #[test]
    fn the_archive_is_one() {
        let archive = initramfs(b"abcde").unwrap();
        assert!(archive.starts_with(b"070701"));
        assert_eq!(archive.len() % 4, 0);
    }
}
