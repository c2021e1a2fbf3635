//! Questions by name: structs, functions, variables, enumerators.

use super::names::{self, Names};
use super::{Btf, BtfError, Kind, TypeId};
use crate::le;

/// Whether types of this kind are found by name.
pub(super) fn is_indexed(kind: Kind) -> bool {
    use Kind::{Array, Const, DeclTag, Fwd, Other, Ptr, Restrict, TypeTag, Void, Volatile};
    !matches!(kind, Void | Ptr | Array | Fwd | Const | Volatile | Restrict | DeclTag | TypeTag | Other)
}

impl Btf {
    /// The first type of this name whose kind `wanted` accepts.
    pub fn find_type(&self, name: &str, wanted: impl Fn(Kind) -> bool) -> Option<TypeId> {
        let hash = names::hash(name.as_bytes());
        self.names.candidates(hash).map(TypeId).find(|id| {
            self.record(*id).is_some_and(|r| wanted(r.kind) && self.is_string(r.name, name.as_bytes()))
        })
    }

    /// A struct or union by its own name or that of a typedef.
    #[must_use]
    pub fn struct_(&self, name: &str) -> Option<TypeId> {
        self.find_type(name, Kind::is_compound).or_else(|| {
            let id = self.resolve(self.find_type(name, |kind| kind == Kind::Typedef)?)?;
            self.kind(id).is_some_and(Kind::is_compound).then_some(id)
        })
    }

    /// [`Btf::struct_`], or the error that names it.
    pub fn require_struct(&self, name: &str) -> Result<TypeId, BtfError> {
        self.struct_(name).ok_or_else(|| BtfError::NoType { name: name.into() })
    }

    /// Size in bytes of a struct, union, enum, typedef, int or float, by name.
    pub fn require_size(&self, name: &str) -> Result<u64, BtfError> {
        let id = self
            .struct_(name)
            .or_else(|| self.find_type(name, |kind| !matches!(kind, Kind::Func | Kind::Var | Kind::Datasec)));
        let id = id.ok_or_else(|| BtfError::NoType { name: name.into() })?;
        self.size_of(id).ok_or_else(|| BtfError::NoSize { name: name.into() })
    }

    /// A function by name, as its `func` record.
    #[must_use]
    pub fn func(&self, name: &str) -> Option<TypeId> {
        self.find_type(name, |kind| kind == Kind::Func)
    }

    /// A variable by name, as its `var` record. Kernels describe few of them.
    #[must_use]
    pub fn var(&self, name: &str) -> Option<TypeId> {
        self.find_type(name, |kind| kind == Kind::Var)
    }

    /// Value of an enumerator of any enum; the first enum that has it wins.
    ///
    /// Values of unsigned 64-bit enums keep their bits. Kernels before 6.0 do not say whether an
    /// enum is signed: a negative value of theirs comes as the `u32` with its bits.
    #[must_use]
    pub fn enumerator(&self, name: &str) -> Option<i64> {
        let known = self.enumerators.get_or_init(|| self.index_enumerators());
        let ids = known.candidates(names::hash(name.as_bytes()));
        ids.map(TypeId)
            .find_map(|id| self.enumerators_of(id).find(|(n, _)| self.is_string(*n, name.as_bytes())))
            .map(|(_, value)| value)
    }

    /// [`Btf::enumerator`], or the error that names it.
    pub fn require_enumerator(&self, name: &str) -> Result<i64, BtfError> {
        self.enumerator(name).ok_or_else(|| BtfError::NoEnumerator { name: name.into() })
    }

    /// Names and values of an enum, in its own order; nothing for another type.
    pub fn enumerators(&self, id: TypeId) -> impl Iterator<Item = (&str, i64)> + '_ {
        let id = self.resolve(id).unwrap_or(TypeId(0));
        self.enumerators_of(id).map(|(name, value)| (self.string(name), value))
    }

    fn enumerators_of(&self, id: TypeId) -> impl Iterator<Item = (u32, i64)> + '_ {
        let record = self.record(id).filter(|r| matches!(r.kind, Kind::Enum | Kind::Enum64));
        record.into_iter().flat_map(|r| {
            r.elements().filter_map(move |e| {
                let name = le::u32_at(e, 0)?;
                let value = match (r.kind, r.kflag) {
                    (Kind::Enum64, _) => i64::from_le_bytes(le::array_at(e, 4)?),
                    (_, true) => i64::from(i32::from_le_bytes(le::array_at(e, 4)?)),
                    (_, false) => i64::from(le::u32_at(e, 4)?),
                };
                Some((name, value))
            })
        })
    }

    fn index_enumerators(&self) -> Names {
        let mut entries = Vec::new();
        for id in self.types() {
            for (name, _) in self.enumerators_of(id) {
                if let Some((hash, _)) = names::hash_at(self.strings(), name) {
                    entries.push(Names::entry(hash, id.0));
                }
            }
        }
        Names::new(entries)
    }
}
