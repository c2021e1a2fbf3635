//! A saver that dies at any point of a save: the VM runs on within a second, no image appears, and the
//! next save to the same name finds nothing in its way.
//!
//! Twelve deaths by default, a hundred with `ELISION_ALL=1`. `ELISION_SEED` repeats a series.

mod support;

use elision_qemu::Qmp;
use elision_testbed::{Guest, GuestOptions, Spawn, Status, pages};
use rustix::process::{Pid, Signal};
use serde_json::{Value, json as object};
use std::fs::File;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use support::{Images, Window, elision, json, runs, save_as, words};

/// The VM must run this soon after the saver's death.
const LIMIT: Duration = Duration::from_secs(1);
/// How often the VM is looked at.
const GRAIN: Duration = Duration::from_millis(5);
/// Slower ones are listed.
const SLOW: Duration = Duration::from_millis(200);
const EXCLUDED: &str = "uid=1234";
/// How long a guardian has the VM's socket after the VM runs again. A snapshot is read to its end.
const GUARDIAN_LIMIT: Duration = Duration::from_secs(5);
const LIVE_GUARDIAN_LIMIT: Duration = Duration::from_secs(60);

/// Who gets which signal.
#[derive(Clone, Copy, Debug)]
enum Death {
    Saver(Signal),
    Group,
}

/// When.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// This share of a whole save after its start.
    Anywhere(f64),
    /// This share of a pause after the VM stood still.
    Paused(f64),
}

const PRECOPY: &str = "--live=precopy";

struct Scene {
    guest: Guest,
    watch: Qmp,
    images: Images,
    pids: Vec<i32>,
    settings: Value,
    window: Window,
    live: Option<&'static str>,
}

/// How one save went that nobody disturbed.
#[derive(Debug)]
struct Undisturbed {
    total: Duration,
    pause: Duration,
}

#[derive(Debug, Default)]
struct Series {
    deaths: u32,
    while_paused: u32,
    too_late: u32,
    slowest: Duration,
}

impl Series {
    fn told(&self, rounds: u32) -> Vec<String> {
        let Self { deaths, while_paused, too_late, slowest } = self;
        vec![
            "| savers | killed in time | while the VM was paused | had already finished | slowest resume, ms | images left |".into(),
            "|---|---|---|---|---|---|".into(),
            format!("| {rounds} | {deaths} | {while_paused} | {too_late} | {} | 0 |", slowest.as_millis()),
        ]
    }
}

impl Scene {
    fn new(live: Option<&'static str>) -> Self {
        let window = Window::new();
        // The one whose precopy is trusted everywhere.
        let options = GuestOptions::new("6.1");
        let options = if live == Some(PRECOPY) { options.qemu("10") } else { options };
        let mut guest = window.added_to(options).boot().expect("the guest boots");
        let mut spawn = |label: &str, mode: &str| {
            let spawn = Spawn::new(label, "heap=32M,stack", mode).uid(1234);
            guest.control().spawn(&spawn).unwrap_or_else(|e| panic!("{label}: {e}")).pid
        };
        let pids = vec![spawn("spins", "spin"), spawn("sleeps", "sleep=20ms")];
        let mut watch = window.open();
        let settings = settings(&mut watch);
        Self { guest, watch, images: Images::new(), pids, settings, window, live }
    }

    fn target(&self) -> std::path::PathBuf {
        self.images.path("vm.elision")
    }

    fn save(&self) -> Command {
        save_as(self.live, &self.guest, &self.target(), &[EXCLUDED])
    }

    /// Starts a save. What was seen of the VM before is forgotten.
    fn start(&mut self) -> Child {
        runs(&mut self.watch);
        self.watch.take_events();
        let mut command = self.save();
        let said = File::create(self.window.beside("said")).expect("a file");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(said).process_group(0);
        command.spawn().expect("elision starts")
    }

    /// Length of a save, of its pause, and a check that it works.
    fn undisturbed(&self) -> Undisturbed {
        let begin = Instant::now();
        let saved = json(&mut self.save());
        let total = begin.elapsed();
        assert_eq!(self.images.names(), ["vm.elision"]);
        std::fs::remove_dir_all(self.target()).expect("the image is there");
        let pause = Duration::from_secs_f64(saved["pause_ms"].as_f64().expect("a pause") / 1000.0);
        Undisturbed { total, pause }
    }

    /// Waits until the saver has stopped the VM; `false` if it ended before.
    fn wait_for_stop(&mut self, saver: &mut Child) -> bool {
        loop {
            if self.watch.wait_event("STOP", GRAIN).expect("events").is_some() {
                return true;
            }
            if saver.try_wait().expect("a saver").is_some() {
                return false;
            }
        }
    }

