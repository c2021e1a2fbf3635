//! Structure layouts, declared by type and member name and compiled from the guest's BTF.
//!
//! Members that were renamed over the years are given as alternatives: what decides is which of
//! them exists, never the kernel's version.

use crate::btf::{Btf, BtfError};
use serde::{Deserialize, Serialize};

/// Declares a struct of offsets and sizes with a `compile` function that asks BTF for them.
///
/// Kinds: `offset(type, [paths])` needed; `optional(type, [paths])` an `Option`;
/// `number(type, [paths])` an integer with its width, which may differ between kernels;
/// `number_opt(type, [paths])` one that may not exist; `size(type)`; `size_opt(type)`; `count(type, path)`
/// length of an array member.
macro_rules! layout {
    ($(#[$doc:meta])* $vis:vis struct $name:ident {
        $( $field:ident : $kind:ident ( $($arg:expr),+ ) ),* $(,)?
    }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
        $vis struct $name { $( pub(crate) $field: $crate::layout::layout!(@type $kind) ),* }

        impl $name {
            pub(crate) fn compile(btf: &$crate::btf::Btf) -> Result<Self, $crate::btf::BtfError> {
                Ok(Self { $( $field: $crate::layout::$kind(btf, $($arg),+)? ),* })
            }
        }
    };
    (@type offset) => { u64 };
    (@type number) => { $crate::layout::Number };
    (@type size) => { u64 };
    (@type number_opt) => { Option<$crate::layout::Number> };
    (@type count) => { u64 };
    (@type optional) => { Option<u64> };
    (@type size_opt) => { Option<u64> };
    (@type enumerator) => { Option<u64> };
}
pub(crate) use layout;

/// An unsigned integer member: where it is and how wide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Number {
    pub(crate) offset: u64,
    pub(crate) bytes: usize,
}

/// The first of `paths` that exists in `ty`, an integer of 1 to 8 bytes.
pub(crate) fn number(btf: &Btf, ty: &str, paths: &[&str]) -> Result<Number, BtfError> {
    let offset = offset(btf, ty, paths)?;
    let id = btf.require_struct(ty)?;
    let bytes = paths.iter().find_map(|path| btf.size_of_member(id, path));
    let bytes = bytes.and_then(|n| usize::try_from(n).ok()).filter(|n| (1..=8).contains(n));
    Ok(Number { offset, bytes: bytes.ok_or_else(|| BtfError::NoSize { name: paths.join(" or ") })? })
}

/// The first of `paths` that exists in `ty` if any does, an integer of 1 to 8 bytes.
pub(crate) fn number_opt(btf: &Btf, ty: &str, paths: &[&str]) -> Result<Option<Number>, BtfError> {
    optional(btf, ty, paths)?.map(|_| number(btf, ty, paths)).transpose()
}

/// Byte offset of the first of `paths` that exists in `ty`, if any does.
pub(crate) fn optional(btf: &Btf, ty: &str, paths: &[&str]) -> Result<Option<u64>, BtfError> {
    let Some(id) = btf.struct_(ty) else { return Ok(None) };
    for path in paths {
        if let Some(member) = btf.member(id, path) {
            return Ok(member.byte_offset());
        }
    }
    Ok(None)
}

/// Byte offset of the first of `paths` that exists in `ty`.
pub(crate) fn offset(btf: &Btf, ty: &str, paths: &[&str]) -> Result<u64, BtfError> {
    optional(btf, ty, paths)?
        .ok_or_else(|| BtfError::NoMember { name: ty.to_owned(), path: paths.join(" or ") })
}

/// Size of a type that may not exist.
pub(crate) fn size_opt(btf: &Btf, ty: &str) -> Result<Option<u64>, BtfError> {
    Ok(btf.struct_(ty).and_then(|id| btf.size_of(id)))
}

/// Size of a type.
pub(crate) fn size(btf: &Btf, ty: &str) -> Result<u64, BtfError> {
    size_opt(btf, ty)?.ok_or_else(|| BtfError::NoType { name: ty.to_owned() })
}

/// Number of elements of an array member.
pub(crate) fn count(btf: &Btf, ty: &str, path: &str) -> Result<u64, BtfError> {
    btf.struct_(ty)
        .and_then(|id| btf.member(id, path))
        .and_then(|member| btf.array(member.type_id))
        .map(|(_, n)| u64::from(n))
        .ok_or_else(|| BtfError::NoMember { name: ty.to_owned(), path: path.to_owned() })
}

/// Value of an enumerator that may not exist.
#[allow(clippy::unnecessary_wraps)] // the shape that `layout!` calls
pub(crate) fn enumerator(btf: &Btf, name: &str) -> Result<Option<u64>, BtfError> {
    Ok(btf.enumerator(name).and_then(|value| u64::try_from(value).ok()))
}

#[cfg(test)]
mod tests {
    use crate::btf::build::BtfBuilder;
    use crate::btf::{Btf, BtfError};

    layout! {
        struct Task {
            size: size("task"),
            state: offset("task", &["__state", "state"]),
            gone: optional("task", &["gone"]),
            no_type: size_opt("gone"),
        }
    }
    layout! {
        struct Gone { gone: offset("task", &["gone", "also_gone"]) }
    }

    #[test]
    fn the_first_name_that_exists_is_taken() {
        let mut b = BtfBuilder::new();
        let word = b.int("long", 8);
        b.struct_("task", 16, &[("flags", word, 0, 0), ("state", word, 64, 0)]);
        let btf = Btf::parse(b.build()).unwrap();
        let task = Task::compile(&btf).unwrap();
        assert_eq!((task.size, task.state, task.gone, task.no_type), (16, 8, None, None));
        let missing = Gone::compile(&btf).map(|g| g.gone).unwrap_err();
        assert_eq!(missing, BtfError::NoMember { name: "task".into(), path: "gone or also_gone".into() });
    }
}
