//! The kernel's text formats. Pure.

use bulkhead_proto::agent::{DeviceIo, InterfaceStats, Psi, PsiLine};

/// The kernel counts CPU time in microseconds.
pub const NS_PER_US: u64 = 1000;
/// cpu.max's period where the file says nothing.
const DEFAULT_PERIOD_US: u64 = 100_000;

/// The number after a key at the start of a line.
pub fn value(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        if words.next()? == key {
            words.next()?.parse().ok()
        } else {
            None
        }
    })
}

/// A pressure file: `some avg10=0.00 avg60=0.00 avg300=0.00 total=0` and `full …`.
pub fn psi(text: &str) -> Option<Psi> {
    let line = |kind: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(kind))?;
        let field = |name: &str| {
            line.split_ascii_whitespace()
                .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
        };
        Some(PsiLine {
            total_us: field("total")?.parse().ok()?,
            avg10: field("avg10")?.parse().ok()?,
            avg60: field("avg60")?.parse().ok()?,
            avg300: field("avg300")?.parse().ok()?,
        })
    };
    let (some, full) = (line("some "), line("full "));
    if some.is_none() && full.is_none() {
        None
    } else {
        Some(Psi { full, some })
    }
}

/// The devices of /proc/net/dev.
pub fn interfaces(text: &str) -> impl Iterator<Item = InterfaceStats> {
    text.lines().filter_map(|line| {
        let (name, numbers) = line.split_once(':')?;
        let numbers: Vec<u64> = numbers
            .split_ascii_whitespace()
            .map_while(|number| number.parse().ok())
            .collect();
        Some(InterfaceStats {
            name: name.trim().to_owned(),
            rx_bytes: *numbers.first()?,
            rx_errors: *numbers.get(2)?,
            tx_bytes: *numbers.get(8)?,
            tx_errors: *numbers.get(10)?,
            rx_packets: *numbers.get(1)?,
            rx_dropped: *numbers.get(3)?,
            tx_packets: *numbers.get(9)?,
            tx_dropped: *numbers.get(11)?,
        })
    })
}

/// cpu.max: quota (0 where it is `max`) and period in microseconds.
pub fn cpu_max(text: &str) -> (u64, u64) {
    let mut words = text.split_ascii_whitespace();
    let quota = words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
    let period = words.next().and_then(|word| word.parse().ok());
    (quota, period.unwrap_or(DEFAULT_PERIOD_US))
}

/// io.stat: `254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`, one line per device.
pub fn device_io(text: &str) -> impl Iterator<Item = DeviceIo> {
    text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let (major, minor) = words.next()?.split_once(':')?;
        let mut io = DeviceIo {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            ..DeviceIo::default()
        };
        for word in words {
            let (key, value) = word.split_once('=')?;
            let value = value.parse().ok()?;
            match key {
                "rbytes" => io.read_bytes = value,
                "wbytes" => io.write_bytes = value,
                "rios" => io.reads = value,
                "wios" => io.writes = value,
                _ => {}
            }
        }
        Some(io)
    })
}

/// The soft limit of open files in /proc/PID/limits.
pub fn open_files_soft(limits: &str) -> Option<u64> {
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// How many numbers a list like `0-2,5` has. A list that is none has none.
pub fn list_count(list: &str) -> u32 {
    let ranges = list.trim().split(',').filter_map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (first.parse::<u32>().ok()?, last.parse::<u32>().ok()?);
        last.checked_sub(first)?.checked_add(1)
    });
    ranges.fold(0, u32::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_formats_are_parsed() {
        assert_eq!(value("anon 5\ninactive_file 7\n", "inactive_file"), Some(7));
        assert_eq!(value("MemTotal:  99 kB\n", "MemTotal:"), Some(99));
        let psi = psi("some avg10=1.50 avg60=0.00 avg300=0.00 total=12\n\
                       full avg10=0.00 avg60=0.00 avg300=0.00 total=3\n")
        .unwrap();
        assert_eq!(psi.some.unwrap().total_us, 12);
        assert_eq!(psi.full.unwrap().total_us, 3);
        let dev = "Inter-| Receive\n face |bytes\n\
                   eth0: 10 1 2 0 0 0 0 0 20 3 4 0 0 0 0 0\n";
        let list: Vec<_> = interfaces(dev).collect();
        assert_eq!(list.len(), 1);
        assert_eq!((list[0].rx_packets, list[0].rx_dropped), (1, 0));
        assert_eq!((list[0].rx_bytes, list[0].rx_errors), (10, 2));
        assert_eq!((list[0].tx_bytes, list[0].tx_errors), (20, 4));
    }

    #[test]
    fn malformed_text_yields_nothing() {
        assert_eq!(psi("garbage"), None);
        assert_eq!(value("anon x", "anon"), None);
        assert_eq!(device_io("8:0 rbytes\nx:0 rbytes=1\n\n").count(), 0);
        assert_eq!(open_files_soft("Max open files unlimited unlimited"), None);
        assert_eq!(list_count("3-1,x,,4294967295"), 1);
    }

    #[test]
    fn limits_and_lists_are_parsed() {
        assert_eq!(cpu_max("max 50000\n"), (0, 50_000));
        assert_eq!(cpu_max(""), (0, 100_000));
        let limits = "Limit  Soft Limit  Hard Limit  Units\nMax open files  1024  4096  files\n";
        assert_eq!(open_files_soft(limits), Some(1024));
        assert_eq!(list_count("0-2,5\n"), 4);
        assert_eq!(list_count("0\n"), 1);
    }
}
