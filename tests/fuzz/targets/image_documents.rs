//! What a registry and a user say of an image: references, manifests, indexes and configurations. A
//! reference that is taken reads back as itself, and what is taken keeps its bounds.
#![no_main]

use bulkhead_images::manifest::{Manifest, pair_layers, parse_config, parse_manifest};
use bulkhead_images::reference::ImageName;
use libfuzzer_sys::fuzz_target;

const MOST_LAYERS: usize = 500;
const MOST_DIFFERENT: usize = 240;
const MOST_VOLUMES: usize = 1024;

fuzz_target!(|input: (&str, &[u8], &[u8])| {
    let (words, manifest, config) = input;
    if let Ok(name) = ImageName::parse(words) {
        assert_eq!(ImageName::parse(&name.to_string()).ok(), Some(name));
    }
    let diff_ids = match parse_config(config) {
        Ok(read) => {
            assert!(read.config.volumes.len() <= MOST_VOLUMES);
            assert!(read.diff_ids.len() <= MOST_LAYERS + 1);
            read.diff_ids
        }
        Err(_) => Vec::new(),
    };
    let Ok(Manifest::Image { layers, .. }) = parse_manifest(manifest, words) else {
        return;
    };
    assert!(layers.len() <= MOST_LAYERS);
    if let Ok(pairs) = pair_layers(layers, diff_ids, MOST_DIFFERENT) {
        assert!(pairs.len() <= MOST_DIFFERENT);
    }
});
