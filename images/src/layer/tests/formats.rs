//! Every type of entry and every variant of the format, one by one.

use super::builder::*;
use super::*;

fn one(tree: &Tree, path: &str) -> File {
    tree.get(path.as_bytes())
        .unwrap_or_else(|| panic!("no {path} in {:?}", paths(tree)))
        .clone()
}

#[test]
fn every_type() {
    let device = |kind, name: &str, device| Item {
        device,
        mode: 0o600,
        ..item(kind, name)
    };
    let tar = Tar::default()
        .item(&Item {
            mode: 0o1777,
            uid: 5,
            gid: 6,
            mtime: 7,
            ..item(b'5', "./")
        })
        .file("a", "alpha")
        .item(&Item {
            mode: 0o4711,
            uid: 70_000,
            gid: 1 << 31,
            ..item(b'7', "contiguous")
        })
        .item(&Item {
            body: b"old".to_vec(),
            kind: 0,
            magic: [0; 8],
            ..item(0, "v7")
        })
        .item(&Item {
            kind: 0,
            ..item(0, "v7dir/")
        })
        .dir("d")
        .symlink("d/l", "../a")
        .hardlink("d/h", "a")
        .item(&device(b'3', "null", (1, 3)))
        .item(&device(b'4', "disk", (4095, 1_048_575)))
        .item(&item(b'6', "pipe"))
        .end();
    let (t, info) = run(&tar).unwrap();
    let top = one(&t, "");
    assert_eq!(
        (top.mode, top.uid, top.gid, top.mtime),
        (0o041_777, 5, 6, (7, 0))
    );
    let a = one(&t, "a");
    assert_eq!(
        (a.mode, &a.data[..], a.nlink),
        (0o100_644, &b"alpha"[..], 2)
    );
    assert_eq!(one(&t, "d/h"), a);
    let c = one(&t, "contiguous");
    assert_eq!(
        (c.mode, c.uid, c.gid, c.size),
        (0o104_711, 70_000, 1 << 31, 0)
    );
    assert_eq!(one(&t, "v7").data, b"old");
    assert_eq!(one(&t, "v7dir").mode & 0o170_000, 0o040_000);
    assert_eq!(
        (one(&t, "d/l").mode & 0o170_000, &one(&t, "d/l").data[..]),
        (0o120_000, &b"../a"[..])
    );
    assert_eq!(
        (one(&t, "null").mode, one(&t, "null").rdev),
        (0o020_600, 0x103)
    );
    assert_eq!(
        (one(&t, "disk").mode, one(&t, "disk").rdev),
        (0o060_600, u32::MAX)
    );
    assert_eq!(one(&t, "pipe").mode & 0o170_000, 0o010_000);
    assert_eq!((info.entries, info.implicit_dirs.len()), (11, 0));
}

#[test]
fn long_names() {
    let long = format!(
        "{}/{}/{}",
        "x".repeat(255),
        "y".repeat(255),
        "z".repeat(255)
    );
    let target = "t".repeat(4095);
    let prefixed = {
        let mut h = item(b'0', "file").header();
        h[345..345 + 7].copy_from_slice(b"far/off");
        checksum(&mut h);
        h
    };
    let star = {
        let mut h = item(b'0', "file").header();
        h[345..345 + 4].copy_from_slice(b"star");
        h[476..476 + 11].copy_from_slice(b"14524770401");
        h[508..512].copy_from_slice(b"tar\0");
        checksum(&mut h);
        h
    };
    let gnu = |kind, text: &str| Item {
        body: [text.as_bytes(), b"\0"].concat(),
        magic: *b"ustar  \0",
        ..item(kind, "././@LongLink")
    };
    let tar = Tar::default()
        .item(&gnu(b'L', &long))
        .file("cut", "1")
        .item(&gnu(b'K', &target))
        .item(&gnu(b'L', "gnu-link"))
        .symlink("cut", "cut")
        .pax(&[("path", format!("{}w", &long[..long.len() - 1]).as_bytes())])
        .file("cut", "2")
        .pax(&[("path", b"pax-link"), ("linkpath", target.as_bytes())])
        .symlink("cut", "cut")
        .raw(&prefixed)
        .raw(&star)
        .end();
    let t = tree(&tar);
    assert_eq!(one(&t, &long).data, b"1");
    assert_eq!(one(&t, &format!("{}w", &long[..long.len() - 1])).data, b"2");
    for name in ["gnu-link", "pax-link"] {
        assert!(one(&t, name).data == target.as_bytes(), "{name}");
    }
    assert!(t.contains_key(&b"far/off/file"[..]) && t.contains_key(&b"star/file"[..]));
}

