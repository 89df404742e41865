//! Signals: CRI's enum, an image's `StopSignal` text and the guest's numbers, one table for all.

use bulkhead_proto::cri;

use super::OciError;

/// SIGTERM, which stops a container unless its image or CRI names another signal.
pub const SIGTERM: u32 = 15;
/// SIGKILL.
pub const SIGKILL: u32 = 9;

/// The real-time range as C libraries count it (the kernel's 32 and 33 are theirs).
const RTMIN: u32 = 34;
const RTMAX: u32 = 64;

/// Signals with a name, in Linux x86-64 numbers. Where two names share a number (SIGABRT and
/// SIGIOT), the first is the one a number is turned back into.
const NAMED: &[(cri::Signal, &str, u32)] = &[
    (cri::Signal::Sighup, "HUP", 1),
    (cri::Signal::Sigint, "INT", 2),
    (cri::Signal::Sigquit, "QUIT", 3),
    (cri::Signal::Sigill, "ILL", 4),
    (cri::Signal::Sigtrap, "TRAP", 5),
    (cri::Signal::Sigabrt, "ABRT", 6),
    (cri::Signal::Sigiot, "IOT", 6),
    (cri::Signal::Sigbus, "BUS", 7),
    (cri::Signal::Sigfpe, "FPE", 8),
    (cri::Signal::Sigkill, "KILL", 9),
    (cri::Signal::Sigusr1, "USR1", 10),
    (cri::Signal::Sigsegv, "SEGV", 11),
    (cri::Signal::Sigusr2, "USR2", 12),
    (cri::Signal::Sigpipe, "PIPE", 13),
    (cri::Signal::Sigalrm, "ALRM", 14),
    (cri::Signal::Sigterm, "TERM", 15),
    (cri::Signal::Sigstkflt, "STKFLT", 16),
    (cri::Signal::Sigchld, "CHLD", 17),
    (cri::Signal::Sigcld, "CLD", 17),
    (cri::Signal::Sigcont, "CONT", 18),
    (cri::Signal::Sigstop, "STOP", 19),
    (cri::Signal::Sigtstp, "TSTP", 20),
    (cri::Signal::Sigttin, "TTIN", 21),
    (cri::Signal::Sigttou, "TTOU", 22),
    (cri::Signal::Sigurg, "URG", 23),
    (cri::Signal::Sigxcpu, "XCPU", 24),
    (cri::Signal::Sigxfsz, "XFSZ", 25),
    (cri::Signal::Sigvtalrm, "VTALRM", 26),
    (cri::Signal::Sigprof, "PROF", 27),
    (cri::Signal::Sigwinch, "WINCH", 28),
    (cri::Signal::Sigio, "IO", 29),
    (cri::Signal::Sigpoll, "POLL", 29),
    (cri::Signal::Sigpwr, "PWR", 30),
    (cri::Signal::Sigsys, "SYS", 31),
];

/// CRI's real-time block: its first value is SIGRTMIN and the values go up with the numbers.
const CRI_RTMIN: i32 = cri::Signal::Sigrtmin as i32;
const CRI_RTMAX: i32 = cri::Signal::Sigrtmax as i32;

/// The number of a CRI signal; `None` for the runtime's default.
pub fn number_of(signal: cri::Signal) -> Option<u32> {
    let value = signal as i32;
    if (CRI_RTMIN..=CRI_RTMAX).contains(&value) {
        return u32::try_from(value - CRI_RTMIN)
            .ok()
            .map(|above| RTMIN + above);
    }
    NAMED
        .iter()
        .find(|(named, ..)| *named == signal)
        .map(|&(.., number)| number)
}

/// The CRI signal of a number; the runtime's default if CRI has no name for it (32 and 33).
pub fn cri_of(number: u32) -> cri::Signal {
    if (RTMIN..=RTMAX).contains(&number) {
        return i32::try_from(number - RTMIN)
            .ok()
            .and_then(|above| cri::Signal::try_from(CRI_RTMIN + above).ok())
            .unwrap_or(cri::Signal::RuntimeDefault);
    }
    NAMED
        .iter()
        .find(|&&(.., named)| named == number)
        .map_or(cri::Signal::RuntimeDefault, |&(signal, ..)| signal)
}

