//! What is saved is what is read, except for what the plan says.

mod common;

use common::*;
use elision_image::{EditKind, Exclusions, Image, ImageWriter};
use elision_memory::{FileOffset, Gfn, Gpa, PAGE_SIZE, Ram};
use elision_plan::{Change, Edit, EditReason, Plan};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};

#[test]
fn every_page_is_kept_dropped_or_changed_as_planned() {
    for threads in [0, 1, 3] {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("image");
        let (file, plan) = (source(), plan());
        let ram = Ram::shared(&file, layout()).unwrap();
        let written = save(&target, &ram, &plan, threads);

        let image = Image::open(&target).unwrap();
        assert_eq!(*image.manifest(), written);
        assert_eq!(image.state().unwrap(), b"device state");
        assert_eq!(image.exclusions().unwrap(), Exclusions::from(&plan));
        assert_eq!(image.verify(&|_| ()).unwrap(), []);

        let copy = image.ram().unwrap();
        let mut page = [0; PAGE_SIZE];
        for gfn in layout().frames() {
            let offset = layout().offset_of(gfn.gpa(), PAGE).unwrap();
            let mut expected = [fill(offset.0 / PAGE); PAGE_SIZE];
            for edit in plan.edits_in(gfn) {
                edit.apply(&mut expected);
            }
            if plan.drop_of(gfn).is_some() {
                expected = [0; PAGE_SIZE];
            }
            copy.read_frame(gfn, &mut page).unwrap();
            assert!(page == expected, "frame {gfn}");
        }
        // What stands behind the window is no RAM and is left out; the source has data there.
        assert!(copy.read_file(FileOffset(0xa1 * PAGE), &mut page) && page == [0; PAGE_SIZE]);
        assert_ne!(fill(0xa1), 0, "control");
    }
}

#[test]
fn edits_are_there_in_both_controls() {
    // Without a plan, the bytes that the plan drops and changes are there.
    let dir = tempfile::tempdir().unwrap();
    let ram = Ram::shared(&source(), layout()).unwrap();
    save(&dir.path().join("plain"), &ram, &Plan::default(), 2);
    save(&dir.path().join("elided"), &ram, &plan(), 2);
    let read = |name: &str, gpa: u64| {
        let mut out = [0; 8];
        Image::open(&dir.path().join(name)).unwrap().ram().unwrap().read(Gpa(gpa), &mut out).unwrap();
        out
    };
    let secret = 0x202 * PAGE; // page 0x202 of the file
    assert_eq!(read("plain", secret), [fill(0x202); 8]);
    assert_eq!(read("elided", secret), [0; 8]);
    assert_eq!(read("plain", 4 * PAGE + 16), [fill(4); 8]);
    assert_eq!(read("elided", 4 * PAGE + 16), *b"\0\0\0\0KILL", "a later edit wins");
    assert_eq!(read("plain", 6 * PAGE + 8), [0; 8]);
    assert_eq!(read("elided", 6 * PAGE + 8), [9; 8], "an edit of a hole is written");
}

#[test]
fn dropped_and_zero_pages_take_no_room() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("image");
    let (file, plan) = (source(), plan());
    let ram = Ram::shared(&file, layout()).unwrap();
    let mut writer = ImageWriter::create(&target).unwrap();
    let stats = writer.write_ram(&ram, &plan, 2).unwrap();
    assert_eq!(stats.dropped, (2 + 0x100 + 1 + 100) * PAGE);
    assert_eq!(stats.ram, layout().ram_bytes());
    assert_eq!(stats.ram, stats.dropped + stats.zero + stats.written);
    writer.write_state(b"").unwrap();
    writer.write_exclusions(&plan).unwrap();
    let manifest = writer.finish(manifest(), &|_| ()).unwrap();

    let image = Image::open(&target).unwrap();
    let meta = std::fs::metadata(image.ram_path()).unwrap();
    assert_eq!(meta.len(), LEN);
    assert_eq!(meta.blocks() * 512, manifest.files.ram.stored_bytes);
    assert!(
        meta.blocks() * 512 < stats.written + (64 << 10),
        "{} for {}",
        meta.blocks() * 512,
        stats.written
    );
    let populated: Vec<Gfn> = image.ram().unwrap().populated_frames().collect();
    for run in &plan.drops {
        for gfn in (run.first.0..run.first.0 + run.count).map(Gfn) {
            assert!(!populated.contains(&gfn), "dropped frame {gfn} is not a hole");
        }
    }
    assert!(populated.contains(&Gfn(4)) && !populated.contains(&Gfn(0x400)), "controls");
}

