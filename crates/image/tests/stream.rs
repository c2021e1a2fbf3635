//! RAM that comes page by page gives the image that RAM read from outside gives.

mod common;

use common::*;
use elision_image::{ImageError, ImageWriter, RamStats};
use elision_memory::{FileOffset, PAGE_SIZE, Ram};
use elision_plan::Plan;

const PAGES: u64 = LOW + HIGH;

/// Hands the pages on in an order, as QEMU does: pages of zeros by their byte.
fn send(writer: &mut ImageWriter, ram: &Ram, plan: &Plan, order: &[u64]) -> Result<RamStats, ImageError> {
    let mut stream = writer.begin_stream(ram, plan)?;
    for page in order {
        let offset = FileOffset(page * PAGE);
        let mut bytes = [0; PAGE_SIZE];
        assert!(ram.read_file(offset, &mut bytes));
        if bytes == [0; PAGE_SIZE] { stream.fill(offset, 0)? } else { stream.page(offset, &bytes)? }
    }
    writer.end_stream(stream)
}

#[test]
fn pages_in_any_order_give_the_same_image() {
    let dir = tempfile::tempdir().unwrap();
    let ram = Ram::shared(&source(), layout()).unwrap();
    let plan = planned();
    let mut writer = ImageWriter::create(&dir.path().join("read")).unwrap();
    writer.write_ram(&ram, &plan, 2).unwrap();
    let stats = complete(writer, &plan);
    let expected = ram_of(&dir.path().join("read"));

    let forwards: Vec<u64> = (0..PAGES).collect();
    let backwards: Vec<u64> = (0..PAGES).rev().collect();
    let scattered: Vec<u64> = (0..PAGES).map(|i| i * 1021 % PAGES).collect();
    let twice: Vec<u64> = forwards.iter().chain(&scattered).copied().collect();
    for (i, order) in [forwards, backwards, scattered, twice].iter().enumerate() {
        let target = dir.path().join(i.to_string());
        let mut writer = ImageWriter::create(&target).unwrap();
        send(&mut writer, &ram, &plan, order).unwrap();
        assert_eq!(complete(writer, &plan), stats, "order {i}");
        assert!(ram_of(&target) == expected, "order {i}");
    }
}

#[test]
fn of_a_page_that_comes_again_the_last_counts() {
    let dir = tempfile::tempdir().unwrap();
    let ram = Ram::shared(&source(), layout()).unwrap();
    let plan = Plan { edits: vec![], ..planned() };
    let target = dir.path().join("image");
    let mut writer = ImageWriter::create(&target).unwrap();
    let mut stream = writer.begin_stream(&ram, &plan).unwrap();
    let at = |page: u64| FileOffset(page * PAGE);
    for page in 0..PAGES {
        stream.page(at(page), &[0x55; PAGE_SIZE]).unwrap();
    }
    stream.fill(at(7), 0).unwrap();
    stream.fill(at(8), 0x66).unwrap();
    stream.page(at(9), &[0x77; PAGE_SIZE]).unwrap();
    stream.fill(at(5), 0x44).unwrap(); // waits in memory
    stream.fill(at(PAGES + 3), 0x33).unwrap(); // behind the end: no RAM of the guest
    writer.end_stream(stream).unwrap();
    complete(writer, &plan);
    let bytes = ram_of(&target);
    let pages: Vec<u8> = bytes.chunks_exact(PAGE_SIZE).map(|page| page[0]).collect();
    assert_eq!(pages.len() as u64, PAGES);
    assert_eq!(pages[4..10], [0x55, 0x44, 0x55, 0, 0x66, 0x77]);
    assert_eq!(pages[1..3], [0, 0], "dropped");
    assert_eq!(pages[0xa1], 0, "behind the window is no RAM");
    assert_eq!(pages[0xc0], 0x55, "control");
}

#[test]
fn memory_that_moved_since_the_plan_is_refused() {
    let ram = Ram::shared(&source(), layout()).unwrap();
    let plan = planned();
    // A frame that is changed and written, one that waits, one that is a hole; and controls without changes.
    let moved = [(0x400, true), (4, true), (6, true), (LOW + 1, true), (7, false), (0xc3, false), (2, false)];
    for (page, refused) in moved {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = ImageWriter::create(&dir.path().join("image")).unwrap();
        let mut stream = writer.begin_stream(&ram, &plan).unwrap();
        let mut bytes = [fill(page); PAGE_SIZE];
        stream.page(FileOffset(page * PAGE), &bytes).unwrap();
        bytes[4000] ^= 1;
        let result = stream.page(FileOffset(page * PAGE), &bytes);
        assert_eq!(matches!(result, Err(ImageError::Moved { .. })), refused, "page {page}: {result:?}");
    }
}

#[test]
fn a_bad_plan_is_refused_before_the_first_page() {
    let dir = tempfile::tempdir().unwrap();
    let ram = Ram::shared(&source(), layout()).unwrap();
    let mut bad = plan();
    bad.drops.reverse();
    let mut writer = ImageWriter::create(&dir.path().join("image")).unwrap();
    assert!(matches!(writer.begin_stream(&ram, &bad), Err(ImageError::BadPlan { .. })));
}
