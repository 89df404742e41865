//! Requests on extended attributes. What they are called on the host is in `escape`; what an ACL does
//! to a file is in `mapped`.

use std::ffi::CStr;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::escape::{ACL_ACCESS, ACL_DEFAULT, to_guest, to_host};
use super::mapped::{remove_acl, set_default_acl};
use super::nodes::{Node, Origin};
use super::reply::Writer;
use super::request::{MAX_XATTR, Request};
use super::server::{Outcome, Payload, Scratch, Server, name_of};

impl Server {
    pub(super) fn on_xattrs(
        &self,
        node: u64,
        request: &Request<'_>,
        scratch: &mut Scratch<'_>,
    ) -> Outcome {
        let node = self.node(node)?;
        match *request {
            Request::SetXattr {
                name,
                value,
                flags,
                kill_sgid,
            } => match name.to_bytes() {
                ACL_ACCESS => self.set_access_acl(&node, value, kill_sgid)?,
                ACL_DEFAULT => set_default_acl(&node, value)?,
                _ => {
                    let (name, flags) = (to_host(name)?, XattrFlags::from_bits_retain(flags));
                    rustix::fs::setxattr(&*name_of(&node.fd)?, &*name, value, flags)?;
                }
            },
            Request::GetXattr { name, size } => get(&node, name, size, scratch)?,
            Request::ListXattr { size } => list(&node, size, scratch)?,
            Request::RemoveXattr { name } => {
                let host = match to_host(name) {
                    Err(Errno::RANGE) => return Err(Errno::NODATA),
                    host => host?,
                };
                match name.to_bytes() {
                    ACL_ACCESS | ACL_DEFAULT => remove_acl(&node, &host)?,
                    _ => rustix::fs::removexattr(&*name_of(&node.fd)?, &*host)?,
                }
            }
            _ => return Err(Errno::NOSYS),
        }
        Ok(Payload::Out)
    }
}

/// Answers with a value, or with its length when no room was offered.
fn get(node: &Node, name: &CStr, size: u32, scratch: &mut Scratch<'_>) -> Result<(), Errno> {
    // The guest's kernel asks for ACLs and capabilities by itself, and takes one answer for "none".
    let host = match to_host(name) {
        Err(Errno::RANGE) => return Err(Errno::NODATA),
        host => host?,
    };
    let own = host.to_bytes() != name.to_bytes();
    if own && node.origin != Origin::Stored {
        return Err(Errno::NODATA);
    }
    let file = name_of(&node.fd)?;
    let found = match size {
        0 => rustix::fs::getxattr_query(&*file, &*host),
        // At most 64 KiB.
        size => {
            scratch.buffer.clear();
            scratch.buffer.resize(usize::try_from(size).unwrap_or(0), 0);
            rustix::fs::getxattr(&*file, &*host, scratch.buffer.as_mut_slice())
        }
    };
    match found {
        Err(Errno::OPNOTSUPP) if own => Err(Errno::NODATA),
        found => answer(size, found?, scratch),
    }
}

fn answer(size: u32, length: usize, scratch: &mut Scratch<'_>) -> Result<(), Errno> {
    if size == 0 {
        let length = u32::try_from(length).map_err(|_| Errno::TOOBIG)?;
        Writer(&mut scratch.out).u32(length).u32(0);
    } else {
        let value = scratch.buffer.get(..length).ok_or(Errno::RANGE)?;
        scratch.out.extend_from_slice(value);
    }
    Ok(())
}

/// The names the guest may know of, as it knows them.
fn list(node: &Node, size: u32, scratch: &mut Scratch<'_>) -> Result<(), Errno> {
    scratch.buffer.clear();
    scratch
        .buffer
        .resize(usize::try_from(MAX_XATTR).unwrap_or(0), 0);
    let length = rustix::fs::listxattr(&*name_of(&node.fd)?, &mut scratch.buffer)?;
    let mut names = Vec::new();
    let all = scratch.buffer.get(..length).unwrap_or_default();
    for name in all.split(|b| *b == 0).filter_map(to_guest) {
        names.extend_from_slice(name);
        names.push(0);
    }
    if size != 0 && names.len() > usize::try_from(size).unwrap_or(0) {
        return Err(Errno::RANGE);
    }
    let length = names.len();
    scratch.buffer = names;
    answer(size, length, scratch)
}
