//! From what a CRI client calls an image to the image.

use std::sync::Arc;

use super::records::ImageRecord;
use crate::{error::ImagesError, reference::ImageName};

/// Shortest beginning of an id that is taken for one.
const SHORTEST_ID: usize = 3;

/// Finds by full id (`sha256:…` or the bare 64 digits), tag or digest reference, or a unique
/// beginning of an id; a name goes before the beginning of an id that looks like it.
pub(super) fn find(
    images: &[Arc<ImageRecord>],
    reference: &str,
) -> Result<Option<Arc<ImageRecord>>, ImagesError> {
    if reference.is_empty() {
        return Err(ImagesError::NoName);
    }
    let by_id = |id: &str| images.iter().find(|image| image.id == id).cloned();
    if let Some(image) = by_id(reference).or_else(|| by_id(&format!("sha256:{reference}"))) {
        return Ok(Some(image));
    }

    let hex = reference.strip_prefix("sha256:").unwrap_or(reference);
    let looks_like_id = (SHORTEST_ID..=64).contains(&hex.len())
        && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    match ImageName::parse(reference) {
        Ok(name) => {
            let name = name.to_string();
            let found = images.iter().find(|image| {
                image.repo_tags.contains(&name) || image.repo_digests.contains(&name)
            });
            if let Some(image) = found {
                return Ok(Some(Arc::clone(image)));
            }
        }
        Err(source) if !looks_like_id => {
            return Err(ImagesError::Name {
                given: reference.chars().take(300).collect(),
                source,
            });
        }
        Err(_) => {}
    }
    if !looks_like_id {
        return Ok(None);
    }
    let mut fitting = images.iter().filter(|image| {
        image
            .id
            .strip_prefix("sha256:")
            .is_some_and(|id| id.starts_with(hex))
    });
    match (fitting.next(), fitting.next()) {
        (Some(_), Some(_)) => Err(ImagesError::Ambiguous {
            given: reference.to_owned(),
        }),
        (one, _) => Ok(one.cloned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::ImageConfig;

    fn image(id: &str, tags: &[&str], digests: &[&str]) -> Arc<ImageRecord> {
        let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        Arc::new(ImageRecord {
            id: format!("sha256:{id}{}", "0".repeat(64 - id.len())),
            listed: true,
            repo_tags: owned(tags),
            repo_digests: owned(digests),
            config: ImageConfig::default(),
            layers: Vec::new(),
            size: 1,
            pulled_at: 0,
            config_file: String::new(),
        })
    }

    #[test]
    fn every_way_to_name_an_image() {
        let digest = format!("docker.io/library/cafe@sha256:{}", "a".repeat(64));
        let images = [
            image(
                "cafe1",
                &["docker.io/library/cafe:latest", "quay.io/x/y:1"],
                &[&digest],
            ),
            image("cafe2", &[], &["quay.io/x/z@sha256:1"]),
            image("beef", &["registry.k8s.io/pause:3.9"], &[]),
        ];
        let found = |reference: &str| {
            find(&images, reference)
                .unwrap()
                .map(|image| image.id.get(7..12).unwrap().to_owned())
        };
        let some = |id: &str| Some(id.to_owned());
        assert_eq!(found("cafe"), some("cafe1"), "a name, not two ids");
        assert_eq!(found("docker.io/library/cafe:latest"), some("cafe1"));
        assert_eq!(found(&digest), some("cafe1"));
        assert_eq!(
            found(&format!("cafe:gone@sha256:{}", "a".repeat(64))),
            some("cafe1")
        );
        assert_eq!(found("quay.io/x/y:1"), some("cafe1"));
        assert_eq!(found("quay.io/x/y"), None);
        assert_eq!(found("beef"), some("beef0"));
        assert_eq!(found("sha256:beef"), some("beef0"));
        assert_eq!(found(&images[2].id), some("beef0"));
        assert_eq!(found(&images[2].id[7..]), some("beef0"));
        assert_eq!(found("be"), None, "too short for an id");
        assert_eq!(found(&"c".repeat(64)), None);
        assert!(matches!(
            find(&images, "caf"),
            Err(ImagesError::Ambiguous { .. })
        ));
        assert!(matches!(find(&images, ""), Err(ImagesError::NoName)));
        assert!(matches!(
            find(&images, "A B"),
            Err(ImagesError::Name { .. })
        ));
    }
}
