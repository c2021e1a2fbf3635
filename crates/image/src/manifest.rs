//! The manifest: what an image is, for people and for a restore.
//!
//! JSON, one object. `format` comes first in importance: a reader refuses a number it does not know.
//! Within a format, fields may be added: a reader ignores those it does not know.
//!
//! Limits: 16 MiB; the RAM layout is checked when it is parsed.

use crate::checksum::{MAX_CHUNKS, MAX_CHUNKS_PACKED, MIN_CHUNK, MIN_CHUNK_PACKED};
use crate::{EXCLUSIONS, INHERITED, PAGE_HASHES, STATE};
use elision_memory::{PAGE_SIZE, RamBlock, RamLayout};
use elision_plan::PlanSummary;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

/// The format of an image whose RAM file is plain.
pub const FORMAT: u32 = 2;
/// The format of one whose RAM file is compressed.
pub const FORMAT_PACKED: u32 = 3;
/// The format of one that builds on another image. All three are written and read here.
pub const FORMAT_LINK: u32 = 4;

/// What an image is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Format of the whole image, [`FORMAT`], [`FORMAT_PACKED`] or [`FORMAT_LINK`]. Filled in by the writer.
    pub format: u32,
    /// A number that no other image has, in hexadecimal. Filled in by the writer; empty in images that were written before
    /// there were ids, which nothing can build on.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub id: String,
    /// The image that this one builds on. Filled in by the writer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<Base>,
    /// Version of the program that wrote it.
    pub elision_version: String,
    /// When the VM was stopped for it, in UTC as `2026-01-31T12:00:00Z` ([`timestamp`]).
    pub created: String,
    /// The hypervisor.
    pub vmm: Vmm,
    /// What ran in the VM.
    pub guest: Guest,
    /// Where guest-physical RAM stands in `ram.img`.
    pub ram_layout: RamLayout,
    /// What the user asked to leave out, as given by the policy crate.
    pub policy: serde_json::Value,
    /// What was left out and changed, in numbers.
    pub plan: PlanSummary,
    /// Whether everything of the excluded processes was accounted for.
    pub completeness: Completeness,
    /// How long it took.
    pub times: Times,
    /// How memory came out of the VM.
    #[serde(default)]
    pub way: Way,
    /// The other files. Filled in by the writer.
    #[serde(default)]
    pub files: Files,
}

impl Manifest {
    /// The hypervisor's RAM blocks and where they stand in `ram.img`.
    #[must_use]
    pub fn ram_blocks(&self) -> Vec<RamBlock> {
        match self.vmm.ram_blocks.as_slice() {
            [] => vec![RamBlock::whole(&self.vmm.ram_block, self.files.ram.bytes)],
            blocks => blocks.to_vec(),
        }
    }

    /// What is wrong with the list of RAM blocks, if anything is: they ascend, lie in `ram.img`, and hold all of the
    /// RAM that the guest has.
    pub(crate) fn check_blocks(&self) -> Result<(), String> {
        const PAGE: u64 = PAGE_SIZE as u64;
        let blocks = self.ram_blocks();
        let mut end = 0;
        for (i, block) in blocks.iter().enumerate() {
            let RamBlock { name, offset, len } = block;
            let is_whole = offset.0 % PAGE == 0 && len % PAGE == 0;
            let fits = offset.0.checked_add(*len).is_some_and(|end| end <= self.files.ram.bytes);
            let is_named = blocks.iter().take(i).all(|before| before.name != *name);
            if !is_whole || !fits || !is_named || offset.0 < end {
                return Err(format!("the RAM block {name:?} is impossible"));
            }
            end = block.end().0;
        }
        for region in self.ram_layout.regions() {
            let (start, end) = (region.offset.0, region.offset.0 + region.len);
            let of = |b: &RamBlock| b.end().0.min(end).saturating_sub(b.offset.0.max(start));
            if blocks.iter().map(of).sum::<u64>() != region.len {
                return Err(format!("the RAM at {} is not all in its RAM blocks", region.gpa));
            }
        }
        Ok(())
    }
}

