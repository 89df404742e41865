//! The files of layers that a pod gets together, and where each is on the disk that they are: one after
//! the other, in whole blocks. When that disk is plugged, and what is on record, is for `disks`.

use std::{fs::File, path::PathBuf};

use bulkhead_contract::vmm::{MAX_PARTS, PART_ALIGNMENT};
use bulkhead_images::LayerDisk;

use super::ContainerError;
use crate::{records::LayerPlace, task::blocking};

/// How much of a container's id is in its disks' serials, which have 20 characters at most.
const ID_CHARACTERS: usize = 16;

/// A disk that is to be plugged.
#[derive(Debug)]
pub(super) struct JoinedDisk {
    /// Its serial.
    pub serial: String,
    /// Its files, and how many bytes of it each is.
    pub parts: Vec<(File, u64)>,
    /// Where on it each layer is, in the same order.
    pub places: Vec<LayerPlace>,
}

/// Opens the files of layers, and says on which disks they will be: one, unless there are more than a
/// disk can have parts. The disks' serials are the container's own, and used once.
///
/// # Errors
/// If a file cannot be opened.
pub(super) async fn open(
    container: &str,
    layers: &[&LayerDisk],
) -> Result<Vec<JoinedDisk>, ContainerError> {
    let files: Vec<(String, PathBuf)> = layers
        .iter()
        .map(|layer| (layer.serial.clone(), layer.path.clone()))
        .collect();
    if files.is_empty() {
        return Ok(Vec::new());
    }
    let container = container.to_owned();
    blocking(move || {
        let mut opened = Vec::with_capacity(files.len());
        for (serial, path) in files {
            let failed = |source| ContainerError::Os {
                action: format!("open the image layer {}", path.display()),
                source,
            };
            let file = File::open(&path).map_err(failed)?;
            let length = file.metadata().map_err(failed)?.len();
            opened.push((serial, file, length));
        }
        lay_out(&container, opened)
    })
    .await
}

fn lay_out(
    container: &str,
    files: Vec<(String, File, u64)>,
) -> Result<Vec<JoinedDisk>, ContainerError> {
    let id: String = container.chars().take(ID_CHARACTERS).collect();
    let mut disks: Vec<JoinedDisk> = Vec::new();
    let mut end = 0_u64;
    for (layer, file, length) in files {
        if disks
            .last()
            .is_none_or(|disk| disk.parts.len() >= MAX_PARTS)
        {
            disks.push(JoinedDisk {
                serial: format!("p{id}-{}", disks.len()),
                parts: Vec::new(),
                places: Vec::new(),
            });
            end = 0;
        }
        let too_long = || ContainerError::Invalid {
            field: "config.image",
            what: format!("has layers of more bytes than a disk has: {layer} has {length}"),
        };
        let length = length.checked_next_multiple_of(PART_ALIGNMENT);
        let length = length.ok_or_else(too_long)?;
        let offset = end;
        end = offset.checked_add(length).ok_or_else(too_long)?;
        if let Some(disk) = disks.last_mut() {
            disk.parts.push((file, length));
            disk.places.push(LayerPlace {
                layer,
                disk: disk.serial.clone(),
                offset,
                length,
            });
        }
    }
    Ok(disks)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn laid_out(lengths: &[u64]) -> Vec<JoinedDisk> {
        let file = || File::open("/dev/null").unwrap();
        let files = lengths.iter().enumerate();
        let files = files.map(|(n, length)| (format!("l{n}"), file(), *length));
        lay_out("0123456789abcdef0123456789abcdef", files.collect()).unwrap()
    }

    #[test]
    fn layers_stand_one_after_the_other_in_whole_blocks() {
        let disks = laid_out(&[1, 4096, 4097, 512]);
        assert_eq!(disks.len(), 1);
        assert_eq!(disks[0].serial, "p0123456789abcdef-0");
        let places = disks[0].places.iter();
        let places: Vec<_> = places
            .map(|place| (place.layer.as_str(), place.offset, place.length))
            .collect();
        assert_eq!(
            places,
            [
                ("l0", 0, 4096),
                ("l1", 4096, 4096),
                ("l2", 8192, 8192),
                ("l3", 16384, 4096)
            ]
        );
        assert!(laid_out(&[]).is_empty());
    }

    #[test]
    fn more_layers_than_a_disk_has_parts_are_several_disks() {
        for (count, parts) in [
            (239, vec![239]),
            (240, vec![240]),
            (241, vec![240, 1]),
            (721, vec![240, 240, 240, 1]),
        ] {
            let disks = laid_out(&vec![5000; count]);
            let lengths: Vec<_> = disks.iter().map(|disk| disk.parts.len()).collect();
            assert_eq!(lengths, parts);
            for (number, disk) in disks.iter().enumerate() {
                assert_eq!(disk.serial, format!("p0123456789abcdef-{number}"));
                assert!(disk.serial.len() <= 20);
                assert_eq!(disk.places.len(), disk.parts.len());
                assert_eq!(disk.places[0].offset, 0);
                assert!(disk.places.iter().all(|place| place.disk == disk.serial));
            }
        }
    }

    #[test]
    fn lengths_that_cannot_be_are_refused() {
        let file = || File::open("/dev/null").unwrap();
        for lengths in [&[u64::MAX][..], &[u64::MAX - 8191, 8192]] {
            let files = lengths
                .iter()
                .map(|length| ("l".to_owned(), file(), *length));
            assert!(lay_out("c", files.collect()).is_err());
        }
    }
}
