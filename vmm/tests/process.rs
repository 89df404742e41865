//! The binary from start to end, with guests of a few instructions.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;

use common::{
    FILE_SERVER, Guest, Share, capabilities, is_root, letters, out, power_off, print, spin,
};
use serde_json::{Value, json};

#[test]
fn a_guest_prints_and_powers_off() {
    let Some(guest) = Guest::new(&[print("hello\nwor"), power_off(), spin()].concat()) else {
        return;
    };
    let mut vm = guest.start();
    let (code, report) = vm.end();
    assert_eq!(code, 0);
    assert_eq!(report["reason"], "power_off");
    assert_eq!(report["console_tail"], "hello\nwor");
    assert_eq!(vm.console(), "hello\nwor");
}

#[test]
fn reset_panic_and_triple_fault_are_told_apart() {
    for (code, reason, exit) in [
        (out(0x602, 1), "reboot", 2),
        (out(0x505, 1), "panic", 3),
        // lidt of an empty table, then ud2.
        (
            vec![0x0f, 0x01, 0x1c, 0x25, 0, 0, 0x20, 0, 0x0f, 0x0b],
            "reboot",
            2,
        ),
    ] {
        let Some(guest) = Guest::new(&[code, spin()].concat()) else {
            return;
        };
        let (status, report) = guest.start().end();
        assert_eq!(
            (report["reason"].as_str(), status),
            (Some(reason), exit),
            "{report}"
        );
    }
}

#[test]
fn a_stop_ends_a_guest_that_spins() {
    let Some(guest) = Guest::new(&spin()) else {
        return;
    };
    let mut vm = guest.start();
    vm.must(&json!({"stop": {}}), &[]);
    let (code, report) = vm.end();
    assert_eq!((code, &report["reason"]), (0, &json!("stopped")));
}

#[test]
fn a_held_vm_waits_for_boot() {
    let Some(mut guest) = Guest::new(&[print("x\n"), power_off(), spin()].concat()) else {
        return;
    };
    guest.config["hold"] = true.into();
    let mut vm = guest.start();
    let refused = vm.ask(&json!({"pause": {}}), &[]);
    assert_eq!(refused["error"]["kind"], "wrong_state");
    let metrics = vm.must(&json!({"metrics": {}}), &[]);
    assert_eq!(metrics["metrics"]["state"], "held");
    assert_eq!(vm.console(), "");
    vm.must(&json!({"boot": {}}), &[]);
    assert_eq!(vm.end().1["reason"], "power_off");
}

#[test]
fn what_cannot_start_says_why_and_leaves_nothing() {
    let Some(mut guest) = Guest::new(&spin()) else {
        return;
    };
    let good = guest.config.clone();
    let mut text = tempfile::tempfile().unwrap();
    text.write_all(b"#!/bin/sh\n").unwrap();
    let no_kernel = guest.give(text);
    // Below a directory that nobody else can make.
    let nowhere = guest.dir.path().join("nowhere");
    for (pointer, value, kind, word) in [
        ("/kernel_fd", json!(no_kernel), "bad_request", "vmlinux"),
        ("/kernel_fd", json!(999), "bad_request", "descriptor 999"),
        ("/vcpus", json!(1000), "bad_request", "1000"),
        (
            "/control/path",
            json!(nowhere.join("control.sock")),
            "io",
            "control socket",
        ),
        (
            "/console/path",
            json!(nowhere.join("console.log")),
            "io",
            "console",
        ),
    ] {
        guest.config = good.clone();
        *guest.config.pointer_mut(pointer).unwrap() = value;
        let (answer, success) = guest.launch();
        assert!(!success);
        assert_eq!(answer["error"]["kind"], kind, "{answer}");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains(word), "{message}");
    }
    let (answer, _) = {
        guest.config = json!("nothing");
        guest.launch()
    };
    assert_eq!(answer["error"]["kind"], "bad_request");
}

