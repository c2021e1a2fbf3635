//! An agent that is killed, hangs, lies, speaks another version or is cut off at each message of a save: there is no image,
//! or one that was made as without an agent, or one that was whole already; and the source never stays frozen.

mod support;

#[path = "support/agent.rs"]
#[allow(dead_code)] // this file uses a part
mod port;
#[path = "support/relay.rs"]
mod relay;

use elision_testbed::{Endpoints, Guest, GuestOptions, RamMode, Spawn, Status, pages};
use elision_wire::{Answer, Ask, Done, Envelope, Reason, Versions, encode};
use port::{LOG, Port, options, start};
use relay::{Relay, Then};
use serde_json::Value;
use std::path::Path;
use std::time::{Duration, Instant};
use support::{Images, Window, elision, runs, save, sh, words};

/// How long the guest's owner lets processes stand still.
const LONGEST_CALM: Duration = Duration::from_secs(12);
const MESSAGES: [&str; 5] = ["hello", "prepare", "freeze", "thaw", "saved"];
const FAULTS: [Fault; 5] = [Fault::Killed, Fault::Hangs, Fault::Lies, Fault::OtherVersion, Fault::CutOff];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Killed,
    Hangs,
    /// Says that it has done what it does not even hear of.
    Lies,
    /// Does not understand.
    OtherVersion,
    CutOff,
}

impl Fault {
    /// What the saver gets to hear, where it is not the agent's silence.
    fn then(self, ask: &Envelope<Ask>) -> Then {
        let refused = |reason| Answer::Refused { reason, text: "I am another".to_owned() };
        let body = match (self, &ask.body) {
            (Self::Killed | Self::Hangs, _) => return Then::PassOn,
            (Self::CutOff, _) => return Then::CutOff,
            (Self::Lies, Ask::Hello { versions }) => hello(*versions),
            (Self::Lies, _) => Answer::Done(Done { processes: 1, ..Done::default() }),
            (Self::OtherVersion, Ask::Hello { .. }) => hello(Versions { from: 9, to: 9 }),
            (Self::OtherVersion, _) => refused(Reason::NotUnderstood),
        };
        Then::Answer(encode(&Envelope { session: ask.session, id: ask.id, body }).expect("a frame"))
    }

    /// What is done to the agent's process.
    fn signal(self) -> Option<&'static str> {
        match self {
            Self::Killed => Some("KILL"),
            Self::Hangs => Some("STOP"),
            Self::Lies | Self::OtherVersion | Self::CutOff => None,
        }
    }
}

fn hello(versions: Versions) -> Answer {
    Answer::Hello { versions, agent: "x".to_owned(), may: vec![], generation: Default::default() }
}

/// What has to come of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// As without an agent, or no image if one is required.
    Without,
    /// An image from a guest that stood still, and a note about the agent.
    Noted,
    /// An image from a guest that stood still.
    Whole,
}

fn expected(at: &str, fault: Fault) -> Outcome {
    match (at, fault) {
        // What was not prepared is found by the plan of the stopped VM; that it was not done has no other sign.
        ("prepare" | "saved", Fault::Lies) => Outcome::Whole,
        ("thaw" | "saved", _) => Outcome::Noted,
        _ => Outcome::Without,
    }
}

struct Scene {
    guest: Guest,
    port: Port,
    window: Window,
    images: Images,
}

impl Scene {
    fn new() -> Self {
        let (port, window) = (Port::new(), Window::new());
        let mut guest = window.added_to(port.added_to(&options("6.12"))).boot().expect("the guest boots");
        let limit = format!("longest-calm-seconds = {}", LONGEST_CALM.as_secs());
        sh(&mut guest, &format!("mkdir -p /etc/elision; echo '{limit}' > /etc/elision/agent.toml"));
        start(&mut guest);
        guest.control().spawn(&Spawn::new("spin", "heap", "spin").cgroup("vault")).expect("a process");
        Self { guest, port, window, images: Images::new() }
    }

