//! The table of names, found backwards from the tokens, and its decoding.
//!
//! ```text
//! num_syms   u32, padded to 4 or 8 bytes
//! names      for each symbol: length (one byte, or two with 0x80 set in the first), then that
//!            many tokens; the first character of the whole is the symbol's type
//! markers    u32 for each 256 names: where in the names the block begins; the first is 0
//! (seqs      3 bytes for each symbol, in kernels around 6.2 and in backports of them)
//! tokens
//! ```
//! The markers tell the number of blocks and where the last one begins; the start of the names
//! is then searched by parsing that block to its end. Decoding checks every marker again.

use super::tokens::Tokens;
use super::{Image, MAX_SYMBOLS};
use crate::le;

/// Names of one block.
const BLOCK: u32 = 256;
/// Blocks that a table must have: no kernel has so few symbols.
const FEWEST_MARKERS: usize = 4;
/// Bytes of a block: 256 names of at least a length and a token; of at most 511 characters, each
/// a token, and two bytes of length.
const BLOCK_BYTES: std::ops::RangeInclusive<u32> = 2 * BLOCK..=513 * BLOCK;
/// Characters of a name, with the type.
const LONGEST_NAME: usize = 1024;
/// Characters of all names; a kernel has 2 to 6 MB.
const MOST_TEXT: usize = 64 << 20;
/// Places that may be markers, of one token table.
const MAX_MARKERS: usize = 8;

/// Where the table stands in the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) num_syms: usize,
    pub(super) names: usize,
    pub(super) count: u32,
    markers: usize,
    marker_count: usize,
}

/// Names and types, in the table's order.
#[derive(Debug)]
pub(super) struct Text {
    /// All names behind each other, each with its type first.
    pub(super) text: String,
    /// Where each name ends in `text`.
    pub(super) ends: Vec<u32>,
}

/// All tables that may belong to the tokens. Few; only decoding tells which is right.
pub(super) fn find<'a>(image: &Image<'a>, tokens: &Tokens<'_>) -> impl Iterator<Item = Table> + use<'a> {
    let bytes = image.bytes;
    let end = tokens.table;
    // The second search reads megabytes and is only needed where the first does not lead to a table.
    let second = std::iter::once_with(move || markers_before_seqs(bytes, end)).flatten();
    let markers = markers_before(bytes, end).into_iter().chain(second).take(MAX_MARKERS);
    markers.flat_map(move |(at, count)| tables(bytes, at, count))
}

/// Markers that end at `end`, or one padding word before it: start and count.
fn markers_before(bytes: &[u8], end: usize) -> Option<(usize, usize)> {
    [0, 4].into_iter().find_map(|padding| {
        let mut at = end.checked_sub(padding)?;
        if padding != 0 && le::u32_at(bytes, at) != Some(0) {
            return None;
        }
        let mut after: Option<u32> = None;
        let mut count = 0;
        loop {
            at = at.checked_sub(4)?;
            let here = le::u32_at(bytes, at)?;
            let fits =
                after.is_none_or(|after| after.checked_sub(here).is_some_and(|d| BLOCK_BYTES.contains(&d)));
            if !fits {
                return None;
            }
            count += 1;
            if here == 0 {
                return (count >= FEWEST_MARKERS).then_some((at, count));
            }
            after = Some(here);
        }
    })
}

/// Markers with a table of 3 bytes for each symbol between them and `end`.
fn markers_before_seqs(bytes: &[u8], end: usize) -> Vec<(usize, usize)> {
    let mut found = vec![];
    let lowest = end.saturating_sub(4 * le::index(MAX_SYMBOLS));
    let mut at = end;
    while let Some(next) = at.checked_sub(4).filter(|next| *next >= lowest) {
        at = next;
        let next = le::u32_at(bytes, at + 4).unwrap_or(0);
        if le::u32_at(bytes, at) != Some(0) || !BLOCK_BYTES.contains(&next) {
            continue;
        }
        // Runs of growing words begin at a zero and hold no other: all of them cost one pass.
        let run = growing(bytes, at, end);
        let distance = end - at;
        let block = le::index(BLOCK);
        let per_block = 4 + 3 * block;
        for count in distance / per_block..=distance / per_block + 1 {
            let most = count * per_block + 15; // with padding behind both tables
            let least = count.saturating_sub(1) * per_block + 4 + 3;
            if count >= FEWEST_MARKERS && count <= run && (least..=most).contains(&distance) {
                found.push((at, count));
            }
        }
    }
    found
}