#[test]
fn numbers_and_times() {
    let big = Item {
        uid: u64::from(u32::MAX) - 1,
        gid: 1 << 30,
        mtime: 1 << 34,
        ..item(b'0', "big")
    };
    let tar = Tar::default()
        .item(&big)
        .pax(&[("uid", b"3000000000"), ("gid", b"7"), ("mtime", b"-1.5")])
        .file("pax", "x")
        .pax(&[("size", b"3")])
        .item(&Item {
            body: b"abc".to_vec(),
            size: Some(0),
            ..item(b'0', "size")
        })
        // Global headers and volume labels say nothing about files.
        .item(&Item {
            body: pax_body(&[("path", b"wrong")]),
            ..item(b'g', "g")
        })
        .item(&item(b'V', "label"))
        .file("after", "y")
        .end();
    let t = tree(&tar);
    let f = one(&t, "big");
    assert_eq!(
        (f.uid, f.gid, f.mtime),
        (u32::MAX - 1, 1 << 30, (1 << 34, 0))
    );
    let f = one(&t, "pax");
    assert_eq!(
        (f.uid, f.gid, f.mtime),
        (3_000_000_000, 7, (-2, 500_000_000))
    );
    assert_eq!(one(&t, "size").data, b"abc");
    assert_eq!(paths(&t), ["after", "big", "pax", "size"]);
}

#[test]
fn attributes() {
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let tar = Tar::default()
        .pax(&[("SCHILY.xattr.user.on-root", b"1")])
        .dir("/")
        .pax(&[
            ("SCHILY.xattr.security.capability", &capability),
            ("SCHILY.xattr.user.text", b"a=b\nc\0d"),
            ("LIBARCHIVE.xattr.user.text", b"b3RoZXI="),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ("SCHILY.xattr.com.apple.quarantine", b"x"),
            ("SCHILY.xattr.system.posix_acl_access", &[2, 0, 0, 0]),
        ])
        .file("f", "x")
        .pax(&[
            ("SCHILY.xattr.trusted.t", b""),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ])
        .dir("d")
        .file("plain", "")
        .end();
    let (t, info) = run(&tar).unwrap();
    assert_eq!(info.dropped_xattrs, 3);
    let f = one(&t, "f").xattrs;
    assert_eq!(f.len(), 3);
    assert_eq!(f[&b"security.capability"[..]], capability);
    assert_eq!(f[&b"user.text"[..]], b"other");
    assert_eq!(f[&b"system.posix_acl_access"[..]], [2, 0, 0, 0]);
    assert_eq!(
        one(&t, "d").xattrs,
        [(b"trusted.t".to_vec(), vec![])].into()
    );
    assert_eq!(one(&t, "").xattrs[&b"user.on-root"[..]], b"1");
    assert!(one(&t, "plain").xattrs.is_empty());
}

/// A sparse file of 1 MiB: "abc" at 5000, "z" at its end.
fn sparse_body() -> Vec<u8> {
    let mut body = vec![0; 1 << 20];
    body[5000..5003].copy_from_slice(b"abc");
    body[(1 << 20) - 1] = b'z';
    body
}

