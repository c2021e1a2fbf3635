//! The token table: 256 strings that the names are compressed with. It is the table with the
//! clearest shape, so the search for the others begins here.
//!
//! ```text
//! table   "tok0\0tok1\0 ... tok255\0" zero padding
//! index   256 x u16: where each token begins in the table; 0 first, then growing by 2 to 128
//! ```

use super::Image;
use crate::le;

pub(super) const TOKENS: usize = 256;
/// Bytes of the index.
pub(super) const INDEX_BYTES: usize = 2 * TOKENS;
/// A token and its NUL; real kernels stay below 64.
const LONGEST: u16 = 128;
/// Any 512 bytes hold one such block, aligned to its own size, as a whole.
const BLOCK: usize = INDEX_BYTES / 2;

/// A token table in an image.
#[derive(Debug)]
pub(super) struct Tokens<'a> {
    /// Offset of the table in the image.
    pub(super) table: usize,
    /// Offset of the index in the image.
    pub(super) index: usize,
    /// The tokens, each of printable ASCII.
    pub(super) tokens: Vec<&'a [u8]>,
}

/// Every token table in read-only memory of the image.
pub(super) fn find<'a>(image: &Image<'a>) -> impl Iterator<Item = Tokens<'a>> {
    let bytes = image.bytes;
    (0..bytes.len() / BLOCK).filter_map(move |i| {
        let block = bytes.get(i * BLOCK..(i + 1) * BLOCK)?;
        let (first, second) = (le::u16_at(block, 0)?, le::u16_at(block, 2)?);
        if !grows(first, second) || !all_grow(block) {
            return None;
        }
        let index = start_of_index(bytes, i * BLOCK)?;
        image.is_read_only(index, INDEX_BYTES).then_some(())?;
        let found = read(bytes, index)?;
        image.is_read_only(found.table, index - found.table).then_some(found)
    })
}

fn grows(before: u16, after: u16) -> bool {
    (2..=LONGEST).contains(&after.wrapping_sub(before)) && before < after
}

fn all_grow(index: &[u8]) -> bool {
    let mut last = None;
    index.chunks_exact(2).all(|pair| {
        let here = u16::from_le_bytes([pair[0], pair[1]]);
        let fine = last.is_none_or(|last| grows(last, here));
        last = Some(here);
        fine
    })
}

/// Where the index begins whose first whole block is at `block`.
fn start_of_index(bytes: &[u8], block: usize) -> Option<usize> {
    let mut at = block;
    let mut here = le::u16_at(bytes, at)?;
    while here != 0 {
        at = at.checked_sub(2)?;
        let before = le::u16_at(bytes, at)?;
        if !grows(before, here) || block - at >= BLOCK {
            return None;
        }
        here = before;
    }
    all_grow(bytes.get(at..at + INDEX_BYTES)?).then_some(at)
}

/// The table that ends before `index`, if every token begins where the index says.
fn read(bytes: &[u8], index: usize) -> Option<Tokens<'_>> {
    let offsets: Vec<usize> = bytes
        .get(index..index + INDEX_BYTES)?
        .chunks_exact(2)
        .map(|pair| usize::from(u16::from_le_bytes([pair[0], pair[1]])))
        .collect();
    let before = bytes.get(..index)?;
    // The last token's NUL and up to 7 bytes of padding.
    let zeros = before.iter().rev().take(9).take_while(|b| **b == 0).count();
    let end = index - zeros;
    let longest = usize::from(LONGEST);
    let last = before.get(end.checked_sub(longest)?..end)?.iter().rposition(|b| *b == 0)?;
    let last = end - longest + last + 1;
    let table = last.checked_sub(*offsets.last()?)?;
    if !(1..=8).contains(&zeros) || table % 4 != 0 {
        return None;
    }
    let mut tokens = Vec::with_capacity(TOKENS);
    for (i, from) in offsets.iter().enumerate() {
        let until = offsets.get(i + 1).map_or(end, |next| table + next - 1);
        let token = bytes.get(table + from..until)?;
        if !token.iter().all(u8::is_ascii_graphic) || token.is_empty() || bytes.get(until) != Some(&0) {
            return None;
        }
        tokens.push(token);
    }
    Some(Tokens { table, index, tokens })
}
