//! Runs the real binary with guests of a few instructions, on whatever /dev/kvm there is.
#![allow(dead_code, reason = "every test file uses its own part")]
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing
)]
#![allow(clippy::panic, clippy::print_stderr, clippy::cast_possible_truncation)]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// No test waits longer than this for anything; the machine may be slow and busy.
pub const LIMIT: Duration = Duration::from_secs(180);
/// Where the payload is loaded and entered.
const LOAD_AT: u64 = 0x10_0000;

/// `out dx, al` to the serial port for every byte of `text`.
pub fn print(text: &str) -> Vec<u8> {
    let mut code = vec![0x66, 0xba, 0xf8, 0x03];
    for byte in text.bytes() {
        code.extend_from_slice(&[0xb0, byte, 0xee]);
    }
    code
}

/// Writes `value` to `port`.
pub fn out(port: u16, value: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0x66, 0xba, low, high, 0xb0, value, 0xee]
}

pub fn power_off() -> Vec<u8> {
    out(0x600, 0x34)
}

/// `jmp $`: spins.
pub fn spin() -> Vec<u8> {
    vec![0xeb, 0xfe]
}

/// Prints the letters from `a` on, one line each, with `delay` rounds between, for ever. The
/// letter is in bl, so where it goes on after a restore shows that registers are back.
pub fn letters(delay: u32) -> Vec<u8> {
    let mut code = vec![0xb3, b'a', 0x66, 0xba, 0xf8, 0x03];
    let top = code.len();
    code.extend_from_slice(&[0x88, 0xd8, 0xee, 0xb0, b'\n', 0xee, 0xfe, 0xc3]);
    // cmp bl, 'z' + 1; jne +2; mov bl, 'a'
    code.extend_from_slice(&[0x80, 0xfb, b'z' + 1, 0x75, 0x02, 0xb3, b'a']);
    code.push(0xb9);
    code.extend_from_slice(&delay.to_le_bytes());
    // dec ecx; jnz
    code.extend_from_slice(&[0xff, 0xc9, 0x75, 0xfc]);
    let back = top as i64 - (code.len() as i64 + 2);
    code.extend_from_slice(&[0xeb, (back as i8).to_le_bytes()[0]]);
    code
}

/// An ELF file whose one segment is `code`, as a vmlinux is made.
pub fn elf(code: &[u8]) -> Vec<u8> {
    let mut out = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    out.extend_from_slice(&2u16.to_le_bytes());
    out.extend_from_slice(&62u16.to_le_bytes());
    out.extend_from_slice(&1u32.to_le_bytes());
    out.extend_from_slice(&LOAD_AT.to_le_bytes());
    out.extend_from_slice(&64u64.to_le_bytes());
    out.extend_from_slice(&0u64.to_le_bytes());
    out.extend_from_slice(&0u32.to_le_bytes());
    for half in [64u16, 56, 1, 0, 0, 0] {
        out.extend_from_slice(&half.to_le_bytes());
    }
    out.extend_from_slice(&1u32.to_le_bytes());
    out.extend_from_slice(&5u32.to_le_bytes());
    let len = code.len() as u64;
    for word in [120u64, LOAD_AT, LOAD_AT, len, len, 0x1000] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    out.extend_from_slice(code);
    out
}

/// /dev/kvm, or nothing with a word why.
pub fn kvm() -> Option<File> {
    match File::options().read(true).write(true).open("/dev/kvm") {
        Ok(file) => Some(file),
        Err(error) => {
            eprintln!("skipped: /dev/kvm: {error}");
            None
        }
    }
}

/// The VMM of this build; in the test host, an optimised one in its memory.
fn program() -> PathBuf {
    std::env::var_os("BULKHEAD_VMM")
        .unwrap_or_else(|| env!("CARGO_BIN_EXE_bulkhead-vmm").into())
        .into()
}

pub fn is_root() -> bool {
    // SAFETY: no preconditions.
    let root = unsafe { libc::geteuid() } == 0;
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}

fn inheritable(fd: RawFd) -> RawFd {
    // SAFETY: clears a flag of a descriptor this process has.
    assert_eq!(unsafe { libc::fcntl(fd, libc::F_SETFD, 0) }, 0);
    fd
}

/// A VM in the making: its directory and the files it gets.
pub struct Guest {
    pub dir: tempfile::TempDir,
    pub files: Vec<File>,
    pub config: Value,
}

