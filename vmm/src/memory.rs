//! Guest memory: where it lies, how it is made, and how it is mapped from a snapshot.

/// The guest's RAM as every part of the VMM holds it: a cheap clone of one set of mappings.
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;
