//! One layer: entries put in by hand or copied from a folder, written as a tar and compressed.
//! Deterministic: entries keep their order, times are fixed. Not here: which entries an image has.

use std::{
    fmt, fs,
    io::{self, Read as _, Write as _},
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _},
    path::Path,
};

use flate2::{Compression as GzLevel, GzBuilder};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use super::{ImageError, at};

/// Every entry's time: 2026-01-01T00:00:00Z.
const MTIME: u64 = 1_767_225_600;

/// How a layer's blob is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// A plain tar.
    None,
    /// gzip, the usual one.
    Gzip,
    /// Zstandard.
    Zstd,
}

impl Compression {
    /// The layer's OCI media type.
    #[must_use]
    pub fn media_type(self) -> &'static str {
        match self {
            Self::None => "application/vnd.oci.image.layer.v1.tar",
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

/// A layer in the making.
pub struct Layer {
    tar: Builder<Vec<u8>>,
    compression: Compression,
}

impl fmt::Debug for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Layer")
            .field("compression", &self.compression)
            .finish_non_exhaustive()
    }
}

impl Layer {
    /// An empty layer.
    #[must_use]
    pub fn new(compression: Compression) -> Self {
        Self {
            tar: Builder::new(Vec::new()),
            compression,
        }
    }

    /// How it is stored.
    #[must_use]
    pub fn compression(&self) -> Compression {
        self.compression
    }

