//! Images that build on others are what an image of their own would be, and hold what differs.

mod common;

use common::*;
use elision_image::{FORMAT_LINK, Image, ImageError, ImageWriter, Problem, RamReader, merge};
use elision_memory::{FileOffset, Gfn, Gpa, PAGE_SIZE, Ram};
use elision_plan::{Change, DropReason, DropRun, Edit, EditReason, Plan};
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

/// A guest that changes, and its memory.
struct Guest {
    file: File,
    ram: Ram,
}

impl Guest {
    fn new() -> Self {
        let file = source();
        let ram = Ram::shared(&file, layout()).unwrap();
        Self { file, ram }
    }

    fn write(&self, page: u64, byte: u8) {
        self.file.write_all_at(&[byte; PAGE_SIZE], page * PAGE).unwrap();
    }
}

/// How RAM comes.
#[derive(Clone, Copy, Debug)]
enum Way {
    Read,
    Sent,
}

fn link(target: &Path, base: Option<&Path>, guest: &Guest, plan: &Plan, way: Way) {
    let mut writer = ImageWriter::create(target).unwrap();
    base.into_iter().for_each(|base| writer.build_on(base).unwrap());
    match way {
        Way::Read => {
            writer.make_room(&guest.ram, plan).unwrap();
            writer.write_ram(&guest.ram, plan, 2).unwrap();
        }
        Way::Sent => {
            let mut precopy = writer.begin_precopy(&guest.ram, &Plan::default()).unwrap();
            for page in 0..LOW + HIGH {
                let mut bytes = [0; PAGE_SIZE];
                assert!(guest.ram.read_file(FileOffset(page * PAGE), &mut bytes));
                precopy.page(FileOffset(page * PAGE), &[0x99; PAGE_SIZE]);
                if bytes == [0; PAGE_SIZE] {
                    precopy.fill(FileOffset(page * PAGE), 0);
                } else {
                    precopy.page(FileOffset(page * PAGE), &bytes);
                }
            }
            writer.settle_precopy(precopy, &guest.ram, plan).unwrap();
        }
    }
    writer.end_pause(plan).unwrap();
    complete(writer, plan);
}

/// All of an image's RAM that the guest sees. The image verifies.
fn content(image: &Path) -> Vec<u8> {
    let image = Image::open(image).unwrap();
    assert_eq!(image.verify(&|_| ()).unwrap(), []);
    let ram = image.ram().unwrap();
    let mut bytes = vec![0; usize::try_from(LEN).unwrap()];
    assert!(ram.read_file(FileOffset(0), &mut bytes));
    let mut loaded = vec![0; bytes.len()];
    image.load().unwrap().read_exact_at(&mut loaded, 0).unwrap();
    assert!(loaded == bytes, "loaded, it is something else");
    let reader = RamReader::open(&image).unwrap();
    let (mut served, mut chunk) = (Vec::new(), Vec::new());
    for i in 0..reader.chunks() {
        reader.read_chunk(i, &mut chunk).unwrap();
        served.extend_from_slice(&chunk);
    }
    assert!(served == bytes, "served, it is something else");
    let known = ram.populated();
    let is_known = |page: usize| known.iter().any(|run| run.contains(&FileOffset((page * PAGE_SIZE) as u64)));
    let pages = bytes.chunks(PAGE_SIZE).enumerate();
    assert!(pages.filter(|(i, _)| !is_known(*i)).all(|(_, page)| page.iter().all(|byte| *byte == 0)));
    bytes
}

/// Bytes that a link holds itself which is made of the same VM as its base: none, if all is found in the base.
fn held_again(base: &Path, guest: &Guest, plan: &Plan, way: Way) -> u64 {
    let again = base.with_extension("again");
    link(&again, Some(base), guest, plan, way);
    let held = stored(&again);
    std::fs::remove_dir_all(again).unwrap();
    held
}

/// Makes an image one of an early version, which had no page hashes.
fn forget_hashes(image: &Path) {
    std::fs::remove_file(image.join("page-hashes.bin")).unwrap();
    let path = image.join("manifest.json");
    let mut manifest: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    manifest["files"].as_object_mut().unwrap().remove("page_hashes").expect("it was there");
    std::fs::write(&path, manifest.to_string()).unwrap();
}

/// Whether a byte fills a page of any file of an image.
fn holds(image: &Path, byte: u8) -> bool {
    let bytes = std::fs::read(image.join("ram.img")).unwrap();
    bytes.chunks(PAGE_SIZE).any(|page| page.iter().all(|found| *found == byte))
}

fn stored(image: &Path) -> u64 {
    std::fs::metadata(image.join("ram.img")).unwrap().blocks() * 512
}

fn more_private() -> Plan {
    let drop =
        |first, count| DropRun { first: Gfn(first), count, reason: DropReason::Anonymous, owner: Some(9) };
    let mut plan = planned();
    plan.drops.push(drop(0x800, 0x40));
    plan.drops.sort_by_key(|run| run.first);
    let change = Change::Zero(4096);
    plan.edits.push(Edit { gpa: Gpa(0x900 * PAGE), change, reason: EditReason::Pipe, owner: Some(9) });
    plan.edits.sort_by_key(|edit| edit.gpa);
    plan
}

