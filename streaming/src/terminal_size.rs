//! Sizes of a terminal: JSON objects one after the other, cut anywhere by the transport.

use serde::Deserialize;

use crate::channel::Incoming;

/// A size is thirty bytes; what grows to more without being one is none.
const MAX_WAITING: usize = 1024;

/// A terminal's size in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct TerminalSize {
    /// Columns.
    #[serde(rename = "Width")]
    pub width: u16,
    /// Rows.
    #[serde(rename = "Height")]
    pub height: u16,
}

/// The last whole size in `waiting`, from which what was read is removed. `Err` if it is no JSON.
fn newest(waiting: &mut Vec<u8>) -> Result<Option<TerminalSize>, serde_json::Error> {
    let mut sizes = serde_json::Deserializer::from_slice(waiting).into_iter::<TerminalSize>();
    let mut newest = None;
    let mut used = 0;
    loop {
        match sizes.next() {
            Some(Ok(size)) => {
                newest = Some(size);
                used = sizes.byte_offset();
            }
            Some(Err(error)) if !error.is_eof() => return Err(error),
            Some(Err(_)) | None => break,
        }
    }
    waiting.drain(..used);
    Ok(newest)
}

/// The sizes of a client's window, as they come.
#[derive(Debug)]
pub struct TerminalSizes {
    incoming: Incoming,
    waiting: Vec<u8>,
}

impl TerminalSizes {
    pub(crate) fn new(incoming: Incoming) -> Self {
        Self {
            incoming,
            waiting: Vec::new(),
        }
    }

    /// The next size, skipping those that a newer one has replaced; `None` at the end of the stream,
    /// and when what comes is not a size.
    pub async fn next(&mut self) -> Option<TerminalSize> {
        loop {
            let piece = self.incoming.next().await?;
            self.waiting.extend_from_slice(&piece);
            let size = match newest(&mut self.waiting) {
                Ok(size) => size,
                Err(error) => {
                    tracing::debug!(%error, "a client sends something that is not a terminal size");
                    return None;
                }
            };
            if self.waiting.len() > MAX_WAITING {
                return None;
            }
            // A window that is folded up has no size, and a terminal without one confuses programs.
            if let Some(size) = size.filter(|size| size.width > 0 && size.height > 0) {
                return Some(size);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_whole_size_counts() {
        let mut waiting = br#"{"Width":80,"Height":24}{"Width":100,"Hei"#.to_vec();
        let size = newest(&mut waiting).unwrap().unwrap();
        assert_eq!((size.width, size.height), (80, 24));
        waiting.extend_from_slice(br#"ght":30}"#);
        let size = newest(&mut waiting).unwrap().unwrap();
        assert_eq!((size.width, size.height), (100, 30));
        assert!(newest(&mut waiting).unwrap().is_none());
        for bad in [
            &b"rows 80"[..],
            br#"{"Width":-1,"Height":4}"#,
            br#"{"Width":70000,"Height":4}"#,
        ] {
            assert!(newest(&mut bad.to_vec()).is_err(), "{bad:?}");
        }
    }
}
