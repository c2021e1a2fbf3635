//! QEMU's own description of guest-physical memory, as text of its human monitor.
//!
//! ```text
//! info mtree -f                                        info ramblock
//! FlatView #0                                                  Block Name    PSize   Offset      Used     Total
//!  AS "memory", root: system                                       pc.ram    4 KiB   0x0..0   0x2000..  0x2000..
//!   START-END (prio 0, ram): NAME @OFFSET               0000:00:02.0/vga.vram 4 KiB ...
//! ```
//! `END` is inclusive, all numbers of the first are hexadecimal without prefix, and ` @OFFSET` is left
//! out when it is zero. Under hardware acceleration a word such as ` KVM` may follow. Limits: 4096
//! regions, 1024 blocks.

use crate::error::{QemuError, Result};

const MAX_REGIONS: usize = 4096;
const MAX_BLOCKS: usize = 1024;

/// A piece of guest-physical memory as the vCPUs see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FlatRegion {
    pub(crate) start: u64,
    pub(crate) len: u64,
    pub(crate) kind: String,
    pub(crate) name: String,
    pub(crate) offset: u64,
}

impl FlatRegion {
    /// Whether reads come straight from a RAM block.
    pub(crate) fn is_memory(&self) -> bool {
        matches!(self.kind.as_str(), "ram" | "rom" | "romd" | "ramd" | "nv")
    }
}

/// A block of memory that QEMU allocated for the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RamBlockInfo {
    pub(crate) name: String,
    pub(crate) used: u64,
}

/// The regions of the address space named `memory`, by ascending address.
pub(crate) fn parse_flat_view(text: &str) -> Result<Vec<FlatRegion>> {
    let views = text.split("FlatView #").skip(1);
    let mut memory = views.filter(|v| v.lines().any(|l| l.trim_start().starts_with("AS \"memory\",")));
    let view = memory.next().ok_or_else(|| bad("QEMU lists no address space named memory"))?;
    let mut regions = vec![];
    for line in view.lines().filter(|l| l.starts_with("  ") && l.contains("(prio ")) {
        regions.push(region(line.trim()).ok_or_else(|| bad(format!("the line {line:?} is not understood")))?);
        if regions.len() > MAX_REGIONS {
            return Err(bad("too many regions"));
        }
    }
    regions.sort_by_key(|r| r.start);
    Ok(regions)
}

fn region(line: &str) -> Option<FlatRegion> {
    let (range, rest) = line.split_once(" (prio ")?;
    let (attributes, name) = rest.split_once("): ")?;
    let (start, end) = range.split_once('-')?;
    let (start, end) = (hex(start)?, hex(end)?);
    let kind = attributes.split_once(", ")?.1.to_string();
    let (name, offset) = match name.rsplit_once(" @") {
        Some((name, offset)) => (name, hex(offset.split(' ').next()?)?),
        None => (name, 0),
    };
    let name = ["KVM", "HVF", "WHPX", "MSHV"]
        .iter()
        .find_map(|accelerator| name.strip_suffix(accelerator)?.strip_suffix(' '))
        .unwrap_or(name);
    let len = end.checked_sub(start)?.checked_add(1)?;
    Some(FlatRegion { start, len, kind, name: name.to_string(), offset })
}

/// The RAM blocks with their sizes in bytes.
pub(crate) fn parse_ram_blocks(text: &str) -> Result<Vec<RamBlockInfo>> {
    let mut lines = text.lines();
    let header = lines.next().unwrap_or_default();
    if !header.contains("Block Name") || !header.contains("Used") {
        return Err(bad("the list of RAM blocks has no header"));
    }
    let mut blocks = vec![];
    for line in lines.filter(|l| !l.trim().is_empty()) {
        blocks.push(block(line).ok_or_else(|| bad(format!("the line {line:?} is not understood")))?);
        if blocks.len() > MAX_BLOCKS {
            return Err(bad("too many RAM blocks"));
        }
    }
    Ok(blocks)
}

fn block(line: &str) -> Option<RamBlockInfo> {
    // Newer versions add columns after the three numbers: find the page size, count from there.
    let words: Vec<&str> = line.split_whitespace().collect();
    let unit = words.iter().position(|w| matches!(*w, "B" | "KiB" | "MiB" | "GiB"))?;
    let name = words.get(..unit.checked_sub(1)?)?.join(" ");
    let used = words.get(unit + 2)?.strip_prefix("0x")?;
    (!name.is_empty()).then_some(RamBlockInfo { name, used: hex(used)? })
}

fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 16).ok()
}

fn bad(why: impl Into<String>) -> QemuError {
    QemuError::RamLayout { why: why.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_offsets_and_accelerators_are_told_apart() {
        let r = region(
            "00000000febf0420-00000000febf04ff (prio 1, i/o): vga ioports remapped @0000000000000420 KVM",
        );
        let r = r.unwrap();
        assert_eq!((r.name.as_str(), r.offset, r.len), ("vga ioports remapped", 0x420, 0xe0));
        assert!(!r.is_memory());
        let r = region("0000000000000000-000000000009ffff (prio 0, ram): pc.ram KVM").unwrap();
        assert_eq!((r.name.as_str(), r.offset), ("pc.ram", 0));
        assert!(r.is_memory());
    }

    #[test]
    fn ram_blocks_are_read_by_column() {
        let blocks = parse_ram_blocks(include_str!("../tests/captured/pc-vga-ramblock.txt")).unwrap();
        assert_eq!(blocks[0], RamBlockInfo { name: "pc.ram".into(), used: 512 << 20 });
        assert!(blocks.iter().any(|b| b.name == "0000:00:02.0/vga.vram" && b.used == 16 << 20));
        assert!(parse_ram_blocks("unknown command: 'info ramblock'").is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in "(FlatView #|AS \"memory\", |\\(prio 0, ram\\): |[0-9a-f]{0,17}|[-@ \n]|0x|KiB){0,60}") {
            let _ = parse_flat_view(&text);
            let _ = parse_ram_blocks(&format!("Block Name Used\n{text}"));
        }
    }
}
