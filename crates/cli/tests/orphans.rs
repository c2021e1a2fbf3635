//! Pages that outlive their mapping: given to a pipe by `vmsplice` and unmapped then.

mod support;

use elision_testbed::{GuestOptions, Spawn};
use support::{Images, copies, json, restore, save};

/// Eight pages full of the secret.
const GIVEN: u64 = (8 << 12) / 32;

#[test]
fn what_only_a_pipe_holds_is_left_out_and_stays_for_others_on_6_1() {
    given_to_a_pipe("6.1");
}

#[test]
fn what_only_a_pipe_holds_is_left_out_and_stays_for_others_on_6_12() {
    given_to_a_pipe("6.12");
}

#[test]
fn what_only_a_pipe_holds_is_left_out_and_stays_for_others_on_7() {
    given_to_a_pipe("7");
}

fn given_to_a_pipe(kernel: &str) {
    let options = GuestOptions::new(kernel);
    let mut guest = options.boot().expect("the guest boots");
    for (label, uid, mode) in [("given", 1234, "block"), ("kept", 0, "block"), ("ended", 1234, "end")] {
        let spawn = Spawn::new(label, "vmsplice-unmapped", mode).uid(uid);
        guest.control().spawn(&spawn).unwrap_or_else(|error| panic!("{label}: {error}"));
    }
    let images = Images::new();
    let (plain, elided) = (images.path("plain"), images.path("elided"));
    let none = json(&mut save(&guest, &plain, &[]));
    let saved = json(&mut save(&guest, &elided, &["uid=1234"]));
    let labels = ["given", "kept", "ended"];
    let (before, after) = (copies(&plain, &labels), copies(&elided, &labels));
    println!("{kernel}: copies of {labels:?}: {before:?}, then {after:?}");
    println!("without an exclusion {}, with one {}", none["plan"], saved["plan"]);
    assert!(before[0] >= GIVEN && before[1] >= GIVEN, "control: {before:?}");
    assert_eq!((after[0], after[2]), (0, 0), "in the elided image");
    // Nobody has read it yet: it must not be taken for a page that nobody holds.
    assert!(after[1] >= GIVEN, "what a process that stays has in its pipe is gone");
    let restored = restore(&options, &elided);
    assert!(restored.console_problems().is_empty(), "{:?}", restored.console_problems());
}
