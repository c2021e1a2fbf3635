//! Memory of an image that is read when a VM needs it.

mod support;

use elision_testbed::{Endpoints, GuestOptions, RamMode, Spawn, pages};
use serde_json::Value;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use support::{Images, copies, elision, json, refuses, restore_in, restore_with, save, sh, words};

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

    let read_without_a_set = read_by_paused(&options, &image, |_| ());

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

    read_by_paused(&options, &image, |server| {
        let is_read = || bytes_read(server) > 4 * read_without_a_set;
        within(Duration::from_secs(10), "the working set is read ahead", is_read);
    });

    let (clone, told) = restore_with(&options, &image, &["--load-first"]);
    assert_eq!(told["memory"]["way"], "loaded", "{told}");
    assert!(server_of(&image).is_none());
    json(elision().arg("rm").arg(&image));
    drop(clone);
}

/// What the server of a VM that needs hardly anything, as it is paused, has read within a second.
fn read_by_paused(options: &GuestOptions, image: &Path, meanwhile: impl FnOnce(u64)) -> u64 {
    let folder = GuestOptions::new_folder().expect("a folder");
    let told = restore_in(&folder, options, image, &["--paused"]);
    let server = server_of(image).expect("a server");
    std::thread::sleep(Duration::from_secs(1));
    meanwhile(server);
    let bytes = bytes_read(server);
    assert!(Command::new("kill").args(["-9", &told["pid"].to_string()]).status().expect("kill").success());
    within(Duration::from_secs(10), "the server ends", || server_of(image).is_none());
    std::fs::remove_dir_all(folder).expect("the folder goes");
    bytes
}

fn bytes_read(pid: u64) -> u64 {
    let io = std::fs::read_to_string(format!("/proc/{pid}/io")).expect("what it read");
    let line = io.lines().find_map(|line| line.strip_prefix("rchar: ")).expect("a number of bytes");
    line.parse().expect("a number")
}

/// A compressed image of a VM with a process, which is gone.
fn compressed(options: &GuestOptions) -> (Images, PathBuf) {
    let mut guest = options.boot().expect("the guest boots");
    guest.control().spawn(&Spawn::new("bystander", "heap", "sleep=20ms")).expect("a bystander");
    let images = Images::new();
    let image = images.path("image");
    json(save(&guest, &image, &[]).arg("--compress"));
    (images, image)
}

/// What the documentation says of a server that is killed.
#[test]
fn a_vm_whose_server_is_killed_ends_and_does_not_run_with_wrong_memory() {
    let options = GuestOptions::new("6.1");
    let (images, image) = compressed(&options);
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

/// What the documentation says of a page that is damaged.
#[test]
fn a_vm_that_needs_a_damaged_page_ends_and_does_not_run_with_wrong_memory() {
    let options = GuestOptions::new("6.1");
    let (images, image) = compressed(&options);
    for is_damaged in [false, true] {
        if is_damaged {
            let file = File::options().read(true).write(true).open(image.join("ram.zst")).expect("a file");
            let middle = file.metadata().expect("its length").len() / 2;
            let mut byte = [0];
            file.read_exact_at(&mut byte, middle).expect("a byte");
            file.write_all_at(&[byte[0] ^ 1], middle).expect("a byte");
        }
        let folder = GuestOptions::new_folder().expect("a folder");
        let told = restore_in(&folder, &options, &image, &["--paused"]);
        assert_eq!(told["memory"]["way"], "served", "{told}");
        let dump = images.path("dump");
        let all = serde_json::json!({"val": 0, "size": 512 << 20, "filename": dump});
        let read: Result<Value, _> = Endpoints::new(&folder).qmp("pmemsave", &all);
        assert_eq!(read.is_err(), is_damaged, "{read:?}");
        let pid = told["pid"].as_u64().expect("a process id");
        let is_gone = || !Path::new(&format!("/proc/{pid}/fd")).exists() || state(pid) == 'Z';
        if !is_damaged {
            assert!(!is_gone(), "control");
            let killed = Command::new("kill").args(["-9", &pid.to_string()]).status();
            assert!(killed.expect("kill").success());
        }
        within(Duration::from_secs(10), "the VM ends", is_gone);
        within(Duration::from_secs(10), "the server ends", || server_of(&image).is_none());
        std::fs::remove_dir_all(folder).expect("the folder goes");
    }
    let told = words(&elision().arg("verify").arg(&image).output().expect("elision starts"));
    assert!(told.starts_with("Some(1)") && told.contains("ram.zst"), "{told}");
}

#[test]
fn without_fuse_all_is_loaded_first_and_it_is_said() {
    let options = GuestOptions::new("6.1");
    let (_images, image) = compressed(&options);
    let folder = GuestOptions::new_folder().expect("a folder");
    let options = options.ram(RamMode::Plain);
    // In a name space of its own the device is another one.
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", "mount --bind /dev/null /dev/fuse && exec \"$@\"", "sh"]);
    command.arg(elision().get_program()).arg("restore").arg(&image).arg("--qmp");
    command.arg(Endpoints::new(&folder).qmp_socket()).arg("--json").arg("--");
    let output =
        command.args(options.command_in(&folder).expect("a command")).output().expect("unshare starts");
    let told: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", words(&output)));
    assert_eq!(told["memory"]["way"], "loaded", "{told}");
    let problem = told["memory"]["problem"].as_str().unwrap_or_default();
    assert!(problem.contains("FUSE"), "{told}");
    assert!(server_of(&image).is_none());
    let mut clone = options.attach(&folder).expect("the restored guest answers");
    let count = clone.control().count("bystander").expect("counters");
    assert!(clone.control().health(1).expect("it answers").errors.is_empty());
    assert!(clone.control().count("bystander").expect("counters") > count);
}

