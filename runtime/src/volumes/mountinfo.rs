//! The kernel's list of mounts (proc_pid_mountinfo(5)). Reading it is pure but for [`read`].

use std::{
    ffi::OsString,
    io,
    os::unix::ffi::OsStringExt as _,
    path::{Path, PathBuf},
};

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountInfo {
    /// Its id, as statx(2) reports it.
    pub id: u64,
    /// The file system's device, major and minor.
    pub device: (u32, u32),
    /// What of the file system is mounted.
    pub root: PathBuf,
    /// Where.
    pub mount_point: PathBuf,
    /// Options of the mount.
    pub options: Vec<String>,
    /// Whether mounts below it are passed on to its peers.
    pub shared: bool,
    /// The kind of file system.
    pub kind: String,
    /// Options of the file system.
    pub super_options: Vec<String>,
}

/// The mounts this thread sees. Blocks.
pub fn read() -> io::Result<Vec<MountInfo>> {
    Ok(parse(&std::fs::read("/proc/thread-self/mountinfo")?))
}

/// The mounts of a list's text, in its order. Lines that are none are left out.
pub fn parse(text: &[u8]) -> Vec<MountInfo> {
    text.split(|byte| *byte == b'\n').filter_map(line).collect()
}

fn line(line: &[u8]) -> Option<MountInfo> {
    let mut words = line.split(|byte| *byte == b' ');
    let id = number(words.next()?)?;
    let _parent = words.next()?;
    let device = std::str::from_utf8(words.next()?).ok()?;
    let (major, minor) = device.split_once(':')?;
    let root = path(words.next()?);
    let mount_point = path(words.next()?);
    let options = list(words.next()?);
    let mut shared = false;
    // Optional fields, up to a lone "-".
    loop {
        match words.next()? {
            b"-" => break,
            field => shared |= field.starts_with(b"shared:"),
        }
    }
    let kind = String::from_utf8_lossy(words.next()?).into_owned();
    let _source = words.next()?;
    let super_options = words.next().map(list).unwrap_or_default();
    Some(MountInfo {
        id,
        device: (major.parse().ok()?, minor.parse().ok()?),
        root,
        mount_point,
        options,
        shared,
        kind,
        super_options,
    })
}

fn number(word: &[u8]) -> Option<u64> {
    std::str::from_utf8(word).ok()?.parse().ok()
}

fn list(word: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(word)
        .split(',')
        .map(str::to_owned)
        .collect()
}

/// Space, tab, newline and backslash stand as a backslash and three octal digits.
fn path(word: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((first, after)) = rest.split_first() {
        let escaped = match after {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] if *first == b'\\' => {
                Some((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'))
            }
            _ => None,
        };
        match escaped {
            Some(byte) => {
                bytes.push(byte);
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

/// Whether a mount is at `path` or below it.
pub fn is_at_or_below(mount: &MountInfo, path: &Path) -> bool {
    mount.mount_point.starts_with(path)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_list_is_read() {
        let text = b"36 35 98:0 /mnt1 /mnt/a\\040b rw,noatime master:1 shared:7 - ext3 /dev/root rw,errors=continue\n\
            nonsense\n\
            40 36 0:30 / /x ro - tmpfs tmpfs rw,size=4k\n";
        let mounts = parse(text);
        assert_eq!(mounts.len(), 2);
        assert_eq!(mounts[0].mount_point, Path::new("/mnt/a b"));
        assert_eq!(
            (mounts[0].id, mounts[0].device, mounts[0].shared),
            (36, (98, 0), true)
        );
        assert_eq!(mounts[0].root, Path::new("/mnt1"));
        assert!(!mounts[1].shared && mounts[1].options == ["ro"]);
        assert_eq!(
            (mounts[1].kind.as_str(), &mounts[1].super_options[1]),
            ("tmpfs", &"size=4k".to_owned())
        );
    }

    #[test]
    fn the_machines_own_list_is_read_whole() {
        let text = std::fs::read("/proc/self/mountinfo").unwrap();
        let lines = text.split(|b| *b == b'\n').filter(|l| !l.is_empty());
        assert_eq!(parse(&text).len(), lines.count());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(text in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = parse(&text);
        }

        #[test]
        fn an_unescaped_path_stays(text in "/[a-zA-Z0-9/._-]{0,40}") {
            prop_assert_eq!(path(text.as_bytes()), PathBuf::from(text));
        }
    }
}
