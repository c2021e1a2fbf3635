//! QEMU commands as lists of words: made fit for saving, and turned into commands that restore an image.

mod control;
mod nodes;
mod options;
mod prepare;
mod rewrite;

pub(crate) use nodes::node_backends;
pub use prepare::{Prepared, prepare};
pub use rewrite::{BlockFile, RestoreOptions, for_restore, fresh_guid};
