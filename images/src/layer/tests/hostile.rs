//! Layers made to do harm: each is refused, with what it is and where.

use super::builder::*;
use super::*;

#[test]
fn paths_that_lead_out_end_at_the_root() {
    for (name, place) in [
        ("../x", "x"),
        ("/../x", "x"),
        ("./../x", "x"),
        ("../../../../x", "x"),
        ("a/../../x", "x"),
        ("../a/../x", "x"),
    ] {
        let tree = tree(&Tar::default().file(name, "here").end());
        assert_eq!(paths(&tree), [place], "{name}");
    }
    // Behind a link, too: `..` is taken out of the path before links are followed.
    let tar = Tar::default()
        .symlink("l", "../../..")
        .file("l/../x", "")
        .file("l/y", "")
        .end();
    assert_eq!(paths(&tree(&tar)), ["l", "x", "y"]);
}

#[test]
fn odd_paths_and_targets() {
    let nul = Tar::default().pax(&[("path", b"a\0b")]).file("x", "").end();
    assert_eq!(problem(&nul), EntryProblem::Nul);
    let nul = Tar::default()
        .pax(&[("linkpath", b"a\0b")])
        .symlink("x", "y")
        .end();
    assert_eq!(problem(&nul), EntryProblem::Nul);
    assert_eq!(
        problem(&Tar::default().symlink("x", "").end()),
        EntryProblem::EmptyTarget
    );
}

#[test]
fn names_that_are_too_long() {
    let with = |path: &str| {
        Tar::default()
            .pax(&[("path", path.as_bytes())])
            .file("x", "")
            .end()
    };
    assert_eq!(problem(&with(&"n".repeat(256))), EntryProblem::NameTooLong);
    assert_eq!(
        problem(&with(&"n/".repeat(2048))),
        EntryProblem::PathTooLong(4095)
    );
    assert_eq!(
        problem(&with(&"n/".repeat(1000))),
        EntryProblem::TooDeep(512)
    );
    let target = "t".repeat(4096);
    let link = Tar::default()
        .pax(&[("linkpath", target.as_bytes())])
        .symlink("x", "y")
        .end();
    assert_eq!(problem(&link), EntryProblem::PathTooLong(4095));
    // Depth cannot be stacked up through links either.
    let mut tar = Tar::default();
    for n in 0..20 {
        let below = if n == 0 {
            "d/".repeat(40)
        } else {
            format!("l{}/{}", n - 1, "d/".repeat(40))
        };
        tar = tar.symlink(format!("l{n}"), &below).dir(format!("l{n}/"));
        tar = tar
            .symlink(format!("l{n}"), &below)
            .file(format!("l{n}/x"), "");
    }
    assert_eq!(problem(&tar.end()), EntryProblem::TooDeep(512));
}

#[test]
fn sizes_that_are_lies() {
    let small = Limits {
        max_layer_bytes: 1 << 20,
        ..Limits::default()
    };
    let claim = |size| {
        Tar::default()
            .item(&Item {
                size: Some(size),
                ..item(b'0', "f")
            })
            .end()
    };
    for size in [1 << 20, u64::from(u32::MAX), i64::MAX as u64] {
        assert_eq!(limit(&claim(size), &small), "bytes", "{size}");
    }
    let pax = Tar::default()
        .pax(&[("size", b"18446744073709551615")])
        .file("f", "")
        .end();
    assert_eq!(limit(&pax, &small), "bytes");
    // A stream that goes on and on.
    let endless = std::io::repeat(0);
    let error = convert_into(endless, Cursor::new(vec![]), &small, &mut |_| {}).unwrap_err();
    assert!(matches!(error, LayerError::Limit { what: "bytes", .. }));
    // Small tar, large image: a chunk of 16 MiB for each byte.
    let pieces = (0..64_u64)
        .map(|n| format!("{},1", n << 40))
        .collect::<Vec<_>>()
        .join(",");
    let sparse = Tar::default()
        .pax(&[
            ("GNU.sparse.size", b"70368744177664"),
            ("GNU.sparse.map", pieces.as_bytes()),
        ])
        .file("f", [1; 64])
        .end();
    let error = run_limited(&sparse, &small).unwrap_err();
    assert!(matches!(error, LayerError::Image(_)), "{error}");
}

