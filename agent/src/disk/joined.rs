//! Disks that are several layers: which part of which disk a layer is, and the partitions that are made
//! of parts when they are first needed. A partition stays as long as its disk.

use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;

use bulkhead_proto::agent::LayerPlace;

use super::device::{BlockDevice, check_serial};
use super::error::DiskError;
use super::partition::{self, MAX_PARTITIONS, Range};

/// A part of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    /// The disk's serial.
    pub disk: String,
    /// Where on it.
    pub range: Range,
}

/// Where layers are, by their serials.
///
/// # Errors
/// [`DiskError::BadSerial`], [`DiskError::BadPlace`].
pub(super) fn parts(places: &[LayerPlace]) -> Result<HashMap<&str, Part>, DiskError> {
    places.iter().map(part).collect()
}

fn part(place: &LayerPlace) -> Result<(&str, Part), DiskError> {
    let LayerPlace {
        layer,
        disk,
        offset,
        length,
    } = place;
    check_serial(disk)?;
    let range = Range::new(*offset, *length).ok_or_else(|| DiskError::BadPlace {
        layer: layer.clone(),
        disk: disk.clone(),
        offset: *offset,
        length: *length,
    })?;
    let part = Part {
        disk: disk.clone(),
        range,
    };
    Ok((layer, part))
}

/// A disk of several layers, and its partitions.
#[derive(Debug)]
pub(super) struct Joined {
    /// The whole disk.
    pub device: BlockDevice,
    numbers: HashMap<Range, u32>,
}

impl Joined {
    /// A disk without partitions.
    pub fn new(device: BlockDevice) -> Self {
        Self {
            device,
            numbers: HashMap::new(),
        }
    }

    /// The device node of a part, if a partition has been made of it.
    pub fn node(&self, range: Range) -> Option<PathBuf> {
        let number = self.numbers.get(&range)?;
        Some(partition::node(&self.device.node(), *number))
    }

    /// Makes partitions of those parts that are none yet. Blocks.
    ///
    /// # Errors
    /// [`DiskError::TooManyParts`]; [`DiskError::Partition`] if the kernel refuses one, those before it
    /// are there.
    pub fn make_partitions(&mut self, parts: &[Range]) -> Result<(), DiskError> {
        let missing = self.missing(parts)?;
        if missing.is_empty() {
            return Ok(());
        }
        let (serial, node) = (self.device.serial().to_owned(), self.device.node());
        let failed = |error| DiskError::Partition {
            disk: serial.clone(),
            device: node.display().to_string(),
            error,
        };
        let disk = File::open(&node).map_err(failed)?;
        for (number, range) in missing {
            partition::add(&disk, number, range).map_err(failed)?;
            self.numbers.insert(range, number);
        }
        Ok(())
    }

    /// The partitions to be made for these parts: the next numbers that are free.
    fn missing(&self, parts: &[Range]) -> Result<Vec<(u32, Range)>, DiskError> {
        let mut missing: Vec<(u32, Range)> = Vec::new();
        for range in parts {
            let planned = missing.iter().any(|(_, planned)| planned == range);
            if planned || self.numbers.contains_key(range) {
                continue;
            }
            // None ever goes.
            let taken = self.numbers.len().saturating_add(missing.len());
            let number = u32::try_from(taken).unwrap_or(u32::MAX).saturating_add(1);
            if number > MAX_PARTITIONS {
                return Err(DiskError::TooManyParts {
                    disk: self.device.serial().to_owned(),
                });
            }
            missing.push((number, *range));
        }
        Ok(missing)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn place(layer: &str, disk: &str, offset: u64, length: u64) -> LayerPlace {
        LayerPlace {
            layer: layer.to_owned(),
            disk: disk.to_owned(),
            offset,
            length,
        }
    }

    #[test]
    fn places_that_make_no_sense_are_refused() {
        let good = [place("la", "p", 0, 4096), place("lb", "p", 4096, 512)];
        assert_eq!(parts(&good).unwrap().len(), 2);
        for bad in [
            place("la", "../p", 0, 4096),
            place("la", "", 0, 4096),
            place("la", "p", 0, 0),
            place("la", "p", 1, 4096),
            place("la", "p", 0, 4095),
            place("la", "p", u64::MAX - 511, 4096),
        ] {
            assert!(parts(std::slice::from_ref(&bad)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_part_is_the_same_partition_every_time() {
        let range = |n: u64| Range::new(n * 4096, 4096).unwrap();
        let mut joined = Joined::new(BlockDevice::test("p", "vdc"));
        let missing = joined.missing(&[range(0), range(5), range(0)]).unwrap();
        assert_eq!(missing, [(1, range(0)), (2, range(5))]);
        // One was made, and then the kernel refused.
        joined.numbers.insert(range(0), 1);
        assert_eq!(joined.node(range(0)).unwrap(), Path::new("/dev/vdc1"));
        assert_eq!(joined.node(range(5)), None);
        let missing = joined.missing(&[range(7), range(0)]).unwrap();
        assert_eq!(missing, [(2, range(7))]);
        joined.numbers.insert(range(7), 2);
        let many: Vec<_> = (10..263).map(range).collect();
        let missing = joined.missing(&many).unwrap();
        assert_eq!(missing.last(), Some(&(255, range(262))));
        let made = missing.into_iter().map(|(number, range)| (range, number));
        joined.numbers.extend(made);
        assert!(joined.missing(&many).unwrap().is_empty());
        assert!(matches!(
            joined.missing(&[range(1)]),
            Err(DiskError::TooManyParts { .. })
        ));
    }

    #[test]
    fn a_disk_that_is_not_there_says_so() {
        let mut joined = Joined::new(BlockDevice::test("p", "no-such-disk"));
        let range = Range::new(0, 4096).unwrap();
        let error = joined.make_partitions(&[range]).unwrap_err();
        assert!(matches!(error, DiskError::Partition { .. }), "{error}");
        assert_eq!(joined.node(range), None);
    }
}
