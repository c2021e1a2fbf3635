//! Freed memory that an allocation under way has taken off the free lists, and has not cleared yet, is in no image.

mod support;

use elision_testbed::{GuestOptions, Spawn, search, secret};
use std::process::Stdio;
use support::{Images, copies, save, sh};

const SAVES: usize = 20;

/// Processes fill huge pages and end, one after the other: each gets what the one before has left, and the kernel
/// clears it for that.
#[test]
fn blocks_that_are_being_cleared_are_left_out() {
    let mut guest = GuestOptions::new("7").boot().expect("the guest boots");
    sh(&mut guest, "echo always > /sys/kernel/mm/transparent_hugepage/enabled");
    let takes = "while :; do dd if=/dev/zero of=/dev/null bs=32M count=1 2>/dev/null; done";
    sh(&mut guest, &format!("({takes}) > /dev/null 2>&1 &"));
    guest.control().spawn(&Spawn::new("stays", "heap=64K", "block").uid(1234)).expect("a process");
    let ends = Spawn::new("ends", "heap=32M", "end").uid(1234);
    guest.control().spawn(&ends).expect("a process");
    let ram = guest.ram().expect("its RAM");
    let freed = search::find(&ram, &[secret("ends")]).expect("a search")[0].len();
    assert!(freed > 1000, "control: only {freed} copies of the ended process");

    let (images, mut saved) = (Images::new(), 0);
    for round in 0..SAVES {
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
            saved += 1;
            assert_eq!(copies(&image, &["ends"]), [0], "round {round}");
        }
        let _ = std::fs::remove_dir_all(&image);
    }
    println!("{saved} images of {SAVES}");
    assert!(saved >= SAVES / 2, "control: only {saved} images");
    assert!(guest.console_problems().is_empty(), "{:?}", guest.console_problems());
}
