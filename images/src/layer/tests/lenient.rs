//! Layers that are odd and that containerd takes: here they are what they are there.

use super::builder::*;
use super::*;

const CHAR_DEVICE: u16 = 0o020_000;
const DIRECTORY: u16 = 0o040_000;

/// The bits of a mode that say what a file is.
fn kind(file: &File) -> u16 {
    file.mode & 0o170_000
}

#[test]
fn a_whiteout_of_a_file_whose_name_is_as_long_as_names_can_be() {
    for len in [1, 250, 251, 252, 253, 254, 255] {
        let hidden = "n".repeat(len);
        for dir in ["", "d/", "d/e/"] {
            let path = format!("{dir}.wh.{hidden}");
            let tar = Tar::default()
                .pax(&[("path", path.as_bytes())])
                .file("x", "")
                .end();
            let tree = tree(&tar);
            let file = &tree[format!("{dir}{hidden}").as_bytes()];
            assert_eq!(kind(file), CHAR_DEVICE, "{len}");
        }
    }
    // Longer names cannot be; and a whiteout as a directory is none.
    for path in [
        format!(".wh.{}", "n".repeat(256)),
        format!(".wh.{}/x", "n".repeat(252)),
        "n".repeat(256),
    ] {
        let tar = Tar::default()
            .pax(&[("path", path.as_bytes())])
            .file("x", "")
            .end();
        assert_eq!(problem(&tar), EntryProblem::NameTooLong);
    }
}

#[test]
fn directories_made_for_a_link_have_names_that_can_be() {
    let tar = Tar::default()
        .pax(&[("linkpath", "n".repeat(256).as_bytes())])
        .symlink("l", "x")
        .file("l/f", "")
        .end();
    assert_eq!(problem(&tar), EntryProblem::NameTooLong);
}

#[test]
fn dots_in_a_path_are_taken_out_before_links_are_followed() {
    for (name, place) in [
        ("a/../b", "b"),
        ("a/b/../../c", "c"),
        ("a/./b/../c", "a/c"),
        ("/a/../b", "b"),
        ("a//..//b", "b"),
        ("l/../b", "b"),
    ] {
        let tar = Tar::default()
            .symlink("l", "x/y/z")
            .file(name, "here")
            .end();
        let tree = tree(&tar);
        let there: Vec<_> = paths(&tree)
            .into_iter()
            .filter(|path| path != "l")
            .collect();
        assert!(there.contains(&place.to_owned()), "{name}: {there:?}");
        assert!(
            there.iter().all(|path| place.starts_with(path.as_str())),
            "{name}: {there:?}"
        );
    }
    // A whiteout and a directory, likewise.
    let tree = tree(
        &Tar::default()
            .dir("a/../d/")
            .file("d/../.wh.gone", "")
            .end(),
    );
    assert_eq!(kind(&tree[&b"gone"[..]]), CHAR_DEVICE);
    assert_eq!(kind(&tree[&b"d"[..]]), DIRECTORY);
}

#[test]
fn an_entry_for_the_root_that_is_no_directory_says_nothing() {
    for name in ["/", ".", "./", "//./", "a/..", "..", "/..", ""] {
        let entries = [
            item(b'0', name),
            item(b'2', name),
            item(b'3', name),
            item(b'6', name),
        ];
        for mut entry in entries {
            if entry.kind == b'0' {
                entry.body = vec![7; 1000];
            }
            entry.link = b"etc".to_vec();
            let tar = Tar::default().item(&entry).file("f", "here").end();
            let (tree, _) = run(&tar).unwrap_or_else(|error| panic!("{name:?}: {error}"));
            assert_eq!(paths(&tree), ["f"], "{name:?}");
            assert_eq!(kind(&tree[&b""[..]]), DIRECTORY, "{name:?}");
        }
    }
}

