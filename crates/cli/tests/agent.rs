//! The agent in a guest: excluded processes stand still at the stop of a save, the source goes on unharmed, and the
//! restored guest puts itself in order, with and without Elision on the host.

mod support;

#[path = "support/agent.rs"]
mod port;

use elision_testbed::{Guest, GuestOptions, Spawn, Status, counters, pages};
use elision_wire::{
    Answer, Ask, Capability, Done, Envelope, Generation, Nonce, Reason, VERSIONS, Versions, encode,
};
use port::{Client, LOG, Port, false_agent, held_up_by_kernel, options, start};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use support::{Images, elision, json, refuses, restore_with, save, sh, words};

fn log(guest: &mut Guest) -> String {
    sh(guest, &format!("cat {LOG}"))
}

/// Processes of a container that never rest: they count, fork, and have 50 threads.
fn busy_container(guest: &mut Guest) -> Vec<(String, i32)> {
    ["spin", "fork=8", "threads=50", "sleep=5ms"]
        .iter()
        .map(|mode| {
            let spawned = guest.control().spawn(&Spawn::new(mode, "heap", mode).cgroup("vault")).expect(mode);
            ((*mode).to_owned(), spawned.pid)
        })
        .collect()
}

/// How often the processes have counted.
fn counted(guest: &mut Guest, processes: &[(String, i32)]) -> Vec<u64> {
    let now = guest.control().counters().expect("counters");
    let count = |label: &str| now.iter().find(|c| c.label == label).map_or(0, |c| c.count);
    processes.iter().map(|(label, _)| count(label)).collect()
}

