//! Small things that the daemon and its libraries share. Nothing here knows what it is used for;
//! what only one crate needs belongs there.
#![forbid(unsafe_code)]

mod back_off;
mod causes;
mod lock;
mod random;

pub use back_off::back_off;
pub use causes::chain;
pub use lock::lock;
pub use random::random;
