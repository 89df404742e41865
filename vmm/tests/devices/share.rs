//! A share of the host, and what it costs.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Instant;

use serde_json::json;

use crate::common::{FILE_SERVER, Guest, Share, capabilities, mount};
use crate::guest::{MIB, linux, metrics, run, up};

#[test]
fn a_share_is_served_with_its_owners_from_inside_the_jail() {
    let Some(mut guest) = linux() else { return };
    let volumes = tempfile::tempdir().unwrap();
    let dir = |name: &str| {
        let dir = volumes.path().join(name);
        std::fs::create_dir(&dir).unwrap();
        dir
    };
    let (rw, ro, late) = (dir("rw"), dir("ro"), dir("late"));
    // For users of the guest that are not root.
    std::fs::set_permissions(&rw, std::fs::Permissions::from_mode(0o777)).unwrap();
    std::fs::write(ro.join("config"), "fixed").unwrap();
    std::fs::write(volumes.path().join("single"), "one file").unwrap();
    std::os::unix::fs::symlink("/etc/hostname", ro.join("link")).unwrap();
    let share = Share::new(&mut guest);
    share.volume("rw", &rw, "");
    share.volume("ro", &ro, "ro");
    share.volume("single", &volumes.path().join("single"), "");
    guest.config["vsock"]["path"] = "v.sock".into();
    let mut guest = guest.jailed();
    guest.config["jail"]["max_files"] = 4096.into();
    let uid = guest.config["jail"]["uid"].as_u64().unwrap();
    let vm = up(guest);

    // The threads that serve files have what that takes; all others have nothing.
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
    assert!(
        status.contains(&format!("Uid:\t{uid}\t{uid}\t{uid}")),
        "{status}"
    );

    assert_eq!(run(&vm, "fs mount t"), "done");
    assert_eq!(run(&vm, "fs ls ."), "ro rw single");
    assert_eq!(run(&vm, "fs check"), "done", "console: {}", vm.console());
    assert_eq!(run(&vm, "fs read single"), "one file");
    let built = run(&vm, "fs builders");
    assert_eq!(built, "done", "console: {}", vm.console());
    // All of it is data on the host: a file, and attributes that no kernel knows.
    let upper = rw.join("builders/overlay/upper");
    let null = std::fs::symlink_metadata(upper.join("null")).unwrap();
    assert!(null.is_file() && null.mode() & 0o7777 == 0o1600, "{null:?}");
    for (path, name) in [
        (upper.join("d"), "trusted.overlay.opaque"),
        (rw.join("builders/acl/made"), "system.posix_acl_access"),
    ] {
        assert!(rustix::fs::getxattr(&path, name, &mut [0; 4096]).is_err());
        let kept = format!("user.bulkhead.{name}");
        rustix::fs::getxattr(&path, &*kept, &mut [0; 4096]).unwrap();
    }
    // Read-only stays read-only, and what lies between the volumes is nobody's to write.
    assert_eq!(run(&vm, "fs read ro/config"), "fixed");
    for write in [
        "fs write ro/config x",
        "fs write ro/new x",
        "fs mkdir between",
        "fs remove ro/config",
        "fs rename single other",
    ] {
        let answer = run(&vm, write);
        let busy = write.contains("single") && answer == format!("error {}", libc::EBUSY);
        assert!(
            busy || answer == format!("error {}", libc::EROFS),
            "{write}: {answer}"
        );
    }
    // A link's target is the guest's, where there is no /etc.
    assert_eq!(
        run(&vm, "fs read ro/link"),
        format!("error {}", libc::ENOENT)
    );
    for across in [
        "fs link ro/config rw/config",
        "fs rename ro/config rw/config",
    ] {
        let answer = run(&vm, across);
        assert!(answer.starts_with("error"), "{answer}");
    }

    // Owners, groups and the mask.
    assert_eq!(run(&vm, "fs make 1000 2000 rw/made"), "done");
    for (name, mode) in [("made", 0o750), ("made/file", 0o640)] {
        let meta = std::fs::metadata(rw.join(name)).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (1000, 2000));
        assert_eq!(meta.mode() & 0o7777, mode, "{name}");
    }
    let link = std::fs::symlink_metadata(rw.join("made/link")).unwrap();
    assert_eq!((link.uid(), link.gid()), (1000, 2000));
    assert_eq!(run(&vm, "fs idmap rw"), "100007 100007", "{}", vm.console());
    let mapped = std::fs::metadata(rw.join("mapped")).unwrap();
    assert_eq!((mapped.uid(), mapped.gid()), (7, 7));

    // What the host does is seen at the next look.
    for round in 0..20 {
        let text = "x".repeat(round);
        std::fs::write(rw.join("live"), &text).unwrap();
        assert_eq!(run(&vm, "fs read rw/live"), text);
        std::fs::write(rw.join("new"), &text).unwrap();
        std::fs::rename(rw.join("new"), rw.join("live")).unwrap();
        assert_eq!(run(&vm, "fs read rw/live"), text);
        std::fs::remove_file(rw.join("live")).unwrap();
        let gone = run(&vm, "fs stat rw/live");
        assert_eq!(gone, format!("error {}", libc::ENOENT));
    }
    // Mounted on the host after the start, and gone again.
    std::fs::write(late.join("file"), "late").unwrap();
    share.volume("late", &late, "ro");
    assert_eq!(run(&vm, "fs read late/file"), "late");
    assert_eq!(
        run(&vm, "fs write late/file x"),
        format!("error {}", libc::EROFS)
    );
    let nested = share.0.join("rw/made");
    mount(&["-t", "tmpfs", "none", nested.to_str().unwrap()]);
    std::fs::write(nested.join("deep"), "x").unwrap();
    assert_eq!(run(&vm, "fs ls rw/made"), "deep");
    let path = share.0.join("late");
    let path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: a string that ends in zero.
    assert_eq!(unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) }, 0);
    assert_eq!(run(&vm, "fs ls late"), "");
    let path = std::ffi::CString::new(nested.to_str().unwrap()).unwrap();
    // SAFETY: as above.
    assert_eq!(unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) }, 0);
    assert_eq!(run(&vm, "fs ls rw/made"), "file link");

    // Its kernel holds what is in use, and no more.
    let all = metrics(&vm);
    let fs = &all["devices"]["fs"];
    println!("{fs}");
    assert!(fs["nodes"].as_u64() < Some(20), "{fs}");
    assert_eq!(
        (&fs["handles"], &fs["malformed"], &fs["limited"]),
        (&json!(0), &json!(0), &json!(0))
    );
    println!(
        "VMM beyond the guest: {} KiB",
        all["vmm_rss_bytes"].as_u64().unwrap() >> 10
    );
    assert!(all["vmm_rss_bytes"].as_u64() < Some(12 * MIB));

    // A pause is possible whatever is open; a snapshot when nothing is.
    assert_eq!(run(&vm, "fs keep rw/mapped"), "done");
    vm.must(&json!({"pause": {}}), &[]);
    let (state, memory) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    let fds = [state.as_raw_fd(), memory.as_raw_fd()];
    let refused = vm.ask(&json!({"snapshot": {}}), &fds);
    let message = refused["error"]["message"].as_str().unwrap();
    assert!(message.contains("the guest holds"), "{refused}");
    vm.must(&json!({"resume": {}}), &[]);
    assert_eq!(run(&vm, "fs read rw/mapped"), "");
}

