//! QEMU commands as lists of words: made fit for saving, and turned into commands that restore an image.

mod control;
mod options;
mod prepare;
mod rewrite;

pub use prepare::{Prepared, prepare};
pub use rewrite::{RestoreOptions, for_restore, fresh_guid};
