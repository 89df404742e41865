//! From a descriptor chain to what the device reads and what it writes. What a request means is the
//! devices' own business.

use std::ops::Deref;

use virtio_queue::DescriptorChain;
use vm_memory::{GuestAddress, GuestMemory, Permissions};

use super::iovec::{BufferError, IoVecs};

/// What one chain names.
#[derive(Debug, Default)]
pub struct Buffers<'m> {
    /// What the device reads.
    pub readable: IoVecs<'m>,
    /// What the device writes.
    pub writable: IoVecs<'m>,
}

impl<'m> Buffers<'m> {
    /// Empty ones with the allocations of these, for chains in another memory.
    #[must_use]
    pub fn recycle<'n>(self) -> Buffers<'n> {
        Buffers {
            readable: self.readable.recycle(),
            writable: self.writable.recycle(),
        }
    }

    /// Walks `chain`; the lists then hold what it names, and nothing else. The answer is where in
    /// guest memory the last writable byte is, when there is one.
    ///
    /// # Errors
    /// See [`BufferError`]; the lists then hold what came before the bad descriptor.
    pub fn gather<C>(
        &mut self,
        chain: DescriptorChain<C>,
        mem: &'m C::Target,
    ) -> Result<Option<GuestAddress>, BufferError>
    where
        C: Deref + Clone,
        C::Target: GuestMemory + Sized,
    {
        self.readable.clear();
        self.writable.clear();
        let mut seen_writable = false;
        let mut last = None;
        for descriptor in chain {
            let (addr, len) = (descriptor.addr(), descriptor.len());
            if descriptor.is_write_only() {
                seen_writable = true;
                self.writable.push(mem, addr, len, Permissions::Write)?;
                if let Some(before) = len.checked_sub(1) {
                    last = Some(GuestAddress(addr.0.saturating_add(u64::from(before))));
                }
            } else {
                if seen_writable {
                    return Err(BufferError::ReadableAfterWritable);
                }
                self.readable.push(mem, addr, len, Permissions::Read)?;
            }
        }
        Ok(last)
    }
}
