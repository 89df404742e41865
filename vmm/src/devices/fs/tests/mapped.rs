//! What the host's kernel must not act upon: extended attributes of every name space, ACLs, file
//! capabilities, devices.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use super::super::abi::{self, fattr, op};
use super::super::acl::tests::value;
use super::{Client, is_root, longs, named, u32_at, words};

const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";
const CAPABILITY: &str = "security.capability";
/// VFS_CAP_REVISION_2, cap_net_raw=ep.
const NET_RAW: [u8; 20] = [
    1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];
const NONE: u32 = u32::MAX;

/// Owner rw-, user 1000 rwx, group r--, mask rwx, others nothing.
fn acl() -> Vec<u8> {
    value(&[
        (1, 6, NONE),
        (2, 7, 1000),
        (4, 4, NONE),
        (0x10, 7, NONE),
        (0x20, 0, NONE),
    ])
}

fn on_host(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 4096];
    let length = rustix::fs::lgetxattr(path, name, &mut value).ok()?;
    value.truncate(length);
    Some(value)
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

/// A client with a file, on a file system that has attributes.
fn with_file() -> Option<(Client, u64, std::path::PathBuf)> {
    let mut client = Client::new();
    let path = client.share().join("file");
    fs::write(&path, "x").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let none = rustix::fs::XattrFlags::empty();
    if rustix::fs::setxattr(&path, "user.host", b"1", none).is_err() {
        println!("skipped: this file system has no extended attributes");
        return None;
    }
    let file = client.lookup(1, "file").unwrap();
    Some((client, file, path))
}

#[test]
fn attributes_of_every_name_space_come_back_and_are_data_on_the_host() {
    let Some((mut client, file, path)) = with_file() else {
        return;
    };
    let names = [
        "security.capability",
        "security.x",
        "trusted.overlay.opaque",
        "user.bulkhead.device",
        "user.bulkhead.security.x",
        "user.guest",
    ];
    for name in names {
        client
            .set_xattr(file, name, name.as_bytes(), 0)
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        let host = match name {
            "user.guest" => name.to_owned(),
            name => format!("user.bulkhead.{name}"),
        };
        assert_eq!(on_host(&path, &host).unwrap(), name.as_bytes());
    }
    for name in names {
        let read = client.get_xattr(file, name, 100).unwrap();
        assert_eq!(read, name.as_bytes());
        let length = client.get_xattr(file, name, 0).unwrap();
        assert_eq!(u32_at(&length, 0) as usize, name.len());
        assert_eq!(client.get_xattr(file, name, 2), Err(libc::ERANGE));
    }
    let mut all = names.map(str::to_owned).to_vec();
    all.push("user.host".into());
    all.sort();
    assert_eq!(client.xattrs(file), all);
    let bytes: usize = all.iter().map(|name| name.len() + 1).sum();
    let length = client.ask(op::LISTXATTR, file, &words(&[0, 0])).unwrap();
    assert_eq!(u32_at(&length, 0) as usize, bytes);
    let bytes = u32::try_from(bytes).unwrap();
    let small = client.ask(op::LISTXATTR, file, &words(&[bytes - 1, 0]));
    assert_eq!(small, Err(libc::ERANGE));
    let exact = client.ask(op::LISTXATTR, file, &words(&[bytes, 0]));
    assert_eq!(exact.unwrap().len(), bytes as usize);
    for name in names {
        client.remove_xattr(file, name).unwrap();
        assert_eq!(client.get_xattr(file, name, 0), Err(libc::ENODATA));
        assert_eq!(client.remove_xattr(file, name), Err(libc::ENODATA));
    }
    assert_eq!(client.xattrs(file), ["user.host"]);
}

