//! The agent as PID 1 of a real guest: boot, scratch disk, image layers plugged in while it runs,
//! power-off. BULKHEAD_VMM, BULKHEAD_KERNEL and BULKHEAD_INITRAMFS name the parts.

// Tests fail by panicking, and say what they measured or why they are skipped.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::indexing_slicing
)]

#[allow(dead_code)] // each test program uses a part
mod common;

use std::fs::File;
use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bulkhead_proto::agent::*;
use common::{Address, DEADLINE, TestAgent, connect, make_layer, request, request_with, spec};
use prost::Message;
use rustix::io::FdFlags;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::time::timeout;
use tonic::Code;

fn part(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os(name)
        .map(PathBuf::from)
        .filter(|path| path.exists());
    if path.is_none() {
        eprintln!("skipped: {name} names no file");
    }
    path
}

fn run(program: &str, args: &[&Path]) {
    let status = Command::new(program)
        .args(args)
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "{program}");
}

/// Opens a file the VMM inherits.
fn give(path: &Path, write: bool, kept: &mut Vec<File>) -> i32 {
    let file = File::options().read(true).write(write).open(path).unwrap();
    rustix::io::fcntl_setfd(&file, FdFlags::empty()).unwrap();
    let fd = file.as_raw_fd();
    kept.push(file);
    fd
}

/// One request to the VMM, with descriptors.
fn control(socket: &Path, request: &Value, files: &[File]) -> Value {
    let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
    let body = serde_json::to_vec(request).unwrap();
    let mut bytes = u32::try_from(body.len()).unwrap().to_le_bytes().to_vec();
    bytes.extend_from_slice(&body);
    let fds: Vec<_> = files.iter().map(|file| file.as_fd()).collect();
    // As many as a disk can have parts.
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(240))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(fds.is_empty() || ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
    let payload = [IoSlice::new(&bytes)];
    let sent = sendmsg(&stream, &payload, &mut ancillary, SendFlags::NOSIGNAL);
    assert_eq!(sent.unwrap(), bytes.len());
    let mut length = [0; 4];
    stream.read_exact(&mut length).unwrap();
    let mut answer = vec![0; usize::try_from(u32::from_le_bytes(length)).unwrap()];
    stream.read_exact(&mut answer).unwrap();
    serde_json::from_slice(&answer).unwrap()
}

struct Guest {
    agent: TestAgent,
    ready: Ready,
    _vmm: Vmm,
}

/// The VMM's process, which is not the test's child; it goes with the test.
struct Vmm(Pid);

impl Drop for Vmm {
    fn drop(&mut self) {
        let _ = rustix::process::kill_process(self.0, Signal::KILL);
    }
}