#[test]
fn sparse_formats() {
    let piece = |offset: u64, len: u64| [number(offset, 12), number(len, 12)].concat();
    let old = |pieces: &[Vec<u8>], more: u8, body_len: u64| {
        let gnu = Item {
            size: Some(body_len),
            magic: *b"ustar  \0",
            ..item(b'S', "f")
        };
        let mut h = gnu.header();
        for (n, piece) in pieces.iter().enumerate() {
            h[386 + 24 * n..386 + 24 * (n + 1)].copy_from_slice(piece);
        }
        h[482] = more;
        h[483..495].copy_from_slice(&number(1 << 20, 12));
        checksum(&mut h);
        h
    };
    let end = piece((1 << 20) - 1, 1);
    let (first, empty) = (piece(5000, 3), piece(1 << 20, 0));
    let inline = old(&[first.clone(), end.clone(), empty], 0, 4);
    let mut block = [0; 512];
    block[..24].copy_from_slice(&end);
    let single = [
        piece(5000, 1),
        piece(5001, 1),
        piece(5002, 1),
        piece(6000, 0),
    ];
    let size = (1 << 20).to_string();
    let zero: Vec<(&str, &[u8])> = vec![
        ("GNU.sparse.size", size.as_bytes()),
        ("GNU.sparse.numblocks", b"2"),
        ("GNU.sparse.offset", b"5000"),
        ("GNU.sparse.numbytes", b"3"),
        ("GNU.sparse.offset", b"1048575"),
        ("GNU.sparse.numbytes", b"1"),
    ];
    let one_zero: Vec<(&str, &[u8])> = vec![
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"f"),
        ("GNU.sparse.realsize", size.as_bytes()),
    ];
    let mut with_map = b"2\n5000\n3\n1048575\n1\n".to_vec();
    with_map.resize(512, 0);
    with_map.extend_from_slice(b"abcz");
    let table = [
        ("old", Tar::default().raw(&inline).body(b"abcz")),
        (
            "old, extended",
            Tar::default()
                .raw(&old(&single, 1, 4))
                .raw(&block)
                .body(b"abcz"),
        ),
        ("0.0", Tar::default().pax(&zero).file("f", "abcz")),
        (
            "0.1",
            Tar::default()
                .pax(&[
                    ("GNU.sparse.size", size.as_bytes()),
                    ("GNU.sparse.name", b"f"),
                    ("GNU.sparse.map", b"5000,3,1048575,1"),
                ])
                .file("GNUSparseFile.1/f", "abcz"),
        ),
        (
            "1.0",
            Tar::default()
                .pax(&one_zero)
                .file("GNUSparseFile.1/f", &with_map),
        ),
    ];
    for (name, tar) in table {
        let (t, _) = run(&tar.file("after", "x").end()).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(paths(&t), ["after", "f"], "{name}");
        assert!(one(&t, "f").data == sparse_body(), "{name}");
        assert_eq!(one(&t, "f").holes, (1 << 20) - 2 * 4096, "{name}");
    }
}

#[test]
fn ends_of_archives() {
    let file = Tar::default().file("f", "abc");
    let whole = file.clone().end();
    assert_eq!(paths(&tree(&whole)), ["f"]);
    // Anything may follow the end, and is part of the digest.
    let mut garbage = whole.clone();
    garbage.extend_from_slice(&[0xaa; 5000]);
    let (t, info) = run(&garbage).unwrap();
    assert_eq!(
        (paths(&t), info.bytes),
        (vec!["f".to_owned()], 512 * 4 + 5000)
    );
    assert_ne!(info.diff_id, run(&whole).unwrap().1.diff_id);
    // No marks at the end, one mark, no padding behind the last file, nothing at all.
    assert_eq!(paths(&tree(&file.0)), ["f"]);
    assert_eq!(paths(&tree(&whole[..1536])), ["f"]);
    assert_eq!(paths(&tree(&whole[..515])), ["f"]);
    assert_eq!(paths(&tree(&[])), [""; 0]);
}

#[test]
fn the_digest_and_the_uuid_depend_on_content_only() {
    let tar = Tar::default().dir("d").file("d/f", vec![1; 300_000]).end();
    let make = |step: usize| {
        let reader = Trickle { data: &tar, step };
        let out = Cursor::new(Vec::new());
        let (out, info) = convert_into(reader, out, &Limits::default(), &mut |_| {}).unwrap();
        (out.into_inner(), info)
    };
    let (image, info) = make(usize::MAX);
    let sum: [u8; 32] = sha2::Digest::finalize(sha2::Digest::chain_update(
        <sha2::Sha256 as sha2::Digest>::new(),
        &tar,
    ))
    .into();
    assert_eq!(info.diff_id, sum);
    for step in [1, 7, 511, 512, 4097] {
        assert!(make(step) == (image.clone(), info.clone()), "{step}");
    }
}

/// Gives a few bytes at a time.
struct Trickle<'a> {
    data: &'a [u8],
    step: usize,
}

impl std::io::Read for Trickle<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = self.step.min(buf.len()).min(self.data.len());
        buf[..n].copy_from_slice(&self.data[..n]);
        self.data = &self.data[n..];
        Ok(n)
    }
}
