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

/// Longest description accepted.
pub(crate) const DESCRIPTION_LIMIT: usize = 16 << 20;

#[derive(Debug, Deserialize)]
pub(crate) struct Description {
    pub(crate) devices: Vec<Device>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Device {
    pub(crate) name: String,
    pub(crate) instance_id: u32,
    #[serde(flatten)]
    pub(crate) node: Node,
}

#[derive(Debug, Default, Deserialize)]
pub(crate) struct Node {
    #[serde(default)]
    pub(crate) vmsd_name: String,
    #[serde(default)]
    pub(crate) fields: Vec<FieldForm>,
    #[serde(default)]
    pub(crate) subsections: Vec<Node>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct FieldForm {
    pub(crate) name: String,
    pub(crate) size: u64,
    pub(crate) array_len: Option<u64>,
    pub(crate) index: Option<u64>,
    #[serde(rename = "struct")]
    pub(crate) inner: Option<Node>,
}

impl Description {
    pub(crate) fn parse(json: &[u8], at: u64) -> Result<Self> {
        serde_json::from_slice(json)
            .map_err(|e| QemuError::Stream { at, why: format!("its description is no JSON of QEMU: {e}") })
    }
}