#[test]
fn bad_requests_are_answered_and_harm_nothing() {
    let Some(guest) = Guest::new(&spin()) else {
        return;
    };
    let vm = guest.start();
    for (request, kind) in [
        (json!({"explode": {}}), "bad_request"),
        (json!({"boot": {}}), "wrong_state"),
        (json!({"snapshot": {}}), "bad_request"),
        (json!({"resize": {"memory_mib": 1}}), "bad_request"),
        (json!({"resize": {"vcpus": 64}}), "bad_request"),
        (
            json!({"pin": {"groups": [{"vcpus": [9], "cpus": [0]}]}}),
            "bad_request",
        ),
        (
            json!({"pin": {"groups": [{"vcpus": [0], "cpus": []}]}}),
            "bad_request",
        ),
        (
            json!({"pin": {"groups": [{"vcpus": [0], "cpus": [8191]}]}}),
            "io",
        ),
        (json!({"detach": {"id": "nobody"}}), "not_found"),
        (json!({"detach": {"id": "rng"}}), "not_found"),
        (
            json!({"attach": {"disk": {"id": "d", "read_only": true, "queues": 1}}}),
            "bad_request",
        ),
        (
            json!({"attach_net": {"net": {"id": "n", "mac": "02:00:00:00:00:01", "mtu": 1500,
                "queue_size": 256}}}),
            "bad_request",
        ),
    ] {
        let answer = vm.ask(&request, &[]);
        assert_eq!(answer["error"]["kind"], kind, "{request}: {answer}");
    }
    // A message that is too long, one that is cut short, and silence: the next is served.
    use std::os::unix::net::UnixStream;
    let connect = || UnixStream::connect(vm.path("control.sock")).unwrap();
    let mut long = connect();
    long.write_all(&u32::MAX.to_le_bytes()).unwrap();
    let mut short = connect();
    short.write_all(&[9, 0]).unwrap();
    let _silent = connect();
    vm.must(&json!({"metrics": {}}), &[]);
}

#[test]
fn disks_come_and_go() {
    let Some(guest) = Guest::new(&spin()) else {
        return;
    };
    let vm = guest.start();
    let disk = tempfile::tempfile().unwrap();
    disk.set_len(1 << 20).unwrap();
    let attach = |id: &str| {
        let request = json!({"attach": {"disk": {"id": id, "read_only": true, "queues": 1}}});
        vm.ask(&request, &[disk.as_raw_fd()])
    };
    let first = attach("l0")["ok"]["slot"].as_str().unwrap().to_owned();
    assert_eq!(attach("l0")["error"]["kind"], "exists");
    for n in 1..100 {
        let answer = attach(&format!("l{n}"));
        assert!(answer["ok"]["slot"].is_string(), "{answer}");
    }
    vm.must(&json!({"detach": {"id": "l0"}}), &[]);
    assert_eq!(attach("again")["ok"]["slot"], json!(first));
    // A file is no tap.
    let net = json!({"attach_net": {"net": {"id": "n", "mac": "02:00:00:00:00:01", "mtu": 1500,
        "queue_size": 256}}});
    let refused = vm.ask(&net, &[disk.as_raw_fd()]);
    assert_eq!(refused["error"]["kind"], "bad_request", "{refused}");
}

