//! What can go wrong with a kernel's type information.

use thiserror::Error;

/// Why type information could not be read, or does not say what was asked.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BtfError {
    /// No type information stands in the kernel image.
    #[error(
        "The kernel image holds no type information (BTF); the guest's kernel needs CONFIG_DEBUG_INFO_BTF"
    )]
    Absent,
    /// The bytes do not begin with a BTF header.
    #[error("The bytes are not type information: the BTF header is {0}")]
    Header(&'static str),
    /// A section runs out of the blob.
    #[error(
        "The BTF {section} section at {start:#x} with {len:#x} bytes is not inside the blob of {total:#x} bytes"
    )]
    Section {
        /// `type`, `string` or `layout`.
        section: &'static str,
        /// Where the section begins.
        start: u64,
        /// Its length in bytes.
        len: u64,
        /// Length of the blob.
        total: usize,
    },
    /// The blob is larger than any kernel's.
    #[error("The BTF blob has {len:#x} bytes; at most {limit:#x} are read")]
    TooLarge {
        /// Length found.
        len: usize,
        /// Largest length accepted.
        limit: usize,
    },
    /// A record's kind is not known and the blob does not describe it.
    #[error("BTF type {id} is of the unknown kind {kind}; this kernel needs a newer Elision")]
    Kind {
        /// Number of the type.
        id: u32,
        /// Its kind.
        kind: u8,
    },
    /// A record runs out of the type section.
    #[error("BTF type {id} is cut off at the end of the type section")]
    Truncated {
        /// Number of the type.
        id: u32,
    },
    /// A record's name is not in the string section or has no end.
    #[error("BTF type {id} has a name outside the string section")]
    Name {
        /// Number of the type.
        id: u32,
    },
    /// No struct or union of that name.
    #[error("The guest's kernel has no struct or union {name}")]
    NoType {
        /// The name asked for.
        name: String,
    },
    /// The type has no such member.
    #[error("The guest's kernel has no member {path} in {name}")]
    NoMember {
        /// Name of the struct or union.
        name: String,
        /// The path asked for.
        path: String,
    },
    /// The member is a bitfield, which has no address of its own.
    #[error("Member {path} of {name} is a bitfield and has no byte offset")]
    Bitfield {
        /// Name of the struct or union.
        name: String,
        /// The path asked for.
        path: String,
    },
    /// The type has no size, or one that does not fit.
    #[error("The guest's kernel gives no usable size for {name}")]
    NoSize {
        /// Name of the type.
        name: String,
    },
    /// No enumerator of that name in any enum.
    #[error("The guest's kernel has no enumerator {name}")]
    NoEnumerator {
        /// The name asked for.
        name: String,
    },
}
