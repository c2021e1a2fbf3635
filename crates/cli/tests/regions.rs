//! Marked memory of a process that goes on: after a restore it is zero, and nothing else of the process has changed.

mod support;

use elision_testbed::{Guest, GuestOptions, Planted, Spawn, Status, pages, programs};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use support::{Images, copies, json, refuses, restore, save, sh, swap};

const STOP: i32 = 19;
const CONTINUE: i32 = 18;

/// A checksum of each area that a process can read, but of those that change while it stands still.
fn sums(guest: &mut Guest, pid: i32) -> BTreeMap<String, String> {
    let text = sh(
        guest,
        &format!(
            "while read area rights rest; do
                case \"$rights $rest\" in -*|*vvar*|*vsyscall*|*/run/counters*) continue;; esac
                from=$((0x${{area%-*}} / 4096)) to=$((0x${{area#*-}} / 4096))
                sum=$(dd if=/proc/{pid}/mem bs=4096 skip=$from count=$((to - from)) 2>/dev/null | md5sum)
                echo $area ${{sum%% *}}
            done < /proc/{pid}/maps",
        ),
    );
    let pairs = text.lines().filter_map(|line| line.split_once(' '));
    pairs.map(|(area, sum)| (area.to_owned(), sum.to_owned())).collect()
}

/// How many bytes of a planted range are not zero.
fn not_zero(guest: &mut Guest, pid: i32, planted: &Planted) -> u64 {
    let (from, count) = (planted.address / 4096, planted.len / 4096);
    let dd = format!("dd if=/proc/{pid}/mem bs=4096 skip={from} count={count} 2>/dev/null");
    let length: u64 = sh(guest, &format!("{dd} | wc -c")).trim().parse().expect("a number");
    assert_eq!(length, planted.len, "{}: not all of it was read", planted.place);
    sh(guest, &format!("{dd} | tr -d '\\000' | wc -c")).trim().parse().expect("a number")
}

/// The areas that hold one of the planted ranges.
fn marked_areas<'a>(sums: &'a BTreeMap<String, String>, planted: &'a [Planted]) -> Vec<&'a String> {
    let bounds = |area: &str| {
        let (from, to) = area.split_once('-').expect("a range");
        let hex = |text| u64::from_str_radix(text, 16).expect("a hexadecimal number");
        hex(from)..hex(to)
    };
    sums.keys().filter(|area| planted.iter().any(|p| bounds(area).contains(&p.address))).collect()
}

/// A stopped process with marked memory of each kind, compared byte by byte before the save and after the restore.
fn exactly_the_marked_memory_is_zero(kernel: &str, places: &[&str], selectors: &[&str]) {
    let options = GuestOptions::new(kernel);
    let mut guest = options.boot().expect("the guest boots");
    let spawn = Spawn::new("marker", &format!("heap=256K,shm=256K,{}", places.join(",")), "sleep=20ms");
    let process = guest.control().spawn(&spawn).expect("a process");
    let pid = process.pid;
    let marked: Vec<Planted> =
        process.planted.into_iter().filter(|p| places.contains(&p.place.as_str())).collect();
    assert_eq!(marked.len(), places.len());
    guest.control().kill(pid, STOP).expect("it stops");
    let before = sums(&mut guest, pid);
    let areas = marked_areas(&before, &marked);
    assert_eq!(areas.len(), places.len(), "an area for each mark: {areas:?} of {:?}", before.keys());
    for place in &marked {
        assert!(not_zero(&mut guest, pid, place) > place.len / 2, "control: {} is empty", place.place);
    }

    let images = Images::new();
    let image = images.path("vm");
    let saved = json(&mut save(&guest, &image, selectors));
    let bytes: u64 = marked.iter().map(|p| p.len).sum();
    // A private mapping of a file has pages of its own, and so has the file.
    let twice: u64 = marked.iter().filter(|p| p.place == "marked-private").map(|p| p.len).sum();
    let dropped = saved["plan"]["dropped_frames"]["region"].as_u64().expect("a count");
    assert_eq!(dropped, (bytes + twice) / 4096, "{saved}");
    let of_process = &saved["plan"]["frames_by_owner"][pid.to_string()];
    assert_eq!(of_process.as_u64(), Some(dropped), "{saved}");
    assert_eq!(sums(&mut guest, pid), before, "the source was changed");
    drop(guest);

    let mut restored = restore(&options, &image);
    let after = sums(&mut restored, pid);
    assert_eq!(after.keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>(), "areas");
    for (area, sum) in &before {
        let changed = after[area] != *sum;
        assert_eq!(changed, areas.contains(&area), "{kernel}: {area}: changed: {changed}");
    }
    for place in &marked {
        assert_eq!(not_zero(&mut restored, pid, place), 0, "{kernel}: {} is not zero", place.place);
    }
    restored.control().kill(pid, CONTINUE).expect("it goes on");
    let count = restored.control().count("marker").expect("counters");
    wait_until("it runs", || restored.control().count("marker").expect("counters") > count);
    assert_eq!(restored.control().status(pid).expect("the guest answers"), Status::Running);
    assert_eq!(restored.console_problems(), Vec::<String>::new());
    println!("{kernel}: {} areas unchanged, {} zero: {bytes} bytes", before.len() - areas.len(), areas.len());
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < Duration::from_secs(60), "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

const NAMED: [&str; 3] = ["marked-memfd", "marked-private", "marked-hugetlb"];

#[test]
fn exactly_the_marked_memory_is_zero_on_5_10_by_memfd() {
    exactly_the_marked_memory_is_zero("5.10", &NAMED, &["region=named"]);
}

#[test]
fn exactly_the_marked_memory_is_zero_on_7() {
    let places = [&NAMED[..], &["dontdump", "dontdump-shared"]].concat();
    exactly_the_marked_memory_is_zero("7", &places, &["region=named", "region=dontdump"]);
}

#[test]
fn exactly_the_marked_memory_is_zero_on_other_kernels() {
    if pages::in_full() {
        let places = [&NAMED[..], &["dontdump", "dontdump-shared"]].concat();
        for kernel in ["5.10", "6.1", "6.12"] {
            exactly_the_marked_memory_is_zero(kernel, &places, &["region=named", "region=dontdump"]);
        }
    }
}

/// The examples of `crates/mark`, in C and in Rust: each notices that its key is gone, takes a new one and goes on.
#[test]
fn a_program_notices_that_its_marked_memory_is_gone() {
    let folder = tempfile::tempdir().expect("a folder");
    let c = programs::c_program("crates/mark/c/keeper.c", folder.path()).expect("a C compiler");
    let rust = programs::rust_example("elision-mark", "keeper").expect("the example");
    let files = |(name, file): (&str, PathBuf)| (format!("bin/{name}"), file);
    let options =
        GuestOptions::new("6.12").files([("keeper-c", c), ("keeper-rust", rust)].map(files).to_vec());
    let mut guest = options.boot().expect("the guest boots");
    let names = ["keeper-c", "keeper-rust"];
    for name in names {
        sh(&mut guest, &format!("chmod 755 /bin/{name}; /bin/{name} > /tmp/{name} 2>&1 &"));
        wait_until("it ticks", || sh(&mut guest, &format!("cat /tmp/{name}")).contains("tick 3 of key"));
    }
    let images = Images::new();
    let (whole, marked) = (images.path("whole"), images.path("marked"));
    json(&mut save(&guest, &whole, &[]));
    json(&mut save(&guest, &marked, &["region=named"]));
    for (image, goes) in [(whole, false), (marked, true)] {
        let mut restored = restore(&options, &image);
        for name in names {
            let before = sh(&mut restored, &format!("cat /tmp/{name}")).lines().count();
            let mut log = String::new();
            wait_until("it ticks again", || {
                log = sh(&mut restored, &format!("cat /tmp/{name}"));
                log.lines().count() > before + 5
            });
            let ticks = log.lines().map(|line| line.split([' ', ':']).nth(1).expect("a tick"));
            assert!(ticks.eq((0..log.lines().count()).map(|n| n.to_string())), "{name}: {log}");
            let mut keys: Vec<&str> = log.lines().filter_map(|line| line.split(" of key ").nth(1)).collect();
            keys.dedup();
            let gone = log.matches("the key is gone").count();
            assert_eq!((gone, keys.len()), if goes { (1, 2) } else { (0, 1) }, "{name}: {log}");
        }
        assert_eq!(restored.console_problems(), Vec::<String>::new());
    }
}

#[test]
fn secret_memory_of_a_process_that_goes_on_is_left_out() {
    let options = GuestOptions::new("6.1").append("secretmem.enable=1");
    let mut guest = options.boot().expect("the guest boots");
    let places = ["secretmem", "secretmem-open"];
    let pids = places.map(|place| {
        let spawn = Spawn::new(place, place, "sleep=20ms");
        guest.control().spawn(&spawn).unwrap_or_else(|e| panic!("{place}: {e}")).pid
    });
    let images = Images::new();
    let (plain, elided) = (images.path("plain"), images.path("elided"));
    json(&mut save(&guest, &plain, &[]));
    let saved = json(&mut save(&guest, &elided, &["region=secretmem"]));
    let (before, after) = (copies(&plain, &places), copies(&elided, &places));
    println!("copies of {places:?}: {before:?}, then {after:?}; {}", saved["plan"]["dropped_frames"]);
    assert!(before.iter().all(|n| *n > 1000), "control: {before:?}");
    assert_eq!(after, [0, 0]);
    let mut restored = restore(&options, &elided);
    for (place, pid) in places.iter().zip(pids) {
        let count = restored.control().count(place).expect("counters");
        wait_until("it runs", || restored.control().count(place).expect("counters") > count);
        assert_eq!(restored.control().status(pid).expect("the guest answers"), Status::Running);
    }
    assert_eq!(restored.console_problems(), Vec::<String>::new());
}

#[test]
fn marks_that_cannot_be_kept_are_refused() {
    let options = GuestOptions::new("6.1");
    let mut guest = options.boot().expect("the guest boots");
    let images = Images::new();
    let image = images.path("vm");
    // Nothing is marked: more likely a mistake than a wish.
    for region in ["named", "dontdump", "secretmem"] {
        let selector = format!("region={region}");
        refuses(&mut save(&guest, &image, &[&selector]), 3, &["matches", &selector]);
    }
    let policy = images.path("policy.toml");
    std::fs::write(&policy, "[[exclude]]\nregion = 'dontdump'\noptional = true\n").expect("a file");
    json(save(&guest, &image, &[]).arg("--policy").arg(&policy));
    std::fs::remove_dir_all(&image).expect("the image");

    // A page that another process has unmarked can neither stay nor go.
    let forked = guest.control().spawn(&Spawn::new("forked", "dontdump-forked", "sleep=20ms"));
    let pid = forked.expect("a process").pid;
    let parts = [format!("process {pid} (actor) has 64 KiB of marked memory that another process")];
    refuses(&mut save(&guest, &image, &["region=dontdump"]), 3, &parts.each_ref().map(String::as_str));
    let child_of = |guest: &mut Guest| {
        let processes = guest.control().processes().expect("the guest answers");
        processes.iter().find(|p| p.ppid == pid && p.state != "Z").map(|p| p.pid)
    };
    let child = child_of(&mut guest).expect("a child");
    guest.control().kill(child, 9).expect("it ends");
    wait_until("the child ended", || child_of(&mut guest).is_none());
    // An entry may be about some processes only.
    for (comm, frames) in [("actor", Some(16)), ("another", None)] {
        let text = format!("[[exclude]]\nregion = 'dontdump'\ncomm = '{comm}'\n");
        std::fs::write(&policy, text).expect("a file");
        let mut command = save(&guest, &image, &[]);
        command.arg("--policy").arg(&policy);
        if frames.is_none() {
            refuses(&mut command, 3, &["matches", "region=dontdump"]);
        } else {
            assert_eq!(json(&mut command)["plan"]["dropped_frames"]["region"].as_u64(), frames);
            std::fs::remove_dir_all(&image).expect("the image");
        }
    }
    guest.control().kill(pid, 9).expect("it ends");

    // So it is with what stands on a disk.
    swap::turn_on(&mut guest, &options);
    let swapped = Spawn::new("swapped", "dontdump=4M", "sleep").cgroup("/swapped");
    let pid = guest.control().spawn(&swapped).expect("a process").pid;
    sh(&mut guest, "echo 12M > /sys/fs/cgroup/swapped/memory.reclaim || true");
    let used = sh(&mut guest, &format!("grep VmSwap /proc/{pid}/status"));
    let kib: u64 = used.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number");
    assert!(kib > 1024, "control: {used}");
    let parts = [format!("process {pid} (actor) has"), "KiB of marked memory in swap".to_owned()];
    refuses(&mut save(&guest, &image, &["region=dontdump"]), 3, &parts.each_ref().map(String::as_str));
    let saved = json(save(&guest, &image, &["region=dontdump"]).arg("--best-effort"));
    assert!(saved["plan"]["unaccounted"][0].as_str().is_some_and(|what| what.contains("in swap")), "{saved}");
    std::fs::remove_dir_all(&image).expect("the image");
    sh(&mut guest, "swapoff /dev/loop0");
    json(&mut save(&guest, &image, &["region=dontdump"]));
    assert_eq!(guest.console_problems(), Vec::<String>::new());
}
