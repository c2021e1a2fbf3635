//! The leak matrix: every channel in which the kernel keeps data of a process, on every kernel, for a process
//! that lives and for one that has ended.
//!
//! ```text
//! one guest: for each channel NAME-live (excluded), NAME-kept (a bystander), then NAME-ended
//! control    the secret is in a save that excludes nothing, or, where that leaves out what is freed, in RAM
//! leak       the secret, or 8 bytes of it, in any encoding, in the RAM or the device state of the elided image
//! ```

#[path = "../support/mod.rs"]
mod support;
mod table;

use elision_audit::{Needles, Place, Secrets};
use elision_image::Image;
use elision_kernel::{Kernel, ProfileCache};
use elision_memory::{Gpa, Ram};
use elision_testbed::{Guest, GuestOptions, Spawn, Status, kernels, pages, secret};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use support::{Images, end_of, json, restore, save, swap, words};
use table::{CHANNELS, Channel, NOT_EXERCISED};

const GROUP: &str = "/left-out";
const FRAGMENT: usize = 8;
/// The kernel frees some objects a moment after the end of their process, when nobody can be looking at them.
const GRACE: Duration = Duration::from_millis(500);
/// Copies of a bystander that a guest which runs on may have overwritten between two saves.
const DRIFT: u64 = 4;
/// Places that are told of a leak.
const PLACES: usize = 3;
/// Guests in which a channel gets to show its control: what was freed, the guest may have used again by then.
const TRIES: usize = 3;

/// The cells of one channel on one kernel.
#[derive(Default)]
struct Row {
    /// Why the channel could not be filled.
    missing: Option<String>,
    /// Copies in the control and in the elided image.
    live: (u64, u64),
    kept: (u64, u64),
    ended: (u64, u64),
    /// Every copy of 8 bytes or more that should not be there.
    leaks: Vec<String>,
}

impl Row {
    /// The control that is not there, without which the row shows nothing.
    fn lost(&self, channel: &Channel) -> Option<String> {
        if self.missing.is_some() {
            None
        } else if self.live.0 == 0 {
            Some("control: nothing was there to leak".to_owned())
        } else if channel.not_ended.is_none() && self.ended.0 == 0 {
            Some("control: the ended process left nothing".to_owned())
        } else if !channel.freed && (self.kept.1 + DRIFT < self.kept.0 || self.kept.1 == 0) {
            Some(format!("the bystander's data is gone: {}", cell(self.kept)))
        } else {
            None
        }
    }
}

/// Copies of the secrets of many labels.
struct Found {
    counts: BTreeMap<String, u64>,
    fragments: BTreeMap<String, (u64, Vec<Place>)>,
}

impl Found {
    fn count(&self, channel: &Channel, label: &str) -> u64 {
        let whole = || self.counts.get(label).copied().unwrap_or(0);
        let pieces = || self.fragments.get(label).map_or(0, |(count, _)| *count);
        if channel.pieces { pieces() } else { whole() }
    }

    /// Any part of a secret that is in an image in which it should not be.
    fn leak(&self, label: &str, image: &Path) -> Option<String> {
        let (count, places) = self.fragments.get(label)?;
        Some(format!("{label}: {count} pieces at {}", describe(image, places)))
    }
}

fn find(labels: &[String], search: impl Fn(&Needles) -> elision_audit::Report) -> Found {
    let secrets: Vec<_> = labels.iter().map(|label| secret(label)).collect();
    let needles =
        |parts: Vec<&[u8]>| Needles::new(&Secrets::from_bytes(parts).expect("secrets")).expect("needles");
    let whole = search(&needles(secrets.iter().map(|s| s.as_slice()).collect()));
    let parts = search(&needles(secrets.iter().flat_map(|s| s.chunks(FRAGMENT)).collect()));
    let pieces = secrets.first().map_or(1, |s| s.len() / FRAGMENT);
    let mut fragments: BTreeMap<String, (u64, Vec<Place>)> = BTreeMap::new();
    for finding in parts.findings {
        let (count, places) = fragments.entry(labels[finding.secret / pieces].clone()).or_default();
        *count += finding.count;
        places.extend(finding.places);
    }
    Found { counts: (0..).zip(labels).map(|(i, label)| (label.clone(), whole.count(i))).collect(), fragments }
}

