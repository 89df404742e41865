//! A log file: opened without following links below the pod's log directory, appended to in whole
//! lines, reopened after the kubelet has renamed it.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Write as _},
    os::{fd::OwnedFd, unix::fs::MetadataExt as _},
    path::{Component, Path, PathBuf},
};

use rustix::fs::{CWD, Mode, OFlags};

use super::{
    Checkpoint, LogError, Offsets,
    recover::{self, Tail},
};

/// Where a log is: CRI's directory and the path in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogPath {
    directory: PathBuf,
    /// Directories below `directory`, then the file: each a plain name.
    names: Vec<OsString>,
}

impl LogPath {
    /// Checks CRI's two fields; `None` if the pod or the container wants no log.
    pub fn new(directory: &str, path: &str) -> Result<Option<Self>, LogError> {
        if directory.is_empty() || path.is_empty() {
            return Ok(None);
        }
        let refused = || LogError::Path {
            path: format!("{directory}/{path}"),
        };
        let mut names = Vec::new();
        for component in Path::new(path).components() {
            match component {
                Component::Normal(name) => names.push(name.to_owned()),
                Component::CurDir => {}
                _ => return Err(refused()),
            }
        }
        if !Path::new(directory).is_absolute() || names.is_empty() || path.ends_with('/') {
            return Err(refused());
        }
        if directory.contains('\0') || path.contains('\0') {
            return Err(refused());
        }
        Ok(Some(Self {
            directory: directory.into(),
            names,
        }))
    }

    /// The whole path.
    pub fn path(&self) -> PathBuf {
        self.names
            .iter()
            .fold(self.directory.clone(), |path, name| path.join(name))
    }

    /// Opens the file for appending, making it (0640) and the directories above it (0755). Below
    /// CRI's directory no link is followed, so that no one who can write there can turn the
    /// daemon's pen elsewhere. Blocks.
    fn open(&self) -> Result<File, LogError> {
        let path = self.path();
        let failed = |action| {
            let path = path.clone();
            move |source: io::Error| LogError::Io {
                action,
                path,
                source,
            }
        };
        std::fs::create_dir_all(&self.directory).map_err(failed("make the directory of"))?;
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut above: OwnedFd = rustix::fs::openat(CWD, &self.directory, flags, Mode::empty())
            .map_err(|e| failed("open the directory of")(e.into()))?;
        let (last, directories) = self.names.split_last().ok_or_else(|| LogError::Path {
            path: path.display().to_string(),
        })?;
        for name in directories {
            match rustix::fs::mkdirat(&above, name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(e) => return Err(failed("make the directory of")(e.into())),
            }
            above = rustix::fs::openat(&above, name, flags | OFlags::NOFOLLOW, Mode::empty())
                .map_err(|e| failed("open the directory of")(e.into()))?;
        }
        // NONBLOCK: a FIFO somebody put here must not hold the opening thread.
        let flags = OFlags::RDWR
            | OFlags::APPEND
            | OFlags::CREATE
            | OFlags::NOFOLLOW
            | OFlags::NONBLOCK
            | OFlags::CLOEXEC;
        let file: File = rustix::fs::openat(&above, last, flags, Mode::from_raw_mode(0o640))
            .map_err(|e| failed("open")(e.into()))?
            .into();
        if !file.metadata().map_err(failed("look at"))?.is_file() {
            return Err(LogError::NotAFile { path });
        }
        Ok(file)
    }
}

/// An open log. Every method blocks.
#[derive(Debug)]
pub struct LogFile {
    at: LogPath,
    file: File,
    inode: u64,
    device: u64,
    length: u64,
}

impl LogFile {
    /// Opens a log, making it if it is not there.
    pub fn open(at: LogPath) -> Result<Self, LogError> {
        let file = at.open()?;
        let meta = file.metadata().map_err(|source| LogError::Io {
            action: "look at",
            path: at.path(),
            source,
        })?;
        Ok(Self {
            at,
            file,
            inode: meta.ino(),
            device: meta.dev(),
            length: meta.len(),
        })
    }

    /// Opens a log as a daemon before this one left it: finds where the streams are, cuts a torn
    /// last line off, and returns the offsets to resume from.
    pub fn recover(at: LogPath, checkpoint: &Checkpoint) -> Result<(Self, Offsets), LogError> {
        let path = at.path();
        let failed = |action| {
            let path = path.clone();
            move |source: io::Error| LogError::Io {
                action,
                path,
                source,
            }
        };
        let mut log = Self::open(at)?;
        if log.inode == checkpoint.inode && log.device == checkpoint.device {
            let tail =
                recover::read_tail(&mut log.file, checkpoint).map_err(failed("read the end of"))?;
            log.cut(tail).map_err(failed("cut a torn line off"))?;
            return Ok((log, tail.offsets));
        }
        // Renamed, and not reopened: the old file has the lines, the new one is empty.
        let rotated =
            recover::find_rotated(&path, checkpoint).map_err(failed("find the rotated file of"))?;
        let offsets = match rotated {
            Some(mut old) => {
                recover::read_tail(&mut old, checkpoint)
                    .map_err(failed("read the end of"))?
                    .offsets
            }
            None => {
                tracing::warn!(
                    path = %path.display(),
                    "the log was removed while the daemon was down: lines since the last \
                     checkpoint are written again"
                );
                checkpoint.offsets
            }
        };
        Ok((log, offsets))
    }

    fn cut(&mut self, tail: Tail) -> io::Result<()> {
        if tail.length < self.length {
            self.file.set_len(tail.length)?;
        }
        self.length = tail.length;
        Ok(())
    }

    /// Appends whole lines: all of them, or on an error none.
    pub fn append(&mut self, lines: &[u8]) -> Result<(), LogError> {
        match self.file.write_all(lines) {
            Ok(()) => {
                self.length += lines.len() as u64;
                Ok(())
            }
            Err(source) => {
                // A part may be there (a full disk): a torn line would swallow the next one.
                let cut = self.file.set_len(self.length);
                if let Err(error) = cut {
                    tracing::warn!(path = %self.at.path().display(), %error, "cannot cut a torn line off the log");
                }
                Err(LogError::Io {
                    action: "append to",
                    path: self.at.path(),
                    source,
                })
            }
        }
    }

    /// Reopens the path, after the file there was renamed. Returns whether it is another file.
    pub fn reopen(&mut self) -> Result<bool, LogError> {
        let new = Self::open(self.at.clone())?;
        if (new.inode, new.device) == (self.inode, self.device) {
            return Ok(false);
        }
        *self = new;
        Ok(true)
    }

    /// A checkpoint of this file, with the streams where they are now.
    pub fn checkpoint(&self, offsets: Offsets, ended: bool) -> Checkpoint {
        Checkpoint {
            inode: self.inode,
            device: self.device,
            length: self.length,
            offsets,
            ended,
        }
    }
}
