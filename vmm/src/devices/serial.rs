//! The serial port, a 16550 at 0x3f8 without input, writing into the console log.
//!
//! Its saved form is vm-superio's state; the log is named anew at a restore.

use std::fmt;
use std::io::{self, Write};

use serde::{Deserialize, Serialize};
use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial, SerialState};
use vmm_sys_util::eventfd::EventFd;

use super::console::ConsoleLog;

/// Why the port could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SerialError {
    /// The saved form is not the state of a serial port.
    #[error("the saved serial port is invalid: {0}")]
    BadSavedForm(String),
    /// No descriptor is left.
    #[error("making the serial port: {0}")]
    Io(#[from] io::Error),
}

struct InterruptLine(EventFd);

impl Trigger for InterruptLine {
    type E = io::Error;
    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// vm-superio flushes after every byte; lines are enough, so flushes end here.
struct LogWriter(ConsoleLog);

impl Write for LogWriter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.write(buf)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The port.
pub struct SerialPort(Serial<InterruptLine, NoEvents, LogWriter>);

impl fmt::Debug for SerialPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SerialPort").finish_non_exhaustive()
    }
}

/// The registers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedSerial {
    baud_divisor: (u8, u8),
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
}

impl SerialPort {
    /// A port that raises `line` and writes to `log`.
    #[must_use]
    pub fn new(line: EventFd, log: ConsoleLog) -> Self {
        SerialPort(Serial::new(InterruptLine(line), LogWriter(log)))
    }

    /// A port that continues where `saved` stopped.
    ///
    /// # Errors
    /// When the saved form is invalid.
    pub fn restore(
        line: EventFd,
        log: ConsoleLog,
        saved: &SavedSerial,
    ) -> Result<Self, SerialError> {
        let state = SerialState {
            baud_divisor_low: saved.baud_divisor.0,
            baud_divisor_high: saved.baud_divisor.1,
            interrupt_enable: saved.interrupt_enable,
            interrupt_identification: saved.interrupt_identification,
            line_control: saved.line_control,
            line_status: saved.line_status,
            modem_control: saved.modem_control,
            modem_status: saved.modem_status,
            scratch: saved.scratch,
            in_buffer: Vec::new(),
        };
        Serial::from_state(&state, InterruptLine(line), NoEvents, LogWriter(log))
            .map(SerialPort)
            .map_err(|e| SerialError::BadSavedForm(format!("{e:?}")))
    }

    /// The saved form.
    #[must_use]
    pub fn save(&self) -> SavedSerial {
        let state = self.0.state();
        SavedSerial {
            baud_divisor: (state.baud_divisor_low, state.baud_divisor_high),
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
        }
    }

    /// The guest reads register `offset`.
    pub fn read(&mut self, offset: u8) -> u8 {
        self.0.read(offset)
    }

    /// The guest writes register `offset`.
    pub fn write(&mut self, offset: u8, value: u8) {
        // The log takes everything, and a full line counter means an interrupt is pending.
        let _ = self.0.write(offset, value);
    }

    /// The log.
    pub fn log(&mut self) -> &mut ConsoleLog {
        &mut self.0.writer_mut().0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(dir: &std::path::Path) -> SerialPort {
        let log = ConsoleLog::new(&dir.join("log"), 4096).unwrap();
        SerialPort::new(EventFd::new(libc::EFD_NONBLOCK).unwrap(), log)
    }

    #[test]
    fn output_goes_to_the_log_by_lines() {
        let dir = tempfile::tempdir().unwrap();
        let mut port = port(dir.path());
        for byte in *b"hello\nwor" {
            port.write(0, byte);
        }
        assert_eq!(std::fs::read(dir.path().join("log")).unwrap(), b"hello\n");
        assert_eq!(port.log().tail(), "hello\nwor");
        // Always ready to send (line status: holding register and shifter empty).
        assert_eq!(port.read(5) & 0x60, 0x60);
    }

    #[test]
    fn registers_survive_and_any_access_is_harmless() {
        let dir = tempfile::tempdir().unwrap();
        let mut one = port(dir.path());
        for offset in 0..=255u8 {
            one.write(offset, offset.wrapping_mul(31));
            one.read(offset);
        }
        one.write(3, 3);
        one.write(1, 2);
        one.write(7, 0x5a);
        let saved = one.save();
        let text = serde_json::to_string(&saved).unwrap();
        let log = ConsoleLog::new(&dir.path().join("log2"), 4096).unwrap();
        let line = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let mut two =
            SerialPort::restore(line, log, &serde_json::from_str(&text).unwrap()).unwrap();
        assert_eq!(two.save(), saved);
        assert_eq!(two.read(7), 0x5a);
    }
}