fn in_ram(ram: &Ram, labels: &[String]) -> Found {
    find(labels, |needles| needles.search_ram(ram, PLACES, &|_| ()).expect("a search"))
}

/// RAM and device state of an image together.
fn in_image(image: &Path, labels: &[String]) -> Found {
    let image = Image::open(image).expect("an image");
    let mut found = in_ram(&image.ram().expect("its RAM"), labels);
    let state = image.state().expect("its state");
    let of_state = find(labels, |needles| needles.search_bytes(&state, PLACES));
    for (label, count) in of_state.counts {
        *found.counts.entry(label).or_default() += count;
    }
    for (label, (count, places)) in of_state.fragments {
        let all = found.fragments.entry(label).or_default();
        all.0 += count;
        all.1.extend(places);
    }
    found
}

/// What the frames are in which something was left.
fn describe(image: &Path, places: &[Place]) -> String {
    let image = Image::open(image).expect("an image");
    let ram = image.ram().expect("its RAM");
    let kernel = Kernel::open(&ram, &[], &ProfileCache::disabled()).expect("its kernel");
    let mut scan = kernel.scan_frames().expect("its frames");
    scan.explain(&kernel, &kernel.processes().expect("its processes")).expect("what they map");
    scan.find_holders(&kernel);
    let kind = |gpa: &Gpa| {
        let owner = kernel.frame_owner(&scan, gpa.gfn()).ok().flatten();
        let owner = owner.map_or("nobody known".to_owned(), |owner| owner.to_string());
        format!("{}, of {owner}", scan.kind(gpa.gfn()).name())
    };
    let place = |place: &Place| match place {
        Place::Ram { gpa } => format!("{gpa} ({})", kind(gpa)),
        other => format!("{other:?}"),
    };
    places.iter().take(2 * PLACES).map(place).collect::<Vec<_>>().join(", ")
}

fn label(channel: &Channel, form: &str) -> String {
    format!("{}-{form}", channel.name.split('=').next().unwrap_or_default())
}

