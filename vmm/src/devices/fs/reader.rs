//! Fields of a FUSE message, one after the other. Pure; `reply` writes them.

use std::ffi::CStr;

use rustix::io::Errno;

/// Linux's own limit (`NAME_MAX`).
const MAX_NAME: usize = 255;

/// Little-endian fields from the front of a slice.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn take(&mut self, n: usize) -> Result<&'a [u8], Errno> {
        let (now, later) = self.0.split_at_checked(n).ok_or(Errno::INVAL)?;
        self.0 = later;
        Ok(now)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Errno> {
        self.take(N)?.try_into().map_err(|_| Errno::INVAL)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Errno> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, Errno> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(super) fn skip(&mut self, n: usize) -> Result<(), Errno> {
        self.take(n).map(|_| ())
    }

    /// A string with its zero byte, of 1 to `longest` bytes.
    pub(super) fn string(&mut self, longest: usize) -> Result<&'a CStr, Errno> {
        let text = CStr::from_bytes_until_nul(self.0).map_err(|_| Errno::INVAL)?;
        let len = text.to_bytes().len();
        if len > longest {
            return Err(Errno::NAMETOOLONG);
        }
        if len == 0 {
            return Err(Errno::INVAL);
        }
        self.skip(len + 1)?;
        Ok(text)
    }

    /// The name of a directory's entry.
    pub(super) fn name(&mut self) -> Result<&'a CStr, Errno> {
        let name = self.string(MAX_NAME)?;
        let bytes = name.to_bytes();
        if bytes == b"." || bytes == b".." || bytes.contains(&b'/') {
            return Err(Errno::INVAL);
        }
        Ok(name)
    }
}
