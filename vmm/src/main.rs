//! `bulkhead-vmm`: one process per pod.

fn main() {}
