//! The VMM's documents (docs/vmm-api.md): its configuration on standard input, its one line of
//! answer, and the requests and answers of its control socket.

mod config;
mod control;

pub use config::{
    BadMacAddress, Config, Console, ControlSocket, Disk, Fs, Jail, MAX_MEMORY_MIB, MAX_VCPUS,
    MacAddress, Net, RestoreFds, SEALED_SUFFIX, Vsock,
};
pub use control::{
    Answer, AttachDisk, AttachNet, Done, ErrorKind, Failure, MAX_PARTS, PART_ALIGNMENT, Pin,
    PinGroup, Request, Resize, Started,
};
