//! Structure layouts, declared by type and member name and compiled from the guest's BTF.
//!
//! Members that were renamed over the years are given as alternatives: what decides is which of
//! them exists, never the kernel's version.

use crate::btf::{Btf, BtfError};

/// Declares a struct of offsets and sizes with a `compile` function that asks BTF for them.
///
/// Kinds: `offset(type, [paths])` needed; `optional(type, [paths])` an `Option`;
/// `size(type)`; `size_opt(type)`; `count(type, path)` length of an array member.
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
    (@type size) => { u64 };
    (@type count) => { u64 };
    (@type optional) => { Option<u64> };
    (@type size_opt) => { Option<u64> };
    (@type enumerator) => { Option<u64> };
}
pub(crate) use layout;

/// Byte offset of the first of `paths` that exists in `ty`, if any does.
pub(crate) fn optional(btf: &Btf, ty: &str, paths: &[&str]) -> Result<Option<u64>, BtfError> {
    let Some(id) = btf.struct_(ty) else { return Ok(None) };
    for path in paths {
        if let Some(member) = btf.member(id, path) {
            return Ok(Some(member.bit_offset / 8));
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
