//! Members by path: `cred.uid.val`, `node_zones[1].name`, through anonymous structs and unions.

use super::{Btf, BtfError, TypeId};
use crate::le;
use serde::{Deserialize, Serialize};

/// Anonymous structs and unions entered inside each other.
const MAX_ANONYMOUS: u32 = 16;
/// Members looked at for one name: above those of any real struct, with all its anonymous parts.
const MAX_MEMBERS: u32 = 1 << 18;

/// Where a member stands in the struct that was asked, and what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Offset in bits from the beginning of the struct.
    pub bit_offset: u64,
    /// Width in bits, of a bitfield only.
    pub bit_size: Option<u32>,
    /// The member's type, as declared: typedefs and qualifiers are not resolved.
    pub type_id: TypeId,
}

impl Member {
    /// Offset in bytes; `None` for a bitfield and for what does not begin at a byte.
    #[must_use]
    pub fn byte_offset(&self) -> Option<u64> {
        (self.bit_size.is_none() && self.bit_offset % 8 == 0).then_some(self.bit_offset / 8)
    }
}

impl Btf {
    /// The members of a struct or union as declared, anonymous ones with an empty name.
    pub fn members(&self, id: TypeId) -> impl Iterator<Item = (&str, Member)> + '_ {
        let id = self.resolve(id).unwrap_or(TypeId(0));
        self.members_of(id).map(|(name, member)| (self.string(name), member))
    }

    /// The member at `path`; `None` if any part of it does not exist or an index is too high.
    ///
    /// An index into an array without a count (a flexible one) is not limited.
    #[must_use]
    pub fn member(&self, id: TypeId, path: &str) -> Option<Member> {
        let mut here = Member { bit_offset: 0, bit_size: None, type_id: id };
        for part in path.split('.') {
            let (name, indices) = part.split_at(part.find('[').unwrap_or(part.len()));
            if name.is_empty() {
                return None;
            }
            let mut budget = MAX_MEMBERS;
            let id = self.resolve(here.type_id)?;
            let found = self.named(id, name.as_bytes(), MAX_ANONYMOUS, &mut budget)?;
            here = Member { bit_offset: here.bit_offset.checked_add(found.bit_offset)?, ..found };
            here = self.indexed(here, indices)?;
        }
        Some(here)
    }

    /// [`Btf::member`], or the error that names type and path.
    pub fn require_member(&self, id: TypeId, path: &str) -> Result<Member, BtfError> {
        self.member(id, path)
            .ok_or_else(|| BtfError::NoMember { name: self.name(id).into(), path: path.into() })
    }

    /// Whether the struct or union exists and has the member.
    #[must_use]
    pub fn has(&self, name: &str, path: &str) -> bool {
        self.struct_(name).is_some_and(|id| self.member(id, path).is_some())
    }

    /// Offset in bytes of a member of a struct or union, by names.
    pub fn require_offset(&self, name: &str, path: &str) -> Result<u64, BtfError> {
        let member = self.require_member(self.require_struct(name)?, path)?;
        member.byte_offset().ok_or_else(|| BtfError::Bitfield { name: name.into(), path: path.into() })
    }

    /// Size in bytes of a member's type; `None` without the member or without a size.
    #[must_use]
    pub fn size_of_member(&self, id: TypeId, path: &str) -> Option<u64> {
        self.size_of(self.member(id, path)?.type_id)
    }

    fn members_of(&self, id: TypeId) -> impl Iterator<Item = (u32, Member)> + '_ {
        let record = self.record(id).filter(|r| r.kind.is_compound());
        record.into_iter().flat_map(move |r| {
            r.elements().filter_map(move |e| {
                let type_id = TypeId(le::u32_at(e, 4)?);
                let place = le::u32_at(e, 8)?;
                let member = if r.kflag {
                    let width = place >> 24;
                    let bit_size = (width != 0).then_some(width);
                    Member { bit_offset: u64::from(place & 0xff_ffff), bit_size, type_id }
                } else {
                    self.old_bitfield(u64::from(place), type_id)
                };
                Some((le::u32_at(e, 0)?, member))
            })
        })
    }

    /// Without the kind flag, a bitfield is told by the encoding of its int.
    fn old_bitfield(&self, bit_offset: u64, type_id: TypeId) -> Member {
        let record = self.resolve(type_id).and_then(|id| self.record(id));
        let bits = record.and_then(|r| r.int_bits()).filter(|(_, width)| *width != 0);
        match bits {
            Some((shift, width)) => {
                Member { bit_offset: bit_offset + u64::from(shift), bit_size: Some(width), type_id }
            }
            None => Member { bit_offset, bit_size: None, type_id },
        }
    }

    fn named(&self, id: TypeId, name: &[u8], depth: u32, budget: &mut u32) -> Option<Member> {
        for (at, member) in self.members_of(id) {
            *budget = budget.checked_sub(1)?;
            if self.is_string(at, name) {
                return Some(member);
            }
            if depth == 0 || !self.is_string(at, b"") {
                continue;
            }
            let Some(inner) = self.resolve(member.type_id) else { continue };
            if let Some(found) = self.named(inner, name, depth - 1, budget) {
                let bit_offset = member.bit_offset.checked_add(found.bit_offset)?;
                return Some(Member { bit_offset, ..found });
            }
        }
        None
    }

    /// Follows `[3][0]`.
    fn indexed(&self, mut here: Member, indices: &str) -> Option<Member> {
        let mut rest = indices;
        while !rest.is_empty() {
            let (number, behind) = rest.strip_prefix('[')?.split_once(']')?;
            let number: u32 = number.parse().ok()?;
            let (element, count) = self.array(here.type_id)?;
            if number >= count && count != 0 {
                return None;
            }
            let bits = self.size_of(element)?.checked_mul(8)?.checked_mul(u64::from(number))?;
            let bit_offset = here.bit_offset.checked_add(bits)?;
            here = Member { bit_offset, bit_size: None, type_id: element };
            rest = behind;
        }
        Some(here)
    }
}
