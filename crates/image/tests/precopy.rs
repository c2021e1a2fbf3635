//! RAM that comes before its plan gives the image that RAM read by the plan gives.

mod common;

use common::*;
use elision_image::{ImageError, ImageWriter, Precopy};
use elision_memory::{FileOffset, Gfn, PAGE_SIZE, Ram};
use elision_plan::{DropReason, DropRun, Plan};

const PAGES: u64 = LOW + HIGH;

fn at(page: u64) -> FileOffset {
    FileOffset(page * PAGE)
}

/// Hands a page on as it is, as QEMU does: one of zeros by its byte.
fn send(precopy: &mut Precopy, ram: &Ram, page: u64) {
    let mut bytes = [0; PAGE_SIZE];
    assert!(ram.read_file(at(page), &mut bytes));
    if bytes == [0; PAGE_SIZE] { precopy.fill(at(page), 0) } else { precopy.page(at(page), &bytes) }
}

fn drops(first: u64, count: u64, reason: DropReason) -> Plan {
    Plan { drops: vec![DropRun { first: Gfn(first), count, reason, owner: None }], ..Plan::default() }
}

#[test]
fn it_gives_the_same_image_whatever_was_guessed() {
    let dir = tempfile::tempdir().unwrap();
    let ram = Ram::shared(&source(), layout()).unwrap();
    let plan = planned();
    let mut writer = ImageWriter::create(&dir.path().join("read")).unwrap();
    writer.write_ram(&ram, &plan, 2).unwrap();
    let stats = complete(writer, &plan);
    let expected = ram_of(&dir.path().join("read"));
    assert!(expected.iter().any(|byte| *byte != 0));

    let nothing = Plan::default();
    let guesses = [
        nothing,
        plan.clone(),
        drops(0, LOW, DropReason::Free),
        drops(0, LOW, DropReason::Anonymous),
        drops(HIGH_GFN, HIGH, DropReason::Anonymous),
    ];
    for (i, guess) in guesses.iter().enumerate() {
        let target = dir.path().join(i.to_string());
        let mut writer = ImageWriter::create(&target).unwrap();
        let mut precopy = writer.begin_precopy(&ram, guess).unwrap();
        // At first some pages hold something else, or nothing.
        for page in (0..PAGES).rev() {
            match page % 5 {
                0 => precopy.page(at(page), &[0x55; PAGE_SIZE]),
                1 => precopy.fill(at(page), 0),
                2 => precopy.fill(at(page), 0x66),
                _ => send(&mut precopy, &ram, page),
            }
        }
        precopy.page(at(PAGES + 3), &[0x33; PAGE_SIZE]); // behind the end: no RAM of the guest
        (0..PAGES).filter(|page| page % 5 < 3).for_each(|page| send(&mut precopy, &ram, page));
        writer.settle_precopy(precopy, &ram, &plan).unwrap();
        writer.end_pause(&plan).unwrap();
        assert_eq!(complete(writer, &plan), stats, "guess {i}");
        assert!(ram_of(&target) == expected, "guess {i}");
    }
}

/// What belongs to an excluded process is read from the VM should it be kept in the end, and never taken before.
#[test]
fn what_is_going_to_be_left_out_is_not_taken() {
    const SENT: [u8; PAGE_SIZE] = [0x55; PAGE_SIZE];
    let ram = Ram::shared(&source(), layout()).unwrap();
    // Never, not the first time, and at once.
    let cases = [(DropReason::Anonymous, [false; 2]), (DropReason::Free, [false, true])];
    for (reason, taken) in cases {
        for (times, taken) in (1..).zip(taken) {
            let dir = tempfile::tempdir().unwrap();
            let target = dir.path().join("image");
            let mut writer = ImageWriter::create(&target).unwrap();
            let mut precopy = writer.begin_precopy(&ram, &drops(7, 1, reason)).unwrap();
            (0..PAGES).for_each(|page| precopy.page(at(page), &SENT));
            (1..times).for_each(|_| precopy.page(at(7), &SENT));
            let plan = Plan::default();
            writer.settle_precopy(precopy, &ram, &plan).unwrap();
            writer.end_pause(&plan).unwrap();
            writer.write_late(&[]).unwrap();
            writer.write_state(b"").unwrap();
            writer.write_exclusions(&plan).unwrap();
            writer.finish(manifest(), &|_| ()).unwrap();
            let pages = ram_of(&target);
            let first = |page: usize| pages[page * PAGE_SIZE];
            assert_eq!(first(7), if taken { 0x55 } else { fill(7) }, "{reason:?}, sent {times} times");
            assert_eq!(first(8), 0x55, "control");
            assert_eq!(first(0xa1), 0, "behind the window is no RAM");
        }
    }
}

#[test]
fn memory_that_is_not_what_the_plan_saw_is_refused() {
    let ram = Ram::shared(&source(), layout()).unwrap();
    let plan = planned();
    // A frame that is changed and written, one that waits, one that is a hole; and controls without changes.
    let moved = [(0x400, true), (4, true), (6, true), (LOW + 1, true), (7, false), (0xc3, false), (2, false)];
    for (page, refused) in moved {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = ImageWriter::create(&dir.path().join("image")).unwrap();
        let mut precopy = writer.begin_precopy(&ram, &Plan::default()).unwrap();
        (0..PAGES).for_each(|page| send(&mut precopy, &ram, page));
        let mut bytes = [fill(page); PAGE_SIZE];
        bytes[4000] ^= 1;
        precopy.page(at(page), &bytes);
        writer.settle_precopy(precopy, &ram, &plan).unwrap();
        let result = writer.end_pause(&plan);
        assert_eq!(matches!(result, Err(ImageError::Moved { .. })), refused, "page {page}: {result:?}");
    }
}
