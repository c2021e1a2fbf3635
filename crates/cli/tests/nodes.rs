//! VMs whose RAM comes from several memory backends, one for each NUMA node.

mod support;

use elision_image::Image;
use elision_memory::FileOffset;
use elision_testbed::{Endpoints, Guest, GuestOptions, RamMode, Spawn, pages, search, secret};
use std::path::Path;
use support::{Images, copies, elision, json, save_as, sh, words};

const LABELS: [&str; 4] = ["victim-0", "victim-1", "bystander-0", "bystander-1"];
/// Copies of a secret that a process has at least in its node, of which it fills 8 MiB.
const MANY: usize = 100_000;

const FILE: &str = "memory-backend-file,share=on";
const MEMFD: &str = "memory-backend-memfd";
const PRIVATE: &str = "memory-backend-ram";

/// A process that is left out and one that stays in each node, whose memory is in that node alone.
fn play(guest: &mut Guest) {
    sh(guest, "echo +cpuset > /sys/fs/cgroup/cgroup.subtree_control");
    for node in 0..2 {
        let folder = format!("/sys/fs/cgroup/node{node}");
        sh(guest, &format!("mkdir {folder} && echo {node} > {folder}/cpuset.mems"));
        for (name, mode, uid) in [("victim", "spin", 1234), ("bystander", "sleep=20ms", 0)] {
            let spawn = Spawn::new(&format!("{name}-{node}"), "heap=8M,stack,shm", mode);
            guest.control().spawn(&spawn.uid(uid).cgroup(&format!("node{node}"))).expect("a process");
        }
    }
}

/// How often the secret of each label stands in each of the two blocks of an image's RAM.
fn by_node(image: &Path) -> Vec<[usize; 2]> {
    let image = Image::open(image).expect("an image");
    let blocks = image.manifest().ram_blocks();
    let names: Vec<_> = blocks.iter().map(|block| block.name.as_str()).collect();
    assert_eq!(names, ["node0", "node1"]);
    let needles = LABELS.map(secret);
    let found = search::find(&image.ram().expect("its RAM"), &needles).expect("a search");
    let in_second = |offset: &&FileOffset| **offset >= blocks[1].offset;
    let second = found.iter().map(|places| (places.iter().filter(in_second).count(), places.len()));
    second.map(|(second, all)| [all - second, second]).collect()
}

/// Whether each process that stays has its memory in its node, and of the others there is `victims`.
fn check(found: &[[usize; 2]], victims: bool, what: &str) {
    println!("{what}: {found:?}");
    for (node, pair) in [(0, [found[0], found[2]]), (1, [found[1], found[3]])] {
        let [victim, bystander] = pair;
        assert!(bystander[node] >= MANY && bystander[1 - node] < MANY / 100, "{what}: {found:?}");
        if victims {
            assert!(victim[node] >= MANY && victim[1 - node] < MANY / 100, "{what}: control: {found:?}");
        } else {
            assert_eq!(victim, [0, 0], "{what}: {found:?}");
        }
    }
}

/// Both processes that stay go on, their memory is as it was, and the others are gone.
fn lives(mut guest: Guest, images: &Images, what: &str) {
    let mut counts =
        || ["bystander-0", "bystander-1"].map(|label| guest.control().count(label).expect("counters"));
    let before = counts();
    std::thread::sleep(std::time::Duration::from_millis(500));
    let after = counts();
    assert!(before.iter().zip(&after).all(|(a, b)| a < b), "{what}: {before:?} {after:?}");
    assert!(guest.control().health(1).expect("it answers").errors.is_empty(), "{what}");
    let users = sh(&mut guest, "grep -h Uid: /proc/[0-9]*/status 2>/dev/null; true");
    assert!(users.contains("Uid:") && !users.contains("1234"), "{what}: {users}");
    // A restored VM is saved like any other.
    let image = images.path("again");
    json(&mut save_as(None, &guest, &image, &[]));
    check(&by_node(&image), false, &format!("{what}, restored"));
    assert!(guest.console_problems().is_empty(), "{what}: {:?}", guest.console_problems());
}

