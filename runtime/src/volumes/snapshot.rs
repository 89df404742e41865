//! A volume in the layout of the kubelet's AtomicWriter (ConfigMap, Secret, projected, downwardAPI),
//! read whole: `..data` leads to a directory beside it, and everything else in the root is a link
//! through `..data`, or a directory of nothing but directories, which the kubelet makes where the pod
//! mounts another volume inside this one. Whoever writes the volume is not trusted with the host: nothing is followed
//! out of the directory, only regular files are opened, and only so much is read.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io::{self, Read as _},
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::{OsStrExt as _, OsStringExt as _},
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat},
    io::Errno,
};

/// The link that is turned.
pub const DATA: &str = "..data";
/// The content of one volume. A ConfigMap or Secret has 1 MiB at most; a projected volume joins some.
/// One file is one message to the agent, whose limit is 16 MiB.
const MAX_BYTES: u64 = 15 << 20;
const MAX_ENTRIES: usize = 4_096;
const MAX_DEPTH: usize = 32;

/// Mode (without the kind), user, group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ownership {
    /// Permission bits with set-id and sticky.
    pub mode: u32,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

impl From<&Stat> for Ownership {
    fn from(stat: &Stat) -> Self {
        Self {
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
        }
    }
}

/// The volume at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Where `..data` leads.
    pub data_directory: OsString,
    /// The root directory's.
    pub root: Ownership,
    /// The data directory's.
    pub data: Ownership,
    /// The links in the root directory, beside `..data`.
    pub links: BTreeMap<OsString, OsString>,
    /// Directories beside `..data` for other volumes' mounts, relative to the root, the outer before
    /// the inner.
    pub places: Vec<PathBuf>,
    /// What is in the data directory; a directory comes before what is in it.
    pub entries: Vec<Entry>,
}

/// A file or directory below the data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Relative to the data directory.
    pub path: PathBuf,
    /// Its owner and mode.
    pub ownership: Ownership,
    /// A file's content; `None` for a directory.
    pub content: Option<Vec<u8>>,
}

