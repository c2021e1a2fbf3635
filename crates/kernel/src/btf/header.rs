//! The blob's header: where the types, the names and the description of kinds stand.
//!
//! ```text
//! 0      2    3      4        8         12        16       20       24          28
//! magic  ver  flags  hdr_len  type_off  type_len  str_off  str_len [layout_off  layout_len]
//! eb9f   1           >= 24    section offsets count from the header's end
//! ```
//! Linux 7.1 and later may add the two layout fields: 4 bytes for each kind with the size of the
//! record's fixed part and of each element, so that kinds from the future can be skipped.

use super::BtfError;
use crate::le;
use std::ops::Range;

/// First bytes of every BTF blob of a little-endian kernel: magic and version.
pub(super) const MAGIC: [u8; 4] = [0x9f, 0xeb, 1, 0];
const SHORTEST: usize = 24;
const WITH_LAYOUT: usize = 32;

/// The sections of a blob, as ranges of its bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) types: Range<usize>,
    pub(super) strings: Range<usize>,
    pub(super) layout: Range<usize>,
}

impl Header {
    /// Reads and checks the header of a blob. Bytes behind the last section are allowed.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, BtfError> {
        let field = |at| le::u32_at(bytes, at).ok_or(BtfError::Header("cut off"));
        if bytes.get(..3) != Some(&MAGIC[..3]) {
            return Err(BtfError::Header("not that of a little-endian BTF of version 1"));
        }
        let header = le::index(field(4)?);
        if header < SHORTEST || header > bytes.len() {
            return Err(BtfError::Header("of an impossible length"));
        }
        let section = |name, start: u32, len: u32| {
            let from = header.checked_add(le::index(start));
            let range = from.and_then(|from| Some(from..from.checked_add(le::index(len))?));
            range.filter(|r| r.end <= bytes.len()).ok_or(BtfError::Section {
                section: name,
                start: u64::from(start),
                len: u64::from(len),
                total: bytes.len(),
            })
        };
        let types = section("type", field(8)?, field(12)?)?;
        let strings = section("string", field(16)?, field(20)?)?;
        let layout = if header >= WITH_LAYOUT { section("layout", field(24)?, field(28)?)? } else { 0..0 };
        if bytes[strings.clone()].first() != Some(&0) || bytes[strings.clone()].last() != Some(&0) {
            return Err(BtfError::Header("of a blob whose names do not begin and end with NUL"));
        }
        Ok(Self { types, strings, layout })
    }

    /// Bytes from the header to the end of the last section.
    pub(super) fn total(&self) -> usize {
        self.types.end.max(self.strings.end).max(self.layout.end)
    }
}
