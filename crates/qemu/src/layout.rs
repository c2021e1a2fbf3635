//! Where each byte of the VM's RAM file stands in guest-physical memory.
//!
//! ```text
//! guest-physical   0 ........ 640K  VGA  768K ........ 2G    hole    4G ........ 7G
//!                  [   RAM   ]     [ RAM, some read-only ]          [    RAM     ]
//! RAM file         [   RAM   |hidden|      RAM           |              RAM      ]
//! ```
//!
//! RAM that comes from several memory backends, one for each NUMA node, is several blocks in QEMU. They stand in the RAM
//! file one after the other, and one that continues another at the guest's addresses does so anywhere.
//!
//! QEMU lets a guest switch parts of the first megabyte between RAM, ROM and devices, and hides the memory
//! of System Management Mode. Such **hidden** bytes exist in the RAM file, belong to no guest-physical
//! address that the operating system could use, and go into an image as they are. Any other byte of the
//! file that is mapped nowhere is an error: it would mean that the layout was not understood.

use crate::error::{QemuError, Result};
use crate::flat_view::{FlatRegion, RamBlockInfo};
use elision_memory::{FileOffset, Gpa, PAGE_SIZE, RamBlock, RamLayout, RamRegion};
use serde::{Deserialize, Serialize};

const ONE_MIB: u64 = 1 << 20;

/// Bytes of the RAM file that the guest's operating system cannot address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HiddenRange {
    /// Where the guest would see it if nothing lay over it.
    pub gpa: Gpa,
    /// First byte in the RAM file.
    pub offset: FileOffset,
    /// Length in bytes.
    pub len: u64,
}

/// The VM's RAM: its blocks in QEMU and where the blocks' parts are mapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmRam {
    /// The RAM blocks, one after the other, first the one of low addresses. A block's name is the id of its memory
    /// backend: usually `pc.ram`, or one for each NUMA node.
    pub blocks: Vec<RamBlock>,
    /// Length of the RAM file that holds all blocks.
    pub file_len: u64,
    /// Where each part of the file stands, hidden ones where the guest would see them.
    pub layout: RamLayout,
    /// The parts that the guest does not see, for a known reason.
    pub hidden: Vec<HiddenRange>,
}

/// Works the RAM out of QEMU's description. `backends` are the ids of all memory backends, `nodes` of those that are
/// the memory of NUMA nodes.
pub(crate) fn vm_ram(
    view: &[FlatRegion],
    blocks: &[RamBlockInfo],
    backends: &[String],
    nodes: &[String],
) -> Result<VmRam> {
    // The main RAM is what the guest has at 1 MiB, on every PC since the first.
    let main = view
        .iter()
        .find(|r| r.kind == "ram" && r.start <= ONE_MIB && ONE_MIB - r.start < r.len)
        .ok_or_else(|| bad("there is no RAM at 1 MiB"))?;
    let mut names = vec![main.name.as_str()];
    for r in view.iter().filter(|r| r.is_memory() && backends.contains(&r.name)) {
        if !names.contains(&r.name.as_str()) {
            names.push(&r.name);
        }
    }
    let is_node = |name: &&str| nodes.iter().any(|node| node == name);
    if names.len() > 1 && !names.iter().all(is_node) {
        let others = names.into_iter().filter(|name| !is_node(name)).map(String::from).collect();
        return Err(QemuError::OtherBackends { names: others });
    }
    let mut placed: Vec<RamBlock> = vec![];
    for name in names {
        let block = blocks.iter().find(|b| b.name == name);
        let block = block.ok_or_else(|| bad(format!("there is no RAM block named {name:?}")))?;
        let offset = placed.last().map_or(FileOffset(0), RamBlock::next_start);
        placed.push(RamBlock { name: name.to_owned(), offset, len: block.used });
    }
    let (mut all, mut hidden) = (vec![], vec![]);
    for block in &placed {
        let pieces = pieces(view, block)?;
        hidden.extend(hidden_in(block, view, &pieces, all.last().copied())?);
        all.extend(pieces);
    }
    // What lies behind the VGA window (system management mode keeps its memory there) belongs to the VM's
    // state too.
    all.extend(hidden.iter().map(|h| RamRegion { gpa: h.gpa, len: h.len, offset: h.offset }));
    let layout = RamLayout::new(merge(all))?;
    let file_len = placed.last().map_or(0, |block| block.end().0);
    Ok(VmRam { blocks: placed, file_len, layout, hidden })
}

/// The parts of the view that lead into the block, by ascending file offset.
fn pieces(view: &[FlatRegion], block: &RamBlock) -> Result<Vec<RamRegion>> {
    let mut pieces = vec![];
    for r in view.iter().filter(|r| r.is_memory() && r.name == block.name) {
        if r.offset.checked_add(r.len).is_none_or(|end| end > block.len) {
            return Err(bad(format!("the region at {:#x} runs out of its RAM block", r.start)));
        }
        let offset = FileOffset(block.offset.0 + r.offset);
        pieces.push(RamRegion { gpa: Gpa(r.start), len: r.len, offset });
    }
    pieces.sort_by_key(|p| p.offset);
    // A second address for the same bytes would make one frame two.
    for pair in pieces.windows(2) {
        if let [a, b] = pair {
            if a.offset.0 + a.len > b.offset.0 {
                return Err(bad(format!("the RAM at file offset {} is mapped twice", b.offset)));
            }
        }
    }
    Ok(pieces)
}

