//! What goes wrong with a virtual CPU.

/// Why a vCPU could not do something.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// An ioctl failed.
    #[error("vCPU {vcpu}: {attempted}: {source}")]
    Kvm {
        /// Which vCPU.
        vcpu: u8,
        /// What was attempted.
        attempted: &'static str,
        /// KVM's answer.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// A list of entries is longer than KVM takes.
    #[error("vCPU {vcpu}: too many entries of {what} for KVM")]
    TooMany {
        /// Which vCPU.
        vcpu: u8,
        /// Of what.
        what: &'static str,
    },
    /// KVM did not take a model-specific register back.
    #[error("vCPU {vcpu}: KVM refuses the saved value of MSR {msr:#x} on this host")]
    Msr {
        /// Which vCPU.
        vcpu: u8,
        /// Which register.
        msr: u32,
    },
    /// The thread could not be made.
    #[error("starting the thread of vCPU {vcpu}: {source}")]
    Thread {
        /// Which vCPU.
        vcpu: u8,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// Its thread cannot run where it should.
    #[error("pinning vCPU {vcpu}: {source}; its cgroup may not use these processors of the host")]
    Pin {
        /// Which vCPU.
        vcpu: u8,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// A thread did not stop in time.
    #[error("{0} vCPU threads did not stop in time")]
    Stuck(usize),
}