/// Waits for so long by the guest's own clock, which a busy machine holds up.
fn wait(guest: &mut Guest, time: Duration) {
    let mut clock = || Duration::from_nanos(guest.control().clock().expect("a clock"));
    let end = clock() + time;
    while clock() < end {
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What one process has just left: copies in RAM and in an elided image of the same instant. What is freed is soon
/// used again, so the VM stands still from the one to the other.
fn instant(
    guest: &mut Guest,
    images: &Images,
    channel: &Channel,
    label: &str,
    leaks: &mut Vec<String>,
) -> (u64, u64) {
    let labels = [label.to_owned()];
    let image = images.path(label);
    for attempt in 1.. {
        guest.endpoints().stop().expect("the VM stops");
        let before = in_ram(&guest.ram().expect("its RAM"), &labels);
        let saved = save(guest, &image, &[&format!("cgroup={GROUP}")]).output().expect("elision starts");
        guest.endpoints().cont().expect("the VM runs on");
        if saved.status.success() {
            let after = in_image(&image, &labels);
            leaks.extend(after.leak(label, &image));
            std::fs::remove_dir_all(&image).expect("the image");
            return (before.count(channel, label), after.count(channel, label));
        }
        // A VM that stands still cannot be looked at a little later, as one that runs would be.
        assert!(attempt < 20, "{label}: {}", words(&saved));
        std::thread::sleep(Duration::from_millis(20));
    }
    unreachable!("the loop ends by itself")
}

/// Channels in one guest. Gives their rows, and what is wrong with the restored guest.
fn play(kernel: &str, channels: &[&Channel]) -> (Vec<Row>, Vec<String>) {
    let options = GuestOptions::new(kernel)
        .memory_mib(768)
        .append("secretmem.enable=1")
        .extra(&["-device", "VGA", "-serial", "null", "-serial", "null"]);
    let mut guest = options.boot().expect("the guest boots");
    let images = Images::new();
    let mut rows: Vec<Row> = channels.iter().map(|_| Row::default()).collect();
    let mut excluded = Vec::new();
    // Stays, and never reads what others send to it.
    guest.control().spawn(&Spawn::new("server", "socket-server", "block")).expect("a server");
    for (channel, row) in channels.iter().zip(&mut rows) {
        let spawn = |form: &str, mode: &str| Spawn::new(&label(channel, form), channel.name, mode);
        let played = guest.control().spawn(&spawn("live", "block").cgroup(GROUP));
        let played = played.and_then(|live| {
            guest.control().spawn(&spawn("kept", "block"))?;
            Ok(live)
        });
        match played {
            Ok(live) => excluded.push((live.label, live.pid)),
            Err(error) => row.missing = Some(error.to_string()),
        }
    }
    let labels: Vec<String> =
        ["live", "kept"].iter().flat_map(|form| channels.iter().map(|c| label(c, form))).collect();
    let (plain, elided) = (images.path("plain"), images.path("elided"));
    json(&mut save(&guest, &plain, &[]));
    json(&mut save(&guest, &elided, &[&format!("cgroup={GROUP}")]));
    let (before, after) = (in_image(&plain, &labels), in_image(&elided, &labels));
    for (channel, row) in channels.iter().zip(&mut rows).filter(|(_, row)| row.missing.is_none()) {
        let [live, kept] = ["live", "kept"].map(|form| label(channel, form));
        row.live = (before.count(channel, &live), after.count(channel, &live));
        row.kept = (before.count(channel, &kept), after.count(channel, &kept));
        row.leaks.extend(after.leak(&live, &elided));
        let mut gone = |form: &str, mode: &str, leaks: &mut Vec<String>| {
            let label = label(channel, form);
            let spawn = Spawn::new(&label, channel.name, mode);
            let spawn = if mode == "end" { spawn } else { spawn.cgroup(GROUP) };
            let pid = guest.control().spawn(&spawn).expect("a process").pid;
            if mode == "end" {
                let end = end_of(&mut guest, pid, Duration::from_secs(30));
                assert!(matches!(end, Status::Exited { code: 0, .. }), "{label}: {end:?}");
            }
            wait(&mut guest, GRACE);
            instant(&mut guest, &images, channel, &label, leaks)
        };
        if channel.freed {
            row.live = gone("freed", "block", &mut row.leaks);
        }
        if channel.not_ended.is_none() {
            row.ended = gone("ended", "end", &mut row.leaks);
        }
    }
    let sick = restored(&options, &elided, &excluded);
    (rows, sick)
}

/// The matrix of one kernel. A channel that has lost a control is played again in another guest.
fn matrix(kernel: &str, channels: &[&Channel]) -> (Vec<Row>, Vec<String>) {
    let (mut rows, mut sick) = play(kernel, channels);
    for _ in 1..TRIES {
        let lost: Vec<usize> = (0..rows.len()).filter(|i| rows[*i].lost(channels[*i]).is_some()).collect();
        if lost.is_empty() {
            break;
        }
        let again: Vec<&Channel> = lost.iter().map(|i| channels[*i]).collect();
        for (channel, i) in again.iter().zip(&lost) {
            println!("{kernel}: {}: once more: {}", channel.name, rows[*i].lost(channel).unwrap_or_default());
        }
        let (better, more) = play(kernel, &again);
        sick.extend(more);
        for (i, mut row) in lost.into_iter().zip(better) {
            row.leaks.append(&mut rows[i].leaks);
            rows[i] = row;
        }
    }
    (rows, sick)
}

/// What is wrong with the restored guest.
fn restored(options: &GuestOptions, image: &Path, excluded: &[(String, i32)]) -> Vec<String> {
    let mut guest = restore(options, image);
    let mut sick = Vec::new();
    for (label, pid) in excluded {
        let end = end_of(&mut guest, *pid, Duration::from_secs(30));
        if !matches!(end, Status::Signalled { signal: 9, .. }) {
            sick.push(format!("{label} is {end:?}"));
        }
    }
    sick.extend(guest.control().health(3).expect("the guest answers").errors);
    sick.extend(swap::pressure(&mut guest, options));
    sick.extend(guest.console_problems());
    let log = guest.control().dmesg().expect("the kernel log");
    sick.extend(elision_testbed::console::problems(&log));
    sick
}

/// A cell's words: copies in the control and in the elided image.
fn cell((before, after): (u64, u64)) -> String {
    format!("{before} → {after}")
}

#[test]
fn no_channel_leaks() {
    let only = |name: &str| {
        std::env::var(name).ok().map(|list| list.split(',').map(str::to_owned).collect::<Vec<_>>())
    };
    let wanted = only("ELISION_CHANNELS");
    let channels: Vec<&Channel> = CHANNELS
        .iter()
        .filter(|c| {
            wanted.as_ref().is_none_or(|w| w.iter().any(|name| c.name.split('=').next() == Some(name)))
        })
        .collect();
    let in_form = if pages::in_full() { kernels::NAMES.to_vec() } else { vec!["7"] };
    let kernels =
        only("ELISION_KERNELS").unwrap_or_else(|| in_form.iter().map(|k| (*k).to_owned()).collect());
    let mut lines = vec![
        "| channel | kernel | live: before → after | ended: before → after | bystander: before → after |"
            .to_owned(),
        "|---|---|---|---|---|".to_owned(),
    ];
    let (mut wrong, mut cells, mut not) = (Vec::new(), 0, Vec::new());
    for kernel in &kernels {
        let (absent, channels): (Vec<&Channel>, Vec<&Channel>) =
            channels.iter().partition(|channel| channel.absent_from(kernel).is_some());
        for channel in absent {
            let reason = channel.absent_from(kernel).unwrap_or_default();
            not.push(format!("| {} | {kernel} | both | {reason} |", channel.name));
        }
        let (rows, sick) = matrix(kernel, &channels);
        wrong.extend(sick.into_iter().map(|problem| format!("{kernel}: the restored guest: {problem}")));
        for (channel, row) in channels.iter().zip(&rows) {
            let name = channel.name.split('=').next().unwrap_or_default();
            if let Some(reason) = &row.missing {
                wrong.push(format!("{kernel}: {name}: {reason}"));
                continue;
            }
            let ended = match channel.not_ended {
                Some(reason) => {
                    not.push(format!("| {name} | {kernel} | ended | {reason} |"));
                    "-".to_owned()
                }
                None => cell(row.ended),
            };
            cells += 1 + u32::from(channel.not_ended.is_none());
            let kept = if channel.freed { "-".to_owned() } else { cell(row.kept) };
            lines.push(format!("| {name} | {kernel} | {} | {ended} | {kept} |", cell(row.live)));
            println!("{}", lines.last().map_or("", String::as_str));
            let mut say = |what: &str| wrong.push(format!("{kernel}: {name}: {what}"));
            row.lost(channel).iter().chain(&row.leaks).for_each(|problem| say(problem));
        }
    }
    not.extend(
        NOT_EXERCISED.iter().map(|(channel, reason)| format!("| {channel} | all | both | {reason} |")),
    );
    println!("{cells} cells, {} wrong, {} not exercised", wrong.len(), not.len());
    if pages::in_full() && wanted.is_none() {
        let total = format!("{cells} cells on {} kernels, {} wrong.\n", kernels.len(), wrong.len());
        let head = [
            "\n## Not exercised\n".to_owned(),
            "| channel | kernel | process | why |".to_owned(),
            "|---|---|---|---|".to_owned(),
        ];
        let page: Vec<String> = std::iter::once(total).chain(lines).chain(head).chain(not).collect();
        pages::write_result("leak-matrix", "Leak matrix", &page).expect("the page");
    }
    assert!(wrong.is_empty(), "{} cells are wrong:\n{}", wrong.len(), wrong.join("\n"));
}
