//! Image references: what a user or the kubelet writes, brought to one normal form.
//!
//! The grammar and the defaults (registry `docker.io`, repository `library/…`, tag `latest`) are
//! those of the distribution project and come from `oci-spec`; here are the rules on top that a
//! CRI runtime keeps: a tag beside a digest is dropped (the digest decides), digests are checked
//! strictly, and a bare image id is told apart from a name.

use std::{fmt, net::Ipv6Addr};

use oci_spec::distribution::{ParseError, Reference};

use crate::digest::{BadDigest, Digest};

/// Stands in for an IPv6 address, which oci-spec's grammar lacks. It cannot be an image's own:
/// `.invalid` is nobody's (RFC 6761 §6.4).
const STAND_IN: &str = "ipv6.invalid";
/// Longest text looked at; the grammar allows 255 for the repository, 128 for the tag.
const LONGEST: usize = 1024;

/// A normalised reference to an image in a registry.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ImageName {
    registry: String,
    repository: String,
    target: Target,
}

/// What of the repository is meant.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// The manifest a tag points at now.
    Tag(String),
    /// The manifest with this digest.
    Digest(Digest),
}

/// Why a text is no reference.
#[derive(Debug, thiserror::Error)]
pub enum BadName {
    /// It is absurdly long.
    #[error("it has {0} characters, at most {LONGEST} are allowed")]
    TooLong(usize),
    /// It does not fit the grammar.
    #[error(transparent)]
    Grammar(#[from] ParseError),
    /// Its digest does not fit.
    #[error(transparent)]
    Digest(#[from] BadDigest),
    /// What stands in brackets is no IPv6 address.
    #[error("what stands in its brackets is not an IPv6 address")]
    Address,
}

impl ImageName {
    /// Parses and normalises.
    pub fn parse(text: &str) -> Result<Self, BadName> {
        if text.len() > LONGEST {
            return Err(BadName::TooLong(text.len()));
        }
        if text.starts_with('[') {
            return Self::parse_ipv6(text);
        }
        let reference = Reference::try_from(text)?;
        let target = match (reference.digest(), reference.tag()) {
            (Some(digest), _) => Target::Digest(digest.parse()?),
            (None, Some(tag)) => Target::Tag(tag.to_owned()),
            (None, None) => Target::Tag("latest".to_owned()),
        };
        let name = Self {
            registry: registry(reference.registry()),
            repository: reference.repository().to_owned(),
            target,
        };
        // The grammar lets a host have capital letters; a first part that turns out to be no host
        // (it has neither dot nor port) is one of the repository's, which may not.
        Reference::try_from(name.to_string())?;
        Ok(name)
    }

    /// `[address]` or `[address]:port` in the host's place (distribution's reference grammar; an
    /// address has no zone there).
    fn parse_ipv6(text: &str) -> Result<Self, BadName> {
        let (address, rest) = text
            .strip_prefix('[')
            .and_then(|text| text.split_once(']'))
            .ok_or(BadName::Address)?;
        if address.contains('.') || address.parse::<Ipv6Addr>().is_err() {
            return Err(BadName::Address);
        }
        if !rest.starts_with([':', '/']) {
            return Err(BadName::Grammar(ParseError::ReferenceInvalidFormat));
        }
        let mut name = Self::parse(&format!("{STAND_IN}{rest}"))?;
        let Some(port) = name.registry.strip_prefix(STAND_IN) else {
            return Err(BadName::Grammar(ParseError::ReferenceInvalidFormat));
        };
        name.registry = registry(&format!("[{address}]{port}"));
        Ok(name)
    }

    /// The registry's name as written, host and perhaps port (`docker.io` for Docker Hub).
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository in the registry.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Tag or digest.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// `registry/repository:tag`, if it is a reference by tag: an entry of CRI `repo_tags`.
    pub fn repo_tag(&self) -> Option<String> {
        match &self.target {
            Target::Tag(tag) => Some(format!("{}/{}:{tag}", self.registry, self.repository)),
            Target::Digest(_) => None,
        }
    }

    /// `registry/repository@digest`: an entry of CRI `repo_digests`.
    pub fn repo_digest(&self, digest: &Digest) -> String {
        format!("{}/{}@{digest}", self.registry, self.repository)
    }
}

/// Host names do not differ by case, and the hosts' directories are looked up by them. One without
/// dot and port is told from a repository only by its capital letters, so it keeps them.
fn registry(name: &str) -> String {
    if name.contains(['.', ':']) {
        name.to_ascii_lowercase()
    } else {
        name.to_owned()
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.target {
            Target::Tag(tag) => write!(f, "{}/{}:{tag}", self.registry, self.repository),
            Target::Digest(digest) => write!(f, "{}/{}@{digest}", self.registry, self.repository),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "9700f9a2f5bf2c45f2f605a0bd3bce7cf37420ec9d3ed50ac2758413308766bf";

    #[test]
    fn normal_forms() {
        for (given, normal) in [
            ("busybox", "docker.io/library/busybox:latest".to_owned()),
            ("busybox:1.36", "docker.io/library/busybox:1.36".to_owned()),
            ("user/app", "docker.io/user/app:latest".to_owned()),
            (
                "index.docker.io/library/busybox",
                "docker.io/library/busybox:latest".to_owned(),
            ),
            ("localhost/app", "localhost/app:latest".to_owned()),
            ("localhost:5000/a/b:c", "localhost:5000/a/b:c".to_owned()),
            (
                "registry.k8s.io/pause:3.9",
                "registry.k8s.io/pause:3.9".to_owned(),
            ),
            (
                "Registry.K8s.io/pause:3.9",
                "registry.k8s.io/pause:3.9".to_owned(),
            ),
            ("[::1]:5000/app:1", "[::1]:5000/app:1".to_owned()),
            ("[::1]/app", "[::1]/app:latest".to_owned()),
            (
                "[2001:DB8::1]:443/a/b:c",
                "[2001:db8::1]:443/a/b:c".to_owned(),
            ),
            (
                &format!("[fd00::5]:5000/x:v1@sha256:{HEX}"),
                format!("[fd00::5]:5000/x@sha256:{HEX}"),
            ),
            (
                &format!("gcr.io/x/y@sha256:{HEX}"),
                format!("gcr.io/x/y@sha256:{HEX}"),
            ),
            // The digest decides: the tag beside it says nothing that can be checked.
            (
                &format!("gcr.io/x/y:v1@sha256:{HEX}"),
                format!("gcr.io/x/y@sha256:{HEX}"),
            ),
            (
                &format!("y@sha256:{HEX}"),
                format!("docker.io/library/y@sha256:{HEX}"),
            ),
        ] {
            assert_eq!(
                ImageName::parse(given).unwrap().to_string(),
                normal,
                "{given}"
            );
        }
    }

    #[test]
    fn what_is_no_reference() {
        let long = "a/".repeat(600) + "b";
        for bad in [
            "",
            " ",
            "quay.io/UPPER/case",
            "a:b:c",
            "a@sha256:12",
            "http://example.com/a",
            "a/../b",
            "/a",
            "a/",
            "a:",
            "a@",
            "a b",
            "a\nb",
            "a@md5:d41d8cd98f00b204e9800998ecf8427e",
            "[::1]",
            "[::1]:5000",
            "[::1]app",
            "[::1/app",
            "::1/app",
            "[]/app",
            "[1.2.3.4]/app",
            "[::ffff:1.2.3.4]/app",
            "[fe80::1%eth0]/app",
            "[::g]/app",
            "[::1]:x/app",
            "[::1]/UPPER",
            "[[::1]]/app",
            &long,
            &format!("a@sha256:{}", HEX.to_uppercase()),
        ] {
            assert!(ImageName::parse(bad).is_err(), "{bad:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn parsing_is_total_and_printing_is_its_inverse(
            text in "\\PC{0,80}|\\[[0-9a-f:.]{1,9}\\](:[0-9]{1,5})?/[a-zA-Z/]{1,5}(:[a-z])?|[a-zA-Z.]{1,5}(:[0-9]{1,5})?(/[a-zA-Z]{1,3}){0,3}(:[a-z])?",
        ) {
            if let Ok(name) = ImageName::parse(&text) {
                let again = ImageName::parse(&name.to_string()).unwrap();
                proptest::prop_assert_eq!(name, again);
            }
        }
    }
}
