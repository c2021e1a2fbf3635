//! Freed memory that an allocation under way has taken off the free lists, and has not cleared yet, is in no image.

mod support;

use elision_testbed::{Endpoints, GuestOptions, Spawn, Status, pages, search, secret};
use std::ops::Range;
use std::process::Stdio;
use std::time::{Duration, Instant};
use support::{Images, copies, json, restore, save, sh};

/// Enough that nearly every run would meet one.
const SAVES: usize = 12;
/// Of so many of the last images.
const RESTORED: usize = 3;

/// Processes fill huge pages and end, one after the other: each gets what the one before has left, and the kernel
/// clears it for that.
fn blocks_that_are_being_cleared_are_left_out(kernel: &str) {
    let options = GuestOptions::new(kernel);
    let mut guest = options.boot().expect("the guest boots");
    sh(&mut guest, "echo always > /sys/kernel/mm/transparent_hugepage/enabled");
    let takes = "while :; do dd if=/dev/zero of=/dev/null bs=32M count=1 2>/dev/null; done";
    sh(&mut guest, &format!("({takes}) > /dev/null 2>&1 &"));
    guest.control().spawn(&Spawn::new("stays", "heap=64K", "block").uid(1234)).expect("a process");
    let ends = Spawn::new("ends", "heap=32M", "end").uid(1234);
    guest.control().spawn(&ends).expect("a process");
    let ram = guest.ram().expect("its RAM");
    let freed = search::find(&ram, &[secret("ends")]).expect("a search")[0].len();
    assert!(freed > 1000, "control: only {freed} copies of the ended process");

    let (images, mut saved) = (Images::new(), Vec::new());
    for round in 0..SAVES * if pages::in_full() { 3 } else { 1 } {
        let image = images.path(&format!("image-{round}"));
        let mut saver = save(&guest, &image, &["uid=1234"]);
        let mut saver = saver.stdout(Stdio::null()).spawn().expect("elision starts");
        let status = loop {
            guest.control().spawn(&ends).expect("a process");
            if let Some(status) = saver.try_wait().expect("a status") {
                break status;
            }
        };
        // Who is about to end when he is looked at may never hold still.
        assert!(status.success() || status.code() == Some(3), "{status}");
        if status.success() {
            assert_eq!(copies(&image, &["ends"]), [0], "round {round}");
            saved.push(image);
            let old = saved.iter().rev().nth(RESTORED);
            old.map(std::fs::remove_dir_all).transpose().expect("an image can go");
        }
    }
    println!("{}: {} images", options.kernel().expect("a kernel").name, saved.len());
    assert!(saved.len() >= SAVES / 2, "control: only {} images", saved.len());
    assert!(guest.console_problems().is_empty(), "{:?}", guest.console_problems());
    // What was being cleared is given to its next owner there.
    for image in saved.iter().rev().take(RESTORED) {
        let mut restored = restore(&options, image);
        assert!(restored.control().health(2).expect("it answers").errors.is_empty());
        assert!(restored.console_problems().is_empty(), "{:?}", restored.console_problems());
    }
}

#[test]
fn blocks_that_are_being_cleared_are_left_out_of_6_1() {
    blocks_that_are_being_cleared_are_left_out("6.1");
}

#[test]
fn blocks_that_are_being_cleared_are_left_out_of_7() {
    blocks_that_are_being_cleared_are_left_out("7");
}

#[test]
fn blocks_that_are_being_cleared_are_left_out_of_other_kernels() {
    if pages::in_full() {
        ["5.10", "6.12"].into_iter().for_each(blocks_that_are_being_cleared_are_left_out);
    }
}

/// The memory that the only vCPU, which is stopped, is about to store to by the instruction that it is in.
fn about_to_be_cleared(guest: &Endpoints) -> Option<Range<u64>> {
    let monitor = |line: &str| guest.monitor(line).expect("an answer");
    let registers = monitor("info registers");
    let register = |name: &str| {
        let word = registers.split_whitespace().find_map(|word| word.strip_prefix(name));
        u64::from_str_radix(word.unwrap_or_default(), 16).expect("a register")
    };
    let code = monitor(&format!("x/3xb {:#x}", register("RIP=")));
    let widths = [("0xf3 0xaa", 1), ("0xf3 0x48 0xab", 8)];
    let (_, width) = widths.into_iter().find(|(store, _)| code.contains(store))?;
    let at = monitor(&format!("gva2gpa {:#x}", register("RDI=")));
    let start = u64::from_str_radix(at.trim().strip_prefix("gpa: 0x")?, 16).expect("an address");
    Some(start..start + register("RCX=") * width)
}

#[test]
fn a_page_that_is_being_cleared_is_cleared() {
    let mut guest = GuestOptions::new("6.1").vcpus(1).memory_mib(1024).boot().expect("the guest boots");
    sh(&mut guest, "echo never > /sys/kernel/mm/transparent_hugepage/enabled");
    guest.control().spawn(&Spawn::new("stays", "heap=64K", "block").uid(1234)).expect("a process");
    let (images, ram) = (Images::new(), guest.ram().expect("its RAM"));
    let until = Instant::now() + Duration::from_secs(120);
    let left = 'found: loop {
        let ends = guest.control().spawn(&Spawn::new("ends", "heap=256M", "end")).expect("a process");
        while guest.control().status(ends.pid).expect("its status") == Status::Running {}
        sh(&mut guest, "dd if=/dev/zero of=/dev/null bs=512M count=1 > /dev/null 2>&1 &");
        for _ in 0..40 {
            guest.endpoints().stop().expect("it stops");
            if let Some(range) = about_to_be_cleared(guest.endpoints()) {
                let found = search::find(&ram, &[secret("ends")]).expect("a search");
                let left = found[0].iter().filter(|at| range.contains(&at.0)).count();
                if left > 0 {
                    break 'found left;
                }
            }
            guest.endpoints().cont().expect("it runs on");
            std::thread::sleep(Duration::from_millis(2));
        }
        assert!(Instant::now() < until, "the guest never clears a page when it is stopped");
    };
    let saved = json(&mut save(&guest, &images.path("image"), &["uid=1234"]));
    assert_eq!(copies(&images.path("image"), &["ends"]), [0], "of {left}: {saved}");
}
