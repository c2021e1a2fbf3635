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

/// Least, median and most.
pub(crate) fn summary(values: &[f64]) -> [f64; 3] {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |i: usize| sorted.get(i).copied().unwrap_or(f64::NAN);
    let last = sorted.len().saturating_sub(1);
    [at(0), (at(last / 2) + at(last.div_ceil(2))) / 2.0, at(last)]
}
