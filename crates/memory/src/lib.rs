//! Guest-physical memory seen from the host, with no knowledge of what runs in the guest.
//!
//! - [`Gpa`], [`Gva`], [`Gfn`], [`FileOffset`]: four kinds of address, four types.
//! - [`RamLayout`]: where the pieces of guest-physical RAM stand in the RAM file.
//! - [`Ram`]: RAM to read, from a running VM's shared file, from its process, or from a checkpoint.
//! - [`Staging`]: memory for a copy of RAM that goes to a file later.
//! - [`PageTables`]: x86-64 four- and five-level translation and bounded walks.

mod address;
mod error;
mod extents;
mod layers;
mod layout;
mod mapping;
mod mirror;
mod page_table;
mod pieces;
mod process;
mod ram;
mod staging;

pub use address::{FileOffset, Gfn, Gpa, Gva, PAGE_SIZE};
pub use error::MemoryError;
pub use extents::joined;
pub use layout::{LayoutError, RamBlock, RamLayout, RamRegion};
pub use page_table::{Budget, Leaf, LeafSize, Node, PageTables, Translation, WalkError};
pub use pieces::RamPiece;
pub use process::{ProcessRam, ProcessRun};
pub use ram::Ram;
pub use staging::Staging;