/// Length of the run of words that grow as markers do.
fn growing(bytes: &[u8], start: usize, end: usize) -> usize {
    let words = bytes.get(start..end).unwrap_or_default().chunks_exact(4);
    let mut last: Option<u32> = None;
    words
        .take_while(|word| {
            let here = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
            let fits =
                last.is_none_or(|last| here.checked_sub(last).is_some_and(|d| BLOCK_BYTES.contains(&d)));
            last = Some(here);
            fits
        })
        .count()
}

/// Tables whose last block ends at these markers.
fn tables(bytes: &[u8], markers: usize, marker_count: usize) -> impl Iterator<Item = Table> + '_ {
    let last = le::u32_at(bytes, markers + 4 * (marker_count - 1)).map_or(usize::MAX, le::index);
    let highest = markers.checked_sub(last).map_or(0, |at| at & !3);
    let lowest = highest.saturating_sub(le::index(*BLOCK_BYTES.end()) + 8);
    let starts = (lowest..=highest).rev().filter(|names| names % 4 == 0);
    starts.flat_map(move |names| {
        [8, 4].into_iter().filter_map(move |before| {
            let num_syms = names.checked_sub(before)?;
            let count = le::u32_at(bytes, num_syms).filter(|n| *n <= MAX_SYMBOLS)?;
            if le::index(count.div_ceil(BLOCK)) != marker_count {
                return None;
            }
            let table = Table { num_syms, names, count, markers, marker_count };
            table.last_block_fits(bytes, last).then_some(table)
        })
    })
}

impl Table {
    fn last_block_fits(&self, bytes: &[u8], last: usize) -> bool {
        let mut at = self.names + last;
        let whole_blocks = u32::try_from(self.marker_count - 1).unwrap_or(u32::MAX).saturating_mul(BLOCK);
        for _ in whole_blocks..self.count {
            match name_at(bytes, at) {
                Some((_, next)) if next <= self.markers => at = next,
                _ => return false,
            }
        }
        self.markers - at < 8
    }

    /// Whether the whole table is read-only memory.
    pub(super) fn is_read_only(&self, image: &Image<'_>) -> bool {
        image.is_read_only(self.num_syms, self.markers + 4 * self.marker_count - self.num_syms)
    }

    /// All names, if each block begins where its marker says.
    pub(super) fn decode(&self, bytes: &[u8], tokens: &Tokens<'_>) -> Option<Text> {
        let mut text = Vec::with_capacity(le::index(self.count).saturating_mul(24));
        let mut ends = Vec::with_capacity(le::index(self.count));
        let mut at = self.names;
        for i in 0..self.count {
            if i % BLOCK == 0 {
                let marker = le::u32_at(bytes, self.markers + 4 * le::index(i / BLOCK))?;
                (at - self.names == le::index(marker)).then_some(())?;
            }
            let (name, next) = name_at(bytes, at)?;
            let start = text.len();
            for token in name {
                text.extend_from_slice(tokens.tokens.get(usize::from(*token))?);
                // Inside the loop: one name may hold 32767 tokens of 127 characters.
                (text.len() - start <= LONGEST_NAME).then_some(())?;
            }
            let named = text.len() - start >= 2 && text.len() <= MOST_TEXT && next <= self.markers;
            named.then_some(())?;
            ends.push(u32::try_from(text.len()).ok()?);
            at = next;
        }
        Some(Text { text: String::from_utf8(text).ok()?, ends })
    }
}

/// Tokens of the name at `at`, and where the next one begins.
#[inline]
fn name_at(bytes: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let short = usize::from(*bytes.get(at)?);
    let (len, start) = if short & 0x80 == 0 {
        (short, at + 1)
    } else {
        (short & 0x7f | usize::from(*bytes.get(at + 1)?) << 7, at + 2)
    };
    let end = start.checked_add(len)?;
    (len != 0).then_some((bytes.get(start..end)?, end))
}
