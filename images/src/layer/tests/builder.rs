//! A writer of tar for tests, which writes what it is told, right or wrong.

/// An archive being made.
#[derive(Debug, Clone, Default)]
pub(super) struct Tar(pub Vec<u8>);

/// One header and its body.
#[derive(Debug, Clone)]
pub(super) struct Item {
    pub name: Vec<u8>,
    pub link: Vec<u8>,
    pub kind: u8,
    pub mode: u64,
    pub uid: u64,
    pub gid: u64,
    pub mtime: u64,
    pub device: (u64, u64),
    pub body: Vec<u8>,
    /// Size to claim, when it is not that of the body.
    pub size: Option<u64>,
    pub magic: [u8; 8],
}

pub(super) fn item(kind: u8, name: impl AsRef<[u8]>) -> Item {
    Item {
        name: name.as_ref().to_vec(),
        link: vec![],
        kind,
        mode: if kind == b'5' { 0o755 } else { 0o644 },
        uid: 0,
        gid: 0,
        mtime: 1_700_000_000,
        device: (0, 0),
        body: vec![],
        size: None,
        magic: *b"ustar\x0000",
    }
}

impl Item {
    pub(super) fn header(&self) -> [u8; 512] {
        let mut h = [0_u8; 512];
        let mut put = |at: usize, bytes: &[u8]| h[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.name[..self.name.len().min(100)]);
        put(100, &octal(self.mode, 8));
        put(108, &number(self.uid, 8));
        put(116, &number(self.gid, 8));
        put(
            124,
            &number(self.size.unwrap_or(self.body.len() as u64), 12),
        );
        put(136, &number(self.mtime, 12));
        put(156, &[self.kind]);
        put(157, &self.link[..self.link.len().min(100)]);
        put(257, &self.magic);
        put(329, &number(self.device.0, 8));
        put(337, &number(self.device.1, 8));
        checksum(&mut h);
        h
    }
}

pub(super) fn checksum(h: &mut [u8; 512]) {
    h[148..156].fill(b' ');
    let sum: u64 = h.iter().map(|b| u64::from(*b)).sum();
    h[148..155].copy_from_slice(&octal(sum, 7));
    h[155] = b' ';
}

fn octal(n: u64, len: usize) -> Vec<u8> {
    format!("{n:0width$o}\0", width = len - 1).into_bytes()
}

/// Octal, or base 256 when that is too short.
pub(super) fn number(n: u64, len: usize) -> Vec<u8> {
    if n < 1 << (3 * (len - 1)) {
        return octal(n, len);
    }
    let mut out = vec![0; len];
    let bytes = n.to_be_bytes();
    let tail = bytes.len().min(len - 1);
    out[len - tail..].copy_from_slice(&bytes[bytes.len() - tail..]);
    out[0] |= 0x80;
    out
}

impl Tar {
    pub(super) fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(super) fn item(self, item: &Item) -> Self {
        let header = item.header();
        self.raw(&header).body(&item.body)
    }

    pub(super) fn body(mut self, body: &[u8]) -> Self {
        self.0.extend_from_slice(body);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(super) fn file(self, name: impl AsRef<[u8]>, body: impl AsRef<[u8]>) -> Self {
        self.item(&Item {
            body: body.as_ref().to_vec(),
            ..item(b'0', name)
        })
    }

    pub(super) fn dir(self, name: impl AsRef<[u8]>) -> Self {
        self.item(&item(b'5', name))
    }

    pub(super) fn symlink(self, name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        self.item(&Item {
            link: target.as_ref().to_vec(),
            ..item(b'2', name)
        })
    }

    pub(super) fn hardlink(self, name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        self.item(&Item {
            link: target.as_ref().to_vec(),
            ..item(b'1', name)
        })
    }

    pub(super) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        self.item(&Item {
            body: pax_body(records),
            ..item(b'x', "PaxHeaders/x")
        })
    }

    /// The two blocks of zeros at the end.
    pub(super) fn end(self) -> Vec<u8> {
        self.raw(&[0; 1024]).0
    }
}

/// The body of an extended header.
pub(super) fn pax_body(records: &[(&str, &[u8])]) -> Vec<u8> {
    let one = |(key, value): &(&str, &[u8])| {
        let rest = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
        let digits = (1..)
            .find(|d| (rest.len() + d).to_string().len() == *d)
            .unwrap();
        [(rest.len() + digits).to_string().as_bytes(), &rest].concat()
    };
    records.iter().flat_map(one).collect()
}
