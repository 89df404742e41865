//! What the end-to-end tests and the benchmark share. Only test programs use this crate.
#![forbid(unsafe_code)]

pub mod images;