#[test]
fn a_directory_shared_twice_has_one_of_each_file() {
    let Some(mut guest) = linux() else { return };
    let volumes = tempfile::tempdir().unwrap();
    let made = |name: &str| {
        let dir = volumes.path().join(name);
        std::fs::create_dir_all(dir.join("part")).unwrap();
        for at in [dir.clone(), dir.join("part")] {
            File::create(at.join("lock")).unwrap();
            std::fs::write(at.join("mapped"), [0; 4096]).unwrap();
            rustix::fs::mkfifoat(rustix::fs::CWD, at.join("pipe"), 0o600.into()).unwrap();
        }
        dir
    };
    let share = Share::new(&mut guest);
    let (plain, ro_first, rw_first, sub) = (made("a"), made("b"), made("c"), made("d"));
    share.volume("plain", &plain, "");
    share.volume("plain2", &plain, "");
    share.volume("ro-first-sealed", &ro_first, "ro");
    share.volume("ro-first2", &ro_first, "");
    share.volume("rw-first", &rw_first, "");
    share.volume("rw-first2-sealed", &rw_first, "ro");
    share.volume("whole", &sub, "");
    share.volume("part", &sub.join("part"), "");
    let only_ro = made("e");
    share.volume("only-ro-sealed", &only_ro, "ro");
    share.volume("only-ro2-sealed", &only_ro, "ro");
    for name in ["apart", "apart2"] {
        let dir = made(name);
        share.volume(&format!("{name}-ro"), &dir, "ro");
        share.volume(&format!("{name}-rw"), &dir, "");
        share.volume(&format!("{name}-sealed"), &dir, "ro");
    }
    guest.config["vsock"]["path"] = "v.sock".into();
    let mut guest = guest.jailed();
    guest.config["jail"]["max_files"] = 4096.into();
    let vm = up(guest);
    assert_eq!(run(&vm, "fs mount t"), "done");
    for meeting in [
        "plain plain2 plain2",
        "ro-first-sealed ro-first2 ro-first2",
        "rw-first rw-first2-sealed rw-first",
        "part whole/part whole/part",
    ] {
        let answer = run(&vm, &format!("fs meet {meeting}"));
        assert_eq!(answer, "done", "{meeting}: {}", vm.console());
    }
    // Where no mount allows it, none does.
    let refused = |write: &str| {
        let answer = run(&vm, write);
        assert_eq!(answer, format!("error {}", libc::EROFS), "{write}");
    };
    for name in ["only-ro-sealed/mapped", "only-ro2-sealed/mapped"] {
        assert_eq!(run(&vm, &format!("fs read {name}")).len(), 4096);
        refused(&format!("fs write {name} x"));
    }
    // What its mount alone keeps read-only stays so beside one that is written, whichever is found
    // first and whatever a sealed one is one with.
    for [first, second] in [["apart-ro", "apart-rw"], ["apart2-rw", "apart2-ro"]] {
        let (ro, rw) = match first.ends_with("ro") {
            true => (first, second),
            false => (second, first),
        };
        let sealed = format!("{}-sealed", &first[..first.len() - 3]);
        for name in [first, &sealed, second, first] {
            assert_eq!(run(&vm, &format!("fs read {name}/mapped")).len(), 4096);
        }
        for _ in 0..2 {
            refused(&format!("fs write {ro}/mapped x"));
            assert_eq!(run(&vm, &format!("fs append {rw}/mapped x")), "done");
        }
    }
}

