use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};

use proptest::prelude::*;

use super::*;

/// A file system in words, against which the real one is held.
#[derive(Debug, Clone, PartialEq)]
enum Node {
    Directory,
    File,
    Link(String),
}

type Model = BTreeMap<PathBuf, Node>;

/// Where a path leads in the model, and what is made on the way.
fn resolve(model: &mut Model, path: &Path, make: Make) -> Result<PathBuf, Errno> {
    let mut done = PathBuf::new();
    let mut ahead: Vec<String> = words(path);
    let mut links = 0;
    while !ahead.is_empty() {
        let name = ahead.remove(0);
        if name == ".." {
            done.pop();
            continue;
        }
        let at = done.join(&name);
        match model.get(&at).cloned() {
            Some(Node::Link(target)) => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(Errno::LOOP);
                }
                if target.starts_with('/') {
                    done = PathBuf::new();
                }
                let mut longer = words(Path::new(&target));
                longer.append(&mut ahead);
                ahead = longer;
            }
            Some(Node::File) if !ahead.is_empty() => return Err(Errno::NOTDIR),
            Some(_) => done = at,
            None => {
                let node = match make {
                    Make::File if ahead.is_empty() => Node::File,
                    _ => Node::Directory,
                };
                model.insert(at.clone(), node);
                done = at;
            }
        }
    }
    Ok(done)
}

fn words(path: &Path) -> Vec<String> {
    path.to_str()
        .unwrap()
        .split('/')
        .filter(|word| !word.is_empty() && *word != ".")
        .map(str::to_owned)
        .collect()
}

fn build(root: &Path, model: &Model) {
    for (path, node) in model {
        let at = root.join(path);
        match node {
            Node::Directory => fs::create_dir(&at).unwrap(),
            Node::File => fs::write(&at, "").unwrap(),
            Node::Link(target) => symlink(target, &at).unwrap(),
        }
    }
}

fn read(root: &Path) -> Model {
    let mut found = Model::new();
    let mut left = vec![PathBuf::new()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(root.join(&directory)).unwrap() {
            let entry = entry.unwrap();
            let path = directory.join(entry.file_name());
            let kind = entry.file_type().unwrap();
            let node = if kind.is_symlink() {
                Node::Link(
                    fs::read_link(entry.path())
                        .unwrap()
                        .to_str()
                        .unwrap()
                        .into(),
                )
            } else if kind.is_dir() {
                left.push(path.clone());
                Node::Directory
            } else {
                Node::File
            };
            found.insert(path, node);
        }
    }
    found
}

fn root_of(path: &Path) -> OwnedFd {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).unwrap()
}

fn inode(fd: &OwnedFd) -> u64 {
    rustix::fs::fstat(fd).unwrap().st_ino
}

/// Images whose names are links: to nowhere, in circles, out of the root, over each other.
fn hostile() -> impl Strategy<Value = Model> {
    let name = "[abc]";
    let target = prop_oneof![
        "/?([abc]|\\.\\.)(/([abc]|\\.\\.)){0,3}",
        Just("/".to_owned()),
        Just("../../../../../../../../tmp".to_owned()),
    ];
    let node = prop_oneof![
        3 => Just(Node::Directory),
        1 => Just(Node::File),
        3 => target.prop_map(Node::Link),
    ];
    prop::collection::vec((prop::collection::vec(name, 1..4), node), 0..12).prop_map(|entries| {
        let mut model = Model::new();
        for (path, node) in entries {
            let path: PathBuf = path.iter().collect();
            let parent = path.parent().unwrap_or(Path::new(""));
            let reachable =
                parent.as_os_str().is_empty() || model.get(parent) == Some(&Node::Directory);
            if reachable {
                model.entry(path).or_insert(node);
            }
        }
        model
    })
}

proptest! {
    #[test]
    fn paths_in_hostile_roots_lead_where_the_model_says(
        model in hostile(),
        path in "/?([abc]|\\.\\.|\\.)(/([abc]|\\.\\.)){0,4}/?",
        file in any::<bool>(),
    ) {
        let outer = tempfile::tempdir().unwrap();
        let at = outer.path().join("root");
        fs::create_dir(&at).unwrap();
        build(&at, &model);
        let make = if file { Make::File } else { Make::Directory };
        let mut expected = model.clone();
        let wanted = resolve(&mut expected, Path::new(&path), make);
        let got = open_or_make(root_of(&at), Path::new(&path), make);
        // Nothing beside the root is touched, whatever becomes of the call.
        prop_assert_eq!(fs::read_dir(outer.path()).unwrap().count(), 1);
        match (wanted, got) {
            (Ok(place), Ok(fd)) => {
                prop_assert_eq!(read(&at), expected);
                prop_assert_eq!(inode(&fd), fs::metadata(at.join(place)).unwrap().ino());
            }
            (Err(wanted), Err(got)) => prop_assert_eq!(wanted, got),
            (wanted, got) => prop_assert!(false, "{:?} against {:?}", wanted, got),
        }
    }
}

#[test]
fn the_target_of_a_dangling_link_is_made() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("etc")).unwrap();
    for (link, target) in [
        ("etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf"),
        ("etc/hosts", "/var/etc/hosts"),
        ("etc/hostname", "../../../../../../../outside/hostname"),
    ] {
        symlink(target, root.path().join(link)).unwrap();
        open_or_make(root_of(root.path()), &Path::new("/").join(link), Make::File).unwrap();
    }
    for made in [
        "run/systemd/resolve/stub-resolv.conf",
        "var/etc/hosts",
        "outside/hostname",
    ] {
        assert!(root.path().join(made).is_file(), "{made}");
    }
}

#[test]
fn a_plain_directory_has_no_link_on_its_path() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("real/proc")).unwrap();
    symlink("/real", root.path().join("linked")).unwrap();
    symlink("real/proc", root.path().join("proc")).unwrap();
    let fd = root_of(root.path());
    assert!(open_plain(&fd, Path::new("/real/proc")).is_ok());
    for link in ["/proc", "/linked/proc"] {
        assert!(open_plain(&fd, Path::new(link)).is_err(), "{link}");
    }
}

#[test]
fn magic_links_are_not_followed() {
    let root = root_of(Path::new("/"));
    let flags = OFlags::PATH;
    assert_eq!(
        open(&root, Path::new("/proc/self/root/etc"), flags).unwrap_err(),
        Errno::LOOP
    );
    assert!(open_or_make(&root, Path::new("/proc/self/cwd/x"), Make::File).is_err());
}

#[test]
fn link_loops_end() {
    let root = tempfile::tempdir().unwrap();
    symlink("b", root.path().join("a")).unwrap();
    symlink("a", root.path().join("b")).unwrap();
    let error = open_or_make(root_of(root.path()), Path::new("/a/x"), Make::Directory);
    assert_eq!(error.unwrap_err(), Errno::LOOP);
}
