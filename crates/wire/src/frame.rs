//! One message on a stream of bytes.
//!
//! ```text
//! 0   1  0xff           never stands inside of a frame: whoever comes late, or after half a frame, begins here
//! 1   3  length of the text, 7 bits in each byte, the lowest first
//! 4   .. text: one message in JSON, UTF-8
//! ```
//! A virtio-serial port is a stream without ends: a host may connect behind half a message that was meant for
//! another, and the guest may be restored in the middle of one. UTF-8 has no byte 0xff and neither has the length, so
//! such a byte always begins a frame, and what stood before it is dropped.
//!
//! Limits: [`FRAME_BYTES`] for a text. A longer one is an error and its bytes are skipped.

use crate::message::Envelope;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// Longest text in bytes: room for the process ids of some 10,000 processes.
pub const FRAME_BYTES: usize = 256 << 10;
const BEGIN: u8 = 0xff;
const HEADER: usize = 4;
/// Bits of the length in each byte.
const BITS: usize = 7;

/// Why bytes are no message.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum WireError {
    /// It says that it is longer than any message.
    #[error("A message says it has {0} bytes, but none has more than {FRAME_BYTES}")]
    TooLong(usize),
    /// It is not one of the known forms.
    #[error("A message is not understood: {0}")]
    Form(String),
}

/// The bytes of a message.
pub fn encode<T: Serialize>(message: &Envelope<T>) -> Result<Vec<u8>, WireError> {
    let text = serde_json::to_vec(message).map_err(|e| WireError::Form(e.to_string()))?;
    if text.len() > FRAME_BYTES {
        return Err(WireError::TooLong(text.len()));
    }
    let digit = |n: usize| u8::try_from(text.len() >> (n * BITS) & 0x7f).unwrap_or(0);
    let mut bytes = vec![BEGIN, digit(0), digit(1), digit(2)];
    bytes.extend(text);
    Ok(bytes)
}

/// Finds messages in bytes that come in pieces.
#[derive(Debug, Default)]
pub struct Reader {
    kept: Vec<u8>,
}

impl Reader {
    /// Takes the next bytes of the stream. Feed pieces of some KiB, and ask for messages after each.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        if self.kept.is_empty() {
            let begin = bytes.iter().position(|&b| b == BEGIN).unwrap_or(bytes.len());
            bytes = bytes.get(begin..).unwrap_or_default();
        }
        self.kept.extend_from_slice(bytes);
    }

    /// The next whole message, or what is wrong with it; `None` when more bytes are needed.
    pub fn message<T: DeserializeOwned>(&mut self) -> Option<Result<Envelope<T>, WireError>> {
        loop {
            let header: [u8; HEADER] = self.kept.get(..HEADER)?.try_into().ok()?;
            if let Some(again) = header.iter().skip(1).position(|&b| b == BEGIN) {
                self.skip(again + 1);
                continue;
            }
            let digits = header.iter().skip(1).rev();
            let len = digits.fold(0, |len, &digit| len << BITS | usize::from(digit & 0x7f));
            if len > FRAME_BYTES || header.iter().skip(1).any(|&b| b > 0x7f) {
                self.skip(HEADER);
                return Some(Err(WireError::TooLong(len)));
            }
            let arrived = self.kept.get(HEADER..)?;
            let arrived = arrived.get(..len).unwrap_or(arrived);
            if let Some(again) = arrived.iter().position(|&b| b == BEGIN) {
                self.skip(HEADER + again); // half a message, and then a whole one
                continue;
            }
            if arrived.len() < len {
                return None;
            }
            let message = serde_json::from_slice(arrived).map_err(|e| WireError::Form(e.to_string()));
            self.skip(HEADER + len);
            return Some(message);
        }
    }

    /// Forgets the first `n` bytes, and all that is no beginning of a frame behind them.
    fn skip(&mut self, n: usize) {
        let rest = self.kept.get(n..).unwrap_or_default();
        let begin = rest.iter().position(|&b| b == BEGIN).unwrap_or(rest.len());
        self.kept.drain(..(n + begin).min(self.kept.len()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Ask, VERSIONS};
    use proptest::prelude::*;

    fn hello(id: u32) -> Envelope<Ask> {
        Envelope { session: u64::MAX, id, body: Ask::Hello { versions: VERSIONS } }
    }

    fn frame(text: &[u8]) -> Vec<u8> {
        let n = text.len();
        let digit = |i: usize| u8::try_from(n >> (7 * i) & 0x7f).unwrap();
        [&[BEGIN, digit(0), digit(1), digit(2)], text].concat()
    }

    #[test]
    fn messages_come_in_pieces_of_any_size() {
        let bytes: Vec<u8> = (0..5).flat_map(|id| encode(&hello(id)).unwrap()).collect();
        for size in 1..bytes.len() {
            let mut reader = Reader::default();
            let mut found = Vec::new();
            for piece in bytes.chunks(size) {
                reader.feed(piece);
                while let Some(message) = reader.message::<Ask>() {
                    found.push(message.unwrap().id);
                }
            }
            assert_eq!(found, [0, 1, 2, 3, 4], "pieces of {size}");
        }
    }

    #[test]
    fn a_whole_message_follows_half_of_another_or_anything_else() {
        let whole = encode(&hello(7)).unwrap();
        for cut in 0..whole.len() {
            let mut reader = Reader::default();
            reader.feed(&whole[..cut]);
            reader.feed(&whole);
            assert_eq!(reader.message::<Ask>(), Some(Ok(hello(7))), "after {cut} bytes");
        }
        let mut reader = Reader::default();
        reader.feed(b"{\"no\": \"frame\"}\n");
        reader.feed(&whole);
        assert_eq!(reader.message::<Ask>(), Some(Ok(hello(7))));
    }

    #[test]
    fn what_is_too_long_or_not_understood_is_an_error_and_the_next_is_read() {
        let mut reader = Reader::default();
        reader.feed(&[BEGIN, 0x7f, 0x7f, 0x7f]);
        reader.feed(b"x");
        reader.feed(&frame(b"{}"));
        reader.feed(&frame(b"[[[[[["));
        reader.feed(&encode(&hello(1)).unwrap());
        assert_eq!(reader.message::<Ask>(), Some(Err(WireError::TooLong((1 << 21) - 1))));
        assert!(matches!(reader.message::<Ask>(), Some(Err(WireError::Form(_)))));
        assert!(matches!(reader.message::<Ask>(), Some(Err(WireError::Form(_)))));
        assert_eq!(reader.message::<Ask>(), Some(Ok(hello(1))));
        assert_eq!(reader.message::<Ask>(), None);
    }

    #[test]
    fn deep_nesting_ends_by_an_error() {
        let mut reader = Reader::default();
        reader.feed(&frame(&[b'['; FRAME_BYTES]));
        assert!(matches!(reader.message::<Ask>(), Some(Err(WireError::Form(_)))));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic_and_forgotten(pieces in prop::collection::vec(
            prop::collection::vec(prop_oneof![Just(BEGIN), 0_u8..4, any::<u8>()], 0..64), 0..64)) {
            let mut reader = Reader::default();
            for piece in &pieces {
                reader.feed(piece);
                while reader.message::<Ask>().is_some() {}
                // What is kept begins a frame that can still become whole.
                prop_assert!(reader.kept.is_empty() || reader.kept[0] == BEGIN);
                prop_assert!(reader.kept.len() <= HEADER + FRAME_BYTES);
            }
        }
    }
}