    /// One save with a fault at a message.
    fn play(&mut self, at: &'static str, fault: Fault, policy: &str) {
        let what = format!("{at}, {fault:?}, {policy}");
        let image = self.images.path("image");
        let relay = Relay::new(&self.port.socket(), at);
        let mut command = save(&self.guest, &image, &["cgroup=/vault"]);
        command.args(["--agent-policy", policy, "--json", "--agent"]).arg(relay.socket());
        let child = command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        let child = child.spawn().expect("elision starts");

        let ask = relay.reached().unwrap_or_else(|| panic!("{what}: the saver never came so far"));
        let mut qmp = self.window.open();
        let until = Instant::now() + Duration::from_secs(60);
        while !runs(&mut qmp) {
            assert!(Instant::now() < until, "{what}: the VM does not run on");
            std::thread::sleep(Duration::from_millis(5));
        }
        if at == "thaw" {
            assert!(is_frozen(&mut self.guest), "{what}: control: it is not frozen");
        }
        if let Some(signal) = fault.signal() {
            sh(&mut self.guest, &format!("kill -{signal} $(cat /run/agent.pid)"));
        }
        relay.go_on(fault.then(&ask));
        let output = child.wait_with_output().expect("elision ends");
        self.check(&output, &image, expected(at, fault), policy, &what);

        let begin = Instant::now();
        while is_frozen(&mut self.guest) {
            assert!(begin.elapsed() < LONGEST_CALM + Duration::from_secs(20), "{what}: still frozen");
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!(runs(&mut qmp), "{what}: the VM does not run");
        let counted = |guest: &mut Guest| guest.control().count("spin").expect("a counter");
        let before = counted(&mut self.guest);
        std::thread::sleep(Duration::from_millis(200));
        assert!(before < counted(&mut self.guest), "{what}: it does not run on");
        println!("{what}: as expected; {:?} after the save nothing was frozen", begin.elapsed());
        let _ = std::fs::remove_dir_all(&image);
        drop(relay);
        if fault.signal().is_some() {
            sh(&mut self.guest, "kill -KILL $(cat /run/agent.pid) 2>/dev/null; sleep 1");
            start(&mut self.guest);
        }
    }

    fn check(
        &self,
        output: &std::process::Output,
        image: &Path,
        expected: Outcome,
        policy: &str,
        what: &str,
    ) {
        if expected == Outcome::Without && policy == "require" {
            assert_eq!(output.status.code(), Some(3), "{what}: {}", words(output));
            assert!(!image.exists(), "{what}");
            return;
        }
        assert!(output.status.success(), "{what}: {}", words(output));
        let saved: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let agent = &saved["agent"];
        let notes = agent["notes"].as_array().expect("notes").len();
        assert_eq!(agent["calm"], expected != Outcome::Without, "{what}: {agent}");
        assert_eq!(notes > 0, expected != Outcome::Whole, "{what}: {agent}");
    }
}

fn is_frozen(guest: &mut Guest) -> bool {
    let said = guest.control().sh("cat /sys/fs/cgroup/vault/cgroup.freeze").expect("the guest answers");
    assert!(matches!(said.status, Status::Exited { code: 0, .. }), "{}", said.output);
    said.output.trim() == "1"
}

/// Restores an image beside an agent that answers with what `fault` says to all but the hello: the command fails, as it was
/// told which agent to ask, and the VM runs.
fn restored_beside(base: &GuestOptions, image: &Path, fault: Fault) {
    let folder = GuestOptions::new_folder().expect("a folder");
    let socket = folder.join("false");
    let answer = move |ask: &Envelope<Ask>| match (&ask.body, fault.then(ask)) {
        (Ask::Hello { versions }, _) if fault != Fault::OtherVersion => {
            let body = hello(*versions);
            Some(encode(&Envelope { session: ask.session, id: ask.id, body }).expect("a frame"))
        }
        (_, Then::Answer(bytes)) => Some(bytes),
        (_, Then::PassOn) => Some(Vec::new()), // silence
        (_, Then::CutOff) => None,
    };
    port::false_agent(&socket, answer);
    let options = base.clone().ram(RamMode::Plain);
    let mut command = elision();
    command.arg("restore").arg(image).arg("--qmp").arg(Endpoints::new(&folder).qmp_socket());
    command.arg("--agent").arg(&socket).arg("--").args(options.command_in(&folder).expect("a command"));
    let output = command.output().expect("elision starts");
    assert_eq!(output.status.code(), Some(4), "{fault:?}: {}", words(&output));
    assert!(words(&output).contains("not put the restored guest in order"), "{fault:?}: {}", words(&output));
    let mut clone = options.attach(&folder).expect("the restored guest answers");
    let before = clone.control().clock().expect("a clock");
    assert!(before < clone.control().clock().expect("a clock"), "{fault:?}: the VM does not run");
}

#[test]
fn a_fault_after_a_restore_is_said_and_the_vm_runs() {
    let base = options("6.12");
    let mut guest = base.boot().expect("the guest boots");
    guest.control().spawn(&Spawn::new("spin", "heap", "spin").cgroup("vault")).expect("a process");
    let images = Images::new();
    let image = images.path("image");
    support::json(&mut save(&guest, &image, &["cgroup=/vault"]));
    drop(guest);
    let faults = [Fault::OtherVersion, Fault::Lies, Fault::CutOff, Fault::Hangs];
    let some = if pages::in_full() { faults.len() } else { 2 };
    faults.into_iter().take(some).for_each(|fault| restored_beside(&base, &image, fault));
}

#[test]
fn a_fault_at_each_message_is_no_harm() {
    let mut scene = Scene::new();
    if pages::in_full() {
        for at in MESSAGES {
            for fault in FAULTS {
                ["use", "require"].iter().for_each(|policy| scene.play(at, fault, policy));
            }
        }
    } else {
        scene.play("hello", Fault::OtherVersion, "require");
        scene.play("freeze", Fault::Killed, "require");
        scene.play("freeze", Fault::Lies, "use");
        scene.play("thaw", Fault::CutOff, "require");
        scene.play("thaw", Fault::Lies, "use");
    }
    println!("{}", sh(&mut scene.guest, &format!("tail -n 5 {LOG}")));
    assert_eq!(scene.guest.console_problems(), Vec::<String>::new());
}