#[test]
fn a_snapshot_goes_on_in_two_new_processes() {
    let Some(guest) = Guest::new(&letters(200_000)) else {
        return;
    };
    let vm = guest.start();
    vm.wait_for("third letter", |vm| vm.console().contains("c\n"));
    let refused = vm.ask(&json!({"snapshot": {}}), &[]);
    assert_eq!(refused["error"]["kind"], "bad_request");
    vm.must(&json!({"pause": {}}), &[]);
    let dir = tempfile::tempdir().unwrap();
    let (state, memory) = (dir.path().join("state"), dir.path().join("memory"));
    let files = [
        File::create(&state).unwrap(),
        File::create(&memory).unwrap(),
    ];
    vm.must(
        &json!({"snapshot": {}}),
        &[files[0].as_raw_fd(), files[1].as_raw_fd()],
    );
    let before = vm.console();
    let last = before.trim_end().chars().last().unwrap();
    let next = if last == 'z' {
        'a'
    } else {
        char::from(u8::try_from(last).unwrap() + 1)
    };

    let copies: Vec<_> = (0..2)
        .map(|_| {
            let open = |path| File::open(path).unwrap();
            Guest::from_snapshot(open(&state), open(&memory))
                .unwrap()
                .start()
        })
        .collect();
    for copy in &copies {
        copy.wait_for("letters", |vm| vm.console().len() >= 8);
        assert!(
            copy.console().starts_with(next),
            "{before:?} then {:?}",
            copy.console()
        );
    }
    // The original goes on too, unharmed.
    assert_eq!(vm.console(), before);
    vm.must(&json!({"resume": {}}), &[]);
    vm.wait_for("more letters", |vm| vm.console().len() >= before.len() + 4);
    assert!(vm.console()[before.len()..].starts_with(next));
}

#[test]
fn a_snapshot_that_does_not_fit_is_refused() {
    let Some(guest) = Guest::new(&spin()) else {
        return;
    };
    let vm = guest.start();
    vm.must(&json!({"pause": {}}), &[]);
    let (state, memory) = (
        tempfile::NamedTempFile::new(),
        tempfile::NamedTempFile::new(),
    );
    let (state, memory) = (state.unwrap(), memory.unwrap());
    let fds = [state.as_file().as_raw_fd(), memory.as_file().as_raw_fd()];
    vm.must(&json!({"snapshot": {}}), &fds);
    type Change = fn(&mut Value);
    let changes: [(Change, &str); 4] = [
        (|c| c["memory_mib"] = 64.into(), "32 MiB"),
        (|c| c["vcpus"] = 2.into(), "1 vCPUs"),
        (
            |c| c["vsock"] = json!({"cid": 3, "path": "v.sock"}),
            "vsock",
        ),
        (|c| c["restore_fds"]["state"] = c["kvm_fd"].clone(), "twice"),
    ];
    for (change, word) in changes {
        let open = |f: &tempfile::NamedTempFile| f.reopen().unwrap();
        let mut copy = Guest::from_snapshot(open(&state), open(&memory)).unwrap();
        change(&mut copy.config);
        let (answer, _) = copy.launch();
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains(word), "{message}");
    }
    let cut = memory.reopen().unwrap();
    cut.set_len(4096).unwrap();
    let copy = Guest::from_snapshot(state.reopen().unwrap(), cut).unwrap();
    let message = copy.launch().0["error"]["message"].to_string();
    assert!(message.contains("cut short"), "{message}");
}

#[test]
fn the_jailed_process_has_nothing_but_its_directory() {
    if !is_root() {
        return;
    }
    let Some(guest) = Guest::new(&[print("up\n"), spin()].concat()) else {
        return;
    };
    let guest = guest.jailed();
    let uid = guest.config["jail"]["uid"].to_string();
    let mut vm = guest.start();
    vm.wait_for("console", |vm| vm.console() == "up\n");

    let status = std::fs::read_to_string(format!("/proc/{}/status", vm.pid)).unwrap();
    let field = |name: &str| {
        let line = status
            .lines()
            .find(|l| l.starts_with(name))
            .unwrap_or_default();
        line.split_once(':')
            .map(|(_, v)| v.trim().to_owned())
            .unwrap_or_default()
    };
    for name in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(name), "0000000000000000", "{name}");
    }
    assert_eq!(field("NoNewPrivs"), "1");
    assert_eq!(field("Uid"), [uid.as_str(); 4].join("\t"));
    assert_eq!(field("Groups"), "");
    assert!(field("NSpid").ends_with("\t1"), "{}", field("NSpid"));
    let mounts = std::fs::read_to_string(format!("/proc/{}/mountinfo", vm.pid)).unwrap();
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    let mut seen: Vec<_> = std::fs::read_dir(format!("/proc/{}/root", vm.pid))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    seen.sort();
    assert_eq!(seen, ["console.log", "control.sock", "vmm.log"]);
    for ns in ["user", "mnt", "pid", "net", "ipc", "uts"] {
        let link = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/{ns}")).unwrap();
        assert_ne!(link(&vm.pid.to_string()), link("self"), "{ns}");
    }
    let environ = std::fs::read(format!("/proc/{}/limits", vm.pid)).unwrap();
    assert!(String::from_utf8_lossy(&environ).contains("256"));

    let metrics = vm.must(&json!({"metrics": {}}), &[])["metrics"].clone();
    let rss = metrics["vmm_rss_bytes"].as_u64().unwrap();
    eprintln!("vmm_rss_bytes {rss}, boot {}", metrics["boot_us"]);
    vm.must(&json!({"stop": {}}), &[]);
    assert_eq!(vm.end().1["reason"], "stopped");
    let log = std::fs::read_to_string(vm.path("vmm.log")).unwrap();
    assert!(log.contains("the VM ended"), "{log}");
}

