//! One interface of a pod's namespace that its guest gets. Which those are is `link`'s to say.

/// The most interfaces a pod gets. More is a plugin gone astray: each costs a device.
pub const MAX_INTERFACES: usize = 32;

/// An interface the guest gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PodLink {
    /// The kernel's number.
    pub(super) index: u32,
    /// Its name, in the guest, too.
    pub(super) name: String,
    /// Its MTU.
    pub(super) mtu: u32,
    /// Its hardware address; `None` if it has none of Ethernet's length.
    pub(super) mac: Option<[u8; 6]>,
    /// It does not ask for hardware addresses.
    pub(super) no_arp: bool,
}