/// The gaps between the pieces of a block, each with a known reason. `before` is what stands before the block.
fn hidden_in(
    block: &RamBlock,
    view: &[FlatRegion],
    pieces: &[RamRegion],
    mut before: Option<RamRegion>,
) -> Result<Vec<HiddenRange>> {
    let mut hidden = vec![];
    let mut at = block.offset.0;
    let end = RamRegion { gpa: Gpa(0), len: 0, offset: block.end() };
    for piece in pieces.iter().chain([&end]) {
        let len = piece.offset.0 - at;
        if len > 0 {
            // Where the gap would be if it were mapped like the piece before it.
            let start = before.map_or(Some(0), |b| b.gpa.0.checked_add(b.len));
            let in_first_mib = at + len <= ONE_MIB;
            if !in_first_mib && !start.is_some_and(|start| overlaid(view, start, len)) {
                return Err(QemuError::Unexplained { offset: FileOffset(at), len });
            }
            let gpa = start.ok_or(QemuError::Unexplained { offset: FileOffset(at), len })?;
            hidden.push(HiddenRange { gpa: Gpa(gpa), offset: FileOffset(at), len });
        }
        at = piece.offset.0 + piece.len;
        before = Some(*piece);
    }
    Ok(hidden)
}

/// Whether something else stands at every one of these guest-physical addresses.
fn overlaid(view: &[FlatRegion], mut start: u64, len: u64) -> bool {
    let Some(end) = start.checked_add(len) else { return false };
    for r in view {
        if r.start <= start && start - r.start < r.len {
            start = r.start.saturating_add(r.len);
        }
    }
    start >= end
}

/// Joins pieces that continue each other in memory and in the file.
fn merge(mut pieces: Vec<RamRegion>) -> Vec<RamRegion> {
    pieces.sort_by_key(|p| p.gpa);
    let mut merged: Vec<RamRegion> = vec![];
    for piece in pieces {
        match merged.last_mut() {
            Some(last) if continues(last, &piece) => last.len += piece.len,
            _ => merged.push(piece),
        }
    }
    merged
}

fn continues(a: &RamRegion, b: &RamRegion) -> bool {
    a.gpa.checked_add(a.len) == Some(b.gpa) && a.offset.checked_add(a.len) == Some(b.offset)
}

impl VmRam {
    /// Whether every byte of the blocks has its place, and pages are whole.
    #[must_use]
    pub fn accounts_for_every_byte(&self) -> bool {
        let blocks: u64 = self.blocks.iter().map(|block| block.len).sum();
        self.layout.ram_bytes() == blocks && blocks % PAGE_SIZE as u64 == 0
    }
}