/// Reads a volume; `None` if it is not in the layout, or larger than a copy may be. Blocks.
///
/// # Errors
/// The kernel's; NotFound when the writer changed it meanwhile.
pub fn read(root: impl AsFd) -> io::Result<Option<Snapshot>> {
    let root = root.as_fd();
    let data_directory = match rustix::fs::readlinkat(root, DATA, Vec::new()) {
        Ok(target) => OsString::from_vec(target.into_bytes()),
        // No link, or nothing at all.
        Err(Errno::INVAL | Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if !is_data_directory(&data_directory) {
        return Ok(None);
    }
    let Some((links, places)) = links(&open(root, Path::new("."), OFlags::DIRECTORY)?)? else {
        return Ok(None);
    };
    let data = open(root, Path::new(&data_directory), OFlags::DIRECTORY)?;
    let mut reader = Reader {
        entries: Vec::new(),
        bytes: 0,
    };
    if !reader.directory(&data, Path::new(""), 0)? {
        return Ok(None);
    }
    Ok(Some(Snapshot {
        root: (&rustix::fs::fstat(root)?).into(),
        data: (&rustix::fs::fstat(&data)?).into(),
        data_directory,
        links,
        places,
        entries: reader.entries,
    }))
}

/// One name, beginning with two dots, beside `..data`.
fn is_data_directory(name: &OsString) -> bool {
    let bytes = name.as_bytes();
    bytes.len() > 2
        && bytes.starts_with(b"..")
        && !bytes.contains(&b'/')
        && bytes != DATA.as_bytes()
}

type Links = BTreeMap<OsString, OsString>;

/// The links of the root directory and the places in it; `None` if there is anything else that is not
/// the writer's own.
fn links(root: &OwnedFd) -> io::Result<Option<(Links, Vec<PathBuf>)>> {
    let (mut links, mut places) = (Links::new(), Vec::new());
    for entry in Dir::read_from(root)? {
        let entry = entry?;
        let name = OsString::from_vec(entry.file_name().to_bytes().to_vec());
        // "." and "..", the link itself and while it is being made, data directories old and new.
        if name.as_bytes().starts_with(b"..") || name == "." {
            continue;
        }
        match rustix::fs::readlinkat(root, &name, Vec::new()) {
            Ok(target) if target.as_bytes().starts_with(b"..data/") => {
                links.insert(name, OsString::from_vec(target.into_bytes()));
            }
            Ok(_) => return Ok(None),
            Err(Errno::INVAL) => match open(root, Path::new(&name), OFlags::DIRECTORY) {
                Ok(place) if is_place(&place, Path::new(&name), 0, &mut places)? => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                _ => return Ok(None),
            },
            // Removed since it was listed.
            Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        if links.len() > MAX_ENTRIES {
            return Ok(None);
        }
    }
    places.sort();
    Ok(Some((links, places)))
}

/// Whether there are only directories in a directory; each is put among the places.
fn is_place(
    directory: &OwnedFd,
    path: &Path,
    depth: usize,
    places: &mut Vec<PathBuf>,
) -> io::Result<bool> {
    if depth > MAX_DEPTH || places.len() >= MAX_ENTRIES {
        return Ok(false);
    }
    places.push(path.to_owned());
    for entry in Dir::read_from(directory)? {
        let name = OsString::from_vec(entry?.file_name().to_bytes().to_vec());
        if name == "." || name == ".." {
            continue;
        }
        let Ok(inner) = open(directory, Path::new(&name), OFlags::DIRECTORY) else {
            return Ok(false);
        };
        if !is_place(&inner, &path.join(&name), depth + 1, places)? {
            return Ok(false);
        }
    }
    Ok(true)
}

struct Reader {
    entries: Vec<Entry>,
    bytes: u64,
}

impl Reader {
    /// Reads a directory and what is in it; false if it is more than a copy may be.
    fn directory(&mut self, directory: &OwnedFd, path: &Path, depth: usize) -> io::Result<bool> {
        if depth > MAX_DEPTH {
            return Ok(false);
        }
        let mut names = Vec::new();
        for entry in Dir::read_from(directory)? {
            let name = entry?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(OsString::from_vec(name));
            }
            if names.len() > MAX_ENTRIES {
                return Ok(false);
            }
        }
        names.sort();
        for name in names {
            if self.entries.len() >= MAX_ENTRIES {
                return Ok(false);
            }
            let stat = rustix::fs::statat(directory, &name, AtFlags::SYMLINK_NOFOLLOW)?;
            let (whole, ownership) = (path.join(&name), Ownership::from(&stat));
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => {
                    let inner = open(directory, Path::new(&name), OFlags::DIRECTORY)?;
                    self.entries.push(Entry {
                        path: whole.clone(),
                        ownership,
                        content: None,
                    });
                    if !self.directory(&inner, &whole, depth + 1)? {
                        return Ok(false);
                    }
                }
                FileType::RegularFile => {
                    // NONBLOCK: whatever may have taken its place must not hold us.
                    let file = open(directory, Path::new(&name), OFlags::NONBLOCK)?;
                    let kind = FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode);
                    if kind != FileType::RegularFile {
                        return Ok(false);
                    }
                    let left = MAX_BYTES.saturating_sub(self.bytes);
                    let mut content = Vec::new();
                    let read = std::fs::File::from(file)
                        .take(left.saturating_add(1))
                        .read_to_end(&mut content)?;
                    self.bytes = self.bytes.saturating_add(read as u64);
                    if self.bytes > MAX_BYTES {
                        return Ok(false);
                    }
                    self.entries.push(Entry {
                        path: whole,
                        ownership,
                        content: Some(content),
                    });
                }
                _ => return Ok(false),
            }
        }
        Ok(true)
    }
}

