//! Every frame explained: a scan of all `struct page`, then the walks that tell what a descriptor cannot.
//!
//! ```text
//! descriptors       anonymous, page cache, slab, page table, reserved ...     one fast pass
//! free lists        free                                                      buddy, per CPU, huge pools
//! kernel's tables   vmalloc, modules, per-CPU areas, the descriptors          what the kernel maps
//! processes         page tables, stacks, pipes, and who maps what             [`FrameScan::explain`]
//! pointers          blocks that the kernel took for itself and did not mark        [`FrameScan::find_holders`]
//! ```
//! A page table of a process is told from any other page by its descriptor only in part: upper levels
//! have no mark in older kernels, so the tables themselves are walked.

mod census;
mod holders;
mod kind;
mod orphans;
mod owner;
mod processes;
mod scan;
mod unlisted;

pub use census::{Census, Slabs};
pub use kind::FrameKind;
pub(crate) use orphans::OrphanLayout;
pub use orphans::Unmapped;
pub use owner::FrameOwner;
pub(crate) use owner::FrameOwnerLayout;
pub use scan::FrameScan;
pub use unlisted::Fresh;