#[test]
fn cut_off_anywhere() {
    let mut map = b"1\n0\n600\n".to_vec();
    map.resize(512 + 600, 1);
    let tar = Tar::default()
        .file("f", [1; 700])
        .pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.realsize", b"600")])
        .file("s", &map)
        .dir("d")
        .end();
    let boundary = |n: usize| run(&tar[..n]).is_ok();
    let good: Vec<usize> = (0..tar.len()).filter(|n| boundary(*n)).collect();
    for n in &good {
        // Only where an entry ends: padding may be missing, data or headers may not.
        let s = 3072 + map.len();
        let between = [
            0..=0,
            512 + 700..=1536,
            // Behind an extended header, whose entry does not come.
            2560..=2560,
            s..=s.next_multiple_of(512),
            5120..=tar.len(),
        ];
        assert!(
            between.iter().any(|range| range.contains(n)),
            "{n} of {}",
            tar.len()
        );
    }
    for n in [1, 511, 600, 1537, 1600, 2100] {
        let error = run(&tar[..n]).unwrap_err();
        let cut = matches!(
            error,
            LayerError::Truncated { .. } | LayerError::Format { .. }
        );
        assert!(cut, "{n}: {error}");
    }
}

#[test]
fn too_much_of_everything() {
    let many = (0..100)
        .fold(Tar::default(), |tar, n| tar.file(format!("f{n}"), ""))
        .end();
    let few = Limits {
        max_entries: 50,
        ..Limits::default()
    };
    assert_eq!(limit(&many, &few), "entries");
    let deep = (0..10).fold(Tar::default(), |tar, n| {
        tar.file(format!("{n}/a/b/c/d/e/f/g"), "")
    });
    assert_eq!(limit(&deep.end(), &few), "files and directories");
    let memory = Limits {
        max_memory_bytes: 5000,
        ..Limits::default()
    };
    assert_eq!(
        limit(&many, &memory),
        "bytes of names, attributes and indexes"
    );
    let holes = [
        ("GNU.sparse.size", &b"1073741824"[..]),
        ("GNU.sparse.map", b""),
    ];
    let holes = Tar::default().pax(&holes).file("f", "").end();
    assert!(run(&holes).is_ok());
    assert_eq!(
        limit(&holes, &memory),
        "bytes of names, attributes and indexes"
    );
    let xattr = |n: usize| {
        let value = vec![b'x'; n];
        Tar::default()
            .pax(&[("SCHILY.xattr.user.a", &value)])
            .file("f", "")
            .end()
    };
    assert!(run(&xattr(60_000)).is_ok());
    for n in [65_536, 70_000] {
        assert_eq!(problem(&xattr(n)), EntryProblem::Xattrs(64 << 10), "{n}");
    }
    let header = Limits {
        max_header_bytes: 4096,
        ..Limits::default()
    };
    assert_eq!(
        limit(&xattr(5000), &header),
        "bytes of headers for one file"
    );
    let claim = Item {
        size: Some(1 << 40),
        ..item(b'L', "x")
    };
    let claim = Tar::default().item(&claim).end();
    assert_eq!(
        limit(&claim, &Limits::default()),
        "bytes of headers for one file"
    );
    let chain = (0..3000).fold(Tar::default(), |tar, _| tar.item(&item(b'L', "x")));
    assert_eq!(
        limit(&chain.end(), &Limits::default()),
        "bytes of headers for one file"
    );
    let sparse = Limits {
        max_sparse_extents: 3,
        ..Limits::default()
    };
    let map = Tar::default()
        .pax(&[
            ("GNU.sparse.size", b"9"),
            ("GNU.sparse.map", b"0,1,2,1,4,1,6,1"),
        ])
        .file("f", "abcd")
        .end();
    assert!(run(&map).is_ok());
    assert_eq!(limit(&map, &sparse), "pieces of data in a sparse file");
    let one = Tar::default()
        .pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.realsize", b"9")])
        .file("f", "99999999999\n")
        .end();
    assert!(matches!(format_problem(&one), FormatProblem::Sparse(_)));
    let one = Tar::default()
        .pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.realsize", b"9")])
        .file("f", [&b"99999999999\n"[..], &[b'0'; 600]].concat())
        .end();
    assert_eq!(
        limit(&one, &Limits::default()),
        "pieces of data in a sparse file"
    );
}

#[test]
fn steps_through_links_are_bounded() {
    // Every entry walks forty links of two thousand components each.
    let long = format!("{}b", "./".repeat(2000));
    let mut tar = Tar::default().dir("b");
    for n in 0..39 {
        let next = if n == 38 {
            "b".to_owned()
        } else {
            format!("l{}", n + 1)
        };
        let target = long.replace('b', &next);
        tar = tar
            .pax(&[("linkpath", target.as_bytes())])
            .symlink(format!("l{n}"), "x");
    }
    for n in 0..500 {
        tar = tar.file(format!("l0/{n}"), "");
    }
    assert_eq!(
        limit(&tar.end(), &Limits::default()),
        "steps through symbolic links"
    );
}

