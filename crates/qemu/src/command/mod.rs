//! QEMU commands as lists of words: made fit for saving, and turned into commands that restore an image.

mod clone;
mod control;
mod nodes;
mod options;
mod prepare;
mod rewrite;

pub use clone::{Overlay, for_clone};
pub(crate) use nodes::node_backends;
pub use prepare::{Prepared, prepare};
pub use rewrite::{BlockFile, RestoreOptions, for_restore, fresh_guid};
