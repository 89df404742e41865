//! Copies of volumes in the layout of the kubelet's AtomicWriter, updated by the same steps, so
//! that a program that watches one with inotify sees what it would see on a node: a new directory,
//! `..data` switched to it by a rename, links made and removed, the old directory removed.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::hash::{Hash, Hasher};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Component, Path, PathBuf};

use bulkhead_proto::agent::put_volume_request::{Entry, Header, Part};
use bulkhead_proto::agent::{Ownership, PutVolumeRequest};
use bytes::Bytes;
use futures::{Stream, StreamExt};

use tokio::sync::Mutex;

use super::error::VolumeError;
use super::place::check_name;
use crate::blocking;
use crate::paths::Paths;

const DATA: &str = "..data";
/// Where the link is made before it takes the other's place.
const DATA_NEW: &str = "..data_tmp";
const MAX_BYTES: usize = 20 << 20;
const MAX_ENTRIES: usize = 8_192;

/// The pod's copies of volumes.
#[derive(Debug)]
pub struct Copies {
    paths: Paths,
    // By name: the digest of what was copied last. Held over a copy, so that there is one at a time.
    digests: Mutex<HashMap<String, u64>>,
}

/// One volume, whole.
#[derive(Debug, Default, PartialEq)]
pub struct Content {
    header: Header,
    entries: Vec<Entry>,
}

impl Copies {
    /// None yet.
    pub(super) fn new(paths: Paths) -> Self {
        Self {
            paths,
            digests: Mutex::default(),
        }
    }

    /// The path of a volume that was copied.
    pub(super) async fn path(&self, name: &str) -> Result<PathBuf, VolumeError> {
        if self.digests.lock().await.contains_key(name) {
            return Ok(self.paths.copied(name));
        }
        Err(VolumeError::Invalid {
            field: "copied.name",
            value: name.to_owned(),
            allowed: "PutVolume must have brought it before",
        })
    }

    /// Updates a volume to what the daemon sends.
    ///
    /// # Errors
    /// For a malformed stream, or when the guest's memory is full; the volume is as it was then.
    pub async fn put<E>(
        &self,
        parts: impl Stream<Item = Result<PutVolumeRequest, E>> + Unpin,
    ) -> Result<(), VolumeError> {
        let content = receive(parts).await?;
        let name = content.header.name.clone();
        let mut hasher = DefaultHasher::new();
        digest(&content, &mut hasher);
        let digest = hasher.finish();
        let mut digests = self.digests.lock().await;
        if digests.get(&name) == Some(&digest) {
            return Ok(());
        }
        let at = self.paths.copied(&name);
        blocking::run(move || {
            apply(&at, &content).map_err(|error| VolumeError::File {
                what: "bringing the copied volume into line at",
                path: at,
                error,
            })
        })
        .await?;
        digests.insert(name, digest);
        Ok(())
    }
}

