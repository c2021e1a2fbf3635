//! One image, many VMs; and a VM that `elision run` started from a plain command.

mod support;

#[path = "support/agent.rs"]
#[allow(dead_code)] // this file uses a part
mod port;

use elision_testbed::{Endpoints, GuestOptions, RamMode, Spawn, pages, secret};
use port::{Port, options_with, start};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs::File;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};
use support::{Images, copies, elision, json as result, refuses, restore, save, sh, words};

#[test]
fn two_clones_of_one_image_run_at_the_same_time_and_apart() {
    let options = GuestOptions::new("6.1");
    let mut guest = options.boot().expect("the guest boots");
    guest.control().spawn(&Spawn::new("victim", "heap", "sleep=20ms").uid(1234)).expect("a victim");
    guest.control().spawn(&Spawn::new("bystander", "heap", "sleep=20ms")).expect("a bystander");
    let images = Images::new();
    let image = images.path("image");
    result(&mut save(&guest, &image, &["uid=1234"]));
    drop(guest);

    let mut clones = [restore(&options, &image), restore(&options, &image)];
    clones[0].control().sh("echo first > /tmp/who").expect("a shell");
    clones[1].control().sh("echo second > /tmp/who").expect("a shell");
    for (clone, name) in clones.iter_mut().zip(["first", "second"]) {
        assert_eq!(clone.control().sh("cat /tmp/who").expect("a shell").output.trim(), name);
        let before = clone.control().count("bystander").expect("counters");
        std::thread::sleep(Duration::from_millis(300));
        assert!(clone.control().count("bystander").expect("counters") > before, "{name} stands still");
        assert!(clone.console_problems().is_empty(), "{name}: {:?}", clone.console_problems());
    }
    // What the clones wrote is theirs alone.
    assert!(elision().arg("verify").arg(&image).status().expect("elision starts").success());

    let folder = image.parent().expect("a folder");
    let vms = || result(elision().arg("list").arg(folder))["images"][0]["vms"].clone();
    assert_eq!(vms().as_array().map(Vec::len), Some(2), "{}", vms());
    refuses(elision().arg("rm").arg(&image), 4, &["runs from", "--force"]);
    drop(clones);
    assert_eq!(vms(), json!([]));
    std::fs::write(image.join("notes.txt"), "mine").expect("a file");
    refuses(elision().arg("rm").arg(&image), 2, &["holds more than an image", "notes.txt"]);
    std::fs::remove_file(image.join("notes.txt")).expect("no file");
    result(elision().arg("rm").arg(&image));
    assert!(images.names().is_empty(), "{:?}", images.names());
    refuses(elision().arg("rm").arg(&image), 2, &["is not an image"]);
}

/// QEMU started by `elision run`; ended with the test.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_plain_command_started_by_run_can_be_saved_and_restored() {
    let options = GuestOptions::new("6.1").ram(RamMode::Plain);
    let folder = GuestOptions::new_folder().expect("a folder");
    let command = options.command_in(&folder).expect("a command");
    let mut run = elision();
    run.args(["run", "--name", &format!("test-{}", std::process::id()), "--"]).args(&command);
    let log = std::fs::File::create(folder.join("run.log")).expect("a log");
    let _started =
        Started(run.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().expect("elision starts"));
    let mut guest = options.attach(&folder).unwrap_or_else(|e| {
        panic!("{e}: {}", std::fs::read_to_string(folder.join("run.log")).unwrap_or_default())
    });
    let said = std::fs::read_to_string(folder.join("run.log")).expect("a log");
    assert!(said.contains("memory-backend-file"), "run must say what it added: {said}");

    guest.control().spawn(&Spawn::new("victim", "heap,thp", "block").uid(1234)).expect("a victim");
    let ps = result(elision().args(["ps", "--qmp"]).arg(Endpoints::new(&folder).qmp_socket()));
    assert!(ps.to_string().contains("1234"), "{ps}");
    let images = Images::new();
    let (plain, elided) = (images.path("plain"), images.path("elided"));
    result(&mut save(&guest, &plain, &[]));
    result(&mut save(&guest, &elided, &["uid=1234"]));
    assert!(copies(&plain, &["victim"])[0] > 1000, "control");
    assert_eq!(copies(&elided, &["victim"]), [0]);
    let mut restored = restore(&options, &elided);
    restored.control().ping().expect("the restored guest answers");

    let audit = elision().arg("audit").arg(&elided).output().expect("elision starts");
    assert_eq!(audit.status.code(), Some(2), "an audit without secrets: {}", words(&audit));
    assert_eq!(secret("victim").len(), 32);
}