/// Waits until something holds in the guest.
fn wait_for(guest: &mut Guest, command: &str) -> String {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let result = guest.control().sh(command).expect("the guest answers");
        if matches!(result.status, Status::Exited { code: 0, .. }) {
            return result.output;
        }
        assert!(Instant::now() < until, "{command}: {}", result.output);
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_busy_container_stands_still_and_a_copy_ends_it_by_itself() {
    calm_and_ended("6.12", if pages::in_full() { 200 } else { 5 });
}

/// 5.10 has no `cgroup.kill`.
#[test]
fn a_busy_container_stands_still_on_other_kernels() {
    if pages::in_full() {
        ["5.10", "6.1", "7"].iter().for_each(|kernel| calm_and_ended(kernel, 5));
    }
}

fn calm_and_ended(kernel: &str, times: u32) {
    let (port, clone_port) = (Port::new(), Port::new());
    let base = options(kernel);
    let mut guest = port.added_to(&base).boot().expect("the guest boots");
    start(&mut guest);
    let processes = busy_container(&mut guest);
    let images = Images::new();
    let image = images.path("image");
    let (mut ratios, mut repeated) = (Vec::new(), 0);
    for round in 0..times {
        let _ = std::fs::remove_dir_all(&image);
        let mut command = save(&guest, &image, &["cgroup=/vault"]);
        let output = command.args(["--agent-policy", "require", "--json", "-vv"]).output();
        let output = output.expect("elision starts");
        assert!(output.status.success(), "round {round}: {}", words(&output));
        let by_kernel = held_up_by_kernel(&output);
        let saved: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        println!("{} looks, pause {} ms, agent {}", saved["looks"], saved["pause_ms"], saved["agent"]);
        assert_eq!(saved["agent"]["calm"], true, "round {round}: {saved}");
        assert_eq!(saved["looks"], 1 + by_kernel, "round {round}: {saved}");
        repeated += by_kernel;
        let ms = |value: &Value| value.as_f64().expect("a time");
        ratios.push(ms(&saved["agent"]["calm_ms"]) / ms(&saved["pause_ms"]));
    }
    println!("frozen / pause: {ratios:?}");
    assert!(repeated <= 1 + ratios.len() / 10, "the kernel held up {repeated} saves");

    // The source goes on.
    let before = counted(&mut guest, &processes);
    std::thread::sleep(Duration::from_millis(500));
    let after = counted(&mut guest, &processes);
    assert!(before.iter().zip(&after).all(|(b, a)| b < a), "{before:?} {after:?}");
    assert_eq!(sh(&mut guest, "cat /sys/fs/cgroup/vault/cgroup.freeze").trim(), "0");
    assert!(!log(&mut guest).contains("restored"), "{}", log(&mut guest));
    drop(guest);

    // A copy without a host's help: nobody runs, and the agent ends the group.
    let ram = elision_image::Image::open(&image).expect("an image").ram().expect("its RAM");
    let in_image = counters::find(&ram).expect("counters");
    let mut restored = by_hand(&clone_port.added_to(&base), &image);
    wait_for(&mut restored, "grep -q 'populated 0' /sys/fs/cgroup/vault/cgroup.events");
    let said = wait_for(&mut restored, &format!("grep 'was restored' {LOG}"));
    assert_eq!(said.lines().count(), 1);
    wait_for(&mut restored, "[ $(cat /sys/fs/cgroup/vault/cgroup.freeze) = 0 ]");
    for ((label, pid), now) in processes.iter().zip(counted(&mut restored, &processes)) {
        let hash = counters::label_hash(label);
        let count = in_image.iter().find(|c| c.label == hash).expect("a counter").count;
        assert_eq!(now, count, "{label} ran in the copy");
        assert!(matches!(restored.control().status(*pid), Ok(Status::Signalled { signal: 9, .. })));
    }
    assert_eq!(restored.console_problems(), Vec::<String>::new());
}

/// Restores without asking the agent for anything.
fn by_hand(options: &GuestOptions, image: &Path) -> Guest {
    restore_with(options, image, &["--agent-policy", "off"]).0
}

fn is_frozen(guest: &mut Guest) -> bool {
    sh(guest, "cat /sys/fs/cgroup/vault/cgroup.freeze").trim() == "1"
}

/// Waits until the container runs on; gives how long that took in seconds, or so.
fn runs_on(guest: &mut Guest, what: &str) {
    let begin = Instant::now();
    while is_frozen(guest) {
        assert!(begin.elapsed() < Duration::from_secs(30), "{what}: still frozen; {}", log(guest));
        std::thread::sleep(Duration::from_millis(50));
    }
    println!("{what}: runs on after {:?}", begin.elapsed());
}

/// The agent itself, without its watchdog.
const AGENT: &str = "$(cat /run/agent.pid)";

#[test]
fn nothing_stays_frozen_whatever_happens_to_host_or_agent() {
    let port = Port::new();
    let mut guest = port.added_to(&options("6.12")).boot().expect("the guest boots");
    start(&mut guest);
    guest.control().spawn(&Spawn::new("spin", "heap", "spin").cgroup("vault")).expect("a process");
    let long = Duration::from_secs(50);
    let frozen = |guest: &mut Guest, limit| {
        let mut client = Client::connect(&port);
        client.freeze("/vault", limit);
        assert!(is_frozen(guest), "control: it is not frozen");
        client
    };

    let client = frozen(&mut guest, long);
    drop(client);
    runs_on(&mut guest, "the host is gone");

    let client = frozen(&mut guest, Duration::from_secs(1));
    runs_on(&mut guest, "the time is over");
    drop(client);

    let mut client = frozen(&mut guest, long);
    let late = client.ask(&Ask::Hello { versions: VERSIONS });
    assert!(
        matches!(late, Some(Answer::Hello { .. })) && is_frozen(&mut guest),
        "the same host may ask again"
    );
    sh(&mut guest, &format!("kill -9 {AGENT}"));
    runs_on(&mut guest, "the agent was killed");
    drop(client);

    start(&mut guest);
    let client = frozen(&mut guest, Duration::from_secs(2));
    sh(&mut guest, &format!("kill -STOP {AGENT}"));
    runs_on(&mut guest, "the agent hangs");
    let images = Images::new();
    refuses(&mut save_by(&guest, &images.path("hung"), "require"), 3, &["did not answer"]);
    let output = save_by(&guest, &images.path("hung"), "use").output().expect("elision starts");
    assert!(output.status.success(), "a save beside a hung agent: {}", words(&output));
    assert!(!is_frozen(&mut guest));
    sh(&mut guest, &format!("kill -CONT {AGENT}"));
    drop(client);

    let client = frozen(&mut guest, long);
    // Both at once: stopped first, so that neither sees the other end.
    let all = |signal: &str| {
        let is_agent = "[ \"$(cat $p/comm)\" = elision-agent ]";
        format!("for p in /proc/[0-9]*; do {is_agent} && kill -{signal} ${{p#/proc/}}; done; true")
    };
    sh(&mut guest, &all("STOP"));
    sh(&mut guest, &all("KILL"));
    drop(client);
    assert!(is_frozen(&mut guest), "control: nobody is there to let it run on");
    start(&mut guest);
    runs_on(&mut guest, "agent and watchdog were killed, and the agent was started again");

    // Noise does not end it, another version is refused, and a question out of order too.
    let mut noisy = Client::silent(&port);
    noisy.bytes(&[0xff; 5000]);
    noisy.bytes(b"\xff\x02\x00\x00{}\xff\x7f\x7f\x7f{\xff\x05\x00\x00[[[");
    noisy.bytes(&[b'x'; 100_000]);
    drop(noisy);
    let mut client = Client::connect(&port);
    let newer = Ask::Hello { versions: Versions { from: 9, to: 10 } };
    assert!(matches!(client.ask(&newer), Some(Answer::Refused { reason: Reason::Version, .. })));
    assert!(matches!(client.ask(&Ask::Thaw), Some(Answer::Refused { reason: Reason::Late, .. })));
    let mut other = Client::silent(&port);
    drop(client);
    assert!(matches!(other.ask(&Ask::Thaw), Some(Answer::Refused { reason: Reason::Order, .. })));
    assert_eq!(guest.console_problems(), Vec::<String>::new());
}

fn save_by(guest: &Guest, image: &Path, policy: &str) -> Command {
    let mut command = save(guest, image, &["cgroup=/vault"]);
    command.args(["--agent-policy", policy]);
    command
}

/// What a false agent says to one question: the right form, and nothing of it is true.
fn lie(ask: &Envelope<Ask>) -> Vec<u8> {
    let body = match ask.body {
        Ask::Hello { .. } => Answer::Hello {
            versions: VERSIONS,
            agent: "\x1b[2Jfalse".to_owned(),
            may: vec![Capability::Calm],
            generation: Generation { pid: 1, address: 0xffff_8880_0000_1000, nonce: Nonce::from([7; 16]) },
        },
        _ => Answer::Done(Done {
            processes: u32::MAX,
            still_us: Some(u64::MAX),
            notes: vec!["\x1b[2J".to_owned()],
        }),
    };
    encode(&Envelope { session: ask.session, id: ask.id, body }).expect("a frame")
}

#[test]
fn a_save_beside_a_false_agent_goes_on_or_is_refused() {
    let mut guest = options("6.12").boot().expect("the guest boots");
    guest.control().spawn(&Spawn::new("spin", "heap", "spin").cgroup("vault")).expect("a process");
    let images = Images::new();
    type Act = Box<dyn FnMut(&Envelope<Ask>) -> Option<Vec<u8>> + Send>;
    let is_hello = |ask: &Envelope<Ask>| matches!(ask.body, Ask::Hello { .. });
    let agents: Vec<(&str, Act)> = vec![
        ("lies", Box::new(|ask| Some(lie(ask)))),
        ("is silent", Box::new(|_| Some(Vec::new()))),
        ("ends the connection", Box::new(|_| None)),
        ("ends it after the hello", Box::new(move |ask| is_hello(ask).then(|| lie(ask)))),
        ("floods", Box::new(|_| Some(vec![b'x'; 8 << 20]))),
        ("answers others", Box::new(|ask| Some(lie(&Envelope { session: 0, ..ask.clone() }).repeat(2000)))),
        (
            "answers with a hello to all",
            Box::new(|ask| Some(lie(&Envelope { body: Ask::Hello { versions: VERSIONS }, ..ask.clone() }))),
        ),
    ];
    for (what, act) in agents {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("agent");
        false_agent(&socket, act);
        let image = images.path("image");
        let by = |policy: &str| -> Output {
            let mut command = save_by(&guest, &image, policy);
            command.arg("--agent").arg(&socket).arg("--json").output().expect("elision starts")
        };
        let refused = by("require");
        assert_eq!(refused.status.code(), Some(3), "{what}: {}", words(&refused));
        assert!(!image.exists(), "{what}");
        let done = by("use");
        assert!(done.status.success(), "{what}: {}", words(&done));
        let saved: Value = serde_json::from_slice(&done.stdout).expect("JSON");
        assert_eq!(saved["agent"]["calm"], false, "{what}: {saved}");
        println!("{what}: {}", saved["agent"]["notes"]);
        assert_eq!(guest.endpoints().run_state().expect("a state"), "running", "{what}");
        std::fs::remove_dir_all(&image).expect("the image");
    }
}

/// Seconds by which the guest's clock is behind the host's.
fn behind(guest: &mut Guest) -> i64 {
    let guest = sh(guest, "date +%s").trim().parse::<i64>().expect("a number");
    let host = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time").as_secs();
    i64::try_from(host).expect("a time") - guest
}

/// Random numbers, drawn one after the other. Two copies that have the same keys come through the same numbers, even if one of
/// them has drawn some more in between.
fn drawn(guest: &mut Guest) -> BTreeSet<String> {
    let text = sh(guest, "dd if=/dev/urandom bs=16 count=400 2>/dev/null | od -An -v -tx1 -w16");
    let numbers: BTreeSet<String> = text.lines().map(|line| line.trim().to_owned()).collect();
    assert_eq!(numbers.len(), 400);
    numbers
}

/// Most pairs of copies that are looked at for two that draw the same.
const PAIRS: usize = 8;

#[test]
fn clones_differ_and_are_put_in_order() {
    let port = Port::new();
    let base = options("6.12").vcpus(1);
    let mut guest = port.added_to(&base).boot().expect("the guest boots");
    sh(&mut guest, "mkdir -p /etc/elision/agent.d /etc/elision/hooks.d; echo old > /etc/machine-id");
    sh(
        &mut guest,
        "echo 'allow = [\"calm\", \"prepare\", \"random\", \"clock\", \"hooks\"]' > /etc/elision/agent.toml
        echo 'allow = [\"calm\", \"random\", \"clock\", \"hooks\", \"identity\"]' > /etc/elision/agent.d/50.toml
        printf '#!/bin/sh\\necho $1 >> /run/hooks\\n' > /etc/elision/hooks.d/10
        printf '#!/bin/sh\\nexit 7\\n' > /etc/elision/hooks.d/20
        chmod 755 /etc/elision/hooks.d/*",
    );
    start(&mut guest);
    guest.control().spawn(&Spawn::new("spin", "heap", "spin").cgroup("vault")).expect("a process");
    let images = Images::new();
    let image = images.path("image");
    // By instants that are apart, for the control below.
    let plain = [0, 1, 2, 3].map(|number| {
        std::thread::sleep(Duration::from_millis(1500));
        let image = images.path(&format!("plain-{number}"));
        json(&mut save_by(&guest, &image, "off"));
        image
    });
    let saved = json(&mut save_by(&guest, &image, "require"));
    let notes = saved["agent"]["notes"].to_string();
    assert!(notes.contains("hook 20 before-save") && notes.contains("hook 20 after-save"), "{notes}");
    assert_eq!(sh(&mut guest, "cat /run/hooks"), "before-save\nafter-save\n");
    let boot = sh(&mut guest, "cat /proc/sys/kernel/random/boot_id").trim().to_owned();
    drop(guest);
    std::thread::sleep(Duration::from_secs(4)); // the clocks of copies are behind by this

    // The control: without an agent's work two copies draw the same, and their clock is behind. A young kernel makes new
    // keys every few seconds, and copies whose time has come differ by themselves: then those of another instant are seen.
    let pair = |image: &std::path::PathBuf| {
        [(), ()].map(|()| {
            let mut clone = by_hand(&Port::new().added_to(&base), image);
            assert!(behind(&mut clone) >= 3, "control: the clock is right without an agent");
            drawn(&mut clone)
        })
    };
    let same = |pair: &[BTreeSet<String>; 2]| pair[0].intersection(&pair[1]).count();
    let without = plain.iter().cycle().take(PAIRS).map(pair).find(|pair| same(pair) > 100);
    let without = without.expect("control: copies differ without an agent");
    println!("without an agent {} of 400 random numbers are the same", same(&without));

    // Nobody on the host helps.
    let mut alone: Vec<_> = Vec::new();
    for _ in 0..2 {
        let mut clone = by_hand(&Port::new().added_to(&base), &image);
        wait_for(&mut clone, "grep -q after-restore /run/hooks");
        assert!(behind(&mut clone) <= 2, "{}", log(&mut clone));
        alone.push(drawn(&mut clone));
    }
    assert!(alone[0].is_disjoint(&alone[1]) && alone.iter().all(|numbers| numbers.is_disjoint(&without[0])));

    // With the host.
    let mut ids = Vec::new();
    for name in ["red", "blue"] {
        let port = Port::new();
        let args = ["--hostname", name, "--new-machine-id", "--new-boot-id"];
        let (mut clone, said) = restore_with(&port.added_to(&base), &image, &args);
        println!("{}", said["agent"]);
        let agent = &said["agent"];
        assert_eq!((&agent["noticed"], &agent["reseeded"]), (&true.into(), &true.into()), "{agent}");
        assert_eq!((&agent["groups_ended"], &agent["hooks"]), (&1.into(), &1.into()), "{agent}");
        assert!(agent["clock_ms"].as_i64() >= Some(2000), "{agent}");
        assert!(agent["notes"].to_string().contains("hook 20 after-restore"), "{agent}");
        assert!(behind(&mut clone).abs() <= 1);
        assert_eq!(sh(&mut clone, "hostname").trim(), name);
        assert_eq!(sh(&mut clone, "cat /run/hooks"), "before-save\nafter-restore\n");
        let id = sh(&mut clone, "cat /etc/machine-id").trim().to_owned();
        assert_eq!(agent["machine_id"], id.as_str());
        let boot = sh(&mut clone, "cat /proc/sys/kernel/random/boot_id").trim().to_owned();
        assert_eq!(agent["boot_id"], boot.as_str());
        ids.push((id, boot));
    }
    let (red, blue) = (&ids[0], &ids[1]);
    assert!(red.0 != blue.0 && red.1 != blue.1 && red.1 != boot && blue.1 != boot, "{ids:?} {boot}");
    assert!(ids.iter().all(|(id, boot)| id.len() == 32 && boot.len() == 36), "{ids:?}");
}

/// Process ids that a save would leave out.
fn left_out(guest: &Guest, container: &str) -> Vec<i64> {
    let mut command = elision();
    command.arg("plan").arg("--qmp").arg(guest.endpoints().qmp_socket());
    let planned = json(command.args(["--exclude", &format!("container={container}")]));
    let excluded = planned["excluded"].as_array().expect("a list");
    excluded.iter().map(|process| process["pid"].as_i64().expect("a number")).collect()
}

/// Process ids of `sleep N`, as the guest has them.
fn sleepers(guest: &mut Guest, seconds: &[u32]) -> Vec<i64> {
    let one = |guest: &mut Guest, n: &u32| {
        let find = format!(
            "for p in /proc/[0-9]*; do (tr '\\0' ' ' <$p/cmdline) 2>/dev/null | grep -qx 'sleep {n} ' && echo ${{p#/proc/}}; done; true"
        );
        sh(guest, &find).trim().parse().expect("one process")
    };
    let mut found: Vec<i64> = seconds.iter().map(|n| one(guest, n)).collect();
    found.sort_unstable();
    found
}

#[test]
fn containers_hold_what_was_started_in_them_and_sessions_are_made_private() {
    let mut guest = options("6.12").boot().expect("the guest boots");
    let quiet = "</dev/null >/dev/null 2>&1";
    // A daemon is a child of the first process, and stays in the container.
    let command = format!(
        "setsid elision-agent run vault -- sh -c '(setsid sleep 4001 {quiet} &); exec sleep 4000' {quiet} &"
    );
    sh(&mut guest, &command);
    // A session with a shell, and a job in it; another session beside it.
    let session =
        format!("setsid sh -c 'sleep 5001 & elision-agent private >/run/private; exec sleep 5000' {quiet} &");
    sh(&mut guest, &session);
    sh(&mut guest, &format!("setsid sleep 6000 {quiet} & sleep 2"));

    let mut vault = left_out(&guest, "vault");
    vault.sort_unstable();
    assert_eq!(vault, sleepers(&mut guest, &[4000, 4001]));
    let said = sh(&mut guest, "cat /run/private");
    let name = said.trim().rsplit('=').next().expect("a name").to_owned();
    let mut private = left_out(&guest, &name);
    private.sort_unstable();
    assert_eq!(private, sleepers(&mut guest, &[5000, 5001]), "{said}");
    assert_eq!(sleepers(&mut guest, &[6000]).len(), 1, "control: a session that stays");
    let refused = guest.control().sh("elision-agent run ../up -- true").expect("the guest answers");
    assert!(refused.output.contains("run needs a name"), "{}", refused.output);
}

/// The example server of `crates/mark`: a checkpoint has no key of it, and its copy is told and fetches the key again. A
/// program in C beside it is told too.
#[test]
fn a_server_fetches_its_key_again_after_a_restore() {
    server_fetches_its_key_again("6.12");
}

/// On 5.10 marks are names of memfds alone.
#[test]
fn a_server_fetches_its_key_again_on_other_kernels() {
    if pages::in_full() {
        ["5.10", "7"].into_iter().for_each(server_fetches_its_key_again);
    }
}

fn server_fetches_its_key_again(kernel: &str) {
    let port = Port::new();
    let server = elision_testbed::programs::rust_example("elision-mark", "server").expect("the example");
    let folder = tempfile::tempdir().expect("a folder");
    let watcher = elision_testbed::programs::c_program("crates/mark/c/watcher.c", folder.path());
    let files = [("bin/server", server), ("bin/watcher", watcher.expect("a C compiler"))];
    let base = options(kernel).files(files.map(|(path, file)| (path.to_owned(), file)).to_vec());
    let mut guest = port.added_to(&base).boot().expect("the guest boots");
    start(&mut guest);
    // Known here without a way out of the guest, on which it would leave copies.
    let key: Vec<u8> = b"key of 4711\n".iter().copied().cycle().take(4096).collect();
    sh(&mut guest, "yes key of 4711 | head -c 4096 > /root/key");
    sh(&mut guest, "setsid server /root/key 127.0.0.1:7000 >/run/server.log 2>&1 </dev/null &");
    sh(&mut guest, "setsid watcher >/run/watcher.log 2>&1 </dev/null &");
    wait_for(&mut guest, "grep -q serving /run/server.log && grep -q watching /run/watcher.log");
    let ask = |guest: &mut Guest| sh(guest, "nc 127.0.0.1 7000 </dev/null");
    let sum = format!("{:016x}\n", sign(&key));
    assert_eq!(ask(&mut guest), sum);

    // In the copy the key's source gives out another one.
    sh(&mut guest, "mv /root/key /run/old; head -c 4096 /dev/zero | tr '\\0' 7 > /root/key; rm /run/old");
    let images = Images::new();
    let (whole, image) = (images.path("whole"), images.path("image"));
    json(&mut save(&guest, &whole, &[]));
    json(save(&guest, &image, &["region=named"]).args(["--agent-policy", "require"]));
    let copies = |image: &Path| support::copies_of(image, &key[64..128]);
    let (with, without) = (copies(&whole), copies(&image));
    println!("copies of the key: {with}, then {without}");
    assert!(with > 0, "control: the key is not in an image");
    assert_eq!(without, 0);
    assert_eq!(ask(&mut guest), sum, "the source has its key");
    assert!(!sh(&mut guest, "cat /run/server.log /run/watcher.log").contains("restored"));
    // Who watches goes on with the next agent.
    sh(&mut guest, &format!("kill -9 {AGENT}"));
    wait_for(&mut guest, "grep -q 'no agent' /run/watcher.log");
    start(&mut guest);
    wait_for(&mut guest, "[ $(tail -n 1 /run/watcher.log) = watching ]");
    drop(guest);

    let mut clone = by_hand(&Port::new().added_to(&base), &image);
    assert!(wait_for(&mut clone, "grep restored /run/server.log").contains("the key is gone"));
    assert_eq!(ask(&mut clone), format!("{:016x}\n", sign(&[b'7'; 4096])));
    assert_eq!(wait_for(&mut clone, "grep restored /run/watcher.log"), "restored\n");
    drop(clone);
    let mut clone = by_hand(&Port::new().added_to(&base), &whole);
    assert!(wait_for(&mut clone, "grep restored /run/server.log").contains("still there"), "control");
}

/// As the server does.
fn sign(key: &[u8]) -> u64 {
    key.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}