    /// One death, and what must hold afterwards.
    fn die(&mut self, death: Death, moment: Moment, usual: &Undisturbed, series: &mut Series) {
        let mut saver = self.start();
        let lives = match moment {
            Moment::Anywhere(share) => {
                std::thread::sleep(usual.total.mul_f64(share));
                true
            }
            Moment::Paused(share) => {
                let stopped = self.wait_for_stop(&mut saver);
                std::thread::sleep(usual.pause.mul_f64(share));
                stopped
            }
        };
        let paused = !runs(&mut self.watch);
        let begin = Instant::now();
        if lives {
            death.befalls(&saver);
        }
        let mut looks = 0;
        let resumed = loop {
            let asked = begin.elapsed();
            looks += 1;
            if runs(&mut self.watch) {
                break asked;
            }
            assert!(asked < LIMIT + GRAIN, "{death:?} {moment:?}: the VM stands still after {asked:?}");
            std::thread::sleep(GRAIN);
        };
        // Only now: a saver killed in the middle of a sync takes its time to end, while the VM runs.
        let ended = saver.wait().expect("a saver");
        if resumed > SLOW {
            println!("{death:?} {moment:?}: the VM ran after {resumed:?}, {looks} looks, {ended:?}");
        }
        self.guest.control().ping().expect("the guest answers");
        if ended.success() || self.target().exists() {
            // The save was done before its death, so the image must be whole.
            assert!(verify(&self.target()), "{death:?} {moment:?}: half an image appeared");
            std::fs::remove_dir_all(self.target()).expect("the image");
            series.too_late += 1;
        } else {
            let said = std::fs::read_to_string(self.window.beside("said")).unwrap_or_default();
            assert!(ended.signal().is_some(), "{death:?} {moment:?}: {ended:?} {said}");
            series.deaths += 1;
            series.while_paused += u32::from(paused);
            series.slowest = series.slowest.max(resumed);
        }
        self.wait_for_guardian();
        assert!(runs(&mut self.watch), "{death:?} {moment:?}: the VM was stopped again");
        assert!(!self.target().exists(), "{death:?} {moment:?}: an image appeared later");
        assert_eq!(settings(&mut self.watch), self.settings, "{death:?} {moment:?}");
    }

    /// The guardian puts the settings back, and has the VM's socket until it is done.
    fn wait_for_guardian(&mut self) {
        let begin = Instant::now();
        let limit = if self.live.is_some() { LIVE_GUARDIAN_LIMIT } else { GUARDIAN_LIMIT };
        while settings(&mut self.watch) != self.settings {
            assert!(begin.elapsed() < limit, "nobody puts the settings back");
            std::thread::sleep(GRAIN);
        }
        while Qmp::connect(&self.guest.endpoints().qmp_socket()).is_err() {
            assert!(begin.elapsed() < limit, "somebody keeps the QMP socket");
        }
    }

    /// After all deaths: a save works, and the guest has noticed nothing.
    fn ends_well(mut self) {
        json(&mut self.save());
        assert_eq!(self.images.names(), ["vm.elision"]);
        assert!(verify(&self.target()));
        let before = self.guest.control().count("spins").expect("counters").expect("its counter");
        for pid in &self.pids {
            assert_eq!(self.guest.control().status(*pid).expect("the guest answers"), Status::Running);
        }
        let health = self.guest.control().health(1).expect("the guest answers");
        assert!(health.errors.is_empty(), "{health:?}");
        let after = self.guest.control().count("spins").expect("counters").expect("its counter");
        assert!(after > before, "the excluded process does not run on");
        assert_eq!(self.guest.console_problems(), Vec::<String>::new());
    }
}

impl Death {
    fn befalls(self, saver: &Child) {
        let pid = Pid::from_child(saver);
        let sent = match self {
            Self::Saver(signal) => rustix::process::kill_process(pid, signal),
            Self::Group => rustix::process::kill_process_group(pid, Signal::KILL),
        };
        sent.expect("a child that was not waited for");
    }
}

fn verify(image: &Path) -> bool {
    elision().arg("verify").arg(image).output().expect("elision starts").status.success()
}

/// QEMU's migration settings, which a dead saver must not leave changed.
fn settings(qmp: &mut Qmp) -> Value {
    let capabilities = qmp.execute("query-migrate-capabilities", object!({})).expect("capabilities");
    let parameters = qmp.execute("query-migrate-parameters", object!({})).expect("parameters");
    object!([capabilities, parameters["max-bandwidth"]])
}

/// Numbers from 0 to 1 that a seed repeats (xorshift).
struct Shares(u64);

