//! Images of each format that was ever written are read: `formats/N` was written by the version that had that format.
//!
//! A new format gets a folder of its own: run `write_one` with `ELISION_NEW_FORMAT` naming it, and `ELISION_COMPRESS` set where
//! it is one for compressed images. For images that build on another one write that first, to `N-base` with `ELISION_OTHER` set,
//! and then one with `ELISION_BASE` naming it.

use elision_image::{Completeness, Files, Guest, Image, ImageWriter, Manifest, Times, Vmm, Way};
use elision_memory::{Gfn, Gpa, PAGE_SIZE, Ram, RamLayout};
use elision_plan::{Change, DropReason, DropRun, Edit, EditReason, Plan, PlanSummary};
use std::path::Path;

const PAGES: u64 = 8;

fn layout() -> RamLayout {
    RamLayout::flat(PAGES * PAGE_SIZE as u64).unwrap()
}

/// Page 1 is left out, in page 2 eight bytes are zeroed.
fn plan() -> Plan {
    let drop = DropRun { first: Gfn(1), count: 1, reason: DropReason::Anonymous, owner: Some(7) };
    let change = Change::Zero(8);
    let edit = Edit { gpa: Gfn(2).gpa(), change, reason: EditReason::Pipe, owner: Some(7) };
    Plan { drops: vec![drop], edits: vec![edit], late: vec![], summary: PlanSummary::default() }
}

#[test]
fn every_format_is_read() {
    for (folder, format) in [("2", 2), ("3", 3), ("4", 4), ("4-hashes", 4)] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/formats/{folder}"));
        let image = Image::open(&path).unwrap();
        assert_eq!(image.manifest().format, format);
        assert_eq!(image.manifest().vmm.command, ["qemu-system-x86_64", "-m", "32K"]);
        assert_eq!(image.verify(&|_| ()).unwrap(), []);
        assert_eq!(image.state().unwrap(), b"state");
        let map = image.exclusions().unwrap();
        assert_eq!((map.drops[0].first, map.drops[0].reason), (Gfn(1), DropReason::Anonymous));
        assert_eq!((map.edits[0].gpa, map.edits[0].reason), (Gfn(2).gpa(), EditReason::Pipe));
        let ram = image.ram().unwrap();
        let words: Vec<_> = (0..PAGES).map(|gfn| ram.word(Gpa(gfn * PAGE_SIZE as u64)).unwrap()).collect();
        let kept = |gfn: u64| 0x0101_0101_0101_0101 * (gfn + 1);
        assert_eq!(words, [kept(0), 0, 0, kept(3), kept(4), kept(5), kept(6), kept(7)], "{folder}");
    }
}

/// Not a test: writes an image, in the format that is written today.
#[test]
fn write_one() {
    let Some(target) = std::env::var_os("ELISION_NEW_FORMAT") else { return };
    let mut ram = Ram::zeroed(layout()).unwrap();
    for gfn in 0..PAGES {
        let byte = u8::try_from(gfn + 1).unwrap();
        ram.poke(Gfn(gfn).gpa(), &[byte; PAGE_SIZE]).unwrap();
    }
    if std::env::var_os("ELISION_OTHER").is_some() {
        ram.poke(Gfn(3).gpa(), &[0x77; PAGE_SIZE]).unwrap();
        ram.poke(Gfn(2).gpa(), &[0x77; 64]).unwrap();
    }
    let mut writer = ImageWriter::create(Path::new(&target)).unwrap();
    if let Some(base) = std::env::var_os("ELISION_BASE") {
        writer.build_on(Path::new(&base)).unwrap();
    }
    if std::env::var_os("ELISION_COMPRESS").is_some() {
        writer.compress(1);
    }
    writer.write_ram(&ram, &plan(), 1).unwrap();
    writer.end_pause(&plan()).unwrap();
    writer.write_late(&[]).unwrap();
    writer.write_state(b"state").unwrap();
    writer.write_exclusions(&plan()).unwrap();
    let vmm = Vmm {
        command: ["qemu-system-x86_64", "-m", "32K"].map(str::to_owned).to_vec(),
        ram_block: "pc.ram".to_owned(),
        vcpus: 1,
        ..Vmm::default()
    };
    let manifest = Manifest {
        format: 0,
        id: String::new(),
        base: None,
        elision_version: env!("CARGO_PKG_VERSION").to_owned(),
        created: "2026-01-31T12:00:00Z".to_owned(),
        vmm,
        guest: Guest::default(),
        ram_layout: layout(),
        policy: serde_json::json!({"selectors": [], "save": {}}),
        plan: PlanSummary::default(),
        completeness: Completeness::Complete,
        times: Times::default(),
        way: Way::Shared,
        files: Files::default(),
    };
    writer.finish(manifest, &|_| ()).unwrap();
}
