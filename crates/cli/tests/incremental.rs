//! `elision save --base`: a chain of images of one VM, whose policy changes in the middle.

mod support;

use elision_image::Image;
use elision_testbed::{Guest, GuestOptions, Spawn, pages, search, secret};
use serde_json::Value;
use std::path::Path;
use std::process::Command;
use support::{Images, elision, json, refuses, restore, save_as, words};

/// A save that fails as the guest was stopped at a bad moment is done again.
fn link(guest: &Guest, image: &Path, base: Option<&Path>, exclude: &[&str]) -> Value {
    let mut last = String::new();
    for _ in 0..10 {
        let mut command = save_as(None, guest, image, exclude);
        command.args(base.map(|base| format!("--base={}", base.display()))).arg("--json");
        let output = command.output().expect("elision starts");
        if output.status.success() {
            return serde_json::from_slice(&output.stdout).expect("JSON");
        }
        last = words(&output);
    }
    panic!("{last}");
}

/// How often secrets are in the files of an image that they could be in as they are.
fn in_files(image: &Path, labels: &[&str]) -> Vec<usize> {
    let secrets: Vec<_> = labels.iter().map(|label| secret(label)).collect();
    let mut found = vec![0; labels.len()];
    for name in
        ["ram.img", "page-hashes.bin", "state.bin", "exclusions.bin", "inherited.zst", "manifest.json"]
    {
        let path = image.join(name);
        if !path.exists() {
            continue;
        }
        let bytes = std::fs::read(&path).expect("a file of the image");
        for (found, secret) in found.iter_mut().zip(&secrets) {
            *found += memchr::memmem::find_iter(&bytes, secret).count();
        }
    }
    found
}

fn merge(image: &Path, all: bool) -> Command {
    let mut command = elision();
    command.arg("merge").arg(image).args(all.then_some("--all"));
    command
}

#[test]
fn a_chain_keeps_to_the_policy_of_each_link() {
    let links: usize = if pages::in_full() { 20 } else { 4 };
    let options = GuestOptions::new("6.1");
    let mut guest = options.boot().expect("the guest boots");
    let mut spawn = |label: &str, uid: u32| {
        guest.control().spawn(&Spawn::new(label, "heap=8M,stack,shm", "sleep=20ms").uid(uid)).expect(label);
    };
    spawn("early", 1001); // left out by both policies
    spawn("late", 1002); // by the second one
    spawn("stays", 1003);
    let labels = ["early", "late", "stays"];
    let images = Images::new();
    let path = |n: usize| images.path(&format!("link-{n:02}"));
    let mut rows = vec![
        "| link | stored, MiB | left out at first | left out later | stays |".to_owned(),
        "|---|---|---|---|---|".to_owned(),
    ];
    for n in 0..links {
        let exclude = if n < links / 2 { &["uid=1001"][..] } else { &["uid=1001", "uid=1002"] };
        let base = n.checked_sub(1).map(path);
        let saved = link(&guest, &path(n), base.as_deref(), exclude);
        let found = in_files(&path(n), &labels);
        let stored = saved["ram"]["stored"].as_u64().expect("a size") >> 20;
        rows.push(format!("| {n} | {stored} | {} | {} | {} |", found[0], found[1], found[2]));
        assert_eq!(found[0], 0, "link {n}: {found:?}");
        assert_eq!(found[1] == 0, n >= links / 2 || (n > 0 && found[1] == 0), "link {n}: {found:?}");
        assert!(n > 0 || (found[1] > 0 && found[2] > 0), "control: {found:?}");
        if n >= links / 2 {
            let ram = Image::open(&path(n)).expect("an image").ram().expect("its RAM");
            let found = search::find(&ram, &labels.map(secret)).expect("a search");
            assert!(
                found[0].is_empty() && found[1].is_empty() && !found[2].is_empty(),
                "link {n}, as a whole"
            );
        }
        if n > 0 {
            assert!(
                stored * 2 < Image::open(&path(0)).expect("an image").manifest().files.ram.stored_bytes >> 20
            );
        }
    }
    println!("{rows:#?}");
    json(elision().arg("verify").arg(path(links - 1)));
    refuses(elision().arg("rm").arg(path(0)), 4, &["builds on", "elision merge"]);
    let listed = json(elision().arg("list").arg(images.path("")));
    assert_eq!(listed["images"].as_array().map(Vec::len), Some(links));

    // One link goes, then all of the others.
    json(&mut merge(&path(links / 2), false));
    json(elision().arg("rm").arg(path(links / 2 - 1)));
    json(elision().arg("verify").arg(path(links - 1)));
    json(&mut merge(&path(links - 1), true));
    let others: Vec<_> = (0..links - 1).filter(|n| *n != links / 2 - 1).map(path).collect();
    json(elision().arg("rm").args(&others));
    let found = in_files(&path(links - 1), &labels);
    rows.push(format!("| merged | | {} | {} | {} |", found[0], found[1], found[2]));
    assert!(found[0] == 0 && found[1] == 0 && found[2] > 0, "merged: {found:?}");
    json(elision().arg("verify").arg(path(links - 1)));
    if pages::in_full() {
        pages::write_result("chain", "A chain of images with a policy that changes", &rows)
            .expect("the page");
    }
    drop(guest);
    let mut restored = restore(&options, &path(links - 1));
    restored.control().ping().expect("the guest answers");
    assert!(restored.console_problems().is_empty(), "{:?}", restored.console_problems());
}