#[test]
fn names_and_values_have_their_bounds() {
    let Some((mut client, file, path)) = with_file() else {
        return;
    };
    let long = |start: &str, len: usize| format!("{start}{}", "n".repeat(len - start.len()));
    client
        .set_xattr(file, &long("user.", 255), b"v", 0)
        .unwrap();
    client
        .set_xattr(file, &long("trusted.", 241), b"v", 0)
        .unwrap();
    for name in [long("trusted.", 242), long("user.bulkhead.", 255)] {
        assert_eq!(client.set_xattr(file, &name, b"v", 0), Err(libc::ERANGE));
        assert_eq!(client.get_xattr(file, &name, 9), Err(libc::ENODATA));
        assert_eq!(client.remove_xattr(file, &name), Err(libc::ENODATA));
    }
    let over = client.set_xattr(file, &long("user.", 256), b"v", 0);
    assert_eq!(over, Err(libc::ENAMETOOLONG));
    for name in ["x", "system.nfs4_acl", "btrfs.x"] {
        let refused = Err(libc::EOPNOTSUPP);
        assert_eq!(client.set_xattr(file, name, b"v", 0), refused);
        assert_eq!(client.remove_xattr(file, name), refused);
        assert_eq!(client.get_xattr(file, name, 9).map(|_| ()), refused);
    }
    // A length beyond the message, and one beyond the limit.
    let mut body = named(words(&[4000, 0, 0, 0]), "user.x");
    assert_eq!(client.ask(op::SETXATTR, file, &body), Err(libc::EINVAL));
    body[..4].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(client.ask(op::SETXATTR, file, &body), Err(libc::E2BIG));
    // The flags of setxattr(2).
    let create = named(words(&[0, 1, 0, 0]), "trusted.new");
    client.ask(op::SETXATTR, file, &create).unwrap();
    assert_eq!(client.ask(op::SETXATTR, file, &create), Err(libc::EEXIST));
    // What is the host's own is not there.
    let none = rustix::fs::XattrFlags::empty();
    if rustix::fs::setxattr(&path, "trusted.host", b"1", none).is_ok() {
        assert_eq!(
            client.get_xattr(file, "trusted.host", 9),
            Err(libc::ENODATA)
        );
        assert!(!client.xattrs(file).contains(&"trusted.host".to_owned()));
    }
    // A guest of before, which says less in SETXATTR.
    let mut body = words(&[7, 41, 0, !(1 << 29), 0]);
    body.resize(64, 0);
    client.ask(op::INIT, 0, &body).unwrap();
    let file = client.lookup(1, "file").unwrap();
    let mut body = named(words(&[3, 0]), "trusted.old");
    body.extend_from_slice(b"old");
    client.ask(op::SETXATTR, file, &body).unwrap();
    assert_eq!(client.get_xattr(file, "trusted.old", 9).unwrap(), b"old");
}

#[test]
fn links_and_fifos_have_no_attributes_and_no_acl() {
    if !is_root() {
        println!("skipped: needs root");
        return;
    }
    let mut client = Client::new();
    symlink("nowhere", client.share().join("link")).unwrap();
    let link = client.lookup(1, "link").unwrap();
    let fifo = client.mknod(1, "fifo", libc::S_IFIFO | 0o644, 0).unwrap();
    for node in [link, fifo] {
        // overlayfs takes EPERM for "cannot have this one", and nothing else.
        let set = client.set_xattr(node, "trusted.overlay.origin", b"", 0);
        assert_eq!(set, Err(libc::EPERM));
        for name in ["trusted.overlay.origin", ACCESS, CAPABILITY] {
            assert_eq!(client.get_xattr(node, name, 99), Err(libc::ENODATA));
        }
        assert!(client.xattrs(node).is_empty());
        client.remove_xattr(node, ACCESS).unwrap();
    }
    // An ACL that the mode says whole is a mode.
    let minimal = value(&[(1, 7, NONE), (4, 1, NONE), (0x20, 0, NONE)]);
    client.set_xattr(fifo, ACCESS, &minimal, 0).unwrap();
    assert_eq!(client.mode_and_number(fifo).0, libc::S_IFIFO | 0o710);
    assert_eq!(client.set_xattr(fifo, ACCESS, &acl(), 0), Err(libc::EPERM));
    assert_eq!(
        client.set_xattr(link, ACCESS, &minimal, 0),
        Err(libc::EOPNOTSUPP)
    );
}

