//! A reader of whole images in memory, for tests and fuzzing: an independent look at what the
//! writer made. It checks what the kernel checks, and returns text for what is wrong.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests and fuzzing may panic: a panic is a finding"
)]

use std::collections::{BTreeMap, BTreeSet};

/// Sparse files over this size are checked, but their data is not kept.
const MAX_DATA: u64 = 256 << 20;

/// What is wrong with an image.
pub type Fault = String;

/// One inode as read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Number in the image: the same for hard links.
    pub nid: u64,
    /// Type and permissions.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of modification.
    pub mtime: (i64, u32),
    /// Number of links.
    pub nlink: u32,
    /// Size.
    pub size: u64,
    /// Device number as encoded, of devices.
    pub rdev: u32,
    /// Content of files, target of links.
    pub data: Vec<u8>,
    /// Bytes that are holes.
    pub holes: u64,
    /// Extended attributes by full name.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Reads the whole tree: paths without a leading slash, the root is "".
///
/// # Errors
/// What is wrong, and where.
pub fn read_tree(image: &[u8]) -> Result<BTreeMap<Vec<u8>, File>, Fault> {
    let image = Image(image);
    let first = image.bytes(0, 4096)?;
    let sb = &first[1024..1152];
    if le(&sb[0..4]) != 0xE0F5_E1E2 {
        return Err("magic".into());
    }
    let mut copy = first[1024..].to_vec();
    copy[4..8].fill(0);
    if u64::from(super::format::crc32c(&copy)) != le(&sb[4..8]) {
        return Err("checksum".into());
    }
    if le(&sb[36..40]) * 4096 != image.0.len() as u64 {
        return Err(format!(
            "{} blocks, {} bytes",
            le(&sb[36..40]),
            image.0.len()
        ));
    }
    let root = le(&sb[14..16]);
    let mut out = BTreeMap::new();
    let mut links: BTreeMap<u64, u32> = BTreeMap::new();
    let mut todo = vec![(Vec::new(), root, root)];
    let mut seen_dirs = BTreeSet::new();
    while let Some((path, nid, parent)) = todo.pop() {
        let file = image
            .inode(nid)
            .map_err(|e| format!("{}: {e}", path.escape_ascii()))?;
        *links.entry(nid).or_default() += 1;
        if file.mode & 0o170_000 == 0o040_000 {
            if !seen_dirs.insert(nid) {
                return Err(format!("directory {nid} is linked twice"));
            }
            let mut subdirs = 0;
            for (name, child, kind) in entries(&file)? {
                let mode = image.inode(child)?.mode;
                if u16::from(kind) != dtype(mode) {
                    return Err(format!(
                        "type of {} is {kind}, {mode:o}",
                        name.escape_ascii()
                    ));
                }
                match &name[..] {
                    b"." if child == nid => {}
                    b".." if child == parent => {}
                    b"." | b".." => return Err(format!("{}: bad dot", path.escape_ascii())),
                    _ => {
                        subdirs += u32::from(kind == 2);
                        let mut below = path.clone();
                        if !below.is_empty() {
                            below.push(b'/');
                        }
                        below.extend_from_slice(&name);
                        todo.push((below, child, nid));
                    }
                }
            }
            if file.nlink != subdirs + 2 {
                return Err(format!("{}: nlink {}", path.escape_ascii(), file.nlink));
            }
        }
        out.insert(path, file);
    }
    for (path, file) in &out {
        let count = links.get(&file.nid).copied().unwrap_or_default();
        if file.mode & 0o170_000 != 0o040_000 && file.nlink != count {
            return Err(format!(
                "{}: nlink {}, {count}",
                path.escape_ascii(),
                file.nlink
            ));
        }
    }
    Ok(out)
}

struct Image<'a>(&'a [u8]);