/// Clones that are ended with the test.
struct Clones(Vec<u64>);

impl Drop for Clones {
    fn drop(&mut self) {
        for pid in &self.0 {
            let _ = std::process::Command::new("kill").args(["-9", &pid.to_string()]).status();
        }
    }
}

/// Of the network card, as QEMU was told.
const MAC: &str = "52:54:00:aa:00:01";

/// `ELISION_CLONES` says how many; without it 3, or 100 in the long form.
#[test]
fn many_clones_of_the_recorded_command_have_disks_and_sockets_of_their_own() {
    let usual = if pages::in_full() { 100 } else { 3 };
    let number = std::env::var("ELISION_CLONES").map_or(usual, |n| n.parse().expect("a number"));
    let images = Images::new();
    let disk = images.path("disk.img");
    File::create(&disk).and_then(|file| file.set_len(1 << 20)).expect("a disk");
    let drive = format!("file={},if=none,id=disk,format=raw,cache=unsafe", disk.display());
    // A hundred guests that all do something all the time would wait for each other on any machine.
    let (vcpus, tick) = if number > 10 { (1, "sleep=500ms") } else { (2, "sleep=20ms") };
    let port = Port::new();
    let options = port.added_to(&options_with("6.1", &["virtio_blk", "virtio_net"]).vcpus(vcpus));
    let options = options.extra(&["-drive", &drive, "-device", "virtio-blk-pci,drive=disk"]);
    let card = format!("virtio-net-pci,netdev=net,mac={MAC}");
    let options = options.extra(&["-netdev", "user,id=net", "-device", &card]);
    let options = options.extra(&["-device", "vmgenid,guid=auto"]);
    let mut guest = options.boot().expect("the guest boots");
    let allow = "mkdir -p /etc/elision && echo 'allow = [\"random\", \"clock\", \"identity\"]' > /etc/elision/agent.toml";
    sh(&mut guest, allow);
    start(&mut guest);
    sh(
        &mut guest,
        "until [ -b /dev/vda ] && ip link set eth0 up; do sleep 0.1; done; echo source | dd of=/dev/vda && sync",
    );
    guest.control().spawn(&Spawn::new("bystander", "heap", tick)).expect("a bystander");
    let image = images.path("image");
    result(&mut save(&guest, &image, &[]));

    let folder = images.path("image-clones");
    let clone = || {
        let mut command = elision();
        command.arg("restore").arg(&image).args(["--clones", &number.to_string()]);
        command
    };
    refuses(&mut clone(), 4, &["disk.img is being written", "a copy of the disk"]);
    assert!(!folder.exists(), "something is left of clones that did not start");
    // Ends the VM, and keeps its folder with the initramfs.
    let _ = guest.endpoints().qmp("quit", &json!({}));
    let (cloned, begin) = loop {
        let begin = Instant::now();
        let output = clone().arg("--json").output().expect("elision starts");
        if output.status.success() {
            break (serde_json::from_slice::<Value>(&output.stdout).expect("JSON"), begin);
        }
        assert!(words(&output).contains("is being written"), "{}", words(&output)); // it is ending
        std::thread::sleep(Duration::from_millis(50));
    };
    let vms = cloned["clones"].as_array().expect("a list");
    let _clones = Clones(vms.iter().filter_map(|vm| vm["pid"].as_u64()).collect());
    // Each guest prints a line all the time.
    let lines = |n: u64| {
        let text = std::fs::read(folder.join(n.to_string()).join("console.log")).unwrap_or_default();
        String::from_utf8_lossy(&text).lines().filter(|line| line.starts_with("TICK ")).count()
    };
    let each_has_more_than = |before: &dyn Fn(u64) -> usize| {
        let begin = Instant::now();
        for n in 1..=number {
            while lines(n) <= before(n) {
                assert!(begin.elapsed() < Duration::from_secs(120), "clone {n} prints nothing");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    };
    each_has_more_than(&|_| 0);
    let answered = begin.elapsed();
    let counted: Vec<_> = (1..=number).map(lines).collect();
    each_has_more_than(&|n| counted[usize::try_from(n - 1).expect("an index")] + 1);
    let pids: Vec<_> = vms.iter().filter_map(|vm| vm["pid"].as_u64()).collect();
    let memory: u64 = pids.iter().copied().map(pss_kib).sum();
    // A hundred guests leave each other no time to answer questions.
    drop(Clones(pids.into_iter().skip(3).collect()));
    refuses(&mut clone(), 4, &["image-clones", "--folder"]);
    for n in 1..=number.min(3) {
        let mut control =
            Endpoints::new(folder.join(n.to_string())).connect(Duration::from_secs(60)).expect("it answers");
        let mut sh = |command: &str| control.sh(command).expect("a shell").output.trim().to_owned();
        assert_eq!(sh("head -n 1 /dev/vda"), "source", "clone {n}");
        let n_th = usize::try_from(n - 1).expect("an index");
        assert_eq!(Some(sh("cat /sys/class/net/eth0/address").as_str()), mac(&vms[n_th]), "clone {n}");
        sh(&format!("echo clone-{n} | dd of=/dev/vda && sync && echo 3 > /proc/sys/vm/drop_caches"));
        assert_eq!(sh("head -n 1 /dev/vda"), format!("clone-{n}"));
        let before = control.count("bystander").expect("counters");
        let begin = Instant::now();
        while control.count("bystander").expect("counters") == before {
            assert!(begin.elapsed() < Duration::from_secs(30), "clone {n} stands still");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    let first = &std::fs::read(&disk).expect("the disk")[..16];
    assert!(
        first.starts_with(
            b"source
"
        ),
        "a clone has written to the source's disk: {first:?}"
    );
    let guids: BTreeSet<_> = vms.iter().filter_map(guid).collect();
    assert_eq!(guids.len() as u64, number, "{guids:?}");
    let macs: BTreeSet<_> = vms.iter().filter_map(mac).collect();
    assert!(macs.len() as u64 == number && !macs.contains(MAC), "{macs:?} {cloned}");
    let row = format!(
        "| {number} | {} | {} | {:.1} | {:.1} | {:.1} | {} |",
        guids.len(),
        macs.len(),
        cloned["total_ms"].as_f64().expect("a number") / 1000.0,
        answered.as_secs_f64(),
        memory as f64 / number as f64 / 1024.0,
        std::thread::available_parallelism().expect("processors"),
    );
    println!("{row}");
    if pages::in_full() {
        let lines = [
            "One image of a VM with 512 MiB and one vCPU, started many times by `elision restore --clones`. All of \
             them have printed more lines before their memory is measured (PSS: of shared memory its part). The last one runs when its \
             guest's agent, like all others, has given its network card a new address.\n",
            "| clones | different generation ids | different MAC addresses | the last one runs after, s | the last one has printed a line after, s | memory of each, MiB | processors |",
            "|---|---|---|---|---|---|---|",
            &row,
        ];
        pages::write_result("clones", "Clones", &lines.map(String::from)).expect("the page");
    }
}

/// Memory of a process, of shared memory its part.
fn pss_kib(pid: u64) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("a process");
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).expect("its memory");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// The generation id in a restored VM's command.
fn guid(vm: &Value) -> Option<&str> {
    let words = vm["command"].as_array()?.iter().filter_map(Value::as_str);
    words.filter_map(|word| word.strip_prefix("vmgenid,guid=")).next()
}

/// The new address of a restored VM's only network card.
fn mac(vm: &Value) -> Option<&str> {
    vm["agent"]["network_cards"][0]["to"].as_str()
}