#[test]
fn late_frames_reach_the_file_only_with_all_their_changes() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("image");
    let ram = Ram::shared(&source(), layout()).unwrap();
    let plan = Plan { late: vec![Gfn(4)..Gfn(6), Gfn(HIGH_GFN + 1)..Gfn(HIGH_GFN + 2)], ..plan() };
    let mut writer = ImageWriter::create(&target).unwrap();
    let first = writer.write_ram(&ram, &plan, 2).unwrap();
    let on_disk = |path: &std::path::Path, page: u64| {
        let mut bytes = [0; PAGE_SIZE];
        std::fs::File::open(path.join("ram.img")).unwrap().read_exact_at(&mut bytes, page * PAGE).unwrap();
        bytes
    };
    let partial = writer.partial_path().to_owned();
    assert_eq!(on_disk(&partial, 4), [0; PAGE_SIZE], "a late frame is on the disk");

    let copy = writer.copied_ram().unwrap();
    let word = |gpa| copy.word(Gpa(gpa)).unwrap().to_le_bytes();
    assert_eq!(word(5 * PAGE), [fill(5); 8]);
    assert_eq!(word(4 * PAGE + 24), [0; 8], "the first changes are in the copy");
    assert_eq!(word(0x200 * PAGE), [0; 8], "what is dropped is not in the copy");

    let late =
        |gpa| Edit { gpa: Gpa(gpa), change: Change::Zero(8), reason: EditReason::FreeObject, owner: None };
    let outside = writer.write_late(&[late(7 * PAGE)]).unwrap_err();
    assert!(outside.to_string().contains("not in a late frame"), "{outside}");
    let stats = writer.write_late(&[late(5 * PAGE + 8)]).unwrap();
    let written = [4, 5, LOW + 1].iter().filter(|page| fill(**page) != 0).count() as u64 * PAGE;
    assert_eq!((stats.written, stats.zero), (first.written + written, first.zero - written));
    writer.write_state(b"device state").unwrap();
    writer.write_exclusions(&plan).unwrap();
    writer.finish(manifest(), &|_| ()).unwrap();
    assert_eq!(on_disk(&target, 7), [fill(7); PAGE_SIZE]);
    assert_eq!(on_disk(&target, 5)[..24], [[fill(5); 8], [0; 8], [fill(5); 8]].concat());
    assert_eq!(Image::open(&target).unwrap().verify(&|_| ()).unwrap(), []);
}

#[test]
fn an_image_without_its_late_frames_is_not_finished() {
    let dir = tempfile::tempdir().unwrap();
    let ram = Ram::shared(&source(), layout()).unwrap();
    let plan = Plan { late: vec![Gfn(4)..Gfn(5)], ..Plan::default() };
    let mut writer = ImageWriter::create(&dir.path().join("image")).unwrap();
    writer.write_ram(&ram, &plan, 1).unwrap();
    writer.discard_ram().unwrap();
    writer.write_ram(&ram, &plan, 1).unwrap();
    writer.write_state(b"").unwrap();
    writer.write_exclusions(&plan).unwrap();
    assert!(writer.finish(manifest(), &|_| ()).is_err());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn the_source_is_only_read() {
    let dir = tempfile::tempdir().unwrap();
    let mut file = source();
    let content = |file: &mut std::fs::File| {
        let mut bytes = vec![0; usize::try_from(LEN).unwrap()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        (blake3::hash(&bytes), file.metadata().unwrap().blocks())
    };
    let before = content(&mut file);
    let ram = Ram::shared(&file, layout()).unwrap();
    save(&dir.path().join("image"), &ram, &plan(), 2);
    assert!(content(&mut file) == before, "content or holes of the source changed");
    file.write_all_at(b"x", 5).unwrap();
    assert!(content(&mut file) != before, "control");
}

#[test]
fn a_private_view_of_an_image_leaves_the_image_alone() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("image");
    save(&target, &Ram::shared(&source(), layout()).unwrap(), &plan(), 1);
    let image = Image::open(&target).unwrap();
    image.ram().unwrap().poke(Gpa(4 * PAGE), b"changed").unwrap();
    assert_eq!(image.verify(&|_| ()).unwrap(), []);
}

#[test]
fn only_the_user_can_read_an_image_and_nothing_else_is_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("image");
    save(&target, &Ram::zeroed(layout()).unwrap(), &Plan::default(), 1);
    assert_eq!(std::fs::metadata(&target).unwrap().permissions().mode() & 0o777, 0o700);
    let mut names = vec![];
    for entry in std::fs::read_dir(&target).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        names.push(entry.file_name().into_string().unwrap());
    }
    names.sort();
    assert_eq!(names, ["exclusions.bin", "manifest.json", "page-hashes.bin", "ram.img", "state.bin"]);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no partial folder is left");
    let mut text = String::new();
    std::fs::File::open(target.join("manifest.json")).unwrap().read_to_string(&mut text).unwrap();
    assert!(text.contains("\"ram_block\": \"pc.ram\""));
}

#[test]
fn the_map_keeps_the_place_of_a_change_and_not_its_bytes() {
    let map = Exclusions::from(&plan());
    let mut bytes = vec![];
    map.encode(&mut bytes).unwrap();
    assert_eq!(map.edits[1].kind, EditKind::Write);
    let unpacked = zstd::decode_all(&bytes[40..]).unwrap();
    assert!(!unpacked.windows(4).any(|w| w == b"KILL"));
    assert!(unpacked.windows(2).any(|w| w == [4, 1]), "control: the row of these bytes is there");
}
