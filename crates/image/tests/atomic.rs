//! An image is whole or absent.

mod common;

use common::*;
use elision_image::{Image, ImageError, ImageWriter, partial_path, remove_stale};
use elision_memory::{Gfn, Gpa, Ram, RamLayout};
use elision_plan::{Change, DropReason, DropRun, Edit, EditReason, Plan};
use std::fs;
use std::path::Path;
use std::process::Command;

fn names(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    names.collect()
}

#[test]
fn an_existing_target_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    for (name, make) in [
        ("folder", (|p| fs::create_dir(p)) as fn(&Path) -> std::io::Result<()>),
        ("file", |p| fs::write(p, b"kept")),
        ("link", |p| std::os::unix::fs::symlink("nowhere", p)),
    ] {
        let target = dir.path().join(name);
        make(&target).unwrap();
        assert!(matches!(ImageWriter::create(&target), Err(ImageError::Exists(path)) if path == target));
    }
    assert_eq!(fs::read(dir.path().join("file")).unwrap(), b"kept");
    assert_eq!(names(dir.path()).len(), 3);
}

#[test]
fn a_target_that_appears_meanwhile_is_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("image");
    let mut writer = ImageWriter::create(&target).unwrap();
    writer.write_ram(&Ram::zeroed(layout()).unwrap(), &Plan::default(), 1).unwrap();
    writer.write_state(b"").unwrap();
    writer.write_exclusions(&Plan::default()).unwrap();
    fs::create_dir(&target).unwrap();
    assert!(matches!(writer.finish(manifest(), &|_| ()), Err(ImageError::Exists(_))));
    assert_eq!(names(dir.path()), ["image"]);
    assert!(names(&target).is_empty());
}

#[test]
fn targets_without_a_place_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), b"").unwrap();
    assert!(matches!(ImageWriter::create(Path::new("/")), Err(ImageError::BadTarget(_))));
    assert!(matches!(ImageWriter::create(&dir.path().join("..")), Err(ImageError::BadTarget(_))));
    assert!(matches!(ImageWriter::create(&dir.path().join("absent/image")), Err(ImageError::NoParent(_))));
    assert!(matches!(ImageWriter::create(&dir.path().join("file/image")), Err(ImageError::NoParent(_))));
}

#[test]
fn an_unfinished_image_vanishes_when_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("image");
    let mut writer = ImageWriter::create(&target).unwrap();
    writer.write_state(b"state").unwrap();
    assert_eq!(writer.partial_path(), dir.path().join(".image.elision-partial"));
    assert!(writer.partial_path().join("state.bin").exists(), "control");
    assert!(!target.exists());
    drop(writer);
    assert!(names(dir.path()).is_empty());

    let writer = ImageWriter::create(&target).unwrap();
    assert!(matches!(writer.finish(manifest(), &|_| ()), Err(ImageError::Unfinished("ram.img"))));
    assert!(names(dir.path()).is_empty());
}

#[test]
fn a_stale_folder_is_taken_over_and_a_live_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("image");
    let stale = partial_path(&target).unwrap();
    fs::create_dir(&stale).unwrap();
    fs::write(stale.join("ram.img"), b"of a dead saver").unwrap();
    fs::write(stale.join("other"), b"").unwrap();

    let writer = ImageWriter::create(&target).unwrap();
    assert!(names(&stale).is_empty(), "what the dead saver left is gone");
    assert!(matches!(ImageWriter::create(&target), Err(ImageError::Busy { .. })));
    assert!(matches!(remove_stale(&target), Err(ImageError::Busy { .. })));
    assert!(stale.exists(), "a live folder is left alone");
    drop(writer);

    fs::create_dir(&stale).unwrap();
    assert!(remove_stale(&target).unwrap());
    assert!(!remove_stale(&target).unwrap());
    save(&target, &Ram::zeroed(layout()).unwrap(), &Plan::default(), 1);
    assert_eq!(names(dir.path()), ["image"]);
}

#[test]
fn only_a_folder_is_taken_for_a_partial_image() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("image");
    let elsewhere = tempfile::tempdir().unwrap();
    fs::write(elsewhere.path().join("kept"), b"").unwrap();
    let partial = partial_path(&target).unwrap();
    std::os::unix::fs::symlink(elsewhere.path(), &partial).unwrap();
    assert!(matches!(ImageWriter::create(&target), Err(ImageError::Foreign(_))));
    assert_eq!(names(elsewhere.path()), ["kept"]);
    fs::remove_file(&partial).unwrap();
    fs::write(&partial, b"").unwrap();
    assert!(matches!(ImageWriter::create(&target), Err(ImageError::Foreign(_))));
}

#[test]
fn of_many_savers_to_one_target_one_wins() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("image");
    for _ in 0..20 {
        let wins = std::thread::scope(|scope| {
            let save = || -> Result<(), ImageError> {
                let mut writer = ImageWriter::create(&target)?;
                writer.write_ram(&Ram::zeroed(RamLayout::flat(PAGE).unwrap())?, &Plan::default(), 1)?;
                writer.write_state(b"")?;
                writer.write_exclusions(&Plan::default())?;
                let manifest =
                    elision_image::Manifest { ram_layout: RamLayout::flat(PAGE).unwrap(), ..manifest() };
                writer.finish(manifest, &|_| ()).map(drop)
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(save)).collect();
            threads.into_iter().filter_map(|t| t.join().unwrap().ok()).count()
        });
        assert!(wins <= 1, "{wins} savers believe that they wrote the image");
        if wins == 1 {
            assert_eq!(Image::open(&target).unwrap().verify(&|_| ()).unwrap(), []);
            fs::remove_dir_all(&target).unwrap();
        }
        assert!(names(dir.path()).is_empty(), "{:?}", names(dir.path()));
    }
}