#[test]
fn a_share_stays_in_the_jail_and_its_threads_alone_have_capabilities() {
    if !is_root() {
        return;
    }
    let Some(mut guest) = Guest::new(&[print("up\n"), spin()].concat()) else {
        return;
    };
    let volume = tempfile::tempdir().unwrap();
    std::fs::write(volume.path().join("file"), "x").unwrap();
    let share = Share::new(&mut guest);
    share.volume("early", volume.path(), "ro");
    let guest = guest.jailed();
    let uid = guest.config["jail"]["uid"].to_string();
    let vm = guest.start();
    vm.wait_for("console", |vm| vm.console() == "up\n");

    let threads = capabilities(&vm);
    let servers = threads.iter().filter(|(name, _)| name.starts_with("fs"));
    assert_eq!(servers.count(), 4, "{threads:?}");
    for (name, sets) in &threads {
        let expected = match name.starts_with("fs") {
            true => format!("0 {FILE_SERVER} {FILE_SERVER} 0 0"),
            false => "0 0 0 0 0".to_owned(),
        };
        assert_eq!(sets, &expected, "{name}");
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", vm.pid)).unwrap();
    let own = format!("Uid:\t{uid}\t{uid}\t{uid}\t{uid}");
    assert!(status.contains(&own), "{status}");

    // A volume that is mounted later shows up; what is mounted elsewhere does not.
    share.volume("late", volume.path(), "");
    let mounts = std::fs::read_to_string(format!("/proc/{}/mountinfo", vm.pid)).unwrap();
    let points: Vec<_> = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .map(|fields| {
            (
                fields[4].to_owned(),
                fields[5].to_owned(),
                fields[6].to_owned(),
            )
        })
        .collect();
    let names: Vec<_> = points.iter().map(|(point, ..)| point.as_str()).collect();
    assert_eq!(
        names,
        ["/", "/share", "/share/early", "/share/late"],
        "{mounts}"
    );
    for (point, options, propagation) in &points {
        let read_only = options.split(',').any(|o| o == "ro");
        assert_eq!(
            read_only,
            ["/share", "/share/early"].contains(&point.as_str()),
            "{mounts}"
        );
        assert_eq!(propagation.starts_with("master:"), point != "/", "{mounts}");
    }
}

#[test]
fn a_share_that_is_no_mount_or_missing_is_refused() {
    if !is_root() {
        return;
    }
    let Some(mut guest) = Guest::new(&spin()) else {
        return;
    };
    guest.config["fs"] = json!({
        "tag": "t", "share": "share", "max_inodes": 1000, "max_handles": 1000,
    });
    let guest = guest.jailed();
    let (answer, success) = guest.launch();
    assert!(
        !success
            && answer["error"]["message"]
                .as_str()
                .unwrap()
                .contains("share"),
        "{answer}"
    );
    std::fs::create_dir(guest.dir.path().join("share")).unwrap();
    let (answer, success) = guest.launch();
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(
        !success && message.contains("a mount of its own"),
        "{answer}"
    );
}
