//! The guest's I/O ports: serial port, power-off, reset and pvpanic. All others read ones.

use std::sync::{Arc, Mutex, MutexGuard};

use crate::arch::x86_64::acpi;
use crate::arch::x86_64::layout;
use crate::devices::serial::SerialPort;
use crate::lifecycle::Lifecycle;
use crate::sync::lock;
use bulkhead_contract::exit::Reason;

/// pvpanic: the guest's kernel panicked.
const PANICKED: u8 = 1;
/// pvpanic: it panicked, and a crash kernel takes over.
const CRASH_LOADED: u8 = 2;

/// All ports of one VM.
#[derive(Debug)]
pub struct Ports {
    serial: Mutex<SerialPort>,
    lifecycle: Arc<Lifecycle>,
}

impl Ports {
    /// The ports; ends of the VM are reported to `lifecycle`.
    #[must_use]
    pub fn new(serial: SerialPort, lifecycle: Arc<Lifecycle>) -> Self {
        Ports {
            serial: Mutex::new(serial),
            lifecycle,
        }
    }

    /// The serial port.
    pub fn serial(&self) -> MutexGuard<'_, SerialPort> {
        lock(&self.serial)
    }

    /// The guest reads.
    pub fn read(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        let [byte] = data else {
            return;
        };
        *byte = match port {
            layout::SLEEP_STATUS_PORT => 0,
            layout::PVPANIC_PORT => PANICKED | CRASH_LOADED,
            _ => match serial_register(port) {
                Some(offset) => self.serial().read(offset),
                None => 0xff,
            },
        };
    }

    /// The guest writes.
    pub fn write(&self, port: u16, data: &[u8]) {
        let [value] = *data else {
            return;
        };
        match port {
            layout::SLEEP_CONTROL_PORT if acpi::is_power_off(value) => {
                self.lifecycle
                    .end(Reason::PowerOff, "the guest powered off");
            }
            layout::RESET_PORT if value == acpi::RESET_VALUE => {
                self.lifecycle
                    .end(Reason::Reboot, "the guest asked for a reset");
            }
            layout::PVPANIC_PORT if value & (PANICKED | CRASH_LOADED) != 0 => {
                self.lifecycle
                    .end(Reason::Panic, "the guest's kernel panicked");
            }
            _ => {
                if let Some(offset) = serial_register(port) {
                    self.serial().write(offset, value);
                }
            }
        }
    }
}

fn serial_register(port: u16) -> Option<u8> {
    let offset = port.checked_sub(layout::SERIAL_PORT).filter(|o| *o < 8)?;
    u8::try_from(offset).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::console::ConsoleLog;
    use vmm_sys_util::eventfd::EventFd;

    fn ports(dir: &std::path::Path) -> (Arc<Lifecycle>, Ports) {
        let log = ConsoleLog::new(&dir.join("log"), 4096).unwrap();
        let serial = SerialPort::new(EventFd::new(libc::EFD_NONBLOCK).unwrap(), log);
        let lifecycle = Arc::new(Lifecycle::new().unwrap());
        (Arc::clone(&lifecycle), Ports::new(serial, lifecycle))
    }

    #[test]
    fn each_way_to_end_has_its_own_reason() {
        for (port, value, reason) in [
            (layout::SLEEP_CONTROL_PORT, 0x34, Reason::PowerOff),
            (layout::RESET_PORT, 1, Reason::Reboot),
            (layout::PVPANIC_PORT, 1, Reason::Panic),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let (lifecycle, ports) = ports(dir.path());
            ports.write(port, &[value, 0]);
            ports.write(port, &[0]);
            assert_eq!(lifecycle.get(), None);
            ports.write(port, &[value]);
            assert_eq!(lifecycle.get().unwrap().reason, reason);
        }
    }

    #[test]
    fn unclaimed_ports_read_ones() {
        let dir = tempfile::tempdir().unwrap();
        let (lifecycle, ports) = ports(dir.path());
        for port in 0..=u16::MAX {
            let mut data = [0u8; 1];
            ports.read(port, &mut data);
            let known = [layout::SLEEP_STATUS_PORT, layout::PVPANIC_PORT].contains(&port)
                || serial_register(port).is_some();
            if !known {
                assert_eq!(data, [0xff]);
            }
            ports.read(port, &mut [0; 4]);
            ports.write(port, &[0; 4]);
        }
        assert_eq!(lifecycle.get(), None);
    }
}
