//! How much of a guest's memory its containers may use, and when the guest wants more or less. Pure.

use bulkhead_proto::agent::MemoryPolicy;

const MIB: u64 = 1 << 20;
/// Linux adds memory in blocks of this size.
const BLOCK: u64 = 128 * MIB;
/// The kernel's and the agent's own: so much, and a share of all.
const RESERVE: u64 = 40 * MIB;
const RESERVE_SHARE: u64 = 32;
/// Between what the containers use when more is asked for and where they are slowed down.
const HEADROOM_SHARE: u64 = 4;
const HEADROOM_LEAST: u64 = 48 * MIB;
const HEADROOM_MOST: u64 = 512 * MIB;
/// So near to that point it counts as reached: the kernel reclaims some on the way.
const MARGIN: u64 = 16 * MIB;
/// What is asked for at a time: as much again as is used, between these. Memory that is not used
/// costs the host its page structs, 1/64.
const STEP_LEAST: u64 = 256 * MIB;
const STEP_MOST: u64 = 4096 * MIB;

/// What the containers may use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Policy {
    /// All containers' limit, bytes.
    containers_max: Option<u64>,
    /// The most memory the guest can get, bytes; 0 if it has it.
    guest_max: u64,
    /// The memory it began with, bytes.
    boot: u64,
    /// What of that its kernel does not count as memory: the kernel itself.
    uncounted: u64,
}

/// What is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Use {
    /// Memory the kernel has, bytes, without what is set aside for huge pages.
    pub(super) total: u64,
    /// What the containers use, without the file cache that can be dropped at once, bytes.
    pub(super) working_set: u64,
}

impl Use {
    /// Where it is noticed that memory runs short, while there is still some.
    fn early(self) -> u64 {
        let headroom = (self.total / HEADROOM_SHARE).clamp(HEADROOM_LEAST, HEADROOM_MOST);
        usable(self.total).saturating_sub(headroom)
    }

    fn is_tight(self) -> bool {
        self.working_set.saturating_add(MARGIN) >= self.early()
    }
}

/// memory.high and memory.max of all containers together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Levels {
    pub(super) high: Option<u64>,
    pub(super) max: Option<u64>,
}

impl Policy {
    /// As the daemon has it now; `total` is what the kernel counts at this moment.
    pub(super) fn updated(self, asked: &MemoryPolicy, total: u64) -> Self {
        let first = self.boot == 0;
        Self {
            containers_max: Some(asked.containers_max).filter(|max| *max > 0),
            guest_max: asked.guest_max,
            boot: if first { asked.guest_bytes } else { self.boot },
            uncounted: match first {
                true => asked.guest_bytes.saturating_sub(total),
                false => self.uncounted,
            },
        }
    }

    pub(super) fn is_elastic(self) -> bool {
        self.guest_max > self.boot
    }

    /// All the guest's memory, as the host counts it.
    fn has(self, used: Use) -> u64 {
        used.total.saturating_add(self.uncounted)
    }

    fn has_all(self, used: Use) -> bool {
        // A block may be left that the kernel cannot use.
        self.has(used).saturating_add(BLOCK) > self.guest_max
    }

    /// Whether the guest has more than it began with.
    pub(super) fn has_grown(self, used: Use) -> bool {
        self.has(used) > self.boot.saturating_add(BLOCK / 2)
    }

    /// Whether it has less than this.
    pub(super) fn has_less_than(self, bytes: u64, used: Use) -> bool {
        self.has(used).saturating_add(BLOCK / 2) < bytes.min(self.guest_max)
    }

    /// Slowed down at what is there, or earlier, so that it is noticed in time; killed only where there is
    /// no more to be had.
    pub(super) fn levels(self, used: Use) -> Levels {
        let usable = usable(used.total);
        if !self.is_elastic() || self.has_all(used) {
            let max = self.containers_max.unwrap_or(usable);
            return Levels {
                high: None,
                max: Some(max),
            };
        }
        let high = match used.is_tight() {
            true => usable,
            false => used.early(),
        };
        Levels {
            high: Some(high),
            max: self.containers_max,
        }
    }

    /// How much the guest should have; `None` as long as it is content.
    pub(super) fn wanted(self, used: Use) -> Option<u64> {
        if !self.is_elastic() {
            return None;
        }
        let step = used.working_set.clamp(STEP_LEAST, STEP_MOST);
        let goal = self.guest_with(used.working_set.saturating_add(step));
        let has = self.has(used);
        // Half of what it has would do, with room to grow once more before it is asked again.
        let roomy = self.has_grown(used) && goal.saturating_add(STEP_LEAST) < has / 2;
        if used.is_tight() && goal > has && !self.has_all(used) || roomy {
            return Some(goal);
        }
        None
    }

