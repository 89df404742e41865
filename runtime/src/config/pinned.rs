//! Which images the kubelet must not clean up: names in the configuration.

use bulkhead_images::reference::ImageName;

/// A list of names; the last character of one may be `*`, for all that begin so.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pinned(Vec<String>);

impl Pinned {
    /// Parses the names; the error is the first that is not one.
    pub fn parse(names: &[String]) -> Result<Self, String> {
        let parsed = names.iter().map(|name| {
            if let Some(start) = name.strip_suffix('*') {
                let plain = !start.is_empty() && !start.contains(['*', ' ']);
                return plain.then(|| name.clone()).ok_or_else(|| name.clone());
            }
            ImageName::parse(name)
                .map(|name| name.to_string())
                .map_err(|_| name.clone())
        });
        parsed.collect::<Result<_, _>>().map(Self)
    }

    /// Whether one of an image's names is in the list.
    pub fn has<'a>(&self, names: impl IntoIterator<Item = &'a String>) -> bool {
        names.into_iter().any(|name| {
            self.0.iter().any(|pinned| match pinned.strip_suffix('*') {
                Some(start) => name.starts_with(start),
                None => name == pinned,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_beginnings() {
        let list = |names: &[&str]| {
            Pinned::parse(
                &names
                    .iter()
                    .map(|&name| name.to_owned())
                    .collect::<Vec<_>>(),
            )
        };
        let pinned = list(&["busybox", "registry.k8s.io/pause:*"]).unwrap();
        let has = |tags: &[&str]| {
            let tags: Vec<_> = tags.iter().map(|&tag| tag.to_owned()).collect();
            pinned.has(&tags)
        };
        assert!(has(&["docker.io/library/busybox:latest"]));
        assert!(has(&["a.example/x:1", "registry.k8s.io/pause:3.9"]));
        assert!(!has(&["registry.k8s.io/pause-not:3.9"]));
        assert!(!has(&["docker.io/library/busybox:1"]));
        assert!(!has(&[]));
        for bad in ["*", "a*b*", "UPPER CASE", ""] {
            assert_eq!(list(&[bad]).unwrap_err(), bad);
        }
    }
}