/// The image that another one builds on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// Where it is, as seen from the folder of the one that builds on it.
    pub path: PathBuf,
    /// Its id.
    pub id: String,
    /// How much of its RAM is inherited, in bytes.
    pub inherited_bytes: u64,
    /// How much of what it holds the link's own plan has taken out or changed, in bytes.
    pub withdrawn_bytes: u64,
}

/// The hypervisor that an image was taken from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vmm {
    /// Version of QEMU, as it says it.
    pub version: String,
    /// Machine type with its version, such as `pc-q35-7.2`.
    pub machine: String,
    /// The command line that started it, word by word.
    pub command: Vec<String>,
    /// Name of the RAM block that `ram.img` holds, of the first one if there are several; also the id of its memory
    /// backend at restore.
    pub ram_block: String,
    /// All RAM blocks, where there are several: each NUMA node has its own. See [`Manifest::ram_blocks`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ram_blocks: Vec<RamBlock>,
    /// Number of vCPUs.
    pub vcpus: u32,
}

/// What ran in the VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guest {
    /// Release of the guest's kernel, as `uname -r` gives it.
    pub kernel_release: String,
    /// Its build id, in hexadecimal.
    pub build_id: String,
}

/// Whether everything of the excluded processes was accounted for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Completeness {
    /// It was.
    #[default]
    Complete,
    /// The user let these things pass.
    BestEffort {
        /// What could not be accounted for.
        unaccounted: Vec<String>,
    },
}

/// How memory comes out of a VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// Read from outside, while the VM stands still.
    #[default]
    Shared,
    /// Sent by the hypervisor, while the VM stands still.
    Stream,
    /// Sent by the hypervisor as it was at one moment, while the VM runs on.
    Live,
}

/// How long a save took, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Times {
    /// How long the VM stood still.
    pub pause_ms: f64,
    /// Until RAM was on disk and checked. Filled in by the writer: from its creation on.
    pub total_ms: f64,
}

/// The files beside the manifest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Files {
    /// `ram.img`.
    pub ram: RamFile,
    /// `state.bin`.
    pub state: FileSum,
    /// `exclusions.bin`.
    pub exclusions: FileSum,
    /// `inherited.zst`, of a link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inherited: Option<FileSum>,
    /// `page-hashes.bin`, which images of early versions do not have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page_hashes: Option<FileSum>,
}

impl Files {
    /// Those beside RAM that the image has, by their names.
    pub(crate) fn beside_ram(&self) -> impl Iterator<Item = (&'static str, &FileSum)> {
        let always = [(STATE, &self.state), (EXCLUSIONS, &self.exclusions)];
        let inherited = self.inherited.as_ref().map(|sum| (INHERITED, sum));
        let hashes = self.page_hashes.as_ref().map(|sum| (PAGE_HASHES, sum));
        always.into_iter().chain(inherited).chain(hashes)
    }
}

/// Length and checksum of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSum {
    /// Length in bytes.
    pub bytes: u64,
    /// BLAKE3 of all bytes, in hexadecimal.
    pub blake3: String,
}

/// Length and checksums of the RAM file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RamFile {
    /// Length in bytes, holes included.
    pub bytes: u64,
    /// Bytes that take room on disk.
    pub stored_bytes: u64,
    /// Length of `ram.zst`, which stands in place of `ram.img` if it is compressed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packed_bytes: Option<u64>,
    /// Length of a chunk in bytes; the last may be shorter.
    pub chunk_bytes: u64,
    /// BLAKE3 of all chunk hashes, in hexadecimal.
    pub root: String,
    /// BLAKE3 of each chunk, in hexadecimal, one after another.
    pub chunks: String,
}

impl RamFile {
    /// The chunk hashes, if their number fits the length and chunk length.
    pub(crate) fn chunk_hashes(&self) -> Option<Vec<blake3::Hash>> {
        let (least, most) = match self.packed_bytes {
            Some(_) => (MIN_CHUNK_PACKED, MAX_CHUNKS_PACKED),
            None => (MIN_CHUNK, MAX_CHUNKS),
        };
        let size_ok = self.chunk_bytes.is_power_of_two() && self.chunk_bytes >= least;
        if !size_ok || self.bytes.div_ceil(self.chunk_bytes) > most {
            return None;
        }
        let count = self.bytes.div_ceil(self.chunk_bytes);
        if !self.chunks.is_ascii() || self.chunks.len() as u64 != count.checked_mul(64)? {
            return None;
        }
        self.chunks.as_bytes().chunks(64).map(|hex| blake3::Hash::from_hex(hex).ok()).collect()
    }
}

