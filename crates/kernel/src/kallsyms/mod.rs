//! The kernel's own symbol table (kallsyms), found in its image with no address to start from.
//!
//! ```text
//! [offsets base]  num_syms  names  markers  [seqs]  tokens  token index  [offsets [base]]
//! '- until 6.3 -'                                                        '- later -------'
//! ```
//! The search begins at the token index, whose shape is unique, goes back to the names (`table`)
//! and tries each encoding of the addresses until one makes sense (`addresses`). Only read-only
//! memory counts: a user of the guest can write such tables, but not there.
//!
//! Limits: 2^20 symbols, 64 MiB of names, names of 1024 characters, at least 769 symbols, only
//! kernels with `CONFIG_KALLSYMS_BASE_RELATIVE` or later (every x86-64 kernel since 4.6). Module
//! symbols are not in this table.

mod addresses;
mod error;
mod table;
mod tokens;

#[cfg(test)]
pub(crate) mod build;
#[cfg(test)]
mod tests;

pub use error::KallsymsError;

use crate::btf::names::{self, Names};
use crate::le;
use addresses::Addresses;
use elision_memory::Gva;
use std::fmt;
use std::ops::Range;
use table::Text;

/// Most symbols of a kernel; real ones have 0.1 to 0.2 million.
const MAX_SYMBOLS: u32 = 1 << 20;
/// Token tables that are looked at, and name tables that are decoded. A kernel image holds one.
const MAX_TRIES: usize = 8;

/// How a kernel stores the addresses of its symbols.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// Relative to a base when negative, else absolute: per-CPU symbols begin at zero.
    AbsolutePercpu,
    /// Unsigned offsets from a base.
    BaseRelative,
    /// Each offset counts from its own place.
    PlaceRelative,
}

/// A symbol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Symbol<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its type as `nm` and `/proc/kallsyms` write it: `T` text, `D` data, `A` absolute, ...
    pub kind: char,
    /// Its address; of a per-CPU symbol, what the kernel's table says.
    pub address: Gva,
}

/// All symbols of a kernel without those of its modules, by name and by address.
pub struct Kallsyms {
    text: String,
    ends: Vec<u32>,
    /// In the order of the names, which is that of the addresses.
    addresses: Vec<Gva>,
    /// Where the table is not sorted: symbols in the order of their addresses.
    by_address: Option<Vec<u32>>,
    names: Names,
    encoding: Encoding,
    tables: [Range<usize>; 2],
}

/// A kernel's image, as the search sees it.
struct Image<'a> {
    bytes: &'a [u8],
    base: Gva,
    read_only: &'a dyn Fn(usize, usize) -> bool,
}

impl Image<'_> {
    fn is_read_only(&self, at: usize, len: usize) -> bool {
        (self.read_only)(at, len)
    }

    fn contains(&self, address: Gva) -> bool {
        let within = address.0.checked_sub(self.base.0).and_then(|at| usize::try_from(at).ok());
        within.is_some_and(|at| at <= self.bytes.len())
    }
}

impl Kallsyms {
    /// Finds and decodes the table in a kernel image.
    ///
    /// `image` is a copy of the mapped image from its first page on, holes as zeros; `base` is the
    /// address of its first byte; `read_only` tells whether a range (offset and length in `image`)
    /// is mapped read-only.
    pub fn find(
        image: &[u8],
        base: Gva,
        read_only: &dyn Fn(usize, usize) -> bool,
    ) -> Result<Self, KallsymsError> {
        let image = Image { bytes: image, base, read_only };
        let mut failure = KallsymsError::Absent;
        let mut tries = MAX_TRIES;
        for tokens in tokens::find(&image).take(MAX_TRIES) {
            if failure == KallsymsError::Absent {
                failure = KallsymsError::Names { tokens: tokens.table };
            }
            let tables = table::find(&image, &tokens).filter(|t| t.is_read_only(&image));
            for table in tables.take(tries) {
                tries -= 1;
                let Some(text) = table.decode(image.bytes, &tokens) else { continue };
                match addresses::read(&image, &tokens, &table, &text) {
                    Some(found) => {
                        let names = table.names..tokens.index + tokens::INDEX_BYTES;
                        return Ok(Self::new(text, found, names));
                    }
                    None => failure = KallsymsError::Addresses { names: table.names, count: table.count },
                }
            }
        }
        Err(failure)
    }

