//! A case: its name and what it does.

use std::pin::Pin;

use super::cluster::Cluster;
use crate::Outcome;

/// A running case.
pub type Running<'a> = Pin<Box<dyn Future<Output = Outcome> + 'a>>;

/// A case.
#[derive(Clone, Copy)]
pub struct Case {
    /// `kube::what_holds`.
    pub name: &'static str,
    /// The case.
    pub run: for<'a> fn(&'a Cluster) -> Running<'a>,
    /// It disturbs the others.
    pub alone: bool,
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// Makes a [`Case`] of an async function of the same name.
#[macro_export]
macro_rules! case {
    ($function:ident) => {
        $crate::kube::case::Case {
            name: concat!("kube::", stringify!($function)),
            run: |cluster| Box::pin($function(cluster)),
            alone: false,
        }
    };
    (alone $function:ident) => {
        $crate::kube::case::Case {
            alone: true,
            ..$crate::case!($function)
        }
    };
}