fn bad(why: impl Into<String>) -> QemuError {
    QemuError::RamLayout { why: why.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flat_view::{parse_flat_view, parse_ram_blocks};

    macro_rules! captured {
        ($name:literal) => {
            vm_ram(
                &parse_flat_view(include_str!(concat!("../tests/captured/", $name, "-mtree.txt"))).unwrap(),
                &parse_ram_blocks(include_str!(concat!("../tests/captured/", $name, "-ramblock.txt")))
                    .unwrap(),
                &["pc.ram".to_string()],
                &[],
            )
            .unwrap()
        };
    }

    fn region(gpa: u64, len: u64, offset: u64) -> RamRegion {
        RamRegion { gpa: Gpa(gpa), len, offset: FileOffset(offset) }
    }

    const G: u64 = 1 << 30;

    #[test]
    fn small_guests_are_one_piece() {
        for ram in [captured!("q35-512"), captured!("pc-512")] {
            assert_eq!(ram.layout.regions(), [region(0, 512 << 20, 0)]);
            assert_eq!(ram.blocks, [RamBlock::whole("pc.ram", 512 << 20)]);
            assert_eq!(ram.file_len, 512 << 20);
            assert!(ram.hidden.is_empty());
            assert!(ram.accounts_for_every_byte());
        }
    }

    #[test]
    fn large_guests_are_split_by_the_pci_hole() {
        let q35 = captured!("q35-5g");
        assert_eq!(q35.layout.regions(), [region(0, 2 * G, 0), region(4 * G, 3 * G, 2 * G)]);
        let pc = captured!("pc-5g");
        assert_eq!(pc.layout.regions(), [region(0, 3 * G, 0), region(4 * G, 2 * G, 3 * G)]);
        assert!(q35.accounts_for_every_byte() && pc.accounts_for_every_byte());
    }

    #[test]
    fn the_vga_window_hides_ram() {
        let ram = captured!("pc-vga");
        let window = HiddenRange { gpa: Gpa(0xa0000), offset: FileOffset(0xa0000), len: 0x20000 };
        assert_eq!(ram.hidden, [window]);
        assert_eq!(ram.layout.offset_of(Gpa(0xa0000), 1), Some(FileOffset(0xa0000)));
        assert!(ram.accounts_for_every_byte());
    }

    fn view(lines: &str) -> Vec<FlatRegion> {
        parse_flat_view(&format!("FlatView #0\n AS \"memory\", root: system\n{lines}")).unwrap()
    }

    fn blocks(list: &[(&str, u64)]) -> Vec<RamBlockInfo> {
        list.iter().map(|&(name, used)| RamBlockInfo { name: name.into(), used }).collect()
    }

    #[test]
    fn memory_of_system_management_mode_is_hidden_by_what_stands_there() {
        let blocks = blocks(&[("pc.ram", 0x400_0000)]);
        let low = "  0000000000000000-00000000037fffff (prio 0, ram): pc.ram\n";
        let seg = "  0000000003800000-0000000003ffffff (prio 1, i/o): tseg-blackhole\n";
        let ram = vm_ram(&view(&format!("{low}{seg}")), &blocks, &[], &[]).unwrap();
        assert_eq!(
            ram.hidden,
            [HiddenRange { gpa: Gpa(0x380_0000), offset: FileOffset(0x380_0000), len: 0x80_0000 }]
        );
        assert!(ram.accounts_for_every_byte());
        let err = vm_ram(&view(low), &blocks, &[], &[]).unwrap_err();
        assert!(matches!(err, QemuError::Unexplained { offset: FileOffset(0x380_0000), .. }), "{err}");
    }

    #[test]
    fn nodes_stand_one_after_the_other_and_around_the_hole() {
        // 3 MiB short of an even number, so that the second node does not follow at once in the file.
        let list = blocks(&[("m0", 0x7fd0_0000), ("m1", 0x8000_0000), ("vga.vram", 0x100_0000)]);
        let split = "  0000000000000000-000000007fcfffff (prio 0, ram): m0\n  000000007fd00000-000000007fffffff (prio 0, ram): m1\n  \
                     00000000e0000000-00000000e0ffffff (prio 1, ram): vga.vram\n  0000000100000000-000000017fcfffff (prio 0, ram): m1 @0000000000300000\n";
        let nodes = ["m0".to_string(), "m1".to_string()];
        let ram = vm_ram(&view(split), &list, &nodes, &nodes).unwrap();
        let second = 0x7fe0_0000;
        assert_eq!(
            ram.layout.regions(),
            [
                region(0, 0x7fd0_0000, 0),
                region(0x7fd0_0000, 0x30_0000, second),
                region(4 * G, 0x7fd0_0000, second + 0x30_0000)
            ]
        );
        let starts: Vec<_> = ram.blocks.iter().map(|b| (b.name.as_str(), b.offset.0, b.len)).collect();
        assert_eq!(starts, [("m0", 0, 0x7fd0_0000), ("m1", second, 0x8000_0000)]);
        assert_eq!(ram.file_len, second + 0x8000_0000);
        assert!(ram.accounts_for_every_byte() && ram.hidden.is_empty());
        // Two nodes whose memory follows at once are one run of memory.
        let two = "  0000000000000000-0000000003ffffff (prio 0, ram): m0\n  0000000004000000-0000000007ffffff (prio 0, ram): m1\n";
        let list = blocks(&[("m0", 0x400_0000), ("m1", 0x400_0000)]);
        let ram = vm_ram(&view(two), &list, &nodes, &nodes).unwrap();
        assert_eq!(ram.layout.regions(), [region(0, 0x800_0000, 0)]);
    }

    #[test]
    fn other_backends_double_mappings_and_overruns_are_refused() {
        let two = "  0000000000000000-0000000003ffffff (prio 0, ram): m0\n  0000000004000000-0000000007ffffff (prio 0, ram): m1\n";
        let list = blocks(&[("m0", 0x400_0000), ("m1", 0x400_0000)]);
        let backends = ["m0".to_string(), "m1".to_string()];
        let err = vm_ram(&view(two), &list, &backends, &backends[..1]).unwrap_err();
        assert!(matches!(err, QemuError::OtherBackends { ref names } if names == &["m1"]), "{err}");
        let twice = "  0000000000000000-0000000003ffffff (prio 0, ram): m0\n  0000000004000000-0000000007ffffff (prio 0, ram): m0\n";
        assert!(vm_ram(&view(twice), &list, &[], &[]).is_err());
        let overrun = "  0000000000000000-0000000004ffffff (prio 0, ram): m0\n";
        assert!(vm_ram(&view(overrun), &list, &[], &[]).is_err());
        assert!(vm_ram(&view(""), &list, &[], &[]).is_err());
    }
}
