//! Addresses of the symbols, in whichever encoding the kernel has.
//!
//! | kernels | where the offsets are | address of symbol i |
//! |---|---|---|
//! | until 6.3 | before `num_syms`, then the base | off < 0: base - 1 - off, else off (absolute) |
//! | to 6.14 | behind the token index, then the base | the same |
//! | about 6.15 to 6.19 | behind the token index, then the base | base + (u32) off |
//! | 7.0 on | behind the token index, no base | address of the offset itself + off |
//!
//! Backports mix these, so no version is asked: each combination is decoded and the one that
//! makes sense is taken. A table is sorted, most of it points into the image, and `_text` is
//! where the image begins; a wrong reading fails all three.

use super::table::{Table, Text};
use super::tokens::{INDEX_BYTES, Tokens};
use super::{Encoding, Image};
use crate::le;
use elision_memory::Gva;
use std::collections::BTreeSet;
use std::ops::Range;

/// How far into the image the first symbol of the kernel's text may be: the image begins with the
/// 2 MiB page that holds it.
const TEXT_WITHIN: u64 = 2 << 20;
/// Names of the beginning of the kernel's text, at least one of which every kernel has.
const TEXT_NAMES: [&str; 3] = ["T_text", "T_stext", "Tstartup_64"];

/// Addresses in the table's order, and where their offsets stand in the image.
pub(super) struct Addresses {
    pub(super) encoding: Encoding,
    pub(super) addresses: Vec<Gva>,
    pub(super) offsets: Range<usize>,
}

/// The first reading of the addresses that makes sense.
pub(super) fn read(image: &Image<'_>, tokens: &Tokens<'_>, table: &Table, text: &Text) -> Option<Addresses> {
    let beginning = beginning_of_text(text)?;
    places(tokens, table).into_iter().find_map(|place| {
        let len = 4 * le::index(table.count);
        let offsets = image.bytes.get(place.offsets..place.offsets.checked_add(len)?)?;
        image.is_read_only(place.offsets, len).then_some(())?;
        let base = match place.base {
            Some(at) => {
                image.is_read_only(at, 8).then_some(())?;
                let base = Gva(le::u64_at(image.bytes, at)?);
                image.contains(base).then_some(base)?
            }
            None => image.base.checked_add(u64::try_from(place.offsets).ok()?)?,
        };
        place.encodings().iter().find_map(|encoding| {
            let addresses: Vec<Gva> = decode(*encoding, base, offsets).collect();
            let found =
                Addresses { encoding: *encoding, addresses, offsets: place.offsets..place.offsets + len };
            plausible(image, &found.addresses, beginning).then_some(found)
        })
    })
}

/// One place where offsets and their base may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    offsets: usize,
    base: Option<usize>,
}

impl Place {
    fn encodings(self) -> &'static [Encoding] {
        match self.base {
            Some(_) => &[Encoding::AbsolutePercpu, Encoding::BaseRelative],
            None => &[Encoding::PlaceRelative],
        }
    }
}

fn places(tokens: &Tokens<'_>, table: &Table) -> BTreeSet<Place> {
    let len = 4 * le::index(table.count);
    let mut places = BTreeSet::new();
    for align in [4_usize, 8] {
        let offsets = (tokens.index + INDEX_BYTES).next_multiple_of(align);
        places.insert(Place { offsets, base: None });
        for align in [4, 8] {
            places.insert(Place { offsets, base: Some((offsets + len).next_multiple_of(align)) });
        }
    }
    if let Some(base) = table.num_syms.checked_sub(8) {
        if let Some(offsets) = base.checked_sub(len.next_multiple_of(8)) {
            places.insert(Place { offsets, base: Some(base) });
        }
    }
    places
}

fn decode(encoding: Encoding, base: Gva, offsets: &[u8]) -> impl Iterator<Item = Gva> + '_ {
    offsets.chunks_exact(4).zip(0_u64..).map(move |(word, i)| {
        let word = [word[0], word[1], word[2], word[3]];
        let unsigned = u64::from(u32::from_le_bytes(word));
        let signed = i64::from(i32::from_le_bytes(word));
        match encoding {
            Encoding::AbsolutePercpu if signed >= 0 => Gva(unsigned),
            Encoding::AbsolutePercpu => base.wrapping_add((-1 - signed).unsigned_abs()),
            Encoding::BaseRelative => base.wrapping_add(unsigned),
            Encoding::PlaceRelative => Gva(base.0.wrapping_add(4 * i).wrapping_add_signed(signed)),
        }
    })
}

/// Index of the symbol that stands where the kernel begins.
fn beginning_of_text(text: &Text) -> Option<usize> {
    let mut start = 0;
    text.ends.iter().position(|end| {
        let end = le::index(*end);
        let name = text.text.get(start..end).unwrap_or_default();
        start = end;
        TEXT_NAMES.contains(&name)
    })
}

fn plausible(image: &Image<'_>, addresses: &[Gva], beginning: usize) -> bool {
    let unsorted = addresses.windows(2).filter(|pair| pair[0] > pair[1]).count();
    let inside = addresses.iter().filter(|a| image.contains(**a)).count();
    let text = addresses.get(beginning).and_then(|text| text.0.checked_sub(image.base.0));
    unsorted <= addresses.len() / 1000
        && inside * 2 >= addresses.len()
        && text.is_some_and(|distance| distance < TEXT_WITHIN)
}