fn state(pid: u64) -> char {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    text.rsplit(") ").next().and_then(|rest| rest.chars().next()).unwrap_or('Z')
}

/// Saves and restores in turns of a plain and of a compressed image.
#[derive(Default)]
struct Series {
    save: Vec<f64>,
    stored: Vec<f64>,
    runs: Vec<f64>,
    answers: Vec<f64>,
}

impl Series {
    fn save(&mut self, command: &mut Command) {
        let begin = Instant::now();
        let saved = json(command);
        self.save.push(begin.elapsed().as_secs_f64() * 1000.0);
        self.stored.push(saved["ram"]["stored"].as_f64().expect("bytes") / 1_048_576.0);
    }

    fn restore(&mut self, options: &GuestOptions, image: &Path, arguments: &[&str]) {
        let begin = Instant::now();
        let (mut clone, told) = restore_with(options, image, arguments);
        clone.control().ping().expect("it answers");
        self.answers.push(begin.elapsed().as_secs_f64() * 1000.0);
        self.runs.push(told["total_ms"].as_f64().expect("milliseconds"));
    }

    fn row(&self, fill: &str, way: &str) -> String {
        let figure = |figures: &[f64]| {
            if figures.is_empty() { String::new() } else { format!("{:.0}", median(figures)) }
        };
        let figures = [&self.save, &self.stored, &self.runs, &self.answers].map(|figures| figure(figures));
        format!("| {fill} | {way} | {} |", figures.join(" | "))
    }
}

fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// Measured only in the long form; `ELISION_PAIRS` says how many.
#[test]
fn a_restore_on_demand_is_about_as_fast_as_that_of_a_plain_image() {
    if !pages::in_full() {
        return;
    }
    let pairs = std::env::var("ELISION_PAIRS").map_or(5, |n| n.parse().expect("a number")).max(2);
    let options = GuestOptions::new("6.1");
    let mut lines = vec![
        format!(
            "A VM with 512 MiB, of which 48 MiB are filled. {pairs} rounds, all ways in turns, medians. *Saved* is the whole \
             command; *runs* is what `elision restore` tells (`total_ms`), *answers* is until a program in the guest has \
             answered. Elision was built {}.\n",
            pages::BUILD
        ),
        "| filled with | image, restored | saved, ms | stored, MiB | runs, ms | answers, ms |".to_owned(),
        "|---|---|---|---|---|---|".to_owned(),
    ];
    for (fill, command) in [
        ("text (numbers)", "seq 1 6000000 > /tmp/fill"),
        ("random bytes", "head -c 50331648 /dev/urandom > /tmp/fill"),
    ] {
        let mut guest = options.boot().expect("the guest boots");
        sh(&mut guest, command);
        let images = Images::new();
        let mut series: [Series; 4] = Default::default();
        for round in 0..pairs {
            let (plain, packed) =
                (images.path(&format!("plain-{round}")), images.path(&format!("packed-{round}")));
            series[0].save(&mut save(&guest, &plain, &[]));
            series[1].save(save(&guest, &packed, &[]).arg("--compress"));
        }
        guest.endpoints().stop().expect("it stops");
        let [plain, packed, recorded] = ["plain-0", "packed-0", "packed-1"].map(|name| images.path(name));
        drop(restore_with(&options, &recorded, &["--record"]));
        within(Duration::from_secs(30), "the working set is recorded", || {
            recorded.join("working-set.bin").exists()
        });
        let ways = [(&plain, &[][..]), (&packed, &[]), (&recorded, &[]), (&packed, &["--load-first"])];
        for round in 0..pairs {
            for i in (0..ways.len()).map(|i| (i + round) % ways.len()) {
                series[i].restore(&options, ways[i].0, ways[i].1);
            }
        }
        for (series, way) in series.iter().zip([
            "plain",
            "compressed",
            "compressed, working set recorded",
            "compressed, `--load-first`",
        ]) {
            lines.push(series.row(fill, way));
        }
        let ratio = |series_of: &Series| median(&series_of.answers) / median(&series[0].answers);
        println!(
            "{fill}: {:.2} x the plain image's time to the first answer, {:.2} x with a recorded working set",
            ratio(&series[1]),
            ratio(&series[2])
        );
    }
    println!("{}", lines.join("\n"));
    pages::write_result("compressed-images", "Compressed images", &lines).expect("the page");
}
