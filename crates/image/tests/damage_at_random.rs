//! Damage of every kind to every file of an image, at random: it is refused with the name of a file, or the image is found to
//! be damaged; it is never taken for another one.
//!
//! With `ELISION_ALL` a thousand cases, else some of them.

mod common;

use common::*;
use elision_image::{Image, ImageWriter};
use elision_memory::{FileOffset, PAGE_SIZE, Ram};
use std::error::Error;
use std::fs;
use std::iter::successors;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Numbers that look like random ones and are the same each time (splitmix64).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % u64::try_from(limit).unwrap()).unwrap()
    }
}

/// Plain and compressed images, one that builds on the plain one, and of each another of the same VM.
fn write_images(dir: &Path) {
    let file = source();
    let ram = Ram::shared(&file, layout()).unwrap();
    let write = |name: &str, compress: bool, base: Option<&str>| {
        let plan = planned();
        let mut writer = ImageWriter::create(&dir.join(name)).unwrap();
        if compress {
            writer.compress(1);
        }
        base.into_iter().for_each(|base| writer.build_on(&dir.join(base)).unwrap());
        writer.write_ram(&ram, &plan, 2).unwrap();
        writer.end_pause(&plan).unwrap();
        complete(writer, &plan);
    };
    for round in 0..2_u8 {
        // Pages of all parts change in between, and so does the state that `complete` writes not: it is swapped as well.
        for page in (0..LOW + HIGH).filter(|page| page % 97 == 13) {
            file.write_all_at(&[0x40 + round; PAGE_SIZE], page * PAGE).unwrap();
        }
        write(&format!("plain-{round}"), false, None);
        write(&format!("packed-{round}"), true, None);
        for page in (0..LOW + HIGH).filter(|page| page % 89 == 11) {
            file.write_all_at(&[0x60 + round; PAGE_SIZE], page * PAGE).unwrap();
        }
        write(&format!("link-{round}"), false, Some(&format!("plain-{round}")));
    }
}

fn content(image: &Path) -> Result<Vec<u8>, String> {
    let told = |error: &dyn Error| {
        successors(Some(error), |&error| error.source())
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(": ")
    };
    let image = Image::open(image).map_err(|e| told(&e))?;
    let problems = image.verify(&|_| ()).map_err(|e| told(&e))?;
    if let Some(problem) = problems.first() {
        return Err(problem.to_string());
    }
    let mut bytes = vec![0; usize::try_from(LEN).unwrap()];
    assert!(image.ram().map_err(|e| told(&e))?.read_file(FileOffset(0), &mut bytes));
    bytes.extend(image.state().map_err(|e| told(&e))?);
    Ok(bytes)
}

fn files(image: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(image).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// Damages a file, and tells how.
fn damage(path: &Path, numbers: &mut Numbers) -> String {
    let bytes = fs::read(path).unwrap();
    let at = numbers.below(bytes.len());
    match numbers.below(4) {
        0 => {
            fs::write(path, &bytes[..at]).unwrap();
            format!("cut at {at}")
        }
        1 => {
            let mut bytes = bytes;
            let bit = 1 << numbers.below(8);
            bytes[at] ^= bit;
            fs::write(path, bytes).unwrap();
            format!("bit {bit:#x} of byte {at}")
        }
        2 => {
            fs::remove_file(path).unwrap();
            "missing".to_owned()
        }
        _ => {
            let image = path.parent().unwrap().to_str().unwrap();
            let other = match image.strip_suffix('0') {
                Some(stem) => format!("{stem}1"),
                None => format!("{}0", image.strip_suffix('1').unwrap()),
            };
            fs::copy(Path::new(&other).join(path.file_name().unwrap()), path).unwrap();
            "that of another image".to_owned()
        }
    }
}

#[test]
fn no_damage_gives_another_image() {
    let cases = if std::env::var_os("ELISION_ALL").is_some() { 1000 } else { 60 };
    let dir = tempfile::tempdir().unwrap();
    write_images(dir.path());
    let mut numbers = Numbers(7);
    let (mut found, mut harmless) = (0, 0);
    for case in 0..cases {
        let kind = ["plain-0", "packed-0", "link-0", "plain-1"][case % 4];
        // The last of them is damaged where another image builds on it.
        let (damaged, read) = if kind == "plain-1" { (kind, "link-1") } else { (kind, kind) };
        let whole = content(&dir.path().join(read)).expect("an undamaged image");
        let files = files(&dir.path().join(damaged));
        let names: Vec<_> = files.iter().map(|file| file.file_name().unwrap().to_str().unwrap()).collect();
        let file = &files[numbers.below(files.len())];
        let before = fs::read(file).unwrap();
        let how = damage(file, &mut numbers);
        let name = file.file_name().unwrap().to_str().unwrap();
        let case = format!("case {case}, {damaged}/{name}: {how}");
        match content(&dir.path().join(read)) {
            Ok(bytes) => {
                // In the manifest are words that mean nothing for a restore, such as the date. No other file has any.
                let is_same = fs::read(file).is_ok_and(|bytes| bytes == before);
                assert!(bytes == whole, "{case}: a wrong restore");
                assert!(name == "manifest.json" || is_same, "{case}: not found");
                harmless += 1;
            }
            Err(told) => {
                // A manifest that does not fit the files beside it is told by the first of them.
                let is_named = told.contains(name)
                    || (name == "manifest.json"
                        && (told.contains("image") || names.iter().any(|n| told.contains(n))));
                assert!(is_named, "{case}: {told}");
                found += 1;
            }
        }
        fs::write(file, before).unwrap();
    }
    println!("{cases} cases: {found} refused, {harmless} without any effect");
    assert!(found * 10 > cases * 8, "control: {found} of {cases}");
}
