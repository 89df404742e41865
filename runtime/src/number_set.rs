//! Sets of the node's processors or memory nodes, written as the kernel and CRI write them: `0-3,8`.
//! Pure.

use std::{collections::BTreeSet, fmt, ops::BitAnd};

/// Numbers end below this: what the kernel can be built for (`CONFIG_NR_CPUS`, x86).
const END: u16 = 8192;
/// Longer than any set needs that a kubelet names.
const MAX_TEXT: usize = 4096;

/// A set of small numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NumberSet(BTreeSet<u16>);

/// A text that is no set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadSet {
    /// It is not written as one. The kernel's word for it is EINVAL.
    #[error("invalid argument: numbers and ranges of them are wanted, such as 0-3,8")]
    Syntax,
    /// A number that no kernel has. The kernel's word for it is ERANGE.
    #[error("numerical result out of range: numbers end at {}", END - 1)]
    Range,
}

impl NumberSet {
    /// Reads `0-3,8`. No text is the set without numbers.
    ///
    /// # Errors
    /// If it is not one.
    pub fn parse(text: &str) -> Result<Self, BadSet> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        if text.len() > MAX_TEXT {
            return Err(BadSet::Syntax);
        }
        let ranges: Result<Vec<_>, _> = text.split(',').map(range).collect();
        let mut ranges = ranges?;
        if ranges.iter().any(|(_, last)| *last >= END) {
            return Err(BadSet::Range);
        }
        ranges.sort_unstable();
        let mut numbers = BTreeSet::new();
        // So that a text of many ranges that overlap takes no longer than one of them.
        let mut next = 0;
        for (first, last) in ranges {
            numbers.extend(first.max(next)..=last);
            next = next.max(last + 1);
        }
        Ok(Self(numbers))
    }

    /// Whether there are no numbers.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many numbers there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether this is one of them.
    pub fn contains(&self, number: u16) -> bool {
        self.0.contains(&number)
    }

    /// Whether all of them are in the other one, too.
    pub fn is_within(&self, other: &Self) -> bool {
        self.0.is_subset(&other.0)
    }

    /// In rising order.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        self.0.iter().copied()
    }

    /// Those that are in either.
    pub fn extend(&mut self, other: &Self) {
        self.0.extend(&other.0);
    }
}

impl BitAnd for &NumberSet {
    type Output = NumberSet;

    /// Those that are in both.
    fn bitand(self, other: Self) -> NumberSet {
        NumberSet(&self.0 & &other.0)
    }
}

impl FromIterator<u16> for NumberSet {
    fn from_iter<T: IntoIterator<Item = u16>>(numbers: T) -> Self {
        Self(numbers.into_iter().collect())
    }
}

impl fmt::Display for NumberSet {
    /// As short as it gets: the form in which the kernel shows one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut numbers = self.0.iter().copied().peekable();
        let mut comma = "";
        while let Some(first) = numbers.next() {
            let mut last = first;
            while let Some(next) = numbers.next_if(|next| Some(*next) == last.checked_add(1)) {
                last = next;
            }
            write!(f, "{comma}{first}")?;
            if last > first {
                write!(f, "-{last}")?;
            }
            comma = ",";
        }
        Ok(())
    }
}

fn range(part: &str) -> Result<(u16, u16), BadSet> {
    let (first, last) = part.split_once('-').unwrap_or((part, part));
    let (first, last) = (number(first)?, number(last)?);
    match first <= last {
        true => Ok((first, last)),
        false => Err(BadSet::Syntax),
    }
}

/// One that is too large for the type is as good as one that is too large for the kernel.
fn number(text: &str) -> Result<u16, BadSet> {
    let digits = (1..=5).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    let number = digits.then(|| text.parse::<u32>().ok()).flatten();
    let number = number.ok_or(BadSet::Syntax)?;
    Ok(u16::try_from(number).unwrap_or(END).min(END))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sets_are_written_as_the_kernel_writes_them() {
        for (text, shown, count) in [
            ("", "", 0),
            ("0", "0", 1),
            ("0-3", "0-3", 4),
            ("8,0-3", "0-3,8", 5),
            ("1,1", "1", 1),
            ("0,1,2", "0-2", 3),
            ("5-5,3-7,4-9", "3-9", 7),
            ("007", "7", 1),
            ("8190-8191", "8190-8191", 2),
        ] {
            let set = NumberSet::parse(text).unwrap();
            assert_eq!(
                (set.to_string().as_str(), set.len()),
                (shown, count),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_no_set_is_refused_in_the_kernels_words() {
        for bad in [
            " ", "a", "3-", "-3", "-", "3-1", "0,", ",", "0,,1", "0\n", "0-1-2", "123456", "+1",
            "0x1", "0;1", "0-3:1/2", "all", "\u{661}",
        ] {
            let error = NumberSet::parse(bad).unwrap_err();
            assert_eq!(error, BadSet::Syntax, "{bad:?}");
            assert!(error.to_string().starts_with("invalid argument"));
        }
        for bad in ["8192", "60000", "65536", "99999", "0-8192", "9000-9001"] {
            let error = NumberSet::parse(bad).unwrap_err();
            assert_eq!(error, BadSet::Range, "{bad:?}");
            assert!(
                error
                    .to_string()
                    .starts_with("numerical result out of range")
            );
        }
        assert!(NumberSet::parse(&"0-8191,".repeat(1_000)).is_err());
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read(numbers in proptest::collection::btree_set(0..END, 0..200)) {
            let set: NumberSet = numbers.iter().copied().collect();
            prop_assert_eq!(set.iter().collect::<Vec<_>>(), numbers.into_iter().collect::<Vec<_>>());
            let text = set.to_string();
            prop_assume!(text.len() <= MAX_TEXT);
            prop_assert_eq!(NumberSet::parse(&text).unwrap(), set);
        }

        #[test]
        fn ranges_in_any_order_are_their_union(
            ranges in proptest::collection::vec((0u16..300, 0u16..20), 1..30)
        ) {
            let text: Vec<_> = ranges.iter().map(|(a, n)| format!("{a}-{}", a + n)).collect();
            let expected: NumberSet = ranges.iter().flat_map(|(a, n)| *a..=a + n).collect();
            prop_assert_eq!(NumberSet::parse(&text.join(",")).unwrap(), expected);
        }

        #[test]
        fn any_text_is_read_or_refused(text in "[0-9,\\- a]{0,24}") {
            if let Ok(set) = NumberSet::parse(&text) {
                prop_assert_eq!(NumberSet::parse(&set.to_string()), Ok(set));
            }
        }
    }
}