impl Shares {
    fn new() -> Self {
        let given = std::env::var("ELISION_SEED").ok().and_then(|seed| seed.parse().ok());
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let seed = given.unwrap_or_else(|| u64::from(clock.subsec_nanos()) | 1 << 32);
        println!("ELISION_SEED={seed}");
        Self(seed)
    }

    fn next(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let bits = u32::try_from(self.0 >> 32).unwrap_or(0);
        f64::from(bits) / f64::from(u32::MAX)
    }
}

#[test]
fn a_saver_killed_anywhere_leaves_a_running_vm_and_no_image() {
    let (rounds, series) = killed_anywhere(None);
    if pages::in_full() {
        pages::write_result("killed-savers", "Killed savers", &series.told(rounds)).expect("the page");
    }
    assert!(series.while_paused * 4 >= rounds, "control: too few deaths in the pause: {series:?}");
}

#[test]
fn a_live_saver_killed_anywhere_leaves_a_running_vm_and_no_image() {
    for live in [PRECOPY, "--live=snapshot"] {
        let (_, series) = killed_anywhere(Some(live));
        assert!(series.while_paused > 0, "control: {live}: no death in the pause: {series:?}");
    }
}

fn killed_anywhere(live: Option<&'static str>) -> (u32, Series) {
    let rounds = if pages::in_full() { 100 } else { 12 };
    let mut shares = Shares::new();
    let mut scene = Scene::new(live);
    scene.undisturbed(); // the first compiles the kernel's profile
    let usual = scene.undisturbed();
    let mut series = Series::default();
    for round in 0..rounds {
        let death = match round % 6 {
            0..=2 => Death::Saver(Signal::KILL),
            3 => Death::Group,
            4 => Death::Saver(Signal::INT),
            _ => Death::Saver(Signal::TERM),
        };
        // Half of them hit the pause, which is a small part of a save.
        let share = shares.next();
        let within = (round / 6 + round) % 2 == 0;
        let moment = if within { Moment::Paused(share) } else { Moment::Anywhere(share) };
        scene.die(death, moment, &usual, &mut series);
    }
    println!("{series:?} of {rounds}; undisturbed {usual:?}");
    assert!(series.deaths * 2 > rounds, "most saves were done before they were killed: {series:?}");
    scene.ends_well();
    (rounds, series)
}

/// The user tries again at once, while the guardian of the dead saver is still on its guard.
#[test]
fn a_save_right_after_a_death_works() {
    let mut scene = Scene::new(None);
    scene.undisturbed();
    let mut saver = scene.start();
    assert!(scene.wait_for_stop(&mut saver), "the save was over too soon");
    Death::Group.befalls(&saver);
    saver.wait().expect("a saver");
    assert_ne!(scene.images.names(), Vec::<String>::new(), "control: the dead saver left something");
    scene.ends_well();
}

/// Nobody is left to resume the VM. It stays as it is, nothing is resumed behind its owner's back, and the next
/// save says so and clears up.
#[test]
fn a_guardian_killed_as_well_leaves_a_paused_vm_and_the_next_save_says_so() {
    let mut scene = Scene::new(None);
    scene.undisturbed();
    let mut saver = scene.start();
    assert!(scene.wait_for_stop(&mut saver), "the save was over too soon");
    let guardian = guardian_of(&saver).expect("control: a save has a guardian");
    rustix::process::kill_process(guardian, Signal::KILL).expect("the guardian");
    Death::Saver(Signal::KILL).befalls(&saver);
    saver.wait().expect("a saver");
    std::thread::sleep(LIMIT + GRAIN);
    assert!(!runs(&mut scene.watch), "control: it is the guardian that resumes the VM");
    assert_eq!(scene.images.names(), [".vm.elision.elision-partial"], "control: and that clears up");

    let again = scene.save().output().expect("elision starts");
    let told = words(&again);
    println!("{told}");
    assert!(told.contains("killed together with its guardian"), "{told}");
    match again.status.code() {
        Some(0) => {
            assert_eq!(scene.images.names(), ["vm.elision"]);
            std::fs::remove_dir_all(scene.target()).expect("the image");
        }
        Some(4) => assert!(told.contains("continue it first"), "{told}"),
        _ => panic!("{told}"),
    }
    assert_eq!(scene.images.names(), Vec::<String>::new());
    assert!(!runs(&mut scene.watch), "a VM that was paused stays so");
    scene.guest.endpoints().cont().expect("the VM runs on");
    scene.ends_well();
}

/// The child of the saver that runs `elision guard`.
fn guardian_of(saver: &Child) -> Option<Pid> {
    let list = Command::new("ps").args(["-o", "pid=", "--ppid", &saver.id().to_string()]).output().ok()?;
    let text = String::from_utf8(list.stdout).ok()?;
    let only = text.split_whitespace().next()?.parse().ok()?;
    Pid::from_raw(only)
}
