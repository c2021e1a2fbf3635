//! One type's record in the type section.
//!
//! ```text
//! 0         4                                 8               12
//! name_off  kflag:1 kind:7 vlen:24            size or type    kind-specific data
//! ```
//! Until Linux 7.0 the kind has 5 bits and vlen 16, and the bits between are zero.
//!
//! | kind | data |
//! |---|---|
//! | int | encoding 8, offset 8, bits 16 |
//! | array | element type, index type, count |
//! | struct, union | vlen x (name, type, offset in bits; with kflag: size 8, offset 24) |
//! | enum | vlen x (name, value) |
//! | enum64 | vlen x (name, low value, high value) |
//! | func_proto | vlen x (name, type) |
//! | var | linkage |
//! | datasec | vlen x (type, offset, size) |
//! | decl_tag | component |

use crate::le;

/// What a type is. The numbers are those of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the format's own names
#[repr(u8)]
pub enum Kind {
    Void = 0,
    Int,
    Ptr,
    Array,
    Struct,
    Union,
    Enum,
    Fwd,
    Typedef,
    Volatile,
    Const,
    Restrict,
    Func,
    FuncProto,
    Var,
    Datasec,
    Float,
    DeclTag,
    TypeTag,
    Enum64,
    /// A kind from the future, skipped by the blob's own description of it.
    Other,
}

const KINDS: [Kind; 20] = [
    Kind::Void,
    Kind::Int,
    Kind::Ptr,
    Kind::Array,
    Kind::Struct,
    Kind::Union,
    Kind::Enum,
    Kind::Fwd,
    Kind::Typedef,
    Kind::Volatile,
    Kind::Const,
    Kind::Restrict,
    Kind::Func,
    Kind::FuncProto,
    Kind::Var,
    Kind::Datasec,
    Kind::Float,
    Kind::DeclTag,
    Kind::TypeTag,
    Kind::Enum64,
];

impl Kind {
    /// The kind with this number; `None` for one that is not known and for void, which has no record.
    pub(super) fn known(number: u8) -> Option<Self> {
        KINDS.get(usize::from(number)).copied().filter(|kind| *kind != Self::Void)
    }

    /// Whether the type only stands for another one: a typedef, a qualifier or a tag.
    pub(super) fn is_alias(self) -> bool {
        matches!(self, Self::Typedef | Self::Volatile | Self::Const | Self::Restrict | Self::TypeTag)
    }

    /// Whether the type has members.
    pub(super) fn is_compound(self) -> bool {
        matches!(self, Self::Struct | Self::Union)
    }

    /// Bytes behind the first 12: of the fixed part, and of each element.
    fn sizes(self) -> (usize, usize) {
        match self {
            Self::Int | Self::Var | Self::DeclTag => (4, 0),
            Self::Array => (12, 0),
            Self::Struct | Self::Union | Self::Datasec | Self::Enum64 => (0, 12),
            Self::Enum | Self::FuncProto => (0, 8),
            _ => (0, 0),
        }
    }
}

/// Bytes of the part that every record has.
pub(super) const FIXED: usize = 12;

/// A record, with its kind's data not yet looked at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record<'a> {
    pub(super) kind: Kind,
    pub(super) kflag: bool,
    pub(super) name: u32,
    /// Size in bytes or another type's number, as the kind has it.
    pub(super) value: u32,
    pub(super) data: &'a [u8],
}

/// Why there is no record at a place.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum RecordError {
    Truncated,
    Kind(u8),
}

impl<'a> Record<'a> {
    /// The record at `at`. `layout` is the blob's own description of its kinds, or empty.
    #[inline]
    pub(super) fn parse(types: &'a [u8], at: usize, layout: &[u8]) -> Result<Self, RecordError> {
        let fixed: [u8; FIXED] = le::array_at(types, at).ok_or(RecordError::Truncated)?;
        let [n0, n1, n2, n3, v0, v1, v2, top, s0, s1, s2, s3] = fixed;
        let elements = le::index(u32::from_le_bytes([v0, v1, v2, 0]));
        let number = top & 0x7f;
        let (kind, (info, element)) = match Kind::known(number) {
            Some(kind) => (kind, kind.sizes()),
            None => (Kind::Other, described(layout, number).ok_or(RecordError::Kind(number))?),
        };
        let len = info + element * elements; // below 2^32: 255 + 255 * 2^24
        let start = at + FIXED;
        let data = start.checked_add(len).and_then(|end| types.get(start..end));
        Ok(Self {
            kind,
            kflag: top & 0x80 != 0,
            name: u32::from_le_bytes([n0, n1, n2, n3]),
            value: u32::from_le_bytes([s0, s1, s2, s3]),
            data: data.ok_or(RecordError::Truncated)?,
        })
    }

    /// The 12-byte elements of a struct, union or enum64, or the 8-byte ones of an enum.
    pub(super) fn elements(&self) -> std::slice::ChunksExact<'a, u8> {
        self.data.chunks_exact(self.kind.sizes().1.max(1))
    }

    /// Element type and count of an array.
    pub(super) fn array(&self) -> Option<(u32, u32)> {
        (self.kind == Kind::Array).then_some(())?;
        Some((le::u32_at(self.data, 0)?, le::u32_at(self.data, 8)?))
    }

    /// Offset in bits and width of an int, where it does not fill its bytes.
    pub(super) fn int_bits(&self) -> Option<(u8, u32)> {
        (self.kind == Kind::Int).then_some(())?;
        let [bits, _, offset, _] = le::array_at(self.data, 0)?;
        let whole = u64::from(self.value).checked_mul(8) == Some(u64::from(bits)) && offset == 0;
        (!whole).then_some((offset, u32::from(bits)))
    }
}

/// Sizes of a kind from the future, from the blob's layout section.
fn described(layout: &[u8], number: u8) -> Option<(usize, usize)> {
    if number == 0 {
        return None;
    }
    let [info, element, _, _] = le::array_at(layout, usize::from(number) * 4)?;
    Some((usize::from(info), usize::from(element)))
}