impl Guest {
    async fn boot() -> Option<Self> {
        let (vmm, kernel, initramfs) = (
            part("BULKHEAD_VMM")?,
            part("BULKHEAD_KERNEL")?,
            part("BULKHEAD_INITRAMFS")?,
        );
        let directory = tempfile::tempdir_in("/tmp").unwrap();
        let at = |name: &str| directory.path().join(name);
        let mut kept = Vec::new();
        File::create(at("scratch.img"))
            .unwrap()
            .set_len(256 << 20)
            .unwrap();
        run("mkfs.ext4", &[Path::new("-q"), &at("scratch.img")]);
        let listener = UnixListener::bind(at("vsock.sock_1025")).unwrap();
        let config = json!({
            "id": "test",
            "kvm_fd": give(Path::new("/dev/kvm"), true, &mut kept),
            "kernel_fd": give(&kernel, false, &mut kept),
            "initramfs_fd": give(&initramfs, false, &mut kept),
            "cmdline": std::env::var("BULKHEAD_CMDLINE").unwrap_or_default(),
            "vcpus": 2,
            "memory_mib": 256,
            "disks": [{"id": "scratch", "fd": give(&at("scratch.img"), true, &mut kept),
                       "read_only": false, "queues": 1}],
            "vsock": {"cid": 3, "path": at("vsock.sock")},
            "console": {"path": at("console.log"), "limit_bytes": 1 << 20},
            "control": {"path": at("control.sock")},
        });
        let mut child = Command::new(vmm)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(&serde_json::to_vec(&config).unwrap())
            .unwrap();
        let mut line = String::new();
        child
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut line)
            .unwrap();
        let started: Value = serde_json::from_str(&line).unwrap();
        let vmm = started["pid"]
            .as_i64()
            .unwrap_or_else(|| panic!("{started}"));
        let vmm = Vmm(Pid::from_raw(i32::try_from(vmm).unwrap()).unwrap());
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::UnixListener::from_std(listener).unwrap();
        let console = at("console.log");
        let heard = timeout(DEADLINE, async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).await.unwrap();
            Ready::decode_length_delimited(bytes.as_slice()).unwrap()
        });
        let Ok(ready) = heard.await else {
            panic!(
                "not ready: {}",
                std::fs::read_to_string(console).unwrap_or_default()
            );
        };
        let address = Address::Vsock(at("vsock.sock"));
        let client = timeout(DEADLINE, connect(address.clone())).await.unwrap();
        Some(Self {
            agent: TestAgent {
                client,
                address,
                child,
                directory,
            },
            ready,
            _vmm: vmm,
        })
    }

    fn at(&self, name: &str) -> PathBuf {
        self.agent.directory.path().join(name)
    }

    /// Makes an EROFS file of a directory and plugs it in.
    fn plug(&self, serial: &str, content: &Path) {
        let image = self.at(&format!("{serial}.erofs"));
        run("mkfs.erofs", &[&image, content]);
        let attach = json!({"attach": {"disk": {"id": serial, "read_only": true, "queues": 1}}});
        let file = File::open(image).unwrap();
        let answer = control(&self.at("control.sock"), &attach, &[file]);
        assert!(answer.get("ok").is_some(), "{answer}");
    }

    /// Makes an EROFS file of each directory, and plugs them in as one disk. A file of an odd length
    /// is among them: what else a layer's file has stands behind its file system.
    fn plug_joined(&self, serial: &str, layers: &[(String, PathBuf)]) -> Vec<LayerPlace> {
        let (mut files, mut places, mut parts, mut offset) = (vec![], vec![], vec![], 0);
        for (number, (layer, content)) in layers.iter().enumerate() {
            let image = self.at(&format!("{layer}.erofs"));
            run("mkfs.erofs", &[&image, content]);
            let mut file = File::options().append(true).open(&image).unwrap();
            file.write_all(&vec![0xaa; number % 2 * 700]).unwrap();
            let length = file.metadata().unwrap().len().next_multiple_of(4096);
            places.push(LayerPlace {
                layer: layer.clone(),
                disk: serial.to_owned(),
                offset,
                length,
            });
            offset += length;
            parts.push(length);
            files.push(File::open(image).unwrap());
        }
        let disk = json!({"id": serial, "read_only": true, "queues": 1, "parts": parts});
        let attach = json!({ "attach": { "disk": disk } });
        let answer = control(&self.at("control.sock"), &attach, &files);
        assert!(answer.get("ok").is_some(), "{answer}");
        places
    }

    async fn delete(&mut self, id: &str, layers: &[(String, PathBuf)], disks: &[&str]) {
        let request = DeleteContainerRequest {
            container_id: id.into(),
            release_layers: layers.iter().map(|(serial, _)| serial.clone()).collect(),
            release_disks: disks.iter().map(|disk| (*disk).to_owned()).collect(),
        };
        self.agent.client.delete_container(request).await.unwrap();
    }

    fn detach(&self, serial: &str) -> Value {
        let detach = json!({"detach": {"id": serial}});
        control(&self.at("control.sock"), &detach, &[])
    }
}

