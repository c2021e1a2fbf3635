//! A kernel's own description of its types (BTF), read from guest memory.
//!
//! ```text
//! header | type records, numbered 1, 2, 3 ... (0 is void) | names, each ended by NUL
//! ```
//! The blob stays as it is; beside it stand the position of each record and two lists of names:
//! about 12 bytes for each type. Limits: 32 MiB of blob (a kernel has 3 to 6), names of 511
//! bytes, 64 typedefs and qualifiers in a row, 16 anonymous structs inside each other, arrays of
//! 16 dimensions. The blob is not trusted: what does not fit is an error or `None`.
//!
//! A struct is looked up by the first definition of its name, as the kernel's own tools do.

mod error;
mod find;
mod header;
mod lookup;
pub(crate) mod names;
mod path;
mod record;

#[cfg(test)]
pub(crate) mod build;
#[cfg(test)]
mod tests;

pub use error::BtfError;
pub use path::Member;
pub use record::Kind;

use crate::le;
use header::Header;
use names::Names;
use record::{FIXED, Record, RecordError};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::Range;
use std::sync::OnceLock;

/// Largest blob that is read.
const LARGEST: usize = 32 << 20;
/// Typedefs and qualifiers followed from one type to the next.
const MAX_ALIASES: usize = 64;
/// Dimensions of an array.
const MAX_DIMENSIONS: usize = 16;

/// Number of a type in one [`Btf`]; 0 is void.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TypeId(pub u32);

/// The types of one kernel.
pub struct Btf {
    bytes: Vec<u8>,
    types: Range<usize>,
    strings: Range<usize>,
    layout: Range<usize>,
    /// Position in the type section of type 1, 2, ...
    starts: Vec<u32>,
    names: Names,
    /// Built by the first question for an enumerator.
    enumerators: OnceLock<Names>,
}

impl Btf {
    /// Checks every record of a blob and indexes it by name. Bytes behind the blob are ignored.
    pub fn parse(bytes: impl Into<Vec<u8>>) -> Result<Self, BtfError> {
        let mut bytes = bytes.into();
        let header = Header::parse(&bytes)?;
        bytes.truncate(header.total());
        if bytes.len() > LARGEST {
            return Err(BtfError::TooLarge { len: bytes.len(), limit: LARGEST });
        }
        let Header { types, strings, layout } = header;
        let (starts, names) = index(&bytes[types.clone()], &bytes[strings.clone()], &bytes[layout.clone()])?;
        let names = Names::new(names);
        Ok(Self { bytes, types, strings, layout, starts, names, enumerators: OnceLock::new() })
    }

    /// The blob.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Numbers of all types but void.
    pub fn types(&self) -> impl Iterator<Item = TypeId> + use<> {
        (1..=u32::try_from(self.starts.len()).unwrap_or(u32::MAX)).map(TypeId)
    }

    /// What the type is; `None` if there is no such type.
    #[must_use]
    pub fn kind(&self, id: TypeId) -> Option<Kind> {
        if id.0 == 0 { Some(Kind::Void) } else { Some(self.record(id)?.kind) }
    }

    /// The type's name; empty if it has none.
    #[must_use]
    pub fn name(&self, id: TypeId) -> &str {
        self.record(id).map_or("", |r| self.string(r.name))
    }

    /// The type behind typedefs, qualifiers and tags.
    #[must_use]
    pub fn resolve(&self, mut id: TypeId) -> Option<TypeId> {
        for _ in 0..MAX_ALIASES {
            if id.0 == 0 {
                return Some(id);
            }
            let record = self.record(id)?;
            if !record.kind.is_alias() {
                return Some(id);
            }
            id = TypeId(record.value);
        }
        None
    }

    /// Size of a type in bytes; `None` for what has none, as a function or a struct only declared.
    #[must_use]
    pub fn size_of(&self, id: TypeId) -> Option<u64> {
        let mut count: u64 = 1;
        let mut id = id;
        for _ in 0..MAX_DIMENSIONS {
            let record = self.record(self.resolve(id)?)?;
            let one = match record.kind {
                Kind::Ptr => 8,
                Kind::Array => {
                    let (element, elements) = record.array()?;
                    count = count.checked_mul(u64::from(elements))?;
                    id = TypeId(element);
                    continue;
                }
                Kind::Int
                | Kind::Struct
                | Kind::Union
                | Kind::Enum
                | Kind::Enum64
                | Kind::Float
                | Kind::Datasec => u64::from(record.value),
                _ => return None,
            };
            return count.checked_mul(one);
        }
        None
    }

    /// Element type and count of an array.
    #[must_use]
    pub fn array(&self, id: TypeId) -> Option<(TypeId, u32)> {
        let (element, count) = self.record(self.resolve(id)?)?.array()?;
        Some((TypeId(element), count))
    }

    /// What a pointer points to.
    #[must_use]
    pub fn pointee(&self, id: TypeId) -> Option<TypeId> {
        let record = self.record(self.resolve(id)?)?;
        (record.kind == Kind::Ptr).then_some(TypeId(record.value))
    }

    fn record(&self, id: TypeId) -> Option<Record<'_>> {
        let at = *self.starts.get(le::index(id.0).checked_sub(1)?)?;
        let types = self.bytes.get(self.types.clone())?;
        Record::parse(types, le::index(at), self.bytes.get(self.layout.clone())?).ok()
    }

    fn strings(&self) -> &[u8] {
        self.bytes.get(self.strings.clone()).unwrap_or_default()
    }

    /// The name at an offset of the string section; names that are not UTF-8 are told by U+FFFD.
    fn string(&self, at: u32) -> &str {
        let rest = self.strings().get(le::index(at)..).unwrap_or_default();
        let name = rest.iter().take(names::LONGEST_NAME).position(|b| *b == 0);
        std::str::from_utf8(&rest[..name.unwrap_or(0)]).unwrap_or("\u{fffd}")
    }

    /// Whether the name at an offset of the string section is `name`.
    fn is_string(&self, at: u32, name: &[u8]) -> bool {
        let rest = self.strings().get(le::index(at)..).unwrap_or_default();
        rest.starts_with(name) && rest.get(name.len()) == Some(&0)
    }
}

impl fmt::Debug for Btf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Btf").field("bytes", &self.bytes.len()).field("types", &self.starts.len()).finish()
    }
}

/// Positions of all records, and the names of those that are asked for by name.
fn index(types: &[u8], strings: &[u8], layout: &[u8]) -> Result<(Vec<u32>, Vec<u64>), BtfError> {
    let mut starts = Vec::with_capacity(types.len() / 24);
    let mut names = Vec::with_capacity(types.len() / 48);
    let mut at = 0;
    while at < types.len() {
        let id = u32::try_from(starts.len() + 1).unwrap_or(u32::MAX);
        let record = Record::parse(types, at, layout).map_err(|e| match e {
            RecordError::Truncated => BtfError::Truncated { id },
            RecordError::Kind(kind) => BtfError::Kind { id, kind },
        })?;
        let (hash, len) = names::hash_at(strings, record.name).ok_or(BtfError::Name { id })?;
        if len != 0 && lookup::is_indexed(record.kind) {
            names.push(Names::entry(hash, id));
        }
        starts.push(u32::try_from(at).map_err(|_| BtfError::Truncated { id })?);
        at += FIXED + record.data.len();
    }
    Ok((starts, names))
}
