//! The agent in a Debian guest with systemd: a busy container and a busy service are left out of many saves in a row, and
//! systemd sees no unit end.
//!
//! Only in the full form of the tests, as the disk takes minutes to build. `ELISION_SAVES` is the number of saves, 200
//! without it, or 30 by a certain way.

mod support;

#[path = "support/agent.rs"]
#[allow(dead_code)] // this file uses a part
mod port;

use elision_testbed::{Guest, GuestOptions, Spawn, debian, modules, pages, programs};
use port::Port;
use serde_json::Value;
use support::modules::{load, put};
use support::{Images, restore, save, sh, words};

/// The processes stand still for less than so many times as long as the VM, in the middle. A live save's pause is
/// so short that this says nothing.
const RATIO: f64 = 1.5;
const PROGRAM: &str = "/usr/sbin/elision-agent";

/// The agent as systemd starts it, but without udev, which the guest does not have.
fn start(guest: &mut Guest, options: &GuestOptions) {
    let kernel = options.kernel().expect("a kernel");
    if modules::get(&kernel, "virtio_console").is_ok() {
        load(guest, options, "virtio_console");
    }
    put(guest, &programs::agent().expect("the agent"), PROGRAM);
    sh(guest, &format!("systemd-run --unit=elision-agent -p Restart=always -p KillMode=process {PROGRAM}"));
    sh(guest, "sleep 2; systemctl is-active elision-agent");
}

/// A service that writes, syncs and forks without rest, with two processes that do not fork.
const CHURN: &str = "systemd-run --unit=churn sh -c 'sleep 100000 & sleep 100001 & while :; do \
    dd if=/dev/zero of=/var/tmp/churn bs=64k count=8 conv=fsync 2>/dev/null; (true); done'";

#[test]
fn many_saves_in_a_row_without_a_second_look() {
    if !pages::in_full() {
        return;
    }
    let saves = if pages::by_way() { 30 } else { 200 };
    let saves: u32 = std::env::var("ELISION_SAVES").map_or(saves, |n| n.parse().expect("a number"));
    let (port, clone_port, images) = (Port::new(), Port::new(), Images::new());
    let (disk, copy) = (images.path("disk"), images.path("copy"));
    debian::disk(&[], &disk).expect("a disk");
    let base = GuestOptions::new("6.12").memory_mib(1024);
    let options = port.added_to(&base).root_disk(&disk);
    let mut guest = options.boot().expect("the guest boots");
    start(&mut guest, &base);
    sh(&mut guest, CHURN);
    for mode in ["spin", "fork=8", "threads=50", "sleep=5ms"] {
        let spawn = Spawn::new(mode, "heap", mode).cgroup("elision.slice/vault");
        guest.control().spawn(&spawn).expect(mode);
    }

    let image = images.path("image");
    let (mut refused, mut repaused, mut ratios, mut pauses) = (0, 0, Vec::new(), Vec::new());
    for round in 0..saves {
        let _ = std::fs::remove_dir_all(&image);
        let mut command = save(&guest, &image, &["container=vault", "unit=churn"]);
        let output =
            command.args(["--agent-policy", "require", "--json", "-vv"]).output().expect("elision starts");
        if !output.status.success() {
            println!("round {round}: {}", words(&output));
            refused += 1;
            continue;
        }
        let saved: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let ms = |value: &Value| value.as_f64().expect("a time");
        repaused += saved["looks"].as_u64().expect("a number") - 1;
        pauses.push(ms(&saved["pause_ms"]));
        ratios.push(ms(&saved["agent"]["calm_ms"]) / ms(&saved["pause_ms"]));
        if saved["looks"] != 1 || round % 20 == 0 {
            println!("{round}: {} looks, pause {}, {}", saved["looks"], saved["pause_ms"], saved["agent"]);
            println!("{}", String::from_utf8_lossy(&output.stderr));
        }
    }
    ratios.sort_by(f64::total_cmp);
    pauses.sort_by(f64::total_cmp);
    let longer = ratios.iter().filter(|ratio| **ratio >= RATIO).count();
    let (median, most) = (ratios[ratios.len() / 2], ratios[ratios.len() - 1]);
    let lines = [
        "| saves in a row | refused | with a second look | median pause, ms | frozen / pause, median | 90 % | most | saves from 1.5 |",
        "|---|---|---|---|---|---|---|---|",
        &format!(
            "| {saves} | {refused} | {repaused} | {:.0} | {median:.2} | {:.2} | {most:.2} | {longer} |",
            pauses[pauses.len() / 2],
            ratios[ratios.len() * 9 / 10],
        ),
        "",
        "Debian with systemd, Linux 6.12, 2 vCPUs, 1 GiB: a container that spins, sleeps, has 50 threads and 8 children, and a service",
        "that writes, syncs and forks without rest, both left out. The time frozen is the pause and what the agent",
        "counted beside it by the guest's clock.",
    ];
    println!("{}", lines.join("\n"));
    pages::write_result(
        "calm-saves",
        "Saves of a busy container that stands still",
        &lines.map(str::to_owned),
    )
    .expect("the page is written");

    // The source is unharmed, also where a part of a unit was moved.
    let half = support::json(
        save(&guest, &images.path("half"), &["comm=sleep"]).args(["--agent-policy", "require"]),
    );
    assert!(half["agent"]["processes"].as_u64() >= Some(2), "{half}");
    let state = sh(&mut guest, "systemctl show churn elision-agent -p ActiveState -p NRestarts");
    assert_eq!(state.matches("ActiveState=active").count(), 2, "{state}");
    assert_eq!(state.matches("NRestarts=0").count(), 2, "{state}");
    assert_eq!(sh(&mut guest, "systemctl is-system-running").trim(), "running");
    assert_eq!(sh(&mut guest, "find /sys/fs/cgroup -name elision-calm").trim(), "", "nothing is left over");

    // A copy with a copy of the disk of its moment.
    sh(&mut guest, "sync");
    let _ = std::fs::remove_dir_all(&image);
    let saved = support::json(&mut save(&guest, &image, &["container=vault", "unit=churn"]));
    debian::copy(&disk, &copy).expect("a copy of the disk");
    assert_eq!(saved["agent"]["calm"], true, "{saved}");
    drop(guest);
    let mut restored = restore(&clone_port.added_to(&base).root_disk(&copy), &image);
    let is_gone = "for i in $(seq 60); do [ \"$(systemctl is-active churn)\" = failed ] && exit 0; sleep 1; done; exit 1";
    sh(&mut restored, is_gone);
    sh(&mut restored, "grep -q 'populated 0' /sys/fs/cgroup/elision.slice/vault/cgroup.events");
    // The unit can be started again in its group.
    sh(&mut restored, "systemctl reset-failed churn");
    sh(&mut restored, CHURN);
    sh(&mut restored, "sleep 1; systemctl is-active churn elision-agent");
    // A processor can be met on its way into the kernel, whoever is on it; the VM runs on for a moment then.
    assert_eq!(refused, 0);
    assert!(repaused <= u64::from(saves / 100), "{repaused} second looks");
    assert!(median < RATIO || pages::by_way(), "frozen / pause: {median:.2}");
    assert_eq!(restored.console_problems(), Vec::<String>::new());
}