#[test]
fn impossible_maps() {
    let with = |map: &str, size: &str| {
        let records: &[(&str, &[u8])] = &[
            ("GNU.sparse.size", size.as_bytes()),
            ("GNU.sparse.map", map.as_bytes()),
        ];
        Tar::default().pax(records).file("f", "abcd").end()
    };
    for (map, size) in [
        ("0,3", "10"),
        ("0,5", "10"),
        ("0,2,1,2", "10"),
        ("5,2,0,2", "10"),
        ("8,4", "10"),
        ("0,4,5", "10"),
        ("18446744073709551615,4", "18446744073709551615"),
        ("0,18446744073709551615,1,5", "18446744073709551615"),
    ] {
        assert!(
            matches!(format_problem(&with(map, size)), FormatProblem::Sparse(_)),
            "{map}"
        );
    }
    let error = run(&with("0,4", "18446744073709551615")).unwrap_err();
    assert!(matches!(error, LayerError::Image(_)), "{error}");
    let version = Tar::default()
        .pax(&[("GNU.sparse.major", b"2")])
        .file("f", "")
        .end();
    assert!(matches!(format_problem(&version), FormatProblem::Sparse(_)));
}

#[test]
fn headers_that_are_not_headers() {
    assert_eq!(format_problem(&[b'x'; 512]), FormatProblem::Checksum);
    let lone = Tar::default()
        .file("f", "")
        .raw(&[0; 512])
        .file("g", "")
        .end();
    assert_eq!(format_problem(&lone), FormatProblem::LoneZero);
    for kind in [b'D', b'M', b'N', b'?', 0xff] {
        let tar = Tar::default().item(&item(kind, "f")).end();
        assert_eq!(problem(&tar), EntryProblem::Type(kind));
    }
    let mut header = item(b'0', "f").header();
    header[124..136].copy_from_slice(b"-0000000001\0");
    checksum(&mut header);
    assert_eq!(format_problem(&header), FormatProblem::Number("size"));
    header[124..136].fill(0xff);
    checksum(&mut header);
    assert_eq!(format_problem(&header), FormatProblem::Number("size"));
    let wide = Tar::default()
        .item(&Item {
            uid: 1 << 32,
            ..item(b'0', "f")
        })
        .end();
    assert_eq!(format_problem(&wide), FormatProblem::Number("uid"));
    let device = Tar::default()
        .item(&Item {
            device: (4096, 0),
            ..item(b'3', "f")
        })
        .end();
    assert!(matches!(run(&device).unwrap_err(), LayerError::Image(_)));
}

#[test]
fn errors_name_the_entry_in_printable_form() {
    let name = format!("../\x1b[31m{}", "x".repeat(300));
    let tar = Tar::default()
        .pax(&[("path", name.as_bytes())])
        .file("x", "")
        .end();
    let text = run(&tar).unwrap_err().to_string();
    assert!(
        text.starts_with("entry \"../\\x1b[31mxxx") && text.len() < 400,
        "{text}"
    );
}

#[test]
fn nothing_is_left_of_a_refused_layer() {
    let dir = tempfile::tempdir().unwrap();
    let left = || std::fs::read_dir(dir.path()).unwrap().count();
    let limits = Limits::default();
    let bad = Tar::default()
        .file("a", [1; 100_000])
        .hardlink("b", "nothing")
        .end();
    convert(&bad[..], dir.path(), &limits, &mut |_| {}).unwrap_err();
    assert_eq!(left(), 0);
    let good = Tar::default().file("a", [1; 100_000]).end();
    let pending = convert(&good[..], dir.path(), &limits, &mut |_| {}).unwrap();
    assert_eq!(left(), 1);
    drop(pending);
    assert_eq!(left(), 0);
    let pending = convert(&good[..], dir.path(), &limits, &mut |_| {}).unwrap();
    let (path, info) = pending.commit("layer.erofs").unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().len(), info.file_size);
    assert_eq!(left(), 1);
    let missing = dir.path().join("missing");
    let error = convert(&good[..], &missing, &limits, &mut |_| {}).unwrap_err();
    assert!(matches!(error, LayerError::File { .. }), "{error}");
}

#[test]
fn a_failing_reader_and_a_full_disk_are_told_apart() {
    struct Broken;
    impl std::io::Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::other("the line went dead"))
        }
    }
    let limits = Limits::default();
    let error = convert_into(Broken, Cursor::new(vec![]), &limits, &mut |_| {}).unwrap_err();
    assert!(matches!(&error, LayerError::Input { offset: 0, .. }) && !error.is_disk_full());
    let full = std::fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let tar = Tar::default().file("f", vec![1; 3 << 20]).end();
    let error = convert_into(&tar[..], full, &limits, &mut |_| {}).unwrap_err();
    assert!(error.is_disk_full(), "{error}");
}