impl Image<'_> {
    fn bytes(&self, at: u64, len: u64) -> Result<&[u8], Fault> {
        let start = usize::try_from(at).map_err(|e| e.to_string())?;
        let end = start.checked_add(usize::try_from(len).map_err(|e| e.to_string())?);
        end.and_then(|end| self.0.get(start..end))
            .ok_or(format!("{len} bytes at {at}"))
    }

    fn inode(&self, nid: u64) -> Result<File, Fault> {
        let at = nid.checked_mul(32).ok_or("nid")?;
        let b = self.bytes(at, 64)?;
        if at % 4096 + 64 > 4096 {
            return Err("inode across blocks".into());
        }
        let (format, count) = (le(&b[0..2]), le(&b[2..4]));
        let mode = u16::try_from(le(&b[4..6])).unwrap();
        let (size, union) = (le(&b[8..16]), le(&b[16..20]));
        let xattr_len = if count == 0 { 0 } else { 12 + 4 * (count - 1) };
        let xattrs = xattrs(self.bytes(at + 64, xattr_len)?)?;
        let mut file = File {
            nid,
            mode,
            uid: u32::try_from(le(&b[24..28])).unwrap(),
            gid: u32::try_from(le(&b[28..32])).unwrap(),
            mtime: (
                le(&b[32..40]).cast_signed(),
                u32::try_from(le(&b[40..44])).unwrap(),
            ),
            nlink: u32::try_from(le(&b[44..48])).unwrap(),
            size,
            rdev: 0,
            data: Vec::new(),
            holes: 0,
            xattrs,
        };
        if !matches!(mode & 0o170_000, 0o100_000 | 0o040_000 | 0o120_000) {
            file.rdev = u32::try_from(union).unwrap();
            return Ok(file);
        }
        let behind = at + 64 + xattr_len;
        match format {
            1 => file.data = self.bytes(union * 4096, size)?.to_vec(),
            5 => {
                let tail = size % 4096;
                if tail == 0 || behind % 4096 + tail > 4096 {
                    return Err(format!("inline tail of {tail} at {behind}"));
                }
                if size >= 4096 {
                    file.data = self.bytes(union * 4096, size - tail)?.to_vec();
                }
                file.data.extend_from_slice(self.bytes(behind, tail)?);
            }
            9 => {
                let chunk = 4096_u64 << (union & 0x1f);
                for n in 0..size.div_ceil(chunk) {
                    let len = chunk.min(size - n * chunk);
                    let block = le(self.bytes(behind + 4 * n, 4)?);
                    let data = (block != u64::from(u32::MAX))
                        .then(|| self.bytes(block * 4096, len))
                        .transpose()?;
                    file.holes += if data.is_none() { len } else { 0 };
                    // A file that is mostly holes can be larger than memory.
                    if size <= MAX_DATA {
                        let end = file.data.len() + usize::try_from(len).unwrap();
                        file.data.extend_from_slice(data.unwrap_or_default());
                        file.data.resize(end, 0);
                    }
                }
            }
            _ => return Err(format!("format {format}")),
        }
        Ok(file)
    }
}

fn xattrs(mut b: &[u8]) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, Fault> {
    let mut out = BTreeMap::new();
    b = b.get(12..).unwrap_or_default();
    while !b.is_empty() {
        let (name_len, index) = (usize::from(b[0]), b[1]);
        let value_len = usize::try_from(le(&b[2..4])).unwrap();
        let prefix: &[u8] = match index {
            1 => b"user.",
            2 => b"system.posix_acl_access",
            3 => b"system.posix_acl_default",
            4 => b"trusted.",
            6 => b"security.",
            _ => return Err(format!("xattr index {index}")),
        };
        let name = b.get(4..4 + name_len).ok_or("xattr name")?;
        let value = b
            .get(4 + name_len..4 + name_len + value_len)
            .ok_or("xattr value")?;
        out.insert([prefix, name].concat(), value.to_vec());
        b = b
            .get((4 + name_len + value_len).next_multiple_of(4)..)
            .ok_or("xattr end")?;
    }
    Ok(out)
}

fn entries(dir: &File) -> Result<Vec<(Vec<u8>, u64, u8)>, Fault> {
    let mut out: Vec<(Vec<u8>, u64, u8)> = Vec::new();
    for block in dir.data.chunks(4096) {
        let names = usize::try_from(le(&block[8..10])).unwrap();
        if names % 12 != 0 || names == 0 || names >= block.len() {
            return Err(format!("nameoff {names}"));
        }
        let offset = |n: usize| usize::try_from(le(&block[n * 12 + 8..n * 12 + 10])).unwrap();
        for n in 0..names / 12 {
            let start = offset(n);
            let end = if n + 1 < names / 12 {
                offset(n + 1)
            } else {
                let rest = block.get(start..).ok_or("name start")?;
                start + rest.iter().position(|b| *b == 0).unwrap_or(rest.len())
            };
            let name = block.get(start..end).ok_or("name end")?.to_vec();
            if name.is_empty() || name.len() > 255 || name.contains(&b'/') {
                return Err(format!("name {:?}", name.escape_ascii().to_string()));
            }
            if out.last().is_some_and(|(last, ..)| *last >= name) {
                return Err(format!("order at {}", name.escape_ascii()));
            }
            out.push((name, le(&block[n * 12..n * 12 + 8]), block[n * 12 + 10]));
        }
    }
    Ok(out)
}

fn dtype(mode: u16) -> u16 {
    match mode >> 12 {
        0o10 => 1,
        0o4 => 2,
        0o2 => 3,
        0o6 => 4,
        0o1 => 5,
        0o14 => 6,
        0o12 => 7,
        _ => 0,
    }
}

fn le(b: &[u8]) -> u64 {
    b.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b))
}
