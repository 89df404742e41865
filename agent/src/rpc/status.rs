//! From the modules' errors to gRPC codes. The daemon decides by the code, people by the text.

use tonic::{Code, Status};

use super::error::SandboxError;
use crate::apparmor::AppArmorError;
use crate::container::ContainerError;
use crate::container::cgroup::CgroupError;
use crate::container::spec::SpecError;
use crate::disk::DiskError;
use crate::huge_pages::HugePagesError;
use crate::launcher::LaunchError;
use crate::launcher::message::{Failure, FailureKind};
use crate::net::NetError;
use crate::process::ProcessError;
use crate::report::report;
use crate::volumes::VolumeError;
use crate::volumes::error::AnonymousError;

fn status(code: Code, error: &(dyn std::error::Error + 'static)) -> Status {
    Status::new(code, report(error))
}

/// Containers and processes.
pub fn of_container(error: ContainerError) -> Status {
    status(container_code(&error), &error)
}

/// Disks.
pub fn of_disk(error: DiskError) -> Status {
    status(disk_code(&error), &error)
}

/// Volumes.
pub fn of_volume(error: VolumeError) -> Status {
    status(volume_code(&error), &error)
}

/// The sandbox.
pub fn of_sandbox(error: SandboxError) -> Status {
    let code = match &error {
        SandboxError::Net(error) => net_code(error),
        SandboxError::Disk(error) => disk_code(error),
        SandboxError::Container(error) => container_code(error),
        SandboxError::Invalid { .. } => Code::InvalidArgument,
        // The guest's kernel may refuse to let a processor go.
        SandboxError::Cpu(_) => Code::FailedPrecondition,
        SandboxError::System { .. }
        | SandboxError::File { .. }
        | SandboxError::Clock { .. }
        | SandboxError::Cgroup(_)
        | SandboxError::Memory(_)
        | SandboxError::EndedEarly(_) => Code::Internal,
    };
    status(code, &error)
}

fn container_code(error: &ContainerError) -> Code {
    match error {
        ContainerError::BadId { .. } => Code::InvalidArgument,
        ContainerError::NotFound(_) | ContainerError::ExecNotFound { .. } => Code::NotFound,
        ContainerError::Exists(_) | ContainerError::ExecExists { .. } => Code::AlreadyExists,
        ContainerError::WrongState { .. } => Code::FailedPrecondition,
        ContainerError::Unsupported(_) => Code::Unimplemented,
        ContainerError::Spec(SpecError::Json(_) | SpecError::Invalid(_)) => Code::InvalidArgument,
        ContainerError::AppArmor(error) => match error {
            AppArmorError::Refused { .. } | AppArmorError::Absent { .. } => Code::InvalidArgument,
            AppArmorError::Off { .. } => Code::FailedPrecondition,
            AppArmorError::Read(_) => Code::Internal,
        },
        ContainerError::Userns(_) => Code::InvalidArgument,
        ContainerError::Disk(error) => disk_code(error),
        ContainerError::Volume(error) => volume_code(error),
        ContainerError::Cgroup(error) => cgroup_code(error),
        ContainerError::HugePages(error) => huge_pages_code(error),
        ContainerError::Devices(error) => match error {
            crate::container::device_filter::DeviceFilterError::Bpf { .. } => Code::Internal,
            _ => Code::InvalidArgument,
        },
        ContainerError::Launch(LaunchError::Failed(failure)) | ContainerError::Payload(failure) => {
            failure_code(failure)
        }
        ContainerError::Launch(LaunchError::Deadline { .. }) | ContainerError::Deadline { .. } => {
            Code::DeadlineExceeded
        }
        ContainerError::Process(error) => match error {
            ProcessError::BadSignal(_) => Code::InvalidArgument,
            ProcessError::NoTerminal(_) => Code::FailedPrecondition,
            ProcessError::Streams(_) => Code::ResourceExhausted,
            ProcessError::Signal { .. } | ProcessError::Resize { .. } => Code::Internal,
        },
        _ => Code::Internal,
    }
}

fn failure_code(failure: &Failure) -> Code {
    match failure.kind {
        FailureKind::CommandNotFound => Code::NotFound,
        FailureKind::NotExecutable => Code::PermissionDenied,
        FailureKind::InvalidSpec => Code::InvalidArgument,
        FailureKind::NotRunning => Code::FailedPrecondition,
        FailureKind::Internal => Code::Internal,
    }
}

fn cgroup_code(error: &CgroupError) -> Code {
    match error {
        CgroupError::Limit { .. } | CgroupError::BadName(_) => Code::InvalidArgument,
        CgroupError::StillPopulated { .. } => Code::DeadlineExceeded,
        CgroupError::Make { .. } | CgroupError::End { .. } => Code::Internal,
    }
}

fn disk_code(error: &DiskError) -> Code {
    match error {
        DiskError::BadSerial(_)
        | DiskError::BadPlace { .. }
        | DiskError::TooManyParts { .. }
        | DiskError::NoDevices { .. }
        | DiskError::NotOnHost { .. } => Code::InvalidArgument,
        DiskError::Missing { .. } => Code::DeadlineExceeded,
        DiskError::EndedEarly(_) => Code::Unavailable,
        DiskError::Scan { .. }
        | DiskError::Partition { .. }
        | DiskError::Mount { .. }
        | DiskError::Release { .. } => Code::Internal,
    }
}

fn huge_pages_code(error: &HugePagesError) -> Code {
    match error.error.kind() {
        std::io::ErrorKind::NotFound => Code::InvalidArgument,
        _ => Code::Internal,
    }
}

fn volume_code(error: &VolumeError) -> Code {
    let of_file = |error: &std::io::Error| match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::OutOfMemory => {
            Code::ResourceExhausted
        }
        _ => Code::Internal,
    };
    match error {
        VolumeError::Invalid { .. } => Code::InvalidArgument,
        VolumeError::NoMemory { .. } => Code::NotFound,
        VolumeError::Share { .. } => Code::FailedPrecondition,
        VolumeError::HugePages(error) => huge_pages_code(error),
        VolumeError::Part { error, .. } => match error.kind() {
            std::io::ErrorKind::NotFound => Code::NotFound,
            _ => Code::InvalidArgument,
        },
        VolumeError::File { error, .. } => of_file(error),
        VolumeError::Anonymous(error) => match error {
            AnonymousError::NoDirectory { .. } => Code::InvalidArgument,
            AnonymousError::Full { .. } => Code::ResourceExhausted,
            AnonymousError::Resolve { .. } | AnonymousError::Copy { .. } => Code::Internal,
        },
        VolumeError::Disk(error) => disk_code(error),
        VolumeError::Rootfs(_) => Code::Internal,
        VolumeError::EndedEarly(_) => Code::Unavailable,
    }
}

fn net_code(error: &NetError) -> Code {
    match error {
        NetError::Invalid { .. }
        | NetError::UnknownInterface(_)
        | NetError::BadSysctl(_)
        | NetError::Sysctl { .. } => Code::InvalidArgument,
        NetError::NoDevice { .. } => Code::NotFound,
        NetError::Netlink { .. } | NetError::Socket(_) | NetError::File { .. } => Code::Internal,
    }
}
