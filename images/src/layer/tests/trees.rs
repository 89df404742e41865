//! What entries do to each other: replacing, parents, links, whiteouts.

use super::builder::*;
use super::*;

fn is_whiteout(tree: &Tree, path: &str) -> bool {
    tree.get(path.as_bytes())
        .is_some_and(|f| f.mode & 0o170_000 == 0o020_000 && f.rdev == 0)
}

fn is_opaque(tree: &Tree, path: &str) -> bool {
    let opaque = tree[path.as_bytes()]
        .xattrs
        .get(&b"trusted.overlay.opaque"[..]);
    opaque.is_some_and(|value| value == b"y")
}

#[test]
fn names_are_normalised() {
    let tar = Tar::default()
        .dir("./a/")
        .file("/a//b/./c", "1")
        .file("././d", "2")
        .hardlink("e", "/./d")
        .end();
    assert_eq!(paths(&tree(&tar)), ["a", "a/b", "a/b/c", "d", "e"]);
}

#[test]
fn missing_parents_are_made_and_reported() {
    let tar = Tar::default()
        .item(&Item {
            mode: 0o700,
            uid: 3,
            ..item(b'5', "known")
        })
        .file("known/x/y", "")
        .file("a/b/c", "")
        .file("late/f", "")
        .item(&Item {
            mode: 0o711,
            uid: 9,
            ..item(b'5', "late")
        })
        .end();
    let (t, info) = run(&tar).unwrap();
    let implicit: Vec<_> = info
        .implicit_dirs
        .iter()
        .map(|p| p.escape_ascii().to_string())
        .collect();
    assert_eq!(implicit, ["a", "a/b", "known/x"]);
    for path in ["a", "a/b", "known/x"] {
        let dir = &t[path.as_bytes()];
        assert_eq!(
            (dir.mode, dir.uid, dir.mtime),
            (0o040_755, 0, (0, 0)),
            "{path}"
        );
    }
    assert_eq!((t[&b"late"[..]].mode, t[&b"late"[..]].uid), (0o040_711, 9));
    assert!(t.contains_key(&b"late/f"[..]));
}

#[test]
fn the_last_entry_of_a_name_counts() {
    let tar = Tar::default()
        .file("f", "old")
        .file("f", "new")
        .file("to-dir", "old")
        .dir("to-dir")
        .file("to-dir/x", "")
        .dir("to-file")
        .file("to-file/x", "")
        .file("to-file", "new")
        .symlink("link", "f")
        .file("link", "a file now")
        .dir("real")
        .file("real/kept", "")
        .item(&Item {
            mode: 0o700,
            ..item(b'5', "real")
        })
        .symlink("dir-link", "real")
        .dir("dir-link")
        .end();
    let t = tree(&tar);
    let all = [
        "dir-link",
        "f",
        "link",
        "real",
        "real/kept",
        "to-dir",
        "to-dir/x",
        "to-file",
    ];
    assert_eq!(paths(&t), all);
    assert_eq!(t[&b"f"[..]].data, b"new");
    assert_eq!(t[&b"link"[..]].data, b"a file now");
    assert_eq!(t[&b"to-file"[..]].data, b"new");
    assert_eq!(t[&b"real"[..]].mode, 0o040_700);
    assert_eq!(t[&b"dir-link"[..]].mode & 0o170_000, 0o040_000);
}

#[test]
fn hard_links() {
    let tar = Tar::default()
        .file("a", "1")
        .hardlink("b", "a")
        .hardlink("b", "a")
        .hardlink("a", "a")
        .file("a", "2")
        .hardlink("c", "b")
        .symlink("l", "a")
        .hardlink("m", "l")
        .dir("d")
        .symlink("dl", "d")
        .file("d/x", "3")
        .hardlink("y", "dl/x")
        .end();
    let t = tree(&tar);
    let nlink = |path: &str| (t[path.as_bytes()].nlink, t[path.as_bytes()].nid);
    assert_eq!(t[&b"a"[..]].data, b"2");
    assert_eq!((nlink("a").0, t[&b"b"[..]].data.as_slice()), (1, &b"1"[..]));
    assert_eq!((nlink("b"), nlink("b").0), (nlink("c"), 2));
    assert_eq!(nlink("l"), nlink("m"));
    assert_eq!(nlink("d/x"), nlink("y"));
}