#[test]
fn a_header_as_the_last_record_is_an_end() {
    let long = Item {
        body: b"a/long/name\0".to_vec(),
        ..item(b'L', "././@LongLink")
    };
    let link = Item {
        kind: b'K',
        ..long.clone()
    };
    let global = Item {
        body: pax_body(&[("comment", b"a commit")]),
        ..item(b'g', "pax_global_header")
    };
    let extended = Item {
        body: pax_body(&[("path", b"g")]),
        ..item(b'x', "PaxHeaders/g")
    };
    for last in [&long, &link, &global, &extended] {
        let archive = || Tar::default().file("f", "").item(last);
        for tar in [archive().end(), archive().0, archive().raw(&[0; 512]).0] {
            assert_eq!(paths(&tree(&tar)), ["f"], "{:?}", char::from(last.kind));
        }
        assert!(paths(&tree(&Tar::default().item(last).end())).is_empty());
    }
    // But not one that is cut off.
    let cut = Tar::default().file("f", "").item(&extended).0;
    assert!(matches!(
        run(&cut[..cut.len() - 500]),
        Err(LayerError::Truncated { .. })
    ));
}

#[test]
fn a_user_of_minus_one_is_root() {
    let with = |uid: [u8; 8]| {
        let mut header = item(b'0', "f").header();
        header[108..116].copy_from_slice(&uid);
        header[116..124].copy_from_slice(&uid);
        checksum(&mut header);
        Tar::default().raw(&header).end()
    };
    let last = |n: u32| {
        let mut field = [0; 8];
        field[0] = 0x80;
        field[4..].copy_from_slice(&n.to_be_bytes());
        field
    };
    for (uid, expected) in [
        ([0xff; 8], 0),
        (last(u32::MAX), 0),
        (last(u32::MAX - 1), u32::MAX - 1),
        (
            [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe],
            u32::MAX - 1,
        ),
        (last(1000), 1000),
    ] {
        let tree = tree(&with(uid));
        let file = &tree[&b"f"[..]];
        assert_eq!((file.uid, file.gid), (expected, expected), "{uid:?}");
    }
    let pax = |value: &[u8]| {
        Tar::default()
            .pax(&[("uid", value), ("gid", value)])
            .file("f", "")
            .end()
    };
    for (value, expected) in [("-1", 0), ("4294967295", 0), ("-2", u32::MAX - 1), ("7", 7)] {
        let tree = tree(&pax(value.as_bytes()));
        let file = &tree[&b"f"[..]];
        assert_eq!((file.uid, file.gid), (expected, expected), "{value}");
    }
    for value in [
        "-",
        "--1",
        "-x",
        "4294967296",
        "-9999999999",
        "99999999999999999999",
    ] {
        assert!(
            matches!(
                format_problem(&pax(value.as_bytes())),
                FormatProblem::Number("uid")
            ),
            "{value}"
        );
    }
    let mut header = item(b'0', "f").header();
    header[100..108].copy_from_slice(&[0xff; 8]);
    checksum(&mut header);
    let tree = tree(&Tar::default().raw(&header).end());
    assert_eq!(tree[&b"f"[..]].mode & 0o7777, 0o7777);
}

#[test]
fn a_layer_of_no_bytes_is_an_empty_directory() {
    let (tree, info) = run(b"").unwrap();
    assert!(paths(&tree).is_empty());
    assert_eq!(info.entries, 0);
}

#[test]
fn a_layer_of_more_than_64_gib() {
    // 300 pieces of one byte, each in a chunk of 512 MiB: holes in the layer's file, too.
    let pieces: Vec<_> = (0..300_u64).map(|n| format!("{},1", n << 38)).collect();
    let tar = Tar::default()
        .pax(&[
            ("GNU.sparse.size", (300_u64 << 38).to_string().as_bytes()),
            ("GNU.sparse.map", pieces.join(",").as_bytes()),
        ])
        .file("f", [7; 300])
        .file("behind", "here")
        .end();
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits::default();
    let pending = convert(&tar[..], dir.path(), &limits, &mut |_| {}).unwrap();
    let (path, info) = pending.commit("layer.erofs").unwrap();
    assert!(info.erofs_size > 64 << 30, "{}", info.erofs_size);
    let meta = std::fs::metadata(&path).unwrap();
    assert_eq!(meta.len(), info.file_size);
    let said = Description::read(&path).unwrap();
    let mut again = Vec::new();
    Rebuild::new(std::fs::File::open(&path).unwrap(), &said.recipe)
        .unwrap()
        .read_to_end(&mut again)
        .unwrap();
    assert!(again == tar, "the tar as it was");
    // The limit is the operator's.
    let limits = Limits {
        max_layer_bytes: 64 << 30,
        ..limits
    };
    assert!(matches!(
        convert(&tar[..], dir.path(), &limits, &mut |_| {}),
        Err(LayerError::Image(_))
    ));
}
