//! Volumes of the host in pods. What the tests share is in `support`.

mod builders;
mod files;
mod follow;
mod kinds;
pub(super) mod support;

pub(super) use support::{Scratch, mount, read_only, with};

use crate::suite::Test;

pub(super) fn tests() -> Vec<Test> {
    [
        builders::tests(),
        files::tests(),
        follow::tests(),
        kinds::tests(),
    ]
    .concat()
}