/// Reads the text of an image's `StopSignal`: a number, or a name with or without `SIG`, with
/// `RTMIN+n` and `RTMAX-n`.
pub fn parse(text: &str) -> Result<u32, OciError> {
    let refused = || OciError::Invalid {
        field: "the image's StopSignal",
        value: text.to_owned(),
        allowed: "a signal number from 1 to 64 or a name such as SIGTERM or SIGRTMIN+3",
    };
    if let Ok(number) = text.parse::<u32>() {
        return if (1..=RTMAX).contains(&number) {
            Ok(number)
        } else {
            Err(refused())
        };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(&(.., number)) = NAMED.iter().find(|&&(_, named, _)| named == name) {
        return Ok(number);
    }
    let offset = |digits: &str| digits.parse::<u32>().ok().filter(|n| *n <= RTMAX - RTMIN);
    let number = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(""), _) => Some(RTMIN),
        (_, Some("")) => Some(RTMAX),
        (Some(rest), _) => rest.strip_prefix('+').and_then(offset).map(|n| RTMIN + n),
        (_, Some(rest)) => rest.strip_prefix('-').and_then(offset).map(|n| RTMAX - n),
        (None, None) => None,
    };
    number.ok_or_else(refused)
}

/// What stops the container: CRI's wish, else the image's, else SIGTERM.
pub fn effective(wish: i32, image: &str) -> Result<u32, OciError> {
    let wish = cri::Signal::try_from(wish).map_err(|_| OciError::Invalid {
        field: "stop_signal",
        value: wish.to_string(),
        allowed: "a value of CRI's Signal enum (0 to 65)",
    })?;
    match number_of(wish) {
        Some(number) => Ok(number),
        None if image.is_empty() => Ok(SIGTERM),
        None => parse(image),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cri_signal_has_a_number_and_comes_back() {
        for value in 1..=65 {
            let signal = cri::Signal::try_from(value).unwrap();
            let number = number_of(signal).unwrap();
            assert!((1..=64).contains(&number), "{signal:?} is {number}");
            // Two names for one number come back as one of them.
            assert_eq!(number_of(cri_of(number)), Some(number));
        }
        assert_eq!(number_of(cri::Signal::RuntimeDefault), None);
        assert_eq!(number_of(cri::Signal::Sigrtminplus15), Some(49));
        assert_eq!(number_of(cri::Signal::Sigrtmaxminus14), Some(50));
        assert_eq!(number_of(cri::Signal::Sigrtmax), Some(64));
    }

    #[test]
    fn image_texts() {
        for (text, number) in [
            ("SIGTERM", 15),
            ("term", 15),
            ("9", 9),
            ("SIGRTMIN+3", 37),
            ("RTMAX-2", 62),
            ("SIGRTMIN", 34),
            ("SIGRTMAX", 64),
            ("SIGWINCH", 28),
            ("SIGQUIT", 3),
        ] {
            assert_eq!(parse(text).unwrap(), number, "{text}");
        }
        for text in [
            "",
            "0",
            "65",
            "-1",
            "SIG",
            "SIGNOPE",
            "RTMIN+31",
            "RTMIN-1",
            "RTMAX+1",
            "4294967296",
        ] {
            assert!(parse(text).is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn the_request_goes_before_the_image() {
        assert_eq!(effective(cri::Signal::Sigint as i32, "SIGQUIT").unwrap(), 2);
        assert_eq!(effective(0, "SIGQUIT").unwrap(), 3);
        assert_eq!(effective(0, "").unwrap(), SIGTERM);
        assert!(effective(66, "").is_err());
        assert!(effective(0, "rubbish").is_err());
    }
}