#[test]
fn a_restored_guest_mounts_its_share() {
    let Some(mut guest) = linux() else { return };
    let share = Share::new(&mut guest);
    std::fs::write(share.0.join("file"), "first").unwrap();
    guest.config["fs"]["share"] = share.0.to_str().unwrap().into();
    let vm = up(guest);
    vm.must(&json!({"pause": {}}), &[]);
    let (state, memory) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    vm.must(
        &json!({"snapshot": {}}),
        &[state.as_raw_fd(), memory.as_raw_fd()],
    );
    let Some(mut copy) = Guest::from_snapshot(state, memory) else {
        return;
    };
    let own = Share::new(&mut copy);
    std::fs::write(own.0.join("file"), "second").unwrap();
    copy.config["fs"]["share"] = own.0.to_str().unwrap().into();
    copy.config["memory_mib"] = 256.into();
    copy.config["disks"] = json!([]);
    copy.config["vsock"] = json!({"cid": 10, "path": copy.dir.path().join("v.sock")});
    let copy = copy.start();
    assert_eq!(run(&copy, "fs mount t"), "done");
    assert_eq!(run(&copy, "fs read file"), "second");
    vm.must(&json!({"resume": {}}), &[]);
    assert_eq!(run(&vm, "fs mount t"), "done");
    assert_eq!(run(&vm, "fs read file"), "first");
}

/// Sequential in MiB, random in 4 KiB, as the guest's `bench` command does it; in microseconds.
fn on_the_host(path: &Path, mode: &str, mib: u64) -> u128 {
    let mut buffer = vec![0x5a; 1 << 20];
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .unwrap();
    let start = Instant::now();
    match mode {
        "write" => {
            for _ in 0..mib {
                file.write_all(&buffer).unwrap();
            }
            file.sync_all().unwrap();
        }
        "read" => while file.read(&mut buffer).unwrap() > 0 {},
        _ => {
            let mut state = 1u64;
            for _ in 0..2000 {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                let at = (state >> 16) % (mib * 256) * 4096;
                match mode {
                    "randread" => file.read_exact_at(&mut buffer[..4096], at).unwrap(),
                    _ => file.write_all_at(&buffer[..4096], at).unwrap(),
                }
            }
        }
    }
    start.elapsed().as_micros()
}

/// Prints what the share costs beside the host's own file system; how long is no matter of passing.
#[test]
fn a_share_moves_the_same_bytes_as_the_hosts_file_system() {
    let Some(mut guest) = linux() else { return };
    let share = Share::new(&mut guest);
    guest.config["fs"]["share"] = share.0.to_str().unwrap().into();
    let vm = up(guest);
    assert_eq!(run(&vm, "fs mount t"), "done");
    let mib = 32;
    for mode in ["write", "read", "randread", "randwrite"] {
        let host = on_the_host(&share.0.join("host"), mode, mib);
        let answer = run(&vm, &format!("fs bench guest {mode} {mib}"));
        let (count, guest) = answer.split_once(' ').unwrap();
        assert!(count.parse::<u64>().unwrap() >= mib, "{answer}");
        println!("{mode}: {host} us on the host, {guest} us in the guest");
    }
    let (host, guest) = (share.0.join("host"), share.0.join("guest"));
    assert!(std::fs::read(host).unwrap() == std::fs::read(guest).unwrap());
    println!("{}", metrics(&vm)["devices"]["fs"]);
}