#[test]
fn hard_links_that_cannot_be() {
    let to = |target: &str| {
        Tar::default()
            .dir("d")
            .file("f", "")
            .hardlink("l", target)
            .end()
    };
    for target in ["missing", "", "d/missing", "f/x", "missing/x"] {
        assert!(
            matches!(problem(&to(target)), EntryProblem::LinkTarget(_)),
            "{target}"
        );
    }
    for target in ["d", "/", "."] {
        assert!(
            matches!(problem(&to(target)), EntryProblem::LinkToDirectory(_)),
            "{target}"
        );
    }
    for target in ["../f", "d/../f", "/../f", "missing/../f", "./d/.././f"] {
        let (tree, _) = run(&to(target)).unwrap_or_else(|error| panic!("{target}: {error}"));
        assert_eq!(tree[&b"l"[..]].nlink, 2, "{target}");
    }
    let later = Tar::default().hardlink("l", "f").file("f", "").end();
    assert!(matches!(problem(&later), EntryProblem::LinkTarget(_)));
    let gone = Tar::default()
        .dir("d")
        .file("d/f", "")
        .file("d", "")
        .hardlink("l", "d/f")
        .end();
    assert!(matches!(problem(&gone), EntryProblem::LinkTarget(_)));
    let hidden = Tar::default().file(".wh.f", "").hardlink("l", "f").end();
    assert!(matches!(problem(&hidden), EntryProblem::LinkTarget(_)));
}

#[test]
fn links_in_the_path_are_followed_inside_the_layer() {
    let tar = Tar::default()
        .symlink("lib", "usr/lib")
        .file("lib/a", "1")
        .symlink("abs", "/usr/share")
        .file("abs/b", "2")
        .symlink("usr/up", "../../../../etc")
        .file("usr/up/passwd", "3")
        .symlink("chain", "chain2")
        .symlink("chain2", "lib/../lib")
        .file("chain/c", "4")
        .end();
    let expected = [
        "abs",
        "chain",
        "chain2",
        "etc",
        "etc/passwd",
        "lib",
        "usr",
        "usr/lib",
        "usr/lib/a",
        "usr/lib/c",
        "usr/share",
        "usr/share/b",
        "usr/up",
    ];
    assert_eq!(paths(&tree(&tar)), expected);
    let circle = Tar::default()
        .symlink("a", "b")
        .symlink("b", "a")
        .file("a/x", "")
        .end();
    assert_eq!(problem(&circle), EntryProblem::Loop);
    let own = Tar::default().symlink("a", "a/a/a/a").file("a/x", "").end();
    assert_eq!(problem(&own), EntryProblem::Loop);
    let below_file = Tar::default().file("f", "").file("f/x", "").end();
    assert_eq!(problem(&below_file), EntryProblem::NotADirectory);
}

#[test]
fn whiteouts() {
    let tar = Tar::default()
        .dir("d")
        .file("d/.wh.gone", "")
        .file("d/.wh.also", "ignored body")
        .file("new/.wh..wh..opq", "")
        .file("new/f", "")
        .file(".wh..wh.aufs", "")
        .file(".wh..wh.plnk/1.2", "")
        .end();
    let (t, info) = run(&tar).unwrap();
    assert_eq!(paths(&t), ["d", "d/also", "d/gone", "new", "new/f"]);
    assert!(is_whiteout(&t, "d/gone") && is_whiteout(&t, "d/also"));
    assert_eq!(t[&b"d/gone"[..]].nlink, 2);
    assert!(is_opaque(&t, "new") && !is_opaque(&t, "d") && !info.opaque_root);
    let (t, info) = run(&Tar::default().file(".wh..wh..opq", "").end()).unwrap();
    assert!(is_opaque(&t, "") && info.opaque_root);
}

#[test]
fn whiteouts_hide_lower_layers_only() {
    // In either order: the file of this layer stays; a directory also hides what is below it.
    let tar = Tar::default()
        .file("f", "mine")
        .file(".wh.f", "")
        .file(".wh.g", "")
        .file("g", "mine")
        .dir("d")
        .file("d/x", "")
        .file(".wh.d", "")
        .file(".wh.e", "")
        .dir("e")
        .file("e/x", "")
        .file(".wh.p", "")
        .file("p/x", "")
        .end();
    let t = tree(&tar);
    assert_eq!(paths(&t), ["d", "d/x", "e", "e/x", "f", "g", "p", "p/x"]);
    for path in ["d", "e", "p"] {
        assert!(is_opaque(&t, path), "{path}");
    }
    assert_eq!(
        (&t[&b"f"[..]].data[..], &t[&b"g"[..]].data[..]),
        (&b"mine"[..], &b"mine"[..])
    );
}

#[test]
fn whiteouts_that_cannot_be() {
    for name in [
        ".wh.",
        "d/.wh.",
        ".wh..",
        ".wh...",
        ".wh.x/y",
        ".wh.x/.wh..wh..opq",
    ] {
        assert_eq!(
            problem(&Tar::default().file(name, "").end()),
            EntryProblem::Whiteout,
            "{name}"
        );
    }
}