#[test]
fn a_plan_that_cannot_be_carried_out_writes_nothing() {
    let drops = |drops: &[(u64, u64)]| Plan {
        drops: drops
            .iter()
            .map(|&(first, count)| DropRun {
                first: Gfn(first),
                count,
                reason: DropReason::Free,
                owner: None,
            })
            .collect(),
        ..Plan::default()
    };
    let edits = |edits: &[(u64, u32)]| Plan {
        edits: edits
            .iter()
            .map(|&(gpa, len)| Edit {
                gpa: Gpa(gpa),
                change: Change::Zero(len),
                reason: EditReason::DeadStack,
                owner: None,
            })
            .collect(),
        ..Plan::default()
    };
    let late = |late: &[(u64, u64)], plan: Plan| Plan {
        late: late.iter().map(|&(start, end)| Gfn(start)..Gfn(end)).collect(),
        ..plan
    };
    let table = [
        (late(&[(5, 7), (6, 8)], Plan::default()), "late frames overlap"),
        (late(&[(7, 7)], Plan::default()), "late frames overlap"),
        (late(&[(WINDOW.start, WINDOW.end)], Plan::default()), "not RAM"),
        (late(&[(5, 7)], drops(&[(6, 1)])), "late frame is dropped"),
        (drops(&[(5, 2), (6, 1)]), "overlap"),
        (drops(&[(5, 1), (2, 1)]), "not sorted"),
        (drops(&[(HIGH_GFN + HIGH - 1, 2)]), "beyond the end of RAM"),
        (drops(&[(u64::MAX, 2)]), "beyond the end of RAM"),
        (drops(&[(0x9f, 2)]), "are not RAM"),
        (edits(&[(4000, 97)]), "end of its frame"),
        (edits(&[(8192, 1), (4096, 1)]), "not sorted"),
        (edits(&[(0xa_0000, 1)]), "not in RAM"),
    ];
    let dir = tempfile::tempdir().unwrap();
    let ram = Ram::shared(&source(), layout()).unwrap();
    for (plan, part) in table {
        let mut writer = ImageWriter::create(&dir.path().join("image")).unwrap();
        let error = writer.write_ram(&ram, &plan, 2).unwrap_err();
        assert!(matches!(error, ImageError::BadPlan { .. }) && error.to_string().contains(part), "{error}");
        let blocks = std::os::unix::fs::MetadataExt::blocks(
            &fs::metadata(writer.partial_path().join("ram.img")).unwrap(),
        );
        assert_eq!(blocks, 0);
    }
    // Adjacent regions may be dropped by one run.
    let mut writer = ImageWriter::create(&dir.path().join("image")).unwrap();
    writer.write_ram(&ram, &drops(&[(0x9f, 1), (0xc0, 3)]), 2).unwrap();
}

/// Run again by the next test, with `SMALL_DISK` naming a directory with little room.
#[test]
fn on_a_small_disk() {
    let Some(dir) = std::env::var_os("SMALL_DISK") else { return };
    let target = Path::new(&dir).join("image");
    let mut writer = ImageWriter::create(&target).unwrap();
    let ram = Ram::shared(&source(), layout()).unwrap();
    // Memory for the copy was not taken ahead, so that some of it may go to the disk at once.
    let error = match writer.write_ram(&ram, &plan(), 2) {
        Ok(_) => {
            writer.write_state(b"").unwrap();
            writer.write_exclusions(&plan()).unwrap();
            writer.finish(manifest(), &|_| ()).unwrap_err()
        }
        Err(error) => {
            drop(writer);
            error
        }
    };
    let ImageError::DiskFull { needed, .. } = error else { panic!("{error}") };
    assert!(needed > 9 << 20, "{needed}");
    assert!(names(Path::new(&dir)).is_empty());
    // With room for it, the same image is saved.
    save(&target, &Ram::zeroed(RamLayout::flat(PAGE).unwrap()).unwrap(), &Plan::default(), 1);
    println!("checked");
}

#[test]
fn a_full_disk_says_what_was_needed_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let test = std::env::current_exe().unwrap();
    let run = |tool: &[&str], script: &str| {
        let (program, args) = tool.split_first().unwrap();
        Command::new(program)
            .args(args)
            .args(["sh", "-ec", script])
            .arg(&test)
            .args(["--exact", "on_a_small_disk", "--nocapture"])
            .env("SMALL_DISK", dir.path())
            .output()
            .unwrap()
    };
    // A file system of 4 MiB of our own, or where that is not allowed a limit on the size of files.
    let mount = "mount -t tmpfs -o size=4m none \"$SMALL_DISK\"; exec \"$0\" \"$@\"";
    let limit = "trap '' XFSZ; ulimit -f 8000; exec \"$0\" \"$@\"";
    let mut output = run(&["unshare", "--user", "--map-root-user", "--mount"], mount);
    if !output.status.success() && !String::from_utf8_lossy(&output.stdout).contains("running 1 test") {
        output = run(&["env"], limit);
    }
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("checked"), "{text}");
}
