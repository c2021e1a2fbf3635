//! Each kind of selector on a real guest, from arguments and from a policy file.

mod support;

use elision_testbed::{Guest, GuestOptions, Spawn};
use serde_json::Value;
use std::collections::BTreeSet;
use support::{Images, elision, json, refuses, sh};

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
    for selector in [
        &pid,
        "comm=chosen",
        "exe=/bin/vict*",
        "uid=1234",
        "cgroup=/elision.slice",
        "cgroup=/*/pod-*",
        "unit=elision.slice",
        "container=pod-abc",
        &tty,
    ] {
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

#[test]
fn services_containers_and_arguments_select_processes() {
    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    let mut guest = GuestOptions::new("7").boot().expect("the guest boots");
    let mut play = |label: &str, cgroup: &str| {
        let spawn = Spawn::new(label, "heap", "fork=1").cgroup(cgroup);
        let played = guest.control().spawn(&spawn).unwrap_or_else(|e| panic!("{label}: {e}"));
        played.children.iter().copied().chain([played.pid]).map(i64::from).collect::<BTreeSet<_>>()
    };
    let service = play("service", "system.slice/vault.service");
    let session = play("session", "user.slice/user-7.slice/user@7.service/app.slice/vault.service");
    let podman = play("podman", &format!("machine.slice/libpod-{ID}.scope/container"));
    let kubernetes = play("kubernetes", "kubepods.slice/kubepods-podaa_bb.slice/crio-f00.scope");
    let both: BTreeSet<i64> = service.union(&session).copied().collect();
    for (selector, expected) in [
        ("unit=vault", &both),
        ("unit=user@*.service", &session),
        ("container=0123456789ab", &podman),
        ("container=podaa-bb", &kubernetes),
    ] {
        assert_eq!(&planned(&guest, &["--exclude", selector]), expected, "{selector}");
    }
    let folder = Images::new();
    let file = folder.path("policy.toml");
    let by_args = |args: &str| {
        let policy = format!("[[exclude]]\nexe = '/bin/actor'\nargs = '{args}'\n");
        std::fs::write(&file, policy).expect("a file");
        planned(&guest, &["--policy", file.to_str().expect("a path")])
    };
    assert_eq!(by_args("play session heap *"), session);
    assert_eq!(by_args("play po* fork=1 *"), podman);

    // As the guest's own kernel shows it.
    let listed = json(elision().args(["ps", "--qmp"]).arg(guest.endpoints().qmp_socket()));
    for pid in both.iter().chain(&podman) {
        let rows = listed["processes"].as_array().expect("a list");
        let row = rows.iter().find(|row| row["pid"] == *pid).expect("the process");
        let words = row["command_line"].as_array().unwrap_or_else(|| panic!("{row}"));
        let words: String = words.iter().flat_map(|w| [w.as_str().expect("a word"), "|"]).collect();
        assert_eq!(words, sh(&mut guest, &format!("tr '\\0' '|' </proc/{pid}/cmdline")), "{row}");
    }
    let mut command = elision();
    command.arg("plan").arg("--qmp").arg(guest.endpoints().qmp_socket()).args(["--exclude", "unit=vaul"]);
    refuses(&mut command, 3, &["unit=vaul.service"]);
}
