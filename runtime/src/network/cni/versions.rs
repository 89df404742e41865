//! Versions of the CNI specification: which are spoken here, which of a configuration's is used, and
//! what came with which. Pure.

/// The versions whose configurations and results are understood, the oldest first.
pub(super) const KNOWN: &[&str] = &[
    "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0",
];
/// What a configuration without a version means (libcni, and the plugins).
pub(super) const UNSTATED: &str = "0.1.0";

/// CHECK, and the result of ADD for DEL.
pub(super) const WITH_CHECK: &str = "0.4.0";
/// STATUS and GC.
pub(super) const WITH_STATUS: &str = "1.1.0";

/// Where a version stands among those that are known.
fn place(version: &str) -> Option<usize> {
    KNOWN.iter().position(|known| *known == version)
}

/// Whether `version` is one that is known and not older than `least`.
pub(super) fn at_least(version: &str, least: &str) -> bool {
    place(version).is_some_and(|found| Some(found) >= place(least))
}

/// The newest of a configuration's versions (`cniVersion` and `cniVersions`) that is known; `None`
/// if it has versions, and none of them is.
pub(super) fn choose<'a>(offered: impl IntoIterator<Item = &'a str>) -> Option<&'static str> {
    let mut offered = offered.into_iter().filter(|version| !version.is_empty());
    let Some(first) = offered.next() else {
        return Some(UNSTATED);
    };
    let places = std::iter::once(first).chain(offered).filter_map(place);
    places.max().and_then(|newest| KNOWN.get(newest).copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_that_both_sides_know_is_chosen() {
        for (offered, chosen) in [
            (&["0.3.1"][..], Some("0.3.1")),
            (&["0.4.0", "1.1.0", "1.0.0"], Some("1.1.0")),
            // Of a later specification.
            (&["1.0.0", "1.2.0", "9.0.0"], Some("1.0.0")),
            (&["1.2.0"], None),
            (&["0.3.1", "0.10.0"], Some("0.3.1")),
            (&["one"], None),
            (&[], Some("0.1.0")),
            (&[""], Some("0.1.0")),
        ] {
            assert_eq!(choose(offered.iter().copied()), chosen, "{offered:?}");
        }
    }

    #[test]
    fn versions_are_not_compared_as_text() {
        assert!(at_least("1.0.0", WITH_CHECK) && at_least("0.4.0", WITH_CHECK));
        assert!(!at_least("0.3.1", WITH_CHECK) && !at_least("1.0.0", WITH_STATUS));
        assert!(!at_least("0.10.0", WITH_CHECK) && !at_least("", WITH_CHECK));
    }
}