impl Guest {
    /// A guest that runs `code`, without a jail, or nothing when there is no KVM.
    pub fn new(code: &[u8]) -> Option<Self> {
        let kvm = kvm()?;
        let dir = tempfile::tempdir().unwrap();
        let mut kernel = tempfile::tempfile().unwrap();
        kernel.write_all(&elf(code)).unwrap();
        let at = |name: &str| dir.path().join(name);
        let config = json!({
            "id": "test",
            "kvm_fd": inheritable(kvm.as_raw_fd()),
            "kernel_fd": inheritable(kernel.as_raw_fd()),
            "vcpus": 1,
            "memory_mib": 32,
            "console": {"path": at("console.log"), "limit_bytes": 65536},
            "control": {"path": at("control.sock")},
        });
        Some(Guest {
            dir,
            files: vec![kvm, kernel],
            config,
        })
    }

    /// A guest that goes on from a snapshot.
    pub fn from_snapshot(state: File, memory: File) -> Option<Self> {
        let mut guest = Guest::new(&[])?;
        guest.config["kernel_fd"] = Value::Null;
        guest.config["restore_fds"] = json!({
            "state": guest.give(state),
            "memory": guest.give(memory),
        });
        Some(guest)
    }

    /// Puts the guest into a jail.
    pub fn jailed(mut self) -> Self {
        let uid = 2_000_000_000 + std::process::id() % 60_000;
        let log = File::create(self.dir.path().join("vmm.log")).unwrap();
        let log = self.give(log);
        self.config["jail"] = json!({
            "uid": uid, "gid": uid, "root": self.dir.path(), "cgroup_procs_fds": [],
            "max_files": 256, "log_fd": log,
        });
        self.config["console"]["path"] = "console.log".into();
        self.config["control"]["path"] = "control.sock".into();
        self
    }

    /// Keeps `file` open for the child and gives its number.
    pub fn give(&mut self, file: File) -> RawFd {
        let fd = inheritable(file.as_raw_fd());
        self.files.push(file);
        fd
    }

    /// Starts the binary and returns what it printed and its success.
    pub fn launch(&self) -> (Value, bool) {
        // The VMM is a grandchild: with this it becomes a child when its parent ends.
        // SAFETY: sets a flag of this process.
        unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
        let mut child = Command::new(program())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(self.config.to_string().as_bytes())
            .unwrap();
        let mut line = String::new();
        child
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut line)
            .unwrap();
        let status = child.wait().unwrap();
        (serde_json::from_str(&line).expect(&line), status.success())
    }

    /// Starts a VM that must come up.
    pub fn start(self) -> Vm {
        let (answer, success) = self.launch();
        let pid = answer["pid"].as_i64().unwrap_or_else(|| panic!("{answer}"));
        assert!(success);
        Vm {
            pid: i32::try_from(pid).unwrap(),
            guest: self,
            reaped: false,
        }
    }
}

/// A running VM; killed when dropped.
pub struct Vm {
    pub pid: i32,
    pub guest: Guest,
    reaped: bool,
}

impl Vm {
    pub fn path(&self, name: &str) -> PathBuf {
        self.guest.dir.path().join(name)
    }

    pub fn console(&self) -> String {
        std::fs::read_to_string(self.path("console.log")).unwrap_or_default()
    }

    /// One request, one answer.
    pub fn ask(&self, request: &Value, fds: &[RawFd]) -> Value {
        ask(&self.path("control.sock"), request, fds)
    }

    /// A request that must succeed.
    pub fn must(&self, request: &Value, fds: &[RawFd]) -> Value {
        let answer = self.ask(request, fds);
        assert!(answer.get("ok").is_some(), "{request}: {answer}");
        answer["ok"].clone()
    }

    /// Waits until `done` holds.
    pub fn wait_for(&self, what: &str, done: impl Fn(&Vm) -> bool) {
        let deadline = Instant::now() + LIMIT;
        while !done(self) {
            assert!(
                Instant::now() < deadline,
                "no {what}; console: {:?}",
                self.console()
            );
            // SAFETY: waits for nothing but time, and there is no descriptor to watch.
            unsafe { libc::poll(std::ptr::null_mut(), 0, 10) };
        }
    }

    /// Waits for the end; exit code and exit.json.
    pub fn end(&mut self) -> (i32, Value) {
        let code = self.reap();
        let text = std::fs::read_to_string(self.path("exit.json")).unwrap();
        (code, serde_json::from_str(&text).unwrap())
    }