#[test]
fn the_guests_kernel_is_told_that_what_has_no_attributes_has_no_acl() {
    let mut client = Client::of(Path::new("/"), tempfile::tempdir().unwrap(), super::LIMITS);
    client.init().unwrap();
    let proc = client.lookup(1, "proc").unwrap();
    let version = client.lookup(proc, "version").unwrap();
    for node in [proc, version] {
        for name in [ACCESS, DEFAULT, CAPABILITY] {
            assert_eq!(client.get_xattr(node, name, 4096), Err(libc::ENODATA));
        }
    }
}

#[test]
fn an_acl_and_the_mode_go_together() {
    let Some((mut client, file, path)) = with_file() else {
        return;
    };
    client.set_xattr(file, ACCESS, &acl(), 0).unwrap();
    assert_eq!(client.get_xattr(file, ACCESS, 4096).unwrap(), acl());
    assert_eq!(client.xattrs(file), [ACCESS, "user.host"]);
    // The mask is the group's place in the mode; to the host it is a mode and no more.
    assert_eq!(mode(&path), 0o670);
    assert_eq!(on_host(&path, ACCESS), None);
    client.set(file, fattr::MODE, 0, 0o640, (0, 0)).unwrap();
    let masked = value(&[
        (1, 6, NONE),
        (2, 7, 1000),
        (4, 4, NONE),
        (0x10, 4, NONE),
        (0x20, 0, NONE),
    ]);
    assert_eq!(client.get_xattr(file, ACCESS, 4096).unwrap(), masked);
    assert_eq!(mode(&path), 0o640);
    // Gone, it leaves the mode; that there is none is no error.
    client.remove_xattr(file, ACCESS).unwrap();
    client.remove_xattr(file, ACCESS).unwrap();
    assert_eq!(mode(&path), 0o640);
    // One that the mode says whole is not kept.
    client.set_xattr(file, ACCESS, &acl(), 0).unwrap();
    let minimal = value(&[(1, 7, NONE), (4, 5, NONE), (0x20, 1, NONE)]);
    client.set_xattr(file, ACCESS, &minimal, 0).unwrap();
    assert_eq!(client.get_xattr(file, ACCESS, 4096), Err(libc::ENODATA));
    assert_eq!(mode(&path), 0o751);
    // The set-group-id bit goes where the guest's kernel says so.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o2755)).unwrap();
    client.set_xattr(file, ACCESS, &acl(), 0).unwrap();
    assert_eq!(mode(&path), 0o2670);
    let kill = abi::SETXATTR_ACL_KILL_SGID;
    client.set_xattr(file, ACCESS, &acl(), kill).unwrap();
    assert_eq!(mode(&path), 0o670);
    for bad in [&b""[..], b"\x02\0\0\0", b"nonsense"] {
        assert_eq!(client.set_xattr(file, ACCESS, bad, 0), Err(libc::EINVAL));
    }
    // Directories alone have a default.
    assert_eq!(
        client.set_xattr(file, DEFAULT, &acl(), 0),
        Err(libc::EACCES)
    );
    // Somebody on the host wrote nonsense: it is as if there were none, but the guest's kernel sees
    // it.
    let none = rustix::fs::XattrFlags::empty();
    let host = "user.bulkhead.system.posix_acl_access";
    rustix::fs::setxattr(&path, host, b"nonsense", none).unwrap();
    client.set(file, fattr::MODE, 0, 0o600, (0, 0)).unwrap();
    assert_eq!(client.get_xattr(file, ACCESS, 4096).unwrap(), b"nonsense");
}