/// A point of time in UTC, to the second, as RFC 3339 writes it.
#[must_use]
pub fn timestamp(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (mut day, time) = (seconds / 86_400, seconds % 86_400);
    let leap = |y: u64| (y % 4 == 0 && y % 100 != 0) || y % 400 == 0;
    let mut year = 1970 + 400 * (day / 146_097); // days of 400 years
    day %= 146_097;
    while day >= 365 + u64::from(leap(year)) {
        day -= 365 + u64::from(leap(year));
        year += 1;
    }
    let mut month = 1;
    for days in [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if day < days {
            break;
        }
        day -= days;
        month += 1;
    }
    format!("{year:04}-{month:02}-{:02}T{:02}:{:02}:{:02}Z", day + 1, time / 3600, time / 60 % 60, time % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use elision_memory::{FileOffset, Gpa, RamRegion};
    use std::time::Duration;

    fn with_blocks(blocks: &[(&str, u64, u64)]) -> Manifest {
        let region = |gpa, len, offset| RamRegion { gpa: Gpa(gpa), len, offset: FileOffset(offset) };
        let regions = vec![region(0, 0x3000, 0), region(0x10_0000, 0x2000, 0x20_0000)];
        let block = |&(name, offset, len): &(&str, u64, u64)| RamBlock {
            name: name.to_owned(),
            offset: FileOffset(offset),
            len,
        };
        Manifest {
            id: String::new(),
            base: None,
            format: FORMAT,
            elision_version: String::new(),
            created: String::new(),
            vmm: Vmm {
                ram_block: "pc.ram".to_owned(),
                ram_blocks: blocks.iter().map(block).collect(),
                ..Vmm::default()
            },
            guest: Guest::default(),
            ram_layout: RamLayout::new(regions).unwrap(),
            policy: serde_json::Value::Null,
            plan: PlanSummary::default(),
            completeness: Completeness::Complete,
            times: Times::default(),
            way: Way::Shared,
            files: Files { ram: RamFile { bytes: 0x20_2000, ..RamFile::default() }, ..Files::default() },
        }
    }

    #[test]
    fn blocks_must_hold_all_ram() {
        let two = with_blocks(&[("a", 0, 0x3000), ("b", 0x20_0000, 0x2000)]);
        two.check_blocks().unwrap();
        assert_eq!(two.ram_blocks(), two.vmm.ram_blocks);
        for wrong in [
            &[("a", 0, 0x3000)][..],
            &[("a", 0, 0x2000), ("b", 0x20_0000, 0x2000)],
            &[("a", 0, 0x3000), ("b", 0x20_0000, 0x3000)],
            &[("a", 0, 0x3000), ("a", 0x20_0000, 0x2000)],
            &[("b", 0x20_0000, 0x2000), ("a", 0, 0x3000)],
            &[("a", 0, 0x20_1000), ("b", 0x20_0000, 0x2000)],
            &[("a", 0, 0x3001), ("b", 0x20_0000, 0x2000)],
            &[("a", 0, 0x3000), ("b", !4095, 0x2000)],
        ] {
            assert!(with_blocks(wrong).check_blocks().is_err(), "{wrong:x?}");
        }
    }

    #[test]
    fn an_image_of_one_block_is_as_it_always_was() {
        let one = with_blocks(&[]);
        one.check_blocks().unwrap();
        assert_eq!(one.ram_blocks(), [RamBlock::whole("pc.ram", 0x20_2000)]);
        let text = serde_json::to_string(&one).unwrap();
        assert!(text.contains("ram_block") && !text.contains("ram_blocks"), "{text}");
        assert_eq!(serde_json::from_str::<Manifest>(&text).unwrap(), one);
    }

    #[test]
    fn timestamps_are_those_of_the_calendar() {
        let table = [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (978_307_199, "2000-12-31T23:59:59Z"),
            (1_709_210_096, "2024-02-29T12:34:56Z"),
            (4_102_444_800, "2100-01-01T00:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ];
        for (seconds, text) in table {
            assert_eq!(timestamp(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }
}
