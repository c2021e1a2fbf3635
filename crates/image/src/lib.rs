//! The checkpoint on disk: written so that it is whole or absent, read with nothing trusted.
//!
//! ```text
//! IMAGE/                   a directory, mode 0700, files 0600
//!   manifest.json          what the image is, and checksums of the other files   (manifest.rs)
//!   ram.img                the RAM file: each page at its offset, sparse         (ram_writer.rs)
//!   ram.zst                or the same, compressed                               (packed.rs)
//!   state.bin              device state: a QEMU migration stream without RAM
//!   exclusions.bin         what was left out and changed, why, and for whom      (exclusions.rs)
//!   inherited.zst          what it does not hold itself, if it builds on another   (link.rs)
//!   page-hashes.bin        a hash of each page that it holds itself              (page_hashes.rs)
//!   working-set.bin        the parts that a restored VM needs first, if recorded  (working_set.rs)
//! .IMAGE.elision-partial/  the same while it is being written, under a lock      (partial.rs)
//! ```
//! A hole of `ram.img` is a page that was dropped, that was zero, or that is no RAM. The file can be
//! mapped as it is: pages come in as they are touched.
//!
//! Limits: `manifest.json` 16 MiB, `state.bin` 1 GiB, `exclusions.bin` as in its module.

mod checksum;
mod chunk_hasher;
mod drain;
mod error;
mod exclusions;
mod inherit;
mod link;
mod manifest;
mod merge;
mod packed;
mod page_hashes;
mod partial;
mod precopy;
mod ram_reader;
mod ram_writer;
mod ranges;
mod reader;
mod room;
mod stream_writer;
mod target;
mod tasks;
mod verify;
mod working_set;
mod writer;

pub use error::ImageError;
pub use exclusions::{EditKind, EditMeta, Exclusions, ExclusionsError};
pub use manifest::{
    Base, Completeness, FORMAT, FORMAT_LINK, FORMAT_PACKED, FileSum, Files, Guest, Manifest, RamFile, Times,
    Vmm, Way, timestamp,
};
pub use merge::merge;
pub use partial::{Unfinished, partial_folders, partial_path, remove_image, remove_stale, remove_unfinished};
pub use precopy::Precopy;
pub use ram_reader::RamReader;
pub use ram_writer::RamStats;
pub use reader::Image;
pub use stream_writer::StreamWriter;
pub use verify::Problem;
pub use writer::ImageWriter;

/// Name of the manifest inside an image.
pub const MANIFEST: &str = "manifest.json";
/// Name of the RAM file inside an image.
pub const RAM: &str = "ram.img";
/// Name of the RAM file if it is compressed.
pub const RAM_PACKED: &str = "ram.zst";
/// Name of the device state inside an image.
pub const STATE: &str = "state.bin";
/// Name of the map of what a link inherits.
pub const INHERITED: &str = "inherited.zst";
/// Name of the file that holds a hash of each page.
pub const PAGE_HASHES: &str = "page-hashes.bin";
/// Name of the exclusion map inside an image.
pub const EXCLUSIONS: &str = "exclusions.bin";

/// Name of the working set inside an image, where one was recorded.
pub const WORKING_SET: &str = "working-set.bin";

/// Most bytes of a manifest that are read.
const MANIFEST_BYTES: u64 = 16 << 20;
/// Most bytes of device state that are read.
const STATE_BYTES: u64 = 1 << 30;
