//! Places of a secret that need a treatment of their own: hugetlbfs, and registers that only a vCPU holds.

mod support;

use elision_testbed::{GuestOptions, Spawn, Status};
use std::time::Duration;
use support::{Images, copies, end_of, json, restore, save};

/// Copies in a huge page of 2 MiB.
const HUGE: u64 = (2 << 20) / 32;

#[test]
fn huge_pages_and_vector_registers_are_left_out() {
    let options = GuestOptions::new("7");
    let mut guest = options.boot().expect("the guest boots");
    let mut play = |label: &str, places: &str, mode: &str, uid: u32| {
        guest
            .control()
            .spawn(&Spawn::new(label, places, mode).uid(uid))
            .unwrap_or_else(|e| panic!("{label}: {e}"))
    };
    let huge = play("huge", "hugetlb", "block", 1234);
    let registers = play("registers", "xmm", "spin", 1234);
    play("bystander", "hugetlb,xmm", "spin", 0);

    let images = Images::new();
    let (plain, elided) = (images.path("plain"), images.path("elided"));
    json(&mut save(&guest, &plain, &[]));
    let saved = json(&mut save(&guest, &elided, &["uid=1234"]));
    let labels = ["huge", "registers", "bystander"];
    let (before, after) = (copies(&plain, &labels), copies(&elided, &labels));
    println!("copies of {labels:?}: {before:?}, then {after:?}; {}", saved["plan"]["dropped_frames"]);
    assert!(before[0] >= HUGE && before[1] > 0, "control: {before:?}");
    assert_eq!(after[..2], [0, 0], "in the elided image");
    assert!(after[2] >= HUGE, "the bystander's huge page is gone");
    assert!(saved["plan"]["dropped_frames"]["huge-tlb"].as_u64() >= Some(512), "{saved}");
    assert!(saved["devices"]["vector_registers"].as_u64() > Some(0), "{saved}");

    let mut restored = restore(&options, &elided);
    for pid in [huge.pid, registers.pid] {
        let end = end_of(&mut restored, pid, Duration::from_secs(20));
        assert!(matches!(end, Status::Signalled { signal: 9, .. }), "{end:?}");
    }
    // The bystander's registers are its own: it checks nothing, but it must still run.
    let count = restored.control().count("bystander").expect("counters");
    std::thread::sleep(Duration::from_millis(300));
    assert!(restored.control().count("bystander").expect("counters") > count, "the bystander stands still");
    assert!(restored.console_problems().is_empty(), "{:?}", restored.console_problems());
}
