//! Wrong, truncated and hostile images: what is wrong is named.

mod common;

use common::*;
use elision_image::{Image, ImageError, Problem};
use elision_memory::{FileOffset, Gfn, Gpa, Ram};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

struct Fixture {
    _dir: tempfile::TempDir,
    image: PathBuf,
}

fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    save(&image, &Ram::shared(&source(), layout()).unwrap(), &plan(), 2);
    Fixture { _dir: dir, image }
}

fn change(path: &Path, offset: u64, bytes: &[u8]) {
    OpenOptions::new().write(true).open(path).unwrap().write_all_at(bytes, offset).unwrap();
}

fn cut(path: &Path) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(file.metadata().unwrap().len() - 1).unwrap();
}

fn edit_manifest(image: &Path, change: impl FnOnce(&mut serde_json::Value)) -> Result<Image, ImageError> {
    let path = image.join("manifest.json");
    let mut value: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut value);
    fs::write(&path, serde_json::to_vec(&value).unwrap()).unwrap();
    Image::open(image)
}

#[test]
fn each_missing_or_truncated_file_is_named() {
    for name in ["ram.img", "state.bin", "exclusions.bin"] {
        let f = fixture();
        cut(&f.image.join(name));
        let error = Image::open(&f.image).unwrap_err();
        assert!(matches!(&error, ImageError::Size { path, .. } if path.ends_with(name)), "{error}");
        fs::remove_file(f.image.join(name)).unwrap();
        let error = Image::open(&f.image).unwrap_err();
        assert!(matches!(&error, ImageError::Missing(path) if path.ends_with(name)), "{error}");
        fs::create_dir(f.image.join(name)).unwrap();
        assert!(Image::open(&f.image).unwrap_err().to_string().contains(name));
    }
}

#[test]
fn what_is_not_an_image_is_said_to_be_none() {
    let f = fixture();
    fs::remove_file(f.image.join("manifest.json")).unwrap();
    assert!(matches!(Image::open(&f.image), Err(ImageError::NotAnImage(_))));
    assert!(matches!(Image::open(&f.image.join("ram.img")), Err(ImageError::NotAnImage(_))));
    assert!(matches!(Image::open(&f.image.join("absent")), Err(ImageError::NotAnImage(_))));
}

#[test]
fn manifests_are_checked() {
    let f = fixture();
    let whole = fs::read(f.image.join("manifest.json")).unwrap();
    let bad = |change: fn(&mut serde_json::Value), part: &str| {
        let error = edit_manifest(&f.image, change).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
        fs::write(f.image.join("manifest.json"), &whole).unwrap();
    };
    bad(
        |m| m["format"] = 1.into(),
        "has image format 1, but this version reads formats 2 to 4: use the version that wrote it",
    );
    bad(|m| m["format"] = "1".into(), "invalid type");
    bad(|m| drop(m.as_object_mut().unwrap().remove("vmm")), "missing field `vmm`");
    bad(|m| m["ram_layout"] = serde_json::json!([]), "RAM layout is empty");
    bad(|m| m["ram_layout"][0]["len"] = u64::MAX.into(), "unaligned or wraps");
    bad(|m| m["ram_layout"][2]["offset"] = (1_u64 << 40).into(), "its RAM layout needs");
    bad(|m| m["files"]["ram"]["chunk_bytes"] = 4096.into(), "list of checksums");
    bad(|m| m["files"]["ram"]["chunk_bytes"] = 0.into(), "list of checksums");
    bad(|m| m["files"]["ram"]["chunks"] = "é".repeat(64).into(), "list of checksums");
    bad(|m| m["files"]["state"]["bytes"] = u64::MAX.into(), "larger than any such file");
    bad(|m| m["files"]["state"]["bytes"] = 3.into(), "but the manifest says 3");
    // Another version of the same format may add fields.
    let image = edit_manifest(&f.image, |m| m["later"] = 1.into()).unwrap();
    assert_eq!(image.verify(&|_| ()).unwrap(), []);
    fs::write(f.image.join("manifest.json"), &whole).unwrap();
    cut(&f.image.join("manifest.json"));
    cut(&f.image.join("manifest.json"));
    assert!(matches!(Image::open(&f.image), Err(ImageError::Manifest { .. })));
}

#[test]
fn changed_bytes_are_found_by_their_chunk() {
    let f = fixture();
    change(&f.image.join("ram.img"), 5 << 20, b"changed");
    let image = Image::open(&f.image).unwrap();
    let chunk = Problem::RamChunk { file: "ram.img", offset: FileOffset(4 << 20), len: 4 << 20 };
    assert_eq!(image.verify(&|_| ()).unwrap(), [chunk]);
    let f = fixture();
    change(&f.image.join("state.bin"), 0, b"D");
    assert_eq!(
        Image::open(&f.image).unwrap().verify(&|_| ()).unwrap(),
        [Problem::Checksum { file: "state.bin" }]
    );
    let f = fixture();
    let image = edit_manifest(&f.image, |m| m["files"]["ram"]["root"] = "00".into()).unwrap();
    assert_eq!(image.verify(&|_| ()).unwrap(), [Problem::Checksum { file: "ram.img" }]);
}

#[test]
fn data_in_a_dropped_frame_is_found() {
    let f = fixture();
    change(&f.image.join("ram.img"), 0x250 * PAGE + 7, b"secret");
    change(&f.image.join("ram.img"), 4 * PAGE + 30, b"secret");
    let problems = Image::open(&f.image).unwrap().verify(&|_| ()).unwrap();
    let reason = elision_plan::DropReason::Anonymous;
    assert!(problems.contains(&Problem::NotDropped { gfn: Gfn(0x250), reason }), "{problems:?}");
    assert!(problems.contains(&Problem::NotZeroed { gpa: Gpa(4 * PAGE + 30) }), "{problems:?}");
    assert_eq!(problems.len(), 3, "these two and their chunk: {problems:?}");
}

#[test]
fn a_damaged_map_is_found() {
    let f = fixture();
    change(&f.image.join("exclusions.bin"), 50, &[0xff; 8]);
    let image = Image::open(&f.image).unwrap();
    assert!(matches!(image.exclusions(), Err(ImageError::Exclusions { .. })));
    let problems = image.verify(&|_| ()).unwrap();
    assert!(problems.contains(&Problem::Checksum { file: "exclusions.bin" }));
    assert!(matches!(problems.last(), Some(Problem::Exclusions { .. })), "{problems:?}");
}
