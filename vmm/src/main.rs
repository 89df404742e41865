//! `bulkhead-vmm`: one process per pod. See `docs/vmm-api.md`.

use std::process::ExitCode;

fn main() -> ExitCode {
    bulkhead_vmm::process::main()
}