    /// The guest in which the containers can use so much without being noticed.
    fn guest_with(self, containers: u64) -> u64 {
        let total = containers
            .saturating_add(RESERVE)
            .saturating_mul(RESERVE_SHARE)
            / (RESERVE_SHARE - 1);
        let guest = total
            .saturating_add(self.uncounted)
            .saturating_sub(self.boot);
        let more = guest.div_ceil(BLOCK).saturating_mul(BLOCK);
        self.boot.saturating_add(more).min(self.guest_max)
    }
}

/// What of the guest's memory is for containers.
fn usable(total: u64) -> u64 {
    total.saturating_sub(RESERVE + total / RESERVE_SHARE)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn elastic() -> Policy {
        let asked = MemoryPolicy {
            containers_max: 0,
            guest_max: 8 * GIB,
            guest_bytes: 512 * MIB,
        };
        Policy::default().updated(&asked, 480 * MIB)
    }

    fn used(total_mib: u64, working_set_mib: u64) -> Use {
        Use {
            total: total_mib * MIB,
            working_set: working_set_mib * MIB,
        }
    }

    #[test]
    fn a_fixed_pod_has_its_limit_or_what_the_guest_can_spare() {
        let asked = |containers_max| MemoryPolicy {
            containers_max,
            guest_max: 0,
            guest_bytes: 128 * MIB,
        };
        let limited = Policy::default().updated(&asked(16 * MIB), 100 * MIB);
        let levels = limited.levels(used(100, 10));
        assert_eq!((levels.high, levels.max), (None, Some(16 * MIB)));
        assert_eq!(limited.wanted(used(100, 16)), None);
        let free = Policy::default().updated(&asked(0), 100 * MIB);
        assert_eq!(free.levels(used(100, 10)).max, Some(usable(100 * MIB)));
    }

    #[test]
    fn more_is_asked_for_before_the_guest_runs_out_and_nobody_is_killed() {
        let policy = elastic();
        assert_eq!(policy.wanted(used(480, 20)), None);
        assert!(policy.levels(used(480, 20)).high.unwrap() < 320 * MIB);
        let tight = used(480, 300);
        let wanted = policy.wanted(tight).unwrap();
        assert!(wanted > 600 * MIB && wanted < 2 * GIB, "{wanted}");
        assert_eq!((wanted - 512 * MIB) % BLOCK, 0);
        let levels = policy.levels(tight);
        assert_eq!((levels.high, levels.max), (Some(usable(480 * MIB)), None));
        assert!(policy.has_less_than(wanted, tight));
        // It is there: nothing is wanted until that is used, too.
        let grown = used(wanted / MIB - 32, 300);
        assert!(policy.has_grown(grown) && !policy.has_less_than(wanted, grown));
        assert_eq!(policy.wanted(grown), None);
    }

    #[test]
    fn the_last_of_it_is_a_limit() {
        let policy = elastic();
        let all = used(8 * 1024 - 40, 8_000);
        assert_eq!(policy.wanted(all), None);
        let levels = policy.levels(all);
        assert_eq!((levels.high, levels.max), (None, Some(usable(all.total))));
    }

    #[test]
    fn what_is_not_needed_goes_back_but_never_below_the_boot() {
        let policy = elastic();
        let wanted = policy.wanted(used(6_000, 100)).unwrap();
        assert!((512 * MIB..1024 * MIB).contains(&wanted), "{wanted}");
        assert_eq!(policy.wanted(used(480, 1)), None);
    }

    #[test]
    fn growing_ends_at_what_is_needed_whatever_the_use() {
        for need in (0..8_000).step_by(97) {
            let policy = elastic();
            let mut total = 480 * MIB;
            let mut steps = 0;
            while let Some(wanted) = policy.wanted(Use {
                total,
                working_set: (need * MIB).min(usable(total)),
            }) {
                let now = wanted - 32 * MIB;
                assert!(now > total, "{need}: {now} after {total}");
                total = now;
                steps += 1;
            }
            assert!(
                usable(total) >= (need * MIB).min(usable(8 * GIB - 32 * MIB)),
                "{need}"
            );
            assert!(steps <= 12, "{need}: {steps}");
        }
    }
}