#[test]
fn a_default_acl_is_inherited_in_place_of_the_umask() {
    if !is_root() {
        println!("skipped: needs root");
        return;
    }
    let Some((mut client, ..)) = with_file() else {
        return;
    };
    // Without one the umask holds, which the guest's kernel leaves to the server.
    let create = |client: &mut Client, dir, name: &str| {
        let flags = libc::O_RDWR.cast_unsigned();
        let body = named(words(&[flags, 0o666, 0o027, 0]), name);
        let answer = client.ask(op::CREATE, dir, &body).unwrap();
        super::u64_at(&answer, 0)
    };
    create(&mut client, 1, "plain");
    assert_eq!(mode(&client.share().join("plain")), 0o640);
    let dir = client.mkdir(1, "dir", 0o2770).unwrap();
    client.set(dir, fattr::MODE, 0, 0o2770, (0, 0)).unwrap();
    client.set_xattr(dir, DEFAULT, &acl(), 0).unwrap();
    assert_eq!(client.get_xattr(dir, DEFAULT, 4096).unwrap(), acl());
    let share = client.share().join("dir");
    let inherited = |mask| {
        value(&[
            (1, 6, NONE),
            (2, 7, 1000),
            (4, 4, NONE),
            (0x10, mask, NONE),
            (0x20, 0, NONE),
        ])
    };
    let file = create(&mut client, dir, "file");
    assert_eq!(client.get_xattr(file, ACCESS, 4096).unwrap(), inherited(6));
    assert_eq!(client.get_xattr(file, DEFAULT, 4096), Err(libc::ENODATA));
    assert_eq!(mode(&share.join("file")), 0o660);
    // A directory passes it on.
    let body = named(words(&[0o777, 0o077]), "sub");
    client.ask(op::MKDIR, dir, &body).unwrap();
    let sub = client.lookup(dir, "sub").unwrap();
    assert_eq!(client.get_xattr(sub, ACCESS, 4096).unwrap(), inherited(7));
    assert_eq!(client.get_xattr(sub, DEFAULT, 4096).unwrap(), acl());
    assert_eq!(mode(&share.join("sub")), 0o2670);
    // A FIFO can have none: its group gets what is the group's, not what is the mask's.
    let fifo = client.mknod(dir, "fifo", libc::S_IFIFO | 0o666, 0).unwrap();
    assert_eq!(client.mode_and_number(fifo).0, libc::S_IFIFO | 0o640);
    let null = client
        .mknod(dir, "null", libc::S_IFCHR | 0o666, 0x103)
        .unwrap();
    assert_eq!(client.mode_and_number(null), (libc::S_IFCHR | 0o660, 0x103));
    assert_eq!(client.get_xattr(null, ACCESS, 4096).unwrap(), inherited(6));
    let body = named(words(&[libc::O_RDWR.cast_unsigned(), 0o666, 0, 0]), "x");
    match client.ask(op::TMPFILE, dir, &body) {
        Ok(answer) => {
            let node = super::u64_at(&answer, 0);
            assert_eq!(client.get_xattr(node, ACCESS, 4096).unwrap(), inherited(6));
        }
        Err(error) => assert_eq!(error, libc::EOPNOTSUPP),
    }
    client.remove_xattr(dir, DEFAULT).unwrap();
    create(&mut client, dir, "after");
    assert_eq!(mode(&share.join("after")), 0o640);
}

