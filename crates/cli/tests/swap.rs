//! Pages of an excluded process in the guest's swap: refused and named, or let pass on the user's word and recorded.

mod support;

use elision_testbed::{GuestOptions, Spawn, Status};
use support::{Images, elision, json, refuses, save, sh, swap};

#[test]
fn pages_in_swap_are_refused_and_named_or_recorded() {
    let options = GuestOptions::new("6.1");
    let mut guest = options.boot().expect("the guest boots");
    swap::turn_on(&mut guest, &options);
    let victim =
        guest.control().spawn(&Spawn::new("victim", "heap=16M", "sleep").cgroup("/swapped").uid(1234));
    let pid = victim.expect("a process").pid;
    let images = Images::new();
    let image = images.path("vm.elision");
    let exclude = format!("pid={pid}");
    // The control: swap that nobody excluded uses is in nobody's way.
    json(&mut save(&guest, &image, &[&exclude]));
    std::fs::remove_dir_all(&image).expect("the image");

    sh(&mut guest, "echo 12M > /sys/fs/cgroup/swapped/memory.reclaim || true");
    let used = sh(&mut guest, &format!("grep VmSwap /proc/{pid}/status"));
    let kib: u64 = used.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number");
    println!("in swap: {kib} KiB");
    assert!(kib > 4096, "control: the guest has little of it in swap: {used}");

    let parts =
        [format!("process {pid}"), format!("has {kib} KiB in swap"), "stays on the guest's disk".to_owned()];
    refuses(&mut save(&guest, &image, &[&exclude]), 3, &parts.each_ref().map(String::as_str));
    assert_eq!(images.names(), Vec::<String>::new());
    guest.control().ping().expect("the guest runs on");

    let planned = elision()
        .args(["plan", "--json", "--exclude", &exclude, "--qmp"])
        .arg(guest.endpoints().qmp_socket())
        .output()
        .expect("elision starts");
    assert_eq!(planned.status.code(), Some(3));
    let planned: serde_json::Value = serde_json::from_slice(&planned.stdout).expect("JSON");
    assert_eq!(planned["would_save"], false, "{planned}");

    json(save(&guest, &image, &[&exclude]).arg("--best-effort"));
    let facts = json(elision().arg("inspect").arg(&image));
    let completeness = &facts["completeness"];
    assert_eq!(completeness["kind"], "best-effort", "{completeness}");
    let listed = completeness["unaccounted"].to_string();
    assert!(listed.contains(&format!("has {kib} KiB in swap")), "{listed}");
    let said = elision().arg("inspect").arg(&image).output().expect("elision starts");
    assert!(String::from_utf8_lossy(&said.stdout).contains("no, saved with --best-effort"));
    // Somebody else's pages in swap are not in the way either.
    std::fs::remove_dir_all(&image).expect("the image");
    let other = guest.control().spawn(&Spawn::new("other", "heap", "sleep")).expect("a process").pid;
    json(&mut save(&guest, &image, &[&format!("pid={other}")]));
    assert_eq!(guest.control().status(pid).expect("the guest answers"), Status::Running);
    assert_eq!(guest.console_problems(), Vec::<String>::new());
}
