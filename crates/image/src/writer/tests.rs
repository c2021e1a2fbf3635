//! The same image comes of a copy in memory, of one in the file, and of one in both.

use super::*;
use crate::checksum::MIN_CHUNK;
use crate::{Completeness, Guest, Image, Times, Vmm};
use elision_memory::{Gfn, RamLayout};
use elision_plan::{Change, DropReason, DropRun, EditReason, PlanSummary};
use std::os::unix::fs::FileExt;

const PAGE: u64 = PAGE_SIZE as u64;
const LEN: u64 = 6 * MIN_CHUNK;
/// A frame in each of the first three chunks of RAM; the others hold no late frames.
const FRAMES: [u64; 3] = [5, MIN_CHUNK / PAGE + 5, 2 * MIN_CHUNK / PAGE + 5];

fn plan() -> Plan {
    let drop = |gfn| DropRun { first: Gfn(gfn + 8), count: 4, reason: DropReason::Free, owner: None };
    Plan {
        drops: FRAMES.map(drop).to_vec(),
        edits: FRAMES.map(|gfn| zero(gfn + 2, 16)).to_vec(),
        late: FRAMES.map(|gfn| Gfn(gfn)..Gfn(gfn + 1)).to_vec(),
        summary: PlanSummary::default(),
    }
}

fn zero(gfn: u64, len: u32) -> Edit {
    Edit { gpa: Gfn(gfn).gpa(), change: Change::Zero(len), reason: EditReason::FreeObject, owner: None }
}

/// The first bytes of a page of the unfinished file.
fn in_file(writer: &ImageWriter, page: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    writer.open(RAM).unwrap().read_exact_at(&mut bytes, page * PAGE).unwrap();
    bytes
}

/// Completes an image whose RAM is copied.
fn complete(mut writer: ImageWriter, ram: &Ram) -> Manifest {
    writer.write_late(&FRAMES.map(|gfn| zero(gfn, 8))).unwrap();
    writer.write_state(b"").unwrap();
    writer.write_exclusions(&plan()).unwrap();
    let manifest = Manifest {
        format: 0,
        id: String::new(),
        base: None,
        elision_version: String::new(),
        created: "2026-01-31T12:00:00Z".to_owned(),
        vmm: Vmm::default(),
        guest: Guest::default(),
        ram_layout: ram.layout().clone(),
        policy: serde_json::Value::Null,
        plan: PlanSummary::default(),
        completeness: Completeness::Complete,
        times: Times::default(),
        way: crate::Way::default(),
        files: Files::default(),
    };
    writer.finish(manifest, &|_| ()).unwrap()
}

fn source() -> File {
    let source = tempfile::tempfile().unwrap();
    source.set_len(LEN).unwrap();
    for page in (0..LEN / PAGE).filter(|page| page % 16 != 0) {
        source.write_all_at(&[7; PAGE_SIZE], page * PAGE).unwrap();
    }
    source
}

#[test]
fn little_memory_changes_nothing_but_the_way() {
    let ram = Ram::shared(&source(), RamLayout::flat(LEN).unwrap()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut manifests = Vec::new();
    for (i, room) in [Some(0), Some(MIN_CHUNK), Some(u64::MAX), None].into_iter().enumerate() {
        let target = dir.path().join(i.to_string());
        let mut writer = ImageWriter::create(&target).unwrap();
        if let Some(room) = room {
            writer.make_room(&ram, &plan()).unwrap();
            let made = writer.room.as_mut().unwrap();
            assert!(made.ready.0 >= LEN, "not all memory was taken ahead");
            made.bytes = room;
        }
        writer.write_ram(&ram, &plan(), 2).unwrap();
        for (chunk, gfn) in FRAMES.into_iter().enumerate() {
            let straight = chunk >= i && i < 2;
            let expected = if straight { [7; 16] } else { [0; 16] };
            assert_eq!(in_file(&writer, gfn + 1), expected, "chunk {chunk} with room for {room:?}");
            assert_eq!(in_file(&writer, gfn), [0; 16], "a late frame is in the file");
            let copied = writer.copied_ram().unwrap().word(Gfn(gfn).gpa());
            assert_eq!(copied, Some(0x0707_0707_0707_0707), "a late frame is not in the copy");
        }
        manifests.push(complete(writer, &ram));
        let image = Image::open(&target).unwrap();
        assert_eq!(image.verify(&|_| ()).unwrap(), []);
        let mut late = [0; 16];
        image.ram().unwrap().read(Gfn(FRAMES[2]).gpa(), &mut late).unwrap();
        assert_eq!(late, [[0; 8], [7; 8]].concat()[..], "a late frame with its change");
    }
    for other in &manifests[1..] {
        assert_eq!(other.files.ram.chunks, manifests[0].files.ram.chunks);
        // A file system counts its own blocks too, which the order of writing may make more or fewer.
        let difference = other.files.ram.stored_bytes.abs_diff(manifests[0].files.ram.stored_bytes);
        assert!(difference <= 8 * PAGE, "{difference} bytes");
    }
}

#[test]
fn little_memory_changes_nothing_in_a_link() {
    let (source, dir) = (source(), tempfile::tempdir().unwrap());
    let ram = Ram::shared(&source, RamLayout::flat(LEN).unwrap()).unwrap();
    let save = |name: &str, base: Option<&str>, room: u64| {
        let mut writer = ImageWriter::create(&dir.path().join(name)).unwrap();
        base.into_iter().for_each(|base| writer.build_on(&dir.path().join(base)).unwrap());
        writer.make_room(&ram, &plan()).unwrap();
        writer.room.as_mut().unwrap().bytes = room;
        writer.write_ram(&ram, &plan(), 2).unwrap();
        let copy = writer.copied_ram().unwrap();
        let words = [3, 4, 0x30, FRAMES[1], FRAMES[2] + 2].map(|page| copy.word(Gfn(page).gpa()).unwrap());
        complete(writer, &ram);
        let mut bytes = vec![0; usize::try_from(LEN).unwrap()];
        let image = Image::open(&dir.path().join(name)).unwrap();
        assert_eq!(image.verify(&|_| ()).unwrap(), []);
        assert!(image.ram().unwrap().read_file(FileOffset(0), &mut bytes));
        (words, bytes, image.manifest().files.ram.stored_bytes)
    };
    save("base", None, u64::MAX);
    // A page in each chunk, one that was zero, and one that is now.
    for page in (0..LEN / PAGE).filter(|page| page % (MIN_CHUNK / PAGE) == 4 || *page == 0x30) {
        source.write_all_at(&[9; PAGE_SIZE], page * PAGE).unwrap();
    }
    source.write_all_at(&[0; PAGE_SIZE], 7 * PAGE).unwrap();
    let (words, whole, _) = save("whole", None, u64::MAX);
    let word = |byte: u64| byte * 0x0101_0101_0101_0101;
    assert_eq!(words, [word(7), word(9), word(9), word(7), 0]);
    for (i, room) in [0, MIN_CHUNK, u64::MAX].into_iter().enumerate() {
        let (seen, bytes, stored) = save(&i.to_string(), Some("base"), room);
        assert_eq!(seen, words, "the copy, with room for {room}");
        assert!(bytes == whole, "with room for {room}");
        // The late frames are the same.
        let changed = LEN / MIN_CHUNK + 1;
        assert!(
            (changed..=changed + 16).contains(&(stored / PAGE)),
            "{} pages with room for {room}",
            stored / PAGE
        );
    }
}
