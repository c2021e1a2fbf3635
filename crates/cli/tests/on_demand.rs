//! Memory of an image that is read when a VM needs it.

mod support;

use elision_testbed::{GuestOptions, Spawn};
use serde_json::Value;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use support::{Images, copies, elision, json, refuses, restore_with, save};

/// The process that serves the memory of an image, if there is one.
fn server_of(image: &Path) -> Option<u64> {
    let output =
        Command::new("pgrep").args(["-f", "--"]).arg(format!("serve .*{}", image.display())).output();
    String::from_utf8_lossy(&output.expect("pgrep starts").stdout).trim().parse().ok()
}

fn within(limit: Duration, what: &str, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn mounts() -> String {
    std::fs::read_to_string("/proc/self/mounts").expect("the mounts")
}

#[test]
fn a_compressed_image_is_served_while_the_vm_runs_and_nothing_is_left_of_it() {
    let options = GuestOptions::new("6.1");
    let mut guest = options.boot().expect("the guest boots");
    guest.control().spawn(&Spawn::new("victim", "heap", "sleep=20ms").uid(1234)).expect("a victim");
    guest.control().spawn(&Spawn::new("bystander", "heap", "sleep=20ms")).expect("a bystander");
    let images = Images::new();
    let image = images.path("image");
    json(save(&guest, &image, &["uid=1234"]).arg("--compress"));
    drop(guest);
    assert_eq!(copies(&image, &["victim"]), [0]);

    let before = mounts();
    let folder = image.parent().expect("a folder").to_owned();
    let vms = || json(elision().arg("list").arg(&folder))["images"][0]["vms"].clone();
    for arguments in [&["--record"][..], &["--prefetch"], &[]] {
        let (mut clone, told) = restore_with(&options, &image, arguments);
        assert_eq!(told["memory"]["way"], "served", "{told}");
        assert_eq!(mounts(), before);
        let count = clone.control().count("bystander").expect("counters");
        std::thread::sleep(Duration::from_millis(300));
        assert!(clone.control().count("bystander").expect("counters") > count);
        assert!(clone.control().health(1).expect("it answers").errors.is_empty());
        assert!(clone.console_problems().is_empty(), "{:?}", clone.console_problems());
        assert_eq!(vms(), serde_json::json!([told["pid"]]));
        refuses(elision().arg("rm").arg(&image), 4, &["runs from", "--force"]);
        if arguments == ["--record"] {
            let set = image.join("working-set.bin");
            within(Duration::from_secs(30), "the working set is recorded", || set.exists());
        }
        drop(clone);
        within(Duration::from_secs(10), "the server ends", || server_of(&image).is_none());
        assert_eq!(vms(), serde_json::json!([]));
    }

    let (clone, told) = restore_with(&options, &image, &["--load-first"]);
    assert_eq!(told["memory"]["way"], "loaded", "{told}");
    assert!(server_of(&image).is_none());
    json(elision().arg("rm").arg(&image));
    drop(clone);
}

/// What the documentation says of a server that is killed.
#[test]
fn a_vm_whose_server_is_killed_ends_and_does_not_run_with_wrong_memory() {
    let options = GuestOptions::new("6.1");
    let mut guest = options.boot().expect("the guest boots");
    guest.control().spawn(&Spawn::new("bystander", "heap", "sleep=20ms")).expect("a bystander");
    let images = Images::new();
    let image = images.path("image");
    json(save(&guest, &image, &[]).arg("--compress"));
    drop(guest);
    let (clone, told) = restore_with(&options, &image, &[]);
    let pid = told["pid"].as_u64().expect("a process id");
    let server = server_of(&image).expect("a server");
    assert!(Command::new("kill").args(["-9", &server.to_string()]).status().expect("kill").success());
    // All of memory is read through QEMU: what was not needed yet is missing now.
    let dump = images.path("dump");
    let read: Result<Value, _> =
        clone.endpoints().qmp("pmemsave", &serde_json::json!({"val": 0, "size": 64 << 20, "filename": dump}));
    let is_gone = || !Path::new(&format!("/proc/{pid}/fd")).exists() || state(pid) == 'Z';
    assert!(read.is_err(), "{read:?}");
    within(Duration::from_secs(10), "the VM ends", is_gone);
}

fn state(pid: u64) -> char {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    text.rsplit(") ").next().and_then(|rest| rest.chars().next()).unwrap_or('Z')
}