    fn new(text: Text, found: Addresses, names_and_tokens: Range<usize>) -> Self {
        let Addresses { encoding, addresses, offsets } = found;
        let by_address = (!addresses.is_sorted()).then(|| {
            let mut order: Vec<u32> = (0_u32..).take(addresses.len()).collect();
            order.sort_by_key(|i| addresses.get(le::index(*i)));
            order
        });
        let Text { text, ends } = text;
        let mut entries = Vec::with_capacity(ends.len());
        let mut start = 0;
        for (end, i) in ends.iter().zip(0_u32..) {
            let end = le::index(*end);
            let name = text.as_bytes().get(start + 1..end).unwrap_or_default();
            entries.push(Names::entry(names::hash(name), i));
            start = end;
        }
        Self {
            text,
            ends,
            addresses,
            by_address,
            names: Names::new(entries),
            encoding,
            tables: [names_and_tokens, offsets],
        }
    }

    /// Address of the first symbol with this name, in the table's order.
    #[must_use]
    pub fn address(&self, name: &str) -> Option<Gva> {
        self.all(name).next().map(|symbol| symbol.address)
    }

    /// Every symbol with this name: static functions and variables may share one.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = Symbol<'a>> + 'a {
        let found = self.names.candidates(names::hash(name.as_bytes()));
        found.filter_map(|i| self.symbol(le::index(i))).filter(move |symbol| symbol.name == name)
    }

    /// [`Kallsyms::address`], or the error that names the symbol.
    pub fn require(&self, name: &str) -> Result<Gva, KallsymsError> {
        self.address(name).ok_or_else(|| KallsymsError::NoSymbol { name: name.into() })
    }

    /// The symbol that an address belongs to: the last that begins at or before it, and of
    /// several at one place the first. How far the address is behind it is the caller's to judge.
    #[must_use]
    pub fn at(&self, address: Gva) -> Option<Symbol<'_>> {
        let found = self.ordered(self.partition(|a| a <= address).checked_sub(1)?)?;
        self.ordered(self.partition(|a| a < found.address))
    }

    /// All symbols in the table's order.
    pub fn symbols(&self) -> impl Iterator<Item = Symbol<'_>> + '_ {
        (0..self.addresses.len()).filter_map(|i| self.symbol(i))
    }

    /// Number of symbols.
    #[must_use]
    pub fn len(&self) -> usize {
        self.addresses.len()
    }

    /// Whether there are none; [`Kallsyms::find`] never returns that.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty()
    }

    /// How this kernel stores its addresses.
    #[must_use]
    pub fn encoding(&self) -> Encoding {
        self.encoding
    }

    /// Where the table stands in the image: its parts that are the same in every boot.
    #[must_use]
    pub fn tables(&self) -> [Range<usize>; 2] {
        self.tables.clone()
    }

    fn symbol(&self, i: usize) -> Option<Symbol<'_>> {
        let start = i.checked_sub(1).map_or(Some(0), |before| self.ends.get(before).copied());
        let whole = self.text.get(le::index(start?)..le::index(*self.ends.get(i)?))?;
        let mut name = whole.chars();
        let kind = name.next()?;
        Some(Symbol { name: name.as_str(), kind, address: *self.addresses.get(i)? })
    }

    /// The symbol at a place in the order of addresses.
    fn ordered(&self, place: usize) -> Option<Symbol<'_>> {
        match &self.by_address {
            Some(order) => self.symbol(le::index(*order.get(place)?)),
            None => self.symbol(place),
        }
    }

    /// How many symbols, in the order of addresses, `before` holds for.
    fn partition(&self, before: impl Fn(Gva) -> bool) -> usize {
        match &self.by_address {
            Some(order) => {
                order.partition_point(|i| self.addresses.get(le::index(*i)).is_some_and(|a| before(*a)))
            }
            None => self.addresses.partition_point(|a| before(*a)),
        }
    }
}

impl fmt::Debug for Kallsyms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kallsyms")
            .field("symbols", &self.addresses.len())
            .field("encoding", &self.encoding)
            .finish_non_exhaustive()
    }
}
