//! What can go wrong with a kernel's symbol table.

use thiserror::Error;

/// Why the symbols could not be read, or a symbol is missing.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum KallsymsError {
    /// No token table stands in read-only memory of the image.
    #[error("The kernel image holds no symbol table; the guest's kernel needs CONFIG_KALLSYMS")]
    Absent,
    /// Tokens were found, but no table of names that uses them.
    #[error(
        "The token table at image offset {tokens:#x} belongs to no table of symbol names that is understood"
    )]
    Names {
        /// Offset of the token table in the image.
        tokens: usize,
    },
    /// Names were found, but no addresses that fit them.
    #[error(
        "The {count} symbol names at image offset {names:#x} have no table of addresses that is understood; this kernel needs a newer Elision"
    )]
    Addresses {
        /// Offset of the names in the image.
        names: usize,
        /// Number of names.
        count: u32,
    },
    /// No such symbol.
    #[error("The guest's kernel has no symbol {name}; it may need CONFIG_KALLSYMS_ALL")]
    NoSymbol {
        /// The name asked for.
        name: String,
    },
}
