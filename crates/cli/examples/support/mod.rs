//! What the demo and the benchmark share: a VM started as a user would, QEMU's own snapshot of it to
//! compare with, and an end at which nothing is left behind.

#![allow(dead_code)] // each of the two uses its part

pub(crate) mod cleanup;
pub(crate) mod machine;
pub(crate) mod plain;
pub(crate) mod show;
#[path = "../../src/text.rs"]
pub(crate) mod text;

/// Any failure, in words.
pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;