/// Opens what is below a directory, by no link and on no other mount's account.
fn open(at: impl AsFd, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat2(
        at,
        path,
        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | flags,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
    )?)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    fn volume() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("..2026_11_25.1");
        fs::create_dir_all(data.join("sub")).unwrap();
        fs::write(data.join("key"), "value").unwrap();
        fs::write(data.join("sub/inner"), "").unwrap();
        symlink("..2026_11_25.1", dir.path().join(DATA)).unwrap();
        symlink("..data/key", dir.path().join("key")).unwrap();
        symlink("..data/sub", dir.path().join("sub")).unwrap();
        dir
    }

    fn snapshot(dir: &tempfile::TempDir) -> Option<Snapshot> {
        read(fs::File::open(dir.path()).unwrap()).unwrap()
    }

    #[test]
    fn a_volume_is_read_whole() {
        let dir = volume();
        let got = snapshot(&dir).unwrap();
        assert_eq!(got.data_directory, "..2026_11_25.1");
        assert_eq!(got.links.len(), 2);
        let paths: Vec<_> = got
            .entries
            .iter()
            .map(|e| e.path.to_str().unwrap())
            .collect();
        assert_eq!(paths, ["key", "sub", "sub/inner"]);
        assert_eq!(got.entries[0].content.as_deref(), Some(&b"value"[..]));
        assert_eq!(got.entries[1].content, None);
    }

    #[test]
    fn any_other_directory_is_none() {
        let plain = tempfile::tempdir().unwrap();
        fs::write(plain.path().join("file"), "").unwrap();
        assert_eq!(snapshot(&plain), None);
        // A file of its own beside the links.
        let mixed = volume();
        fs::write(mixed.path().join("own"), "").unwrap();
        assert_eq!(snapshot(&mixed), None);
        // A link elsewhere.
        let elsewhere = volume();
        symlink("/etc/passwd", elsewhere.path().join("passwd")).unwrap();
        assert_eq!(snapshot(&elsewhere), None);
        // A link in the data, a socket in the data.
        let link = volume();
        symlink("/etc/shadow", link.path().join("..data/x")).unwrap();
        assert_eq!(snapshot(&link), None);
    }

    /// As the kubelet makes them (MakeNestedMountpoints).
    #[test]
    fn places_for_other_volumes_are_part_of_it() {
        let dir = volume();
        fs::create_dir_all(dir.path().join("other/deep")).unwrap();
        fs::create_dir(dir.path().join("empty")).unwrap();
        let got = snapshot(&dir).unwrap();
        let places: Vec<_> = got.places.iter().map(|p| p.to_str().unwrap()).collect();
        assert_eq!(places, ["empty", "other", "other/deep"]);
        assert_eq!(got.links.len(), 2);
        // Whatever is in one makes it something else.
        let inside = dir.path().join("other/deep/x");
        fs::write(&inside, "").unwrap();
        assert_eq!(snapshot(&dir), None);
        fs::remove_file(&inside).unwrap();
        symlink("/etc", &inside).unwrap();
        assert_eq!(snapshot(&dir), None);
        fs::remove_file(&inside).unwrap();
        let mut path = dir.path().join("deep");
        for _ in 0..=MAX_DEPTH + 1 {
            path.push("d");
        }
        fs::create_dir_all(path).unwrap();
        assert_eq!(snapshot(&dir), None);
    }

    #[test]
    fn data_that_leads_out_is_not_read() {
        for target in ["../etc", "/etc", "..", "sub", "..data", "..x/../../etc"] {
            let dir = volume();
            fs::remove_file(dir.path().join(DATA)).unwrap();
            symlink(target, dir.path().join(DATA)).unwrap();
            assert_eq!(snapshot(&dir), None, "{target}");
        }
        // A data directory that is a link itself.
        let dir = volume();
        symlink("/etc", dir.path().join("..evil")).unwrap();
        fs::remove_file(dir.path().join(DATA)).unwrap();
        symlink("..evil", dir.path().join(DATA)).unwrap();
        assert!(read(fs::File::open(dir.path()).unwrap()).is_err());
    }

    #[test]
    fn too_much_is_not_copied() {
        let dir = volume();
        let big = fs::File::create(dir.path().join("..data/big")).unwrap();
        big.set_len(MAX_BYTES + 1).unwrap();
        assert_eq!(snapshot(&dir), None);
        let deep = volume();
        let mut path = deep.path().join("..data");
        for _ in 0..=MAX_DEPTH {
            path.push("d");
        }
        fs::create_dir_all(path).unwrap();
        assert_eq!(snapshot(&deep), None);
    }
}