#[tokio::test]
async fn layers_that_are_parts_of_a_disk_are_mounted_and_shared() {
    let Some(mut guest) = Guest::boot().await else {
        return;
    };
    let setup = SetupSandboxRequest {
        scratch_disk: "scratch".into(),
        ..SetupSandboxRequest::default()
    };
    guest.agent.client.setup_sandbox(setup).await.unwrap();
    let base = guest.at("base");
    make_layer(&base);
    let mut layers = vec![("lbase".to_owned(), base)];
    for number in 1..60 {
        let layer = guest.at(&format!("layer{number}"));
        std::fs::create_dir_all(layer.join("n")).unwrap();
        std::fs::write(layer.join("n/top"), format!("{number}\n")).unwrap();
        std::fs::write(layer.join(format!("n/{number}")), "").unwrap();
        layers.push((format!("l{number}"), layer));
    }
    let (lower, upper) = layers.split_at(40);
    let mut places = guest.plug_joined("pone", lower);
    let serials = |layers: &[(String, PathBuf)]| -> Vec<String> {
        layers.iter().map(|(serial, _)| serial.clone()).collect()
    };
    let with = |id: &str, of: &[(String, PathBuf)], places: &[LayerPlace]| {
        let mut wanted = request(id, &["sleep", "1000"]);
        wanted.layers = serials(of);
        wanted.layer_places = places.to_vec();
        wanted
    };
    let begun = std::time::Instant::now();
    let made = guest.agent.create_with(with("c1", lower, &places)).await;
    made.unwrap();
    eprintln!(
        "CreateContainer of 40 layers {} ms",
        begun.elapsed().as_millis()
    );
    guest.agent.begin("c1").await.unwrap();
    let look = "cat /n/top; ls /n | wc -l";
    let (stdout, stderr, _) = guest.agent.exec_sh("c1", "x", look).await;
    assert_eq!(stdout, "39\n40\n", "{stderr}");

    // Others come later, and some of the first disk are theirs too.
    places.extend(guest.plug_joined("ptwo", upper));
    guest
        .agent
        .create_with(with("c2", &layers, &places))
        .await
        .unwrap();
    guest.agent.begin("c2").await.unwrap();
    let (stdout, stderr, _) = guest.agent.exec_sh("c2", "x", look).await;
    assert_eq!(stdout, "59\n60\n", "{stderr}");

    // Layers and disks that a container uses stay, whatever is asked for.
    guest.delete("c1", &layers, &["pone", "ptwo"]).await;
    assert_eq!(guest.detach("pone")["error"]["kind"], "wrong_state");
    let (stdout, ..) = guest.agent.exec_sh("c2", "y", look).await;
    assert_eq!(stdout, "59\n60\n");
    // Without a container that uses them layers go, and their disk stays until it is to go.
    guest.delete("c2", &layers[..20], &["ptwo"]).await;
    assert_eq!(guest.detach("ptwo")["error"]["kind"], "wrong_state");
    guest.delete("c2", &layers[20..], &["ptwo"]).await;
    let answer = guest.detach("ptwo");
    assert!(answer.get("ok").is_some(), "{answer}");
    // The same partitions are used again.
    guest
        .agent
        .create_with(with("c3", lower, &places))
        .await
        .unwrap();
    guest.agent.begin("c3").await.unwrap();
    let (stdout, ..) = guest.agent.exec_sh("c3", "x", look).await;
    assert_eq!(stdout, "39\n40\n");

    // Places that are none fail the creation, and it can be tried again.
    for (offset, length, code) in [
        (1, 4096, Code::InvalidArgument),
        (0, 0, Code::InvalidArgument),
        (1 << 40, 4096, Code::Internal),
        (0, 4096 * 3, Code::Internal),
    ] {
        let mut wanted = with("c4", lower, &places);
        wanted.layers.push("lwrong".into());
        wanted.layer_places.push(LayerPlace {
            layer: "lwrong".into(),
            disk: "pone".into(),
            offset,
            length,
        });
        let error = guest.agent.create_with(wanted).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
    }
    guest
        .agent
        .create_with(with("c4", lower, &places))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_guest_boots_runs_a_container_from_plugged_layers_and_powers_off() {
    let Some(mut guest) = Guest::boot().await else {
        return;
    };
    let hello = guest
        .agent
        .client
        .hello(HelloRequest {})
        .await
        .unwrap()
        .into_inner();
    let milliseconds = |ns: u64| ns / 1_000_000;
    eprintln!(
        "agent began {} ms after the kernel, served after {} ms more",
        milliseconds(guest.ready.agent_started_ns),
        milliseconds(guest.ready.agent_ready_ns - guest.ready.agent_started_ns)
    );
    for step in &hello.steps {
        eprintln!("  {:10} {} us", step.name, step.ended_ns / 1000);
    }
    let begun = std::time::Instant::now();
    let setup = SetupSandboxRequest {
        hostname: "pod-one".into(),
        machine_id: "0123456789abcdef0123456789abcdef".into(),
        clock_unix_ns: 1_790_000_000_000_000_000,
        entropy: vec![7; 64].into(),
        scratch_disk: "scratch".into(),
        sysctls: [("net.ipv4.ip_unprivileged_port_start".into(), "0".into())].into(),
        ..SetupSandboxRequest::default()
    };
    guest.agent.client.setup_sandbox(setup).await.unwrap();
    eprintln!("SetupSandbox {} ms", begun.elapsed().as_millis());
    let hello = guest
        .agent
        .client
        .hello(HelloRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(hello.online_cpus, 2);

    let (lower, upper) = (guest.at("lower"), guest.at("upper"));
    make_layer(&lower);
    std::fs::create_dir_all(upper.join("etc")).unwrap();
    std::fs::write(upper.join("etc/motd"), "two layers\n").unwrap();
    guest.plug("llower", &lower);
    guest.plug("lupper", &upper);
    let script = "cat /etc/motd; hostname; date +%Y; echo written > /file; cat /file; \
                  cat /proc/sys/net/ipv4/ip_unprivileged_port_start; head -c 1m /dev/urandom | wc -c; \
                  cat /etc/hostname; grep -c localhost /etc/hosts; echo s > /dev/shm/s && echo shm; \
                  ls -d /sys/fs/cgroup/memory.max";
    let mut spec = spec(&["sh", "-c", script]);
    let mounts = spec["mounts"].as_array_mut().unwrap();
    for (name, target) in [
        ("hostname", "/etc/hostname"),
        ("hosts", "/etc/hosts"),
        ("resolv.conf", "/etc/resolv.conf"),
        ("shm", "/dev/shm"),
    ] {
        mounts.push(json!({
            "destination": target, "type": "bind", "source": format!("/run/bulkhead/sandbox/{name}"),
            "options": ["rbind", "rprivate"]
        }));
    }
    let mut wanted = request_with("c1", &spec);
    wanted.layers = vec!["llower".into(), "lupper".into()];
    let begun = std::time::Instant::now();
    guest.agent.create_with(wanted.clone()).await.unwrap();
    eprintln!("CreateContainer {} ms", begun.elapsed().as_millis());
    let begun = std::time::Instant::now();
    guest.agent.begin("c1").await.unwrap();
    eprintln!("StartContainer {} ms", begun.elapsed().as_millis());
    let (stdout, stderr, exit) = guest.agent.collect("c1").await;
    eprintln!(
        "exit seen {} ms after the start",
        begun.elapsed().as_millis()
    );
    assert_eq!(
        stdout,
        "two layers\npod-one\n2026\nwritten\n0\n1048576\npod-one\n2\nshm\n/sys/fs/cgroup/memory.max\n",
        "{stderr}"
    );
    assert_eq!(exit.code, 0);

    // The second has its layers mounted already, and its own files.
    wanted.container_id = "c2".into();
    wanted.oci_spec = request("c2", &["sh", "-c", "test ! -e /file; sleep 1000"]).oci_spec;
    let begun = std::time::Instant::now();
    guest.agent.create_with(wanted).await.unwrap();
    eprintln!(
        "a second CreateContainer {} ms",
        begun.elapsed().as_millis()
    );
    guest.agent.begin("c2").await.unwrap();
    let begun = std::time::Instant::now();
    let (stdout, ..) = guest.agent.exec_sh("c2", "x", "echo hi").await;
    eprintln!("exec to its exit {} ms", begun.elapsed().as_millis());
    assert_eq!(stdout, "hi\n");
    // The first one's deletion leaves the layer to the second; the last repeats one that is done.
    for id in ["c1", "c2", "c2"] {
        let request = DeleteContainerRequest {
            container_id: id.into(),
            release_layers: Vec::new(),
            release_disks: vec!["lupper".into()],
        };
        guest.agent.client.delete_container(request).await.unwrap();
        if id == "c1" {
            let (stdout, ..) = guest.agent.exec_sh("c2", "y", "cat /etc/motd").await;
            assert_eq!(stdout, "two layers\n");
        }
    }
    let detach = json!({"detach": {"id": "lupper"}});
    let answer = control(&guest.at("control.sock"), &detach, &[]);
    assert!(answer.get("ok").is_some(), "{answer}");
    // The agent waits for a disk that nobody plugs in, but not for ever.
    let mut missing = request("c3", &["true"]);
    missing.layers = vec!["lnever".into()];
    let late = guest.agent.create_with(missing).await.unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded);

    guest
        .agent
        .client
        .power_off(PowerOffRequest {})
        .await
        .unwrap();
    if std::env::var_os("BULKHEAD_CMDLINE").is_some() {
        let console = std::fs::read_to_string(guest.at("console.log"));
        eprintln!("{}", console.unwrap_or_default());
    }
    // The VMM reports how the guest ended, just before it ends itself.
    let report = guest.at("exit.json");
    let ended = timeout(DEADLINE, async {
        let mut tick = tokio::time::interval(std::time::Duration::from_millis(50));
        loop {
            tick.tick().await;
            if let Ok(text) = std::fs::read(&report) {
                return serde_json::from_slice::<Value>(&text).unwrap();
            }
        }
    });
    let ended = ended.await;
    let console = std::fs::read_to_string(guest.at("console.log")).unwrap_or_default();
    assert_eq!(
        ended.expect("the guest did not go down")["reason"],
        "power_off",
        "{console}"
    );
}

const HOUR: i64 = 3_600_000_000_000;

#[tokio::test]
async fn a_guest_has_a_nodes_limits_and_the_hosts_time() {
    let Some(mut guest) = Guest::boot().await else {
        return;
    };
    let setup = SetupSandboxRequest {
        scratch_disk: "scratch".into(),
        sysctls: [("net.ipv4.ip_unprivileged_port_start".into(), "500".into())].into(),
        pids_limit: 40,
        ..SetupSandboxRequest::default()
    };
    guest.agent.client.setup_sandbox(setup).await.unwrap();
    let layer = guest.at("layer");
    make_layer(&layer);
    guest.plug("lone", &layer);
    let mut wanted = request("c1", &["sleep", "1000"]);
    wanted.layers = vec!["lone".into()];
    guest.agent.create_with(wanted).await.unwrap();
    guest.agent.begin("c1").await.unwrap();

    // Whatever the size; the pod's own wins.
    let script = "cd /proc/sys && for name in vm/overcommit_memory kernel/panic_on_oops \
        kernel/keys/root_maxkeys kernel/keys/root_maxbytes vm/max_map_count kernel/pid_max \
        kernel/threads-max fs/file-max fs/inotify/max_user_watches fs/inotify/max_user_instances \
        fs/fanotify/max_user_marks fs/epoll/max_user_watches user/max_user_namespaces \
        user/max_time_namespaces net/netfilter/nf_conntrack_buckets \
        net/netfilter/nf_conntrack_max net/ipv4/tcp_mem net/ipv4/udp_mem net/ipv4/tcp_rmem \
        net/ipv4/tcp_max_orphans kernel/core_pattern net/ipv4/ip_unprivileged_port_start \
        net/ipv4/ping_group_range; do echo $name $(cat $name); done";
    let (stdout, stderr, _) = guest.agent.exec_sh("c1", "sysctls", script).await;
    assert_eq!(
        stdout,
        "vm/overcommit_memory 1\nkernel/panic_on_oops 1\nkernel/keys/root_maxkeys 1000000\n\
         kernel/keys/root_maxbytes 25000000\nvm/max_map_count 1048576\nkernel/pid_max 4194304\n\
         kernel/threads-max 4194304\nfs/file-max 9223372036854775807\n\
         fs/inotify/max_user_watches 1048576\nfs/inotify/max_user_instances 8192\n\
         fs/fanotify/max_user_marks 1048576\nfs/epoll/max_user_watches 4194304\n\
         user/max_user_namespaces 65536\nuser/max_time_namespaces 65536\n\
         net/netfilter/nf_conntrack_buckets 16384\nnet/netfilter/nf_conntrack_max 131072\n\
         net/ipv4/tcp_mem 98304 131072 196608\nnet/ipv4/udp_mem 196608 262144 393216\n\
         net/ipv4/tcp_rmem 4096 131072 6291456\nnet/ipv4/tcp_max_orphans 32768\n\
         kernel/core_pattern\nnet/ipv4/ip_unprivileged_port_start 500\n\
         net/ipv4/ping_group_range 0 2147483647\n",
        "{stderr}"
    );
    // Each was set: the console has no word of one that was not.
    let console = std::fs::read_to_string(guest.at("console.log")).unwrap_or_default();
    assert!(!console.contains("kernel parameter"), "{console}");

    // A fork bomb ends at the pod's limit, also below another container's.
    let bomb = "sh -c 'i=0; while [ $i -lt 100 ]; do sleep 1000 & i=$((i+1)); done' 2>&1; \
                read now </sys/fs/cgroup/pids.current; echo $now; kill -9 -1; kill -9 $$";
    let (stdout, ..) = guest.agent.exec_sh("c1", "bomb", bomb).await;
    let count = stdout
        .lines()
        .last()
        .and_then(|line| line.parse::<u64>().ok());
    assert!(
        stdout.contains("can't fork") && count.is_some_and(|n| (30..=40).contains(&n)),
        "{stdout}"
    );
    let lift = ResizeGuestRequest {
        pids_limit: Some(0),
        ..ResizeGuestRequest::default()
    };
    guest.agent.client.resize_guest(lift).await.unwrap();
    let (stdout, ..) = guest.agent.exec_sh("c1", "more", bomb).await;
    let count = stdout.trim().parse::<u64>();
    assert!(count.as_ref().is_ok_and(|n| *n > 100), "{stdout}");

    let mut adjust = async |step_ns, slew_ns, rate_ppb| {
        let request = AdjustClockRequest {
            step_ns,
            slew_ns,
            rate_ppb,
        };
        let answer = guest.agent.client.adjust_clock(request).await;
        answer.map(tonic::Response::into_inner)
    };
    let read = adjust(0, 0, 0).await.unwrap();
    assert!((0..HOUR).contains(&(read.answered_unix_ns - read.received_unix_ns)));
    for step in [-HOUR, HOUR, 5 * HOUR + 1] {
        let stepped = adjust(step, 0, 0).await.unwrap();
        let moved = stepped.answered_unix_ns - stepped.received_unix_ns - step;
        assert!((0..HOUR / 60).contains(&moved), "{step}: {stepped:?}");
    }
    // Ten times as fast as the kernel slews: it takes the two without a jump.
    let slewed = adjust(0, 5_000_000, -20_000).await.unwrap();
    assert!((0..5_000_000).contains(&(slewed.answered_unix_ns - slewed.received_unix_ns)));
    for (step, slew, rate) in [(0, HOUR, 0), (0, i64::MIN, 0), (0, 0, 500_001)] {
        let refused = adjust(step, slew, rate).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
    assert!(adjust(i64::MAX, 0, 0).await.is_err());
}