/// A link restores like any image, without its chain being folded first.
#[test]
fn a_link_is_restored() {
    let options = GuestOptions::new("6.12");
    let mut guest = options.boot().expect("the guest boots");
    guest.control().spawn(&Spawn::new("victim", "heap=8M,stack", "sleep=20ms").uid(1234)).expect("a process");
    guest.control().spawn(&Spawn::new("stays", "heap=8M,stack", "sleep=20ms").uid(77)).expect("a process");
    let images = Images::new();
    let (first, second) = (images.path("first"), images.path("second"));
    link(&guest, &first, None, &[]);
    let before = guest.control().count("stays").expect("counters").expect("a count");
    link(&guest, &second, Some(&first), &["uid=1234"]);
    drop(guest);
    let mut restored = restore(&options, &second);
    assert!(restored.control().count("stays").expect("counters").expect("a count") > before);
    let health = restored.control().health(3).expect("health");
    assert!(health.errors.is_empty(), "{health:?}");
    assert!(restored.console_problems().is_empty(), "{:?}", restored.console_problems());
    drop(restored);

    std::fs::remove_dir_all(&first).expect("an image");
    refuses(elision().arg("verify").arg(&second), 1, &["first", "which cannot be used"]);
}

#[test]
fn what_cannot_build_on_an_image_is_said() {
    let options = GuestOptions::new("6.1").ram(elision_testbed::RamMode::Plain);
    let guest = options.boot().expect("the guest boots");
    let images = Images::new();
    let (first, second) = (images.path("first"), images.path("second"));
    link(&guest, &first, None, &[]);
    let mut command = save_as(None, &guest, &second, &[]);
    refuses(command.arg("--base").arg(&first), 4, &["cannot be compared", "elision run"]);
    assert_eq!(images.names(), ["first"]);
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// Measured only in the long form: a whole image, and one that builds on it after the guest has written a twentieth of its memory.
#[test]
fn a_second_save_is_measured_beside_the_first() {
    if !pages::in_full() {
        return;
    }
    const PAIRS: usize = 5;
    let options = GuestOptions::new("6.1").memory_mib(2048);
    let mut guest = options.boot().expect("the guest boots");
    guest.control().spawn(&Spawn::new("fill", "heap=800M", "sleep=20ms")).expect("a process");
    let images = Images::new();
    let (first, second) = (images.path("first"), images.path("second"));
    link(&guest, &first, None, &[]); // the kernel's profile is compiled
    std::fs::remove_dir_all(&first).expect("an image");
    let mut figures: [Vec<f64>; 6] = Default::default();
    for round in 0..PAIRS {
        let mut save = |guest: &Guest, base: Option<&Path>, image: &Path, at: usize| {
            let begin = std::time::Instant::now();
            let saved = link(guest, image, base, &[]);
            figures[at].push(begin.elapsed().as_secs_f64() * 1000.0);
            figures[at + 1].push(saved["pause_ms"].as_f64().expect("a pause"));
            figures[at + 2].push(saved["ram"]["stored"].as_f64().expect("a size") / f64::from(1 << 20));
        };
        save(&guest, None, &first, 0);
        // 100 MiB, a twentieth: the memory of a process that is new.
        let dirt = Spawn::new(&format!("dirt-{round}"), "heap=80M", "sleep=20ms");
        let pid = guest.control().spawn(&dirt).expect("a process").pid;
        save(&guest, Some(&first), &second, 3);
        guest.control().kill(pid, 9).expect("it ends");
        for image in [&second, &first] {
            std::fs::remove_dir_all(image).expect("an image");
        }
    }
    let [total, pause, stored, total_2, pause_2, stored_2] = figures.map(median);
    let row = |name: &str, figures: [f64; 3]| {
        format!("| {name} | {:.0} | {:.0} | {:.1} |", figures[0], figures[1], figures[2])
    };
    let lines = [
        format!(
            "A VM with 2 GiB, of which 1 GiB is filled, saved as a whole, and again with `--base` after a process has written 5 % of \
             the memory. {PAIRS} pairs, medians. *Saved* is the whole command. Elision was built {}.\n",
            pages::BUILD
        ),
        "| | saved, ms | paused, ms | stored, MiB |".to_owned(),
        "|---|---|---|---|".to_owned(),
        row("the whole", [total, pause, stored]),
        row("what has changed", [total_2, pause_2, stored_2]),
        format!(
            "| ratio | {:.2} x | {:.2} x | {:.3} x |",
            total_2 / total,
            pause_2 / pause,
            stored_2 / stored
        ),
    ];
    println!("{}", lines.join("\n"));
    pages::write_result("second-saves", "Second saves", &lines).expect("the page");
}