/// Reads the stream, within bounds, and checks every name.
async fn receive<E>(
    mut parts: impl Stream<Item = Result<PutVolumeRequest, E>> + Unpin,
) -> Result<Content, VolumeError> {
    let invalid = |field, value: &[u8], allowed| VolumeError::Invalid {
        field,
        value: String::from_utf8_lossy(value).chars().take(100).collect(),
        allowed,
    };
    let mut content = Content::default();
    let mut first = true;
    let mut bytes = 0usize;
    while let Some(part) = parts.next().await {
        let part =
            part.map_err(|_| invalid("put_volume", b"", "the stream must not end with an error"))?;
        match part.part {
            Some(Part::Header(header)) if first => {
                check_name("header.name", &header.name)?;
                let directory = &header.data_directory;
                if !is_one_name(directory) || !directory.starts_with(b"..") || directory == DATA {
                    let allowed = "one name that begins with two dots and is not ..data";
                    return Err(invalid("header.data_directory", directory, allowed));
                }
                if header.links.len() > MAX_ENTRIES {
                    return Err(invalid("header.links", b"", "8192 at most"));
                }
                for link in &header.links {
                    if !is_one_name(&link.name) || link.name.starts_with(b"..") {
                        let allowed = "one name that does not begin with two dots";
                        return Err(invalid("header.links.name", &link.name, allowed));
                    }
                }
                if header.places.len() > MAX_ENTRIES {
                    return Err(invalid("header.places", b"", "8192 at most"));
                }
                for place in &header.places {
                    let names = || place.split(|byte| *byte == b'/');
                    if place.starts_with(b"..") || !names().all(is_one_name) {
                        let allowed =
                            "relative, without \".\" and \"..\", not beginning with two dots";
                        return Err(invalid("header.places", place, allowed));
                    }
                }
                content.header = header;
            }
            Some(Part::Entry(entry)) if !first => {
                let path = Path::new(OsStr::from_bytes(&entry.path));
                let inside = path.components().all(|c| matches!(c, Component::Normal(_)));
                if entry.path.is_empty() || !inside {
                    let allowed = "relative, without \".\" and \"..\"";
                    return Err(invalid("entry.path", &entry.path, allowed));
                }
                bytes = bytes.saturating_add(entry.content.len());
                if content.entries.len() >= MAX_ENTRIES || bytes > MAX_BYTES {
                    return Err(invalid("entry", b"", "8192 entries and 20 MiB at most"));
                }
                content.entries.push(entry);
            }
            _ => return Err(invalid("part", b"", "first one header, then entries")),
        }
        first = false;
    }
    if first {
        return Err(invalid("put_volume", b"", "the stream must not be empty"));
    }
    Ok(content)
}

fn is_one_name(name: &[u8]) -> bool {
    !name.is_empty()
        && name.len() <= 255
        && name != b"."
        && name != b".."
        && !name.contains(&b'/')
        && !name.contains(&0)
}

fn digest(content: &Content, hasher: &mut DefaultHasher) {
    let own = |ownership: &Option<Ownership>| ownership.map(|own| (own.mode, own.uid, own.gid));
    content.header.data_directory.hash(hasher);
    own(&content.header.root).hash(hasher);
    own(&content.header.data).hash(hasher);
    for link in &content.header.links {
        (&link.name, &link.target).hash(hasher);
    }
    content.header.places.hash(hasher);
    for entry in &content.entries {
        (&entry.path, entry.directory, &entry.content).hash(hasher);
        own(&entry.ownership).hash(hasher);
    }
}

