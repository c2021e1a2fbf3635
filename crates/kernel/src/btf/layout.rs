//! Offsets declared by name: a walker says which members it reads, and gets them or an error.
//!
//! Names that changed over kernel versions are alternatives, tried in order; what only some
//! kernels have is `maybe`. Nothing asks for a version.

use super::{Btf, BtfError, Member, TypeId};

/// One struct whose members are asked for.
#[derive(Clone, Copy, Debug)]
pub struct StructLayout<'a> {
    btf: &'a Btf,
    id: TypeId,
    name: &'a str,
}

impl Btf {
    /// A struct or union to ask for members.
    pub fn layout<'a>(&'a self, name: &'a str) -> Result<StructLayout<'a>, BtfError> {
        Ok(StructLayout { btf: self, id: self.require_struct(name)?, name })
    }
}

impl StructLayout<'_> {
    /// Size in bytes.
    pub fn size(&self) -> Result<u64, BtfError> {
        self.btf.size_of(self.id).ok_or_else(|| BtfError::NoSize { name: self.name.into() })
    }

    /// The first of these members that exists, as it is.
    #[must_use]
    pub fn maybe_member(&self, paths: &[&str]) -> Option<Member> {
        paths.iter().find_map(|path| self.btf.member(self.id, path))
    }

    /// The first of these members that exists, as it is: for bitfields.
    pub fn member(&self, paths: &[&str]) -> Result<Member, BtfError> {
        self.maybe_member(paths)
            .ok_or_else(|| BtfError::NoMember { name: self.name.into(), path: paths.join(" or ") })
    }

    /// Offset in bytes of the first of these members that exists.
    pub fn offset(&self, paths: &[&str]) -> Result<u64, BtfError> {
        let found = self.member(paths)?;
        found
            .byte_offset()
            .ok_or_else(|| BtfError::Bitfield { name: self.name.into(), path: paths.join(" or ") })
    }

    /// Offset in bytes of the first of these members that exists; `None` if there is none or it
    /// is a bitfield.
    #[must_use]
    pub fn maybe(&self, paths: &[&str]) -> Option<u64> {
        self.maybe_member(paths)?.byte_offset()
    }
}

/// Declares a table of offsets that loads itself from a [`Btf`]:
///
/// ```ignore
/// layout! {
///     /// What is read of a task.
///     pub(crate) struct Task = "task_struct" {
///         tasks: offset("tasks"),
///         state: offset("__state" | "state"),
///         fpu: maybe("thread.fpu"),
///         frozen: member("frozen"),
///     }
/// }
/// let task = Task::load(&btf)?;   // task.size, task.tasks: u64, task.fpu: Option<u64>
/// ```
#[allow(unused_macros)] // for the walkers of this crate
macro_rules! layout {
    ($(#[$doc:meta])* $vis:vis struct $name:ident = $type:literal {
        $($(#[$field_doc:meta])* $field:ident: $how:ident($($path:literal)|+)),* $(,)?
    }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        $vis struct $name {
            /// Size of the struct in bytes.
            $vis size: u64,
            $($(#[$field_doc])* $vis $field: $crate::btf::layout!(@type $how),)*
        }

        impl $name {
            /// Looks every member up.
            $vis fn load(btf: &$crate::btf::Btf) -> Result<Self, $crate::btf::BtfError> {
                let layout = btf.layout($type)?;
                Ok(Self {
                    size: layout.size()?,
                    $($field: $crate::btf::layout!(@load $how, layout, &[$($path),+]),)*
                })
            }
        }
    };
    (@type offset) => { u64 };
    (@type maybe) => { Option<u64> };
    (@type member) => { $crate::btf::Member };
    (@type maybe_member) => { Option<$crate::btf::Member> };
    (@load offset, $layout:ident, $paths:expr) => { $layout.offset($paths)? };
    (@load maybe, $layout:ident, $paths:expr) => { $layout.maybe($paths) };
    (@load member, $layout:ident, $paths:expr) => { $layout.member($paths)? };
    (@load maybe_member, $layout:ident, $paths:expr) => { $layout.maybe_member($paths) };
}
#[allow(unused_imports)]
pub(crate) use layout;