#[test]
fn a_link_is_what_a_whole_image_is() {
    for way in [Way::Read, Way::Sent] {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let guest = Guest::new();
        link(&path("first"), None, &guest, &planned(), way);
        for page in (0..LOW + HIGH).filter(|page| page % 50 == 7) {
            guest.write(page, 0xee);
        }
        (0x700..0x720).for_each(|page| guest.write(page, 0));
        for (name, plan) in [("same", planned()), ("more", more_private())] {
            link(&path(name), Some(&path("first")), &guest, &plan, way);
            let whole = path(&format!("{name}-whole"));
            link(&whole, None, &guest, &plan, way);
            assert!(content(&path(name)) == content(&whole), "{way:?}, {name}");
            let image = Image::open(&path(name)).unwrap();
            assert_eq!(image.manifest().format, FORMAT_LINK);
            assert_eq!(held_again(&path(name), &guest, &plan, way), 0, "{way:?}, {name}");
            let base = image.manifest().base.as_ref().unwrap();
            assert_eq!(base.path, Path::new("../first"));
            assert!(base.inherited_bytes > LEN / 2 && base.withdrawn_bytes > 0, "{base:?}");
            assert!(stored(&path(name)) * 10 < stored(&whole), "{way:?}, {name}: {}", stored(&path(name)));
        }
        // On one of an early version, and again on that link.
        forget_hashes(&path("first"));
        link(&path("late"), Some(&path("first")), &guest, &planned(), way);
        assert!(content(&path("late")) == content(&path("same")), "{way:?}");
        assert_eq!(stored(&path("late")), stored(&path("same")), "{way:?}");
        assert_eq!(held_again(&path("late"), &guest, &planned(), way), 0, "{way:?}");
        // All can be moved together.
        std::fs::rename(dir.path(), dir.path().with_extension("moved")).unwrap();
        let moved = dir.path().with_extension("moved");
        content(&moved.join("more"));
        std::fs::remove_dir_all(moved).unwrap();
    }
}

#[test]
fn links_are_folded_and_nothing_of_the_policy_before_is_in_what_comes_after() {
    let dir = tempfile::tempdir().unwrap();
    let path = |n: usize| dir.path().join(n.to_string());
    let guest = Guest::new();
    // Pages that the later policy leaves out; no other byte of the guest is even.
    (0x800..0x840).for_each(|page| guest.write(page, 0x52));
    let mut wholes = Vec::new();
    for n in 0..6_u8 {
        guest.write(0xd00 + u64::from(n), 0xd0 + n);
        let plan = if n < 3 { planned() } else { more_private() };
        let base = usize::from(n).checked_sub(1).map(path);
        link(&path(n.into()), base.as_deref(), &guest, &plan, Way::Read);
        let whole = path(usize::from(n) + 10);
        link(&whole, None, &guest, &plan, Way::Read);
        wholes.push(content(&whole));
    }
    let check = |n: usize| {
        assert!(content(&path(n)) == wholes[n], "image {n}");
        let held = held_again(&path(5), &guest, &more_private(), Way::Read);
        assert_eq!(held, 0, "the hashes of the last link are not those of its chain");
    };
    (0..6).for_each(check);
    assert!(holds(&path(0), 0x52), "control");
    assert!((3..6).all(|n| !holds(&path(n), 0x52)));

    let fold = |n: usize, all: bool| merge(&Image::open(&path(n)).unwrap(), all, &|_| ()).unwrap();
    fold(3, false);
    std::fs::remove_dir_all(path(2)).unwrap();
    [0, 1, 3, 4, 5].into_iter().for_each(check);
    fold(4, true);
    [0, 1, 3].into_iter().for_each(|n| std::fs::remove_dir_all(path(n)).unwrap());
    [4, 5].into_iter().for_each(check);
    assert!(!holds(&path(4), 0x52) && !holds(&path(5), 0x52));
    let names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(names.iter().all(|name| !name.to_string_lossy().starts_with('.')), "{names:?}");
    let alone = merge(&Image::open(&path(4)).unwrap(), false, &|_| ());
    assert!(matches!(alone, Err(ImageError::NoBase { .. })), "{alone:?}");
}

#[test]
fn a_base_that_is_not_the_one_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let guest = Guest::new();
    link(&path("first"), None, &guest, &planned(), Way::Read);
    link(&path("other"), None, &guest, &planned(), Way::Read);
    link(&path("second"), Some(&path("first")), &guest, &planned(), Way::Read);
    let words = |error: &dyn std::error::Error| {
        let chain = std::iter::successors(Some(error), |error| error.source());
        chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
    };
    std::fs::rename(path("first"), path("away")).unwrap();
    let told = words(&Image::open(&path("second")).unwrap_err());
    assert!(told.contains("second/../first, which cannot be used"), "{told}");
    std::fs::rename(path("other"), path("first")).unwrap();
    let told = words(&Image::open(&path("second")).unwrap_err());
    assert!(told.contains("is another image"), "{told}");
    std::fs::remove_dir_all(path("first")).unwrap();
    std::fs::rename(path("away"), path("first")).unwrap();
    content(&path("second"));

    // What is wrong with the base is found in the link.
    let ram = File::options().write(true).open(path("first/ram.img")).unwrap();
    ram.write_all_at(&[0x13], 0x500 * PAGE).unwrap();
    let problems = Image::open(&path("second")).unwrap().verify(&|_| ()).unwrap();
    assert!(matches!(&problems[..], [Problem::Base { .. }]), "{problems:?}");

    // A manifest that names itself.
    let manifest = path("second/manifest.json");
    let text = std::fs::read_to_string(&manifest).unwrap();
    let own = Image::open(&path("second")).unwrap().manifest().id.clone();
    let base = Image::open(&path("first")).unwrap().manifest().id.clone();
    std::fs::write(&manifest, text.replace("../first", "../second").replace(&base, &own)).unwrap();
    let error = Image::open(&path("second")).unwrap_err();
    assert!(matches!(error, ImageError::LongChain(_)), "{error:?}");
}

#[test]
fn what_cannot_be_built_on_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let old = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/formats/2");
    let mut writer = ImageWriter::create(&dir.path().join("new")).unwrap();
    let error = writer.build_on(&old).unwrap_err();
    assert!(error.to_string().contains("it has no id"), "{error}");
}