#[test]
fn a_change_of_the_file_takes_its_capabilities_away() {
    if !is_root() {
        println!("skipped: needs root");
        return;
    }
    let Some((mut client, file, _)) = with_file() else {
        return;
    };
    let handle = client.open(file, libc::O_RDWR).unwrap();
    let mut gone_after = |what: &str, change: &mut dyn FnMut(&mut Client)| {
        client.set_xattr(file, CAPABILITY, &NET_RAW, 0).unwrap();
        assert_eq!(client.get_xattr(file, CAPABILITY, 64).unwrap(), NET_RAW);
        change(&mut client);
        let left = client.get_xattr(file, CAPABILITY, 64);
        assert_eq!(left, Err(libc::ENODATA), "{what}");
    };
    gone_after("a write", &mut |client| {
        client
            .write_with(file, handle, 0, b"x", abi::WRITE_KILL_SUIDGID)
            .unwrap();
    });
    gone_after("a change of owner", &mut |client| {
        client.set(file, fattr::UID, 0, 0, (5, 0)).unwrap();
    });
    gone_after("a truncation", &mut |client| {
        let valid = fattr::SIZE | fattr::KILL_SUIDGID;
        client.set(file, valid, 0, 0, (0, 0)).unwrap();
    });
    gone_after("an opening that truncates", &mut |client| {
        let flags = (libc::O_WRONLY | libc::O_TRUNC).cast_unsigned();
        let body = words(&[flags, abi::OPEN_KILL_SUIDGID]);
        client.ask(op::OPEN, file, &body).unwrap();
    });
}

#[test]
fn a_device_is_one_in_the_guest_and_a_file_on_the_host() {
    if !is_root() {
        println!("skipped: needs root");
        return;
    }
    let Some((mut client, ..)) = with_file() else {
        return;
    };
    let share = client.share();
    (client.uid, client.gid) = (1000, 2000);
    let (char, block) = (libc::S_IFCHR, libc::S_IFBLK);
    let null = client.mknod(1, "null", char | 0o666, 0x103).unwrap();
    // 8:257.
    let disk = client.mknod(1, "disk", block | 0o4640, 0x10_0801).unwrap();
    assert_eq!(client.mode_and_number(null), (char | 0o644, 0x103));
    assert_eq!(client.mode_and_number(disk), (block | 0o4640, 0x10_0801));
    let statx = client.ask(op::STATX, disk, &longs(&[0, 0, 0])).unwrap();
    assert_eq!(
        (u32_at(&statx, 32 + 128), u32_at(&statx, 32 + 132)),
        (8, 257)
    );
    assert_eq!(client.mknod(1, "null", char | 0o666, 5), Err(libc::EEXIST));
    for name in ["null", "disk"] {
        let meta = fs::symlink_metadata(share.join(name)).unwrap();
        assert!(meta.is_file() && meta.len() == 0, "{name}");
        assert_eq!((meta.uid(), meta.gid()), (1000, 2000));
        assert_eq!(mode(&share.join(name)), 0o1600);
    }
    // The guest's kernel opens it, and does not ask here.
    for flags in [libc::O_RDONLY, libc::O_RDWR] {
        assert_eq!(client.open(null, flags), Err(libc::ENXIO));
        assert_eq!(client.create(1, "null", flags, 0o600), Err(libc::ESTALE));
    }
    // It is changed, linked, moved and removed as any file.
    client.set(null, fattr::MODE, 0, 0o4600, (0, 0)).unwrap();
    client
        .set(null, fattr::UID | fattr::GID, 0, 0, (7, 8))
        .unwrap();
    assert_eq!(client.mode_and_number(null), (char | 0o4600, 0x103));
    assert_eq!(mode(&share.join("null")), 0o1600);
    assert_eq!(fs::metadata(share.join("null")).unwrap().uid(), 7);
    client.set_xattr(null, ACCESS, &acl(), 0).unwrap();
    assert_eq!(client.mode_and_number(null).0, char | 0o4670);
    client.set(null, fattr::MODE, 0, 0o600, (0, 0)).unwrap();
    assert_eq!(client.mode_and_number(null).0, char | 0o600);
    assert_eq!(client.xattrs(null), [ACCESS]);
    (client.uid, client.gid) = (0, 0);
    let dir = client.mkdir(1, "dir", 0o755).unwrap();
    client
        .ask(op::LINK, dir, &named(longs(&[null]), "linked"))
        .unwrap();
    assert_eq!(client.lookup(dir, "linked"), Ok(null));
    let sub = client.mkdir(dir, "sub", 0o755).unwrap();
    client.rename((1, "disk"), (sub, "moved"), 0).unwrap();
    assert_eq!(client.lookup(sub, "moved"), Ok(disk));
    // Listings say what each is, wherever it went.
    let (chr, blk, reg, directory) = (2, 6, 8, 4);
    let listed = |client: &mut Client, dir| {
        let entries = client.entries(dir);
        entries
            .into_iter()
            .map(|(name, kind)| format!("{name} {kind}"))
            .collect::<Vec<_>>()
            .join(", ")
    };
    assert_eq!(
        listed(&mut client, 1),
        format!("dir {directory}, file {reg}, null {chr}")
    );
    assert_eq!(
        listed(&mut client, dir),
        format!("linked {chr}, sub {directory}")
    );
    assert_eq!(listed(&mut client, sub), format!("moved {blk}"));
    client
        .rename((sub, "moved"), (1, "file"), libc::RENAME_EXCHANGE)
        .unwrap();
    assert_eq!(listed(&mut client, sub), format!("moved {reg}"));
    client
        .ask(op::UNLINK, dir, &named(vec![], "linked"))
        .unwrap();
    client.ask(op::UNLINK, 1, &named(vec![], "null")).unwrap();
    assert!(!share.join("null").exists());
    // The notes are not the guest's to see.
    assert!(client.xattrs(1).is_empty());
}

