//! QEMU's description of its own stream: JSON that names every device's fields.
//!
//! ```text
//! { "page_size": 4096, "devices": [
//!   { "name": "apic", "instance_id": 0, "version": 3,
//!     "fields": [ { "name": "tpr", "type": "uint8", "size": 1 },
//!                 { "name": "irr", "array_len": 8, "type": "uint32", "size": 4 },      of each element
//!                 { "name": "sub", "index": 0, "type": "struct", "size": 20, "struct": { "fields": [...] } } ],
//!     "subsections": [ { "vmsd_name": "apic/more", "fields": [...] } ] } ] }
//! ```
//! Members that are not listed here are ignored. Depth is bounded by the JSON reader.

use crate::error::{QemuError, Result};
use serde::Deserialize;
use std::borrow::Cow;

/// Longest description accepted.
pub(crate) const DESCRIPTION_LIMIT: usize = 16 << 20;

#[derive(Debug, Deserialize)]
pub(crate) struct Description<'a> {
    #[serde(borrow)]
    pub(crate) devices: Vec<Device<'a>>,
}

#[derive(Debug, Deserialize)]
#[serde(from = "FlatDevice")]
pub(crate) struct Device<'a> {
    pub(crate) name: Cow<'a, str>,
    pub(crate) instance_id: u32,
    #[serde(borrow)]
    pub(crate) node: Node<'a>,
}

/// As it is written. (`serde(flatten)` would make a copy of everything first, in the pause of a save.)
#[derive(Deserialize)]
struct FlatDevice<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    instance_id: u32,
    #[serde(borrow, default)]
    fields: Vec<FieldForm<'a>>,
    #[serde(borrow, default)]
    subsections: Vec<Node<'a>>,
}

impl<'a> From<FlatDevice<'a>> for Device<'a> {
    fn from(flat: FlatDevice<'a>) -> Self {
        let FlatDevice { name, instance_id, fields, subsections } = flat;
        Self { name, instance_id, node: Node { vmsd_name: Cow::default(), fields, subsections } }
    }
}

#[derive(Debug, Default, Deserialize)]
pub(crate) struct Node<'a> {
    #[serde(borrow, default)]
    pub(crate) vmsd_name: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(crate) fields: Vec<FieldForm<'a>>,
    #[serde(borrow, default)]
    pub(crate) subsections: Vec<Node<'a>>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct FieldForm<'a> {
    #[serde(borrow)]
    pub(crate) name: Cow<'a, str>,
    pub(crate) size: u64,
    pub(crate) array_len: Option<u64>,
    pub(crate) index: Option<u64>,
    #[serde(borrow, rename = "struct")]
    pub(crate) inner: Option<Node<'a>>,
}

impl<'a> Description<'a> {
    pub(crate) fn parse(json: &'a [u8], at: u64) -> Result<Self> {
        serde_json::from_slice(json)
            .map_err(|e| QemuError::Stream { at, why: format!("its description is no JSON of QEMU: {e}") })
    }
}