    fn reap(&mut self) -> i32 {
        let deadline = Instant::now() + LIMIT;
        loop {
            let mut status = 0;
            // SAFETY: a valid pointer; the VM has become a child of this process.
            let n = unsafe { libc::waitpid(self.pid, &raw mut status, libc::WNOHANG) };
            assert!(n >= 0, "waitpid");
            if n == self.pid {
                self.reaped = true;
                assert!(libc::WIFEXITED(status), "status {status:#x}");
                return libc::WEXITSTATUS(status);
            }
            assert!(Instant::now() < deadline, "the VM does not end");
            // SAFETY: as above.
            unsafe { libc::poll(std::ptr::null_mut(), 0, 10) };
        }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        if !self.reaped {
            // SAFETY: the process is this one's child and not waited for, so the id is its.
            unsafe {
                libc::kill(self.pid, libc::SIGKILL);
                libc::waitpid(self.pid, std::ptr::null_mut(), 0);
            }
        }
    }
}

/// A request on a connection of its own.
pub fn ask(socket: &Path, request: &Value, fds: &[RawFd]) -> Value {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let json = request.to_string();
    let mut message = u32::try_from(json.len()).unwrap().to_le_bytes().to_vec();
    message.extend_from_slice(json.as_bytes());
    stream.send_with_fds(&[message.as_slice()], fds).unwrap();
    let mut len = [0u8; 4];
    stream.read_exact(&mut len).unwrap();
    let mut answer = vec![0u8; u32::from_le_bytes(len) as usize];
    stream.read_exact(&mut answer).unwrap();
    serde_json::from_slice(&answer).unwrap()
}

/// A share on a mount of its own, as the daemon makes it; it goes with this.
pub struct Share(pub PathBuf);

pub fn mount(arguments: &[&str]) {
    let done = Command::new("mount").args(arguments).status();
    assert!(done.unwrap().success(), "mount {arguments:?}");
}

impl Share {
    pub fn new(guest: &mut Guest) -> Self {
        let share = guest.dir.path().join("share");
        std::fs::create_dir(&share).unwrap();
        let path = share.to_str().unwrap();
        mount(&["--bind", path, path]);
        mount(&["--make-private", path]);
        mount(&["--make-shared", path]);
        guest.config["fs"] = json!({
            "tag": "t", "share": "share", "max_inodes": 1000, "max_handles": 1000,
        });
        Share(share)
    }

    /// A directory of the host, mounted on the share.
    pub fn volume(&self, name: &str, source: &Path, options: &str) {
        let target = self.0.join(name);
        if source.is_dir() {
            std::fs::create_dir(&target).unwrap();
        } else {
            File::create(&target).unwrap();
        }
        let (source, target) = (source.to_str().unwrap(), target.to_str().unwrap());
        if options.is_empty() {
            mount(&["--bind", source, target]);
            return;
        }
        // The VMM's copy takes the flags over when it is mounted, and no remount follows: so the
        // mount has them before.
        let stage = self.0.with_file_name(format!("stage-{name}"));
        std::fs::create_dir(&stage).unwrap();
        let stage = stage.to_str().unwrap();
        mount(&["--bind", source, stage]);
        mount(&["-o", &format!("remount,bind,{options}"), stage]);
        mount(&["--bind", stage, target]);
        let path = std::ffi::CString::new(stage).unwrap();
        // SAFETY: a string that ends in zero.
        assert_eq!(unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) }, 0);
        std::fs::remove_dir(stage).unwrap();
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let path = std::ffi::CString::new(self.0.to_str().unwrap()).unwrap();
        // SAFETY: a string that ends in zero.
        unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
    }
}

/// Effective capabilities of every thread of the VMM, by the thread's name.
pub fn capabilities(vm: &Vm) -> Vec<(String, String)> {
    let mut all: Vec<_> = std::fs::read_dir(format!("/proc/{}/task", vm.pid))
        .unwrap()
        .map(|task| {
            let task = task.unwrap().path();
            let name = std::fs::read_to_string(task.join("comm")).unwrap();
            let status = std::fs::read_to_string(task.join("status")).unwrap();
            let sets = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"].map(|set| {
                let line = status.lines().find(|l| l.starts_with(set)).unwrap();
                let value = line.split_whitespace().nth(1).unwrap();
                u64::from_str_radix(value, 16).unwrap().to_string()
            });
            (name.trim().to_owned(), sets.join(" "))
        })
        .collect();
    all.sort();
    all
}

/// CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SETGID, SETUID.
pub const FILE_SERVER: u64 = 0b1101_1011;