    fn header(kind: EntryType, mode: u32, size: u64) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size);
        header.set_mtime(MTIME);
        header.set_uid(0);
        header.set_gid(0);
        header
    }

    /// A directory.
    ///
    /// # Errors
    /// If the entry cannot be written.
    pub fn dir(&mut self, path: impl AsRef<Path>, mode: u32) -> io::Result<&mut Self> {
        let mut header = Self::header(EntryType::Directory, mode, 0);
        self.tar.append_data(&mut header, path, io::empty())?;
        Ok(self)
    }

    /// A directory of some user and group.
    ///
    /// # Errors
    /// If the entry cannot be written.
    pub fn dir_of(
        &mut self,
        path: impl AsRef<Path>,
        mode: u32,
        owner: u64,
    ) -> io::Result<&mut Self> {
        let mut header = Self::header(EntryType::Directory, mode, 0);
        header.set_uid(owner);
        header.set_gid(owner);
        self.tar.append_data(&mut header, path, io::empty())?;
        Ok(self)
    }

    /// A file owned by root.
    ///
    /// # Errors
    /// If the entry cannot be written.
    pub fn file(
        &mut self,
        path: impl AsRef<Path>,
        mode: u32,
        data: impl AsRef<[u8]>,
    ) -> io::Result<&mut Self> {
        self.file_of(path, mode, 0, data)
    }

    /// A file of some user and group.
    ///
    /// # Errors
    /// If the entry cannot be written.
    pub fn file_of(
        &mut self,
        path: impl AsRef<Path>,
        mode: u32,
        owner: u64,
        data: impl AsRef<[u8]>,
    ) -> io::Result<&mut Self> {
        let data = data.as_ref();
        let mut header = Self::header(EntryType::Regular, mode, data.len() as u64);
        header.set_uid(owner);
        header.set_gid(owner);
        self.tar.append_data(&mut header, path, data)?;
        Ok(self)
    }

    /// A file with extended attributes (PAX `SCHILY.xattr.`).
    ///
    /// # Errors
    /// If the entry cannot be written.
    pub fn file_with_xattrs(
        &mut self,
        path: impl AsRef<Path>,
        mode: u32,
        xattrs: &[(&str, &[u8])],
        data: impl AsRef<[u8]>,
    ) -> io::Result<&mut Self> {
        let names: Vec<String> = xattrs
            .iter()
            .map(|(name, _)| format!("SCHILY.xattr.{name}"))
            .collect();
        let records = names
            .iter()
            .zip(xattrs)
            .map(|(name, (_, value))| (name.as_str(), *value));
        self.tar.append_pax_extensions(records)?;
        self.file(path, mode, data)
    }

    /// A symbolic link.
    ///
    /// # Errors
    /// If the entry cannot be written.
    pub fn symlink(
        &mut self,
        path: impl AsRef<Path>,
        target: impl AsRef<Path>,
    ) -> io::Result<&mut Self> {
        let mut header = Self::header(EntryType::Symlink, 0o777, 0);
        self.tar.append_link(&mut header, path, target)?;
        Ok(self)
    }

    /// A hard link to an earlier entry.
    ///
    /// # Errors
    /// If the entry cannot be written.
    pub fn hardlink(
        &mut self,
        path: impl AsRef<Path>,
        target: impl AsRef<Path>,
    ) -> io::Result<&mut Self> {
        let mut header = Self::header(EntryType::Link, 0o644, 0);
        self.tar.append_link(&mut header, path, target)?;
        Ok(self)
    }

    /// A device node or a FIFO.
    ///
    /// # Errors
    /// If the entry cannot be written.
    pub fn node(
        &mut self,
        path: impl AsRef<Path>,
        kind: EntryType,
        mode: u32,
        (major, minor): (u32, u32),
    ) -> io::Result<&mut Self> {
        let mut header = Self::header(kind, mode, 0);
        header.set_device_major(major)?;
        header.set_device_minor(minor)?;
        self.tar.append_data(&mut header, path, io::empty())?;
        Ok(self)
    }

    /// Everything below `source`, at `prefix` in the image, owned by root, in sorted order.
    /// Several names of one file become hard links of the first.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn tree(&mut self, source: &Path, prefix: &str) -> Result<&mut Self, ImageError> {
        self.walk(source, Path::new(prefix))?;
        Ok(self)
    }

    fn walk(&mut self, source: &Path, inside: &Path) -> Result<(), ImageError> {
        let mut names: Vec<_> = fs::read_dir(source)
            .map_err(at("reading", source))?
            .map(|entry| entry.map(|entry| entry.file_name()))
            .collect::<Result<_, _>>()
            .map_err(at("reading", source))?;
        names.sort_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
        for name in names {
            let from = source.join(&name);
            let to = inside.join(&name);
            let meta = fs::symlink_metadata(&from).map_err(at("reading", &from))?;
            let mode = meta.permissions().mode() & 0o7777;
            if meta.is_dir() {
                self.dir(&to, mode)?;
                self.walk(&from, &to)?;
            } else if meta.is_symlink() {
                let target = fs::read_link(&from).map_err(at("reading", &from))?;
                self.symlink(&to, target)?;
            } else {
                let data = fs::read(&from).map_err(at("reading", &from))?;
                self.file(&to, mode, data)?;
            }
        }
        Ok(())
    }

    /// A file of `holes` with data in between, as a GNU sparse entry would unpack: written here as
    /// plain zeros, which a good layer store finds again.
    ///
    /// # Errors
    /// If the entry cannot be written.
    pub fn zeros(&mut self, path: impl AsRef<Path>, size: u64) -> io::Result<&mut Self> {
        let mut header = Self::header(EntryType::Regular, 0o644, size);
        self.tar
            .append_data(&mut header, path, io::repeat(0).take(size))?;
        Ok(self)
    }

    /// The blob as stored, and the digest of the tar within (the diff id).
    pub(super) fn encode(&self) -> Result<(Vec<u8>, String), ImageError> {
        let mut tar = self.tar.get_ref().clone();
        // The end of an archive: two blocks of zeros (POSIX pax, "ustar Interchange Format").
        tar.resize(tar.len() + 1024, 0);
        let diff_id = format!("sha256:{}", hex::encode(Sha256::digest(&tar)));
        let blob = match self.compression {
            Compression::None => tar,
            Compression::Gzip => {
                let mut out = GzBuilder::new().mtime(0).write(Vec::new(), GzLevel::fast());
                out.write_all(&tar)?;
                out.finish()?
            }
            Compression::Zstd => zstd::encode_all(tar.as_slice(), 3)?,
        };
        Ok((blob, diff_id))
    }
}
