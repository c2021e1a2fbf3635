//! A small guest to save: RAM in two pieces with a window that is not RAM, and a plan for it.
#![allow(dead_code)] // each test file uses its part

use elision_image::{Completeness, Files, Guest, Image, ImageWriter, Manifest, RamStats, Times, Vmm, Way};
use elision_memory::{FileOffset, Gfn, Gpa, PAGE_SIZE, Ram, RamLayout, RamRegion};
use elision_plan::{Change, DropReason, DropRun, Edit, EditReason, Plan, PlanSummary};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

pub(crate) const PAGE: u64 = PAGE_SIZE as u64;
/// Frames of RAM below and above the hole.
pub(crate) const LOW: u64 = 0x1000;
pub(crate) const HIGH_GFN: u64 = 0x10_0000;
pub(crate) const HIGH: u64 = 0x400;
pub(crate) const LEN: u64 = (LOW + HIGH) * PAGE;
/// The window that is not RAM: 0xa0000 to 0xbffff.
pub(crate) const WINDOW: std::ops::Range<u64> = 0xa0..0xc0;

pub(crate) fn layout() -> RamLayout {
    let low_end = WINDOW.start * PAGE;
    let low_next = WINDOW.end * PAGE;
    RamLayout::new(vec![
        RamRegion { gpa: Gpa(0), len: low_end, offset: FileOffset(0) },
        RamRegion { gpa: Gpa(low_next), len: LOW * PAGE - low_next, offset: FileOffset(low_next) },
        RamRegion { gpa: Gpa(HIGH_GFN * PAGE), len: HIGH * PAGE, offset: FileOffset(LOW * PAGE) },
    ])
    .unwrap()
}

/// The byte that fills a page of the RAM file, or 0 for a page that is a hole.
pub(crate) fn fill(page: u64) -> u8 {
    if page % 3 == 0 { 0 } else { u8::try_from(page % 251).unwrap() | 1 }
}

pub(crate) fn source() -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(LEN).unwrap();
    for page in 0..LOW + HIGH {
        if fill(page) != 0 {
            file.write_all_at(&[fill(page); PAGE_SIZE], page * PAGE).unwrap();
        }
    }
    file
}

pub(crate) fn plan() -> Plan {
    let drop = |first, count, reason, owner| DropRun { first: Gfn(first), count, reason, owner };
    let edit = |gpa, change, reason| Edit { gpa: Gpa(gpa), change, reason, owner: Some(7) };
    Plan {
        drops: vec![
            drop(1, 2, DropReason::Free, None),
            drop(0x200, 0x100, DropReason::Anonymous, Some(7)),
            drop(0x300, 1, DropReason::HugeTlb, Some(9)),
            drop(HIGH_GFN + 5, 100, DropReason::SharedMemory, Some(7)),
        ],
        edits: vec![
            // Page 4 holds data, page 6 is a hole, page 0x400 is emptied.
            edit(4 * PAGE + 16, Change::Zero(32), EditReason::DeadStack),
            edit(4 * PAGE + 20, Change::Write(Box::new(*b"KILL")), EditReason::PendingKill),
            edit(6 * PAGE + 8, Change::Write(Box::new([9; 8])), EditReason::WakeUp),
            edit(0x400 * PAGE, Change::Zero(4096), EditReason::FpuState),
            edit((HIGH_GFN + 1) * PAGE + 4095, Change::Zero(1), EditReason::UserRegisters),
        ],
        late: vec![],
        summary: PlanSummary { unaccounted: vec![], ..PlanSummary::default() },
    }
}

pub(crate) fn manifest() -> Manifest {
    Manifest {
        format: 0,
        id: String::new(),
        base: None,
        elision_version: "0.1.0".into(),
        created: "2026-01-31T12:00:00Z".into(),
        vmm: Vmm {
            version: "7.2.22".into(),
            machine: "pc-q35-7.2".into(),
            command: vec!["qemu-system-x86_64".into(), "-m".into(), "20M".into()],
            ram_block: "pc.ram".into(),
            ram_blocks: Vec::new(),
            vcpus: 2,
        },
        guest: Guest { kernel_release: "6.1.0-44-cloud-amd64".into(), build_id: "00ff".into() },
        ram_layout: layout(),
        policy: serde_json::json!({"selectors": []}),
        plan: PlanSummary::default(),
        completeness: Completeness::Complete,
        times: Times { pause_ms: 12.5, total_ms: 0.0 },
        way: Way::Shared,
        files: Files::default(),
    }
}

/// Writes a whole image.
pub(crate) fn save(target: &Path, ram: &Ram, plan: &Plan, threads: usize) -> Manifest {
    let mut writer = ImageWriter::create(target).unwrap();
    writer.write_ram(ram, plan, threads).unwrap();
    writer.write_state(b"device state").unwrap();
    writer.write_exclusions(plan).unwrap();
    writer.finish(manifest(), &|_| ()).unwrap()
}

/// The plan with frames that wait until the copy was looked at.
pub(crate) fn planned() -> Plan {
    Plan { late: vec![Gfn(4)..Gfn(6), Gfn(HIGH_GFN + 1)..Gfn(HIGH_GFN + 2)], ..plan() }
}

/// Completes an image whose RAM was copied.
pub(crate) fn complete(mut writer: ImageWriter, plan: &Plan) -> RamStats {
    let change = Change::Zero(8);
    let late = Edit { gpa: Gpa(5 * PAGE + 8), change, reason: EditReason::FreeObject, owner: None };
    let stats = writer.write_late(&[late]).unwrap();
    writer.write_state(b"device state").unwrap();
    writer.write_exclusions(plan).unwrap();
    writer.finish(manifest(), &|_| ()).unwrap();
    stats
}

/// The RAM of an image that verifies.
pub(crate) fn ram_of(image: &Path) -> Vec<u8> {
    assert_eq!(Image::open(image).unwrap().verify(&|_| ()).unwrap(), []);
    std::fs::read(image.join("ram.img")).unwrap()
}
