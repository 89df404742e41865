//! Huge pages of the guest. It keeps no pool of them: they are made when they are used, within the
//! limits of containers' cgroups, and are ordinary memory again afterwards.

use std::fs;
use std::io;

use oci_spec::runtime::LinuxResources;

/// Pages of a size are not available.
#[derive(Debug, thiserror::Error)]
#[error(
    "allowing huge pages of {} KiB (which sizes there are depends on the processor)",
    page_bytes >> 10
)]
pub struct HugePagesError {
    /// Their size.
    pub page_bytes: u64,
    /// The kernel's answer.
    #[source]
    pub error: io::Error,
}

/// Allows pages of this size to be made, up to the whole memory.
///
/// # Errors
/// If the kernel refuses: NotFound where the processor has no pages of the size.
pub fn allow(page_bytes: u64) -> Result<(), HugePagesError> {
    let path = format!(
        "/sys/kernel/mm/hugepages/hugepages-{}kB/nr_overcommit_hugepages",
        page_bytes >> 10
    );
    let info = rustix::system::sysinfo();
    // c_ulong and u64 are one here, and may not be elsewhere.
    #[allow(clippy::useless_conversion)]
    let memory = u64::from(info.totalram).saturating_mul(info.mem_unit.into());
    let pages = memory.checked_div(page_bytes).unwrap_or(0);
    fs::write(path, pages.to_string()).map_err(|error| HugePagesError { page_bytes, error })
}

/// Allows pages of every size that a container has a limit for.
///
/// # Errors
/// As for [`allow`].
pub fn allow_limits(resources: &LinuxResources) -> Result<(), HugePagesError> {
    let limits = resources.hugepage_limits().iter().flatten();
    for limit in limits.filter(|limit| limit.limit() > 0) {
        allow(page_size(limit.page_size()))?;
    }
    Ok(())
}

/// Bytes of a size as the kernel's hugetlb controller names it; 0 for anything else.
fn page_size(name: &str) -> u64 {
    let (digits, unit) = match name.split_at_checked(name.len().saturating_sub(2)) {
        Some((digits, "KB")) => (digits, 1 << 10),
        Some((digits, "MB")) => (digits, 1 << 20),
        Some((digits, "GB")) => (digits, 1 << 30),
        _ => return 0,
    };
    digits
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(unit))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_sizes_are_parsed_as_the_kernel_names_them() {
        assert_eq!(page_size("2MB"), 2 << 20);
        assert_eq!(page_size("1GB"), 1 << 30);
        assert_eq!(page_size("64KB"), 64 << 10);
        assert_eq!(page_size("GB") + page_size("") + page_size("2M"), 0);
    }

    #[test]
    fn a_page_size_the_processor_lacks_is_named_in_the_error() {
        let error = allow(3 << 10).unwrap_err();
        assert!(error.to_string().contains("3 KiB"), "{error}");
    }
}