/// A whiteout is a device that no kernel opens, and overlayfs looks for it in listings.
#[test]
fn a_whiteout_is_what_it_is() {
    if !is_root() {
        println!("skipped: needs root");
        return;
    }
    let mut client = Client::new();
    let node = client.mknod(1, "gone", libc::S_IFCHR, 0).unwrap();
    assert_eq!(client.mode_and_number(node), (libc::S_IFCHR, 0));
    let meta = fs::symlink_metadata(client.share().join("gone")).unwrap();
    assert!(meta.file_type().is_char_device() && meta.rdev() == 0);
    assert_eq!(client.open(node, libc::O_RDWR), Err(libc::ENXIO));
    assert_eq!(client.entries(1), [("gone".to_owned(), 2)]);
    fs::write(client.share().join("a"), "").unwrap();
    client
        .rename((1, "a"), (1, "b"), libc::RENAME_WHITEOUT)
        .unwrap();
    assert_eq!(
        client.entries(1),
        [
            ("a".to_owned(), 2),
            ("b".to_owned(), 8),
            ("gone".to_owned(), 2)
        ]
    );
}

/// Nothing the guest writes makes a file a device, and what is on the host can be anything.
#[test]
fn only_mknod_makes_devices() {
    let Some((mut client, ..)) = with_file() else {
        return;
    };
    let (file, handle) = client.create(1, "forged", libc::O_RDWR, 0o1600).unwrap();
    client.set(file, fattr::MODE, 0, 0o1600, (0, 0)).unwrap();
    for name in ["user.bulkhead.device", "trusted.device"] {
        client.set_xattr(file, name, b"b 8:0 0666", 0).unwrap();
    }
    let kind = |client: &mut Client| client.mode_and_number(file).0 & libc::S_IFMT;
    assert_eq!(kind(&mut client), libc::S_IFREG);
    // Whoever writes the attribute on the host fools the guest, and nobody else.
    let path = client.share().join("forged");
    let set = |value: &[u8]| {
        let none = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(&path, "user.bulkhead.device", value, none).unwrap();
    };
    let long = [b'c'; 100];
    for nonsense in [&b""[..], b"c 1:3", b"c 1:3 0666\0", b"x 1:3 0666", &long] {
        set(nonsense);
        assert_eq!(kind(&mut client), libc::S_IFREG);
    }
    set(b"c 1:3 0666");
    assert_eq!(kind(&mut client), libc::S_IFCHR);
    // It has become a file.
    client.write(file, handle, 0, b"text").unwrap();
    assert_eq!(kind(&mut client), libc::S_IFREG);
    assert_eq!(fs::read(&path).unwrap(), b"text");
}
