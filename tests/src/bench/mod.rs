//! The benchmark: what a pod's start consists of, what things cost, and how the VMM stands beside
//! others that boot the same kernel. [`figures`] collects and prints; [`node`] asks a daemon;
//! [`layers`] compares an image of many layers with one of one;
//! [`lists`] asks one that has many records; [`streams`] moves bytes; [`files`] reads and writes
//! volumes; [`memory`] has a machine grow; [`peer`] starts virtual machines by themselves, of two kinds in turn.

pub mod figures;
pub mod files;
pub mod layers;
pub mod lists;
pub mod memory;
pub mod node;
pub mod peer;
pub mod streams;