/// Restored by a command that has nodes of its own.
fn beside(options: &GuestOptions, image: &Path) -> Guest {
    let options = options.clone().ram(RamMode::Nodes([PRIVATE, PRIVATE]));
    let folder = GuestOptions::new_folder().expect("a folder");
    let mut command = elision();
    command.arg("restore").arg(image).arg("--qmp").arg(Endpoints::new(&folder).qmp_socket()).arg("--json");
    let output = command.arg("--").args(options.command_in(&folder).expect("a command")).output();
    let output = output.expect("elision starts");
    assert!(output.status.success(), "{command:?} failed: {}", words(&output));
    assert!(words(&output).contains("\"served\""), "{}", words(&output));
    options.attach(&folder).expect("the restored guest answers")
}

/// How a save is called and what it says that it did.
type Ways = &'static [(Option<&'static str>, &'static str)];

fn saved_and_restored(options: &GuestOptions, ways: Ways, what: &str) {
    let mut guest = options.boot().unwrap_or_else(|e| panic!("{what}: {e}"));
    play(&mut guest);
    let images = Images::new();
    let (_, first) = ways[0];
    for &(live, way) in ways {
        let what = format!("{what}, {way}");
        let plain = images.path(&format!("plain-{way}"));
        assert_eq!(json(&mut save_as(live, &guest, &plain, &[]))["way"], way, "{what}");
        check(&by_node(&plain), true, &what);
        let image = images.path(way);
        let mut command = save_as(live, &guest, &image, &["uid=1234"]);
        json(command.args((way == first).then_some("--compress")));
        check(&by_node(&image), false, &what);
        assert_eq!(copies(&image, &LABELS)[..2], [0, 0], "{what}: in the device state");
        json(elision().arg("verify").arg(&image));
        std::fs::remove_dir_all(&plain).expect("an image");
    }
    // By a command of the user's own, beside the source, and by the recorded one. The first image's memory is served.
    lives(beside(options, &images.path(first)), &images, what);
    std::fs::remove_dir_all(images.path("again")).expect("an image");
    let (_, last) = ways[ways.len() - 1];
    let folder = guest.endpoints().folder().to_owned();
    drop(guest);
    std::fs::create_dir(&folder).expect("the folder is gone");
    let socket = Endpoints::new(&folder).qmp_socket();
    let restored = json(elision().arg("restore").arg(images.path(last)).arg("--qmp").arg(socket));
    println!("{what}: restored after {} ms", restored["total_ms"]);
    lives(options.attach(&folder).expect("the restored guest answers"), &images, what);
}

#[test]
fn every_way_leaves_processes_out_of_all_nodes() {
    const SHARED: Ways = &[(None, "shared"), (Some("--live"), "live")];
    const SENT: Ways = &[(None, "stream"), (Some("--live"), "live")];
    let mut cases = vec![
        ("files", [FILE, FILE], SHARED),
        ("private", [PRIVATE, PRIVATE], SENT),
        ("memfds", [MEMFD, MEMFD], SHARED),
        ("a file and a private one", [FILE, PRIVATE], SENT),
    ];
    if !pages::in_full() {
        cases.truncate(2);
    }
    for (i, (name, backends, ways)) in cases.into_iter().enumerate() {
        let options = GuestOptions::new(["6.12", "7", "5.10", "6.1"][i]).ram(RamMode::Nodes(backends));
        let options = if i % 2 == 1 { options.pc() } else { options };
        saved_and_restored(&options, ways, name);
    }
}

#[test]
fn a_node_on_both_sides_of_the_pci_hole_is_left_out_of() {
    let options = GuestOptions::new("6.1").memory_mib(3072).ram(RamMode::Nodes([MEMFD, MEMFD]));
    saved_and_restored(&options, &[(None, "shared")], "3 GiB");
}