fn apply(at: &Path, content: &Content) -> io::Result<()> {
    fs::create_dir_all(at)?;
    own(at, content.header.root)?;
    let old = match fs::read_link(at.join(DATA)) {
        Ok(target) => Some(target.into_os_string()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let new = free_name(at, &content.header.data_directory, old.as_deref())?;
    let directory = at.join(&new);
    if let Err(error) = write_data(&directory, content) {
        let _ = fs::remove_dir_all(&directory);
        return Err(error);
    }
    let link = at.join(DATA_NEW);
    match fs::remove_file(&link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => symlink(&new, &link)?,
    }
    fs::rename(&link, at.join(DATA))?;
    bring_links(at, content)?;
    make_places(at, &content.header.places)?;
    remove_others(at, &new)
}

/// The host's name for the data directory, or one beside it if it is taken by what is current.
fn free_name(at: &Path, wanted: &[u8], current: Option<&OsStr>) -> io::Result<OsString> {
    let wanted = OsString::from_vec(wanted.to_vec());
    if current != Some(&wanted) {
        match fs::remove_dir_all(at.join(&wanted)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => return Ok(wanted),
        }
    }
    let mut other = wanted;
    other.push("_");
    Ok(other)
}

fn write_data(directory: &Path, content: &Content) -> io::Result<()> {
    fs::create_dir(directory)?;
    for entry in &content.entries {
        let path = directory.join(OsStr::from_bytes(&entry.path));
        if entry.directory {
            fs::create_dir(&path)?;
        } else {
            fs::write(&path, &entry.content)?;
        }
        own(&path, entry.ownership)?;
    }
    own(directory, content.header.data)
}

/// Owner first: a change of it takes set-id bits away.
fn own(path: &Path, ownership: Option<Ownership>) -> io::Result<()> {
    let Some(own) = ownership else { return Ok(()) };
    chown(path, Some(own.uid), Some(own.gid))?;
    fs::set_permissions(path, fs::Permissions::from_mode(own.mode & 0o7777))
}

fn bring_links(at: &Path, content: &Content) -> io::Result<()> {
    let wanted: HashMap<&OsStr, &OsStr> = content
        .header
        .links
        .iter()
        .map(|link| {
            (
                OsStr::from_bytes(&link.name),
                OsStr::from_bytes(&link.target),
            )
        })
        .collect();
    for entry in fs::read_dir(at)? {
        let name = entry?.file_name();
        if name.as_bytes().starts_with(b"..") {
            continue;
        }
        let path = at.join(&name);
        // What is no link is a place where another volume is mounted in a container, and would take
        // that with it.
        let Ok(target) = fs::read_link(&path) else {
            continue;
        };
        if wanted.get(name.as_os_str()) != Some(&target.as_os_str()) {
            fs::remove_file(&path)?;
        }
    }
    for (name, target) in wanted {
        match symlink(target, at.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Makes the directories that other volumes are mounted on. No link is followed: a name that is a
/// link has come to be a key of the volume, and the mount goes where that leads.
fn make_places(at: &Path, places: &[Bytes]) -> io::Result<()> {
    'places: for place in places {
        let mut path = at.to_owned();
        for name in Path::new(OsStr::from_bytes(place)) {
            path.push(name);
            match fs::symlink_metadata(&path) {
                Ok(found) if found.is_dir() => {}
                Ok(_) => continue 'places,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    fs::create_dir(&path)?;
                    // Whatever the umask.
                    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
                }
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

fn remove_others(at: &Path, current: &OsStr) -> io::Result<()> {
    for entry in fs::read_dir(at)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.as_bytes().starts_with(b"..") && name != DATA && name != current {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bulkhead_proto::agent::put_volume_request::Link;
    use proptest::prelude::*;

    use super::*;

    fn me(mode: u32) -> Option<Ownership> {
        Some(Ownership {
            mode,
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
        })
    }

    fn content(data: &str, files: &[(&str, &str)]) -> Content {
        let links = files.iter().map(|(name, _)| Link {
            name: name.as_bytes().to_vec().into(),
            target: format!("..data/{name}").into_bytes().into(),
        });
        let entries = files.iter().map(|(name, text)| Entry {
            path: name.as_bytes().to_vec().into(),
            directory: false,
            ownership: me(0o640),
            content: text.as_bytes().to_vec().into(),
        });
        Content {
            header: Header {
                name: "v".to_owned(),
                data_directory: data.as_bytes().to_vec().into(),
                root: me(0o755),
                data: me(0o750),
                links: links.collect(),
                places: Vec::new(),
            },
            entries: entries.collect(),
        }
    }

    fn names(at: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(at)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_copy_is_updated_as_the_kubelet_updates_volumes() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("v");
        apply(&at, &content("..1", &[("a", "1"), ("b", "1")])).unwrap();
        assert_eq!(names(&at), ["..1", "..data", "a", "b"]);
        assert_eq!(fs::read(at.join("a")).unwrap(), b"1");
        apply(&at, &content("..2", &[("a", "2"), ("c", "2")])).unwrap();
        assert_eq!(names(&at), ["..2", "..data", "a", "c"]);
        assert_eq!(fs::read(at.join("a")).unwrap(), b"2");
        // The same name with other content, and back.
        for text in ["3", "4"] {
            apply(&at, &content("..2", &[("a", text)])).unwrap();
            assert_eq!(fs::read(at.join("a")).unwrap(), text.as_bytes());
            assert_eq!(names(&at).len(), 3);
        }
        let mode = fs::metadata(at.join("a")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o640);
    }

    #[test]
    fn places_for_other_volumes_stay_when_it_turns() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("v");
        let mut first = content("..1", &[("a", "1"), ("gone", "1")]);
        first.header.places = ["sub", "deep/er", "a"].map(Bytes::from).to_vec();
        apply(&at, &first).unwrap();
        assert_eq!(names(&at), ["..1", "..data", "a", "deep", "gone", "sub"]);
        assert!(at.join("deep/er").is_dir());
        // What the launcher made to mount on, a file even.
        fs::write(at.join("file"), "").unwrap();
        fs::create_dir(at.join("late")).unwrap();
        let mut second = content("..2", &[("a", "2"), ("sub", "2")]);
        second.header.places = first.header.places.clone();
        apply(&at, &second).unwrap();
        assert_eq!(
            names(&at),
            ["..2", "..data", "a", "deep", "file", "late", "sub"]
        );
        assert_eq!(fs::read(at.join("a")).unwrap(), b"2");
        assert!(at.join("sub").is_dir() && at.join("a").is_symlink());
        // A key beside them has its link.
        apply(&at, &content("..3", &[("late", "3"), ("new", "3")])).unwrap();
        assert_eq!(fs::read(at.join("new")).unwrap(), b"3");
        assert!(at.join("late").is_dir() && !at.join("a").exists());
    }

    #[test]
    fn places_are_made_through_no_link() {
        let dir = tempfile::tempdir().unwrap();
        let (at, out) = (dir.path().join("v"), dir.path().join("out"));
        fs::create_dir(&out).unwrap();
        let mut content = content("..1", &[("a", "1")]);
        content.header.links[0].target = Bytes::from("..data/../../out");
        content.header.places = vec![Bytes::from("a/x")];
        apply(&at, &content).unwrap();
        assert_eq!(fs::read_dir(&out).unwrap().count(), 0);
    }

    fn received(parts: Vec<PutVolumeRequest>) -> Result<Content, VolumeError> {
        let stream = futures::stream::iter(parts.into_iter().map(Ok::<_, io::Error>));
        futures::executor::block_on(receive(stream))
    }

    fn parts(content: Content) -> Vec<PutVolumeRequest> {
        let mut parts = vec![PutVolumeRequest {
            part: Some(Part::Header(content.header)),
        }];
        parts.extend(content.entries.into_iter().map(|entry| PutVolumeRequest {
            part: Some(Part::Entry(entry)),
        }));
        parts
    }

    #[test]
    fn names_that_escape_the_volume_are_refused() {
        assert!(received(parts(content("..1", &[("a", "1")]))).is_ok());
        assert!(received(Vec::new()).is_err());
        for data in ["..", "..data", "x", "..a/b", ""] {
            assert!(received(parts(content(data, &[]))).is_err(), "{data}");
        }
        for name in ["../x", "/x", "a/../b", "", "."] {
            let mut bad = content("..1", &[("a", "1")]);
            bad.entries[0].path = name.as_bytes().to_vec().into();
            assert!(received(parts(bad)).is_err(), "{name}");
        }
        for name in ["..data", "a/b", ""] {
            let mut bad = content("..1", &[("a", "1")]);
            bad.header.links[0].name = name.as_bytes().to_vec().into();
            assert!(received(parts(bad)).is_err(), "{name}");
        }
        for place in ["..", "../x", "..data/x", "a//b", "/a", "a/..", "a/./b", ""] {
            let mut bad = content("..1", &[("a", "1")]);
            bad.header.places = vec![Bytes::from(place)];
            assert!(received(parts(bad)).is_err(), "{place}");
        }
        let mut late = parts(content("..1", &[("a", "1")]));
        late.reverse();
        assert!(received(late).is_err());
    }

    proptest! {
        #[test]
        fn an_applied_copy_has_exactly_its_content(
            turns in prop::collection::vec(
                ("\\.\\.[0-9]{1}", prop::collection::btree_map("[a-d]", "[x-z]{0,3}", 0..4)), 1..6)
        ) {
            let dir = tempfile::tempdir().unwrap();
            let at = dir.path().join("v");
            for (data, files) in turns {
                let files: Vec<_> = files.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
                apply(&at, &content(&data, &files)).unwrap();
                for (name, text) in &files {
                    prop_assert_eq!(fs::read_to_string(at.join(name)).unwrap(), *text);
                }
                prop_assert_eq!(names(&at).len(), files.len() + 2);
            }
        }
    }
}
