//! Images whose RAM is compressed: the same memory, and damage is found.

mod common;

use common::*;
use elision_image::{FORMAT, FORMAT_PACKED, Image, ImageError, ImageWriter, Manifest, Problem, RamReader};
use elision_memory::{FileOffset, Ram};
use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

fn save_packed(target: &Path, level: i32) -> Manifest {
    let mut writer = ImageWriter::create(target).unwrap();
    writer.compress(level);
    writer.write_ram(&Ram::shared(&source(), layout()).unwrap(), &plan(), 2).unwrap();
    writer.write_state(b"device state").unwrap();
    writer.write_exclusions(&plan()).unwrap();
    writer.finish(manifest(), &|_| ()).unwrap()
}

fn bytes(ram: &Ram) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(ram.file_len()).unwrap()];
    assert!(ram.read_file(FileOffset(0), &mut bytes));
    bytes
}

#[test]
fn it_holds_the_same_memory_in_less_room() {
    let dir = tempfile::tempdir().unwrap();
    let (plain, packed) = (dir.path().join("plain"), dir.path().join("packed"));
    let before = save(&plain, &Ram::shared(&source(), layout()).unwrap(), &plan(), 2);
    for level in [1, 19] {
        let after = save_packed(&packed, level);
        assert_eq!((before.format, after.format), (FORMAT, FORMAT_PACKED));
        assert!(after.files.ram.stored_bytes < before.files.ram.stored_bytes / 10, "{after:?}");
        let mut names: Vec<_> = fs::read_dir(&packed).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["exclusions.bin", "manifest.json", "page-hashes.bin", "ram.zst", "state.bin"]);
        let image = Image::open(&packed).unwrap();
        assert!(image.is_packed() && image.ram_path().ends_with("ram.zst"));
        assert_eq!(image.verify(&|_| ()).unwrap(), []);
        let expected = bytes(&Image::open(&plain).unwrap().ram().unwrap());
        assert!(bytes(&image.ram().unwrap()) == expected);
        let mut unpacked = Vec::new();
        zstd::Decoder::new(fs::File::open(image.ram_path()).unwrap())
            .unwrap()
            .read_to_end(&mut unpacked)
            .unwrap();
        assert!(unpacked == expected, "any zstd unpacks it");
        fs::remove_dir_all(&packed).unwrap();
    }
}

#[test]
fn damage_is_named_and_never_unpacked() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("image");
    save_packed(&target, 3);
    let path = target.join("ram.zst");
    let whole = fs::read(&path).unwrap();
    let flip = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        fs::write(&path, bytes).unwrap();
        Image::open(&target).unwrap()
    };
    // The first two frames hold data.
    for (at, chunk) in [(20, 0), (400, 256 << 10)] {
        let image = flip(at);
        let problems = image.verify(&|_| ()).unwrap();
        let is_named =
            matches!(problems[..], [Problem::RamChunk { offset, .. }] if offset == FileOffset(chunk));
        assert!(is_named, "byte {at}: {problems:?}");
        assert!(matches!(image.ram().unwrap_err(), ImageError::Damaged(_)));
    }
    let image = flip(whole.len() - 1);
    assert_eq!(image.verify(&|_| ()).unwrap(), [Problem::Checksum { file: "ram.zst" }]);
    assert!(matches!(image.ram().unwrap_err(), ImageError::Table { .. }));

    OpenOptions::new().write(true).open(&path).unwrap().write_all_at(b"more", whole.len() as u64).unwrap();
    assert!(matches!(Image::open(&target).unwrap_err(), ImageError::Size { .. }));
    fs::remove_file(&path).unwrap();
    let error = Image::open(&target).unwrap_err();
    assert!(matches!(&error, ImageError::Missing(path) if path.ends_with("ram.zst")), "{error}");
}

#[test]
fn a_manifest_that_names_both_or_neither_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("image");
    save_packed(&target, 1);
    let path = target.join("manifest.json");
    let text = fs::read_to_string(&path).unwrap();
    for (old, new) in [("\"format\": 3", "\"format\": 2"), ("packed_bytes", "other_bytes")] {
        assert!(text.contains(old));
        fs::write(&path, text.replace(old, new)).unwrap();
        let error = Image::open(&target).unwrap_err();
        assert!(error.to_string().contains("damaged or incomplete"), "{error}");
    }
    fs::write(&path, text.replace("\"format\": 3", "\"format\": 5")).unwrap();
    assert!(matches!(Image::open(&target).unwrap_err(), ImageError::Format { found: 5, .. }));
}

#[test]
fn each_chunk_is_read_alone_and_only_as_it_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let (plain, packed) = (dir.path().join("plain"), dir.path().join("packed"));
    save(&plain, &Ram::shared(&source(), layout()).unwrap(), &plan(), 2);
    save_packed(&packed, 1);
    let expected = bytes(&Image::open(&plain).unwrap().ram().unwrap());
    let mut chunk = Vec::new();
    for target in [&plain, &packed] {
        let reader = RamReader::open(&Image::open(target).unwrap()).unwrap();
        let mut found = Vec::new();
        for i in 0..reader.chunks() {
            reader.read_chunk(i, &mut chunk).unwrap();
            assert!(!reader.is_zero(i) || chunk.iter().all(|byte| *byte == 0));
            found.extend_from_slice(&chunk);
        }
        assert!(found == expected, "{}", target.display());
        let end = reader.read_chunk(reader.chunks(), &mut chunk).unwrap_err();
        assert_eq!(end.kind(), io::ErrorKind::InvalidInput);
    }
    // The plain file has no checksums of its own: those of the manifest count.
    for (target, file, at) in [(&plain, "ram.img", 0), (&packed, "ram.zst", 20)] {
        let file = OpenOptions::new().read(true).write(true).open(target.join(file)).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
        let reader = RamReader::open(&Image::open(target).unwrap()).unwrap();
        assert_eq!(reader.read_chunk(0, &mut chunk).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}

#[test]
fn a_working_set_is_kept_if_it_fits_the_image_and_goes_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("image");
    save_packed(&target, 1);
    let image = Image::open(&target).unwrap();
    assert_eq!(image.working_set().unwrap(), None);
    image.record_working_set(&[1, 0]).unwrap();
    assert_eq!(image.working_set().unwrap(), Some(vec![1, 0]));
    assert_eq!(Image::open(&target).unwrap().verify(&|_| ()).unwrap(), []);
    let path = target.join("working-set.bin");
    let whole = fs::read(&path).unwrap();
    for at in 0..whole.len() {
        let mut wrong = whole.clone();
        wrong[at] ^= 0x81;
        fs::write(&path, wrong).unwrap();
        assert_eq!(image.working_set().unwrap(), None, "byte {at}");
    }
    for len in 0..whole.len() {
        fs::write(&path, &whole[..len]).unwrap();
        assert_eq!(image.working_set().unwrap(), None, "{len} bytes");
    }
    elision_image::remove_image(&target).unwrap();
    assert!(!target.exists());
}
