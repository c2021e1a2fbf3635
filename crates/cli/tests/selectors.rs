//! Each kind of selector on a real guest, from arguments and from a policy file.

mod support;

use elision_testbed::{Guest, GuestOptions, Spawn};
use serde_json::Value;
use std::collections::BTreeSet;
use support::{Images, elision, json};

/// Process ids that a plan would leave out.
fn planned(guest: &Guest, arguments: &[&str]) -> BTreeSet<i64> {
    let mut command = elision();
    command.arg("plan").arg("--qmp").arg(guest.endpoints().qmp_socket()).args(arguments);
    let excluded = json(&mut command)["excluded"].take();
    excluded.as_array().expect("a list").iter().map(|p: &Value| p["pid"].as_i64().expect("a pid")).collect()
}

#[test]
fn every_kind_selects_the_same_process_and_its_children() {
    let mut guest = GuestOptions::new("6.12").boot().expect("the guest boots");
    let spawn = Spawn::new("victim", "heap", "fork=2")
        .uid(1234)
        .cgroup("elision.slice/pod-abc")
        .tty("pty")
        .comm("chosen")
        .exe("/bin/victim");
    let victim = guest.control().spawn(&spawn).expect("a victim");
    let bystander =
        guest.control().spawn(&Spawn::new("bystander", "heap", "block").tty("pty")).expect("a bystander");
    let tree: BTreeSet<i64> = victim.children.iter().copied().chain([victim.pid]).map(i64::from).collect();
    assert_eq!(tree.len(), 3, "{victim:?}");

    let processes = json(elision().args(["ps", "--qmp"]).arg(guest.endpoints().qmp_socket()));
    let row = |pid: i32| {
        let rows = processes["processes"].as_array().expect("a list");
        rows.iter().find(|p| p["pid"] == pid).unwrap_or_else(|| panic!("{pid} is not in {processes}")).clone()
    };
    let tty = row(victim.pid)["tty"].as_str().expect("a terminal").to_owned();
    assert_ne!(row(bystander.pid)["tty"], tty, "control: another terminal");

    let pid = format!("pid={}", victim.pid);
    let tty = format!("tty=/dev/{tty}");
    for selector in
        [&pid, "comm=chosen", "exe=/bin/vict*", "uid=1234", "cgroup=/elision.slice", "cgroup=/*/pod-*", &tty]
    {
        assert_eq!(planned(&guest, &["--exclude", selector]), tree, "{selector}");
    }

    let folder = Images::new();
    let file = folder.path("policy.toml");
    std::fs::write(
        &file,
        "[[exclude]]\ncomm = \"chosen\"\nchildren = false\n\n[[exclude]]\nuid = 4321\noptional = true\n",
    )
    .expect("a file");
    let leader = planned(&guest, &["--policy", file.to_str().expect("a path")]);
    // A forked child has its parent's name until it changes it.
    assert!(leader.contains(&i64::from(victim.pid)) && leader.is_subset(&tree), "{leader:?}");
    assert!(planned(&guest, &[]).is_empty(), "control: nothing selected, nothing excluded");
}
