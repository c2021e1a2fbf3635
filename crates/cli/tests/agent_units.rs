//! The agent as a package installs it, in a Debian guest with systemd and udev: started by the port that appears, restarted when
//! it is killed; services of a restored copy are restarted where the policy says so; and marks by programs in Python.
//!
//! Only in the full form of the tests, as the disk takes minutes to build.

mod support;

#[path = "support/agent.rs"]
#[allow(dead_code)] // this file uses a part
mod port;

use elision_testbed::{Guest, GuestOptions, debian, pages, programs};
use port::Port;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use support::modules::put;
use support::{Images, copies_of, elision, json, refuses, save, sh, words};

/// Two services of the same kind; each writes down every start.
const SERVICES: [&str; 2] = ["vault", "plain"];
const POLICY: &str = "
[[exclude]]
unit = 'vault'
on_restore = 'restart'
[[exclude]]
unit = 'plain'
[[exclude]]
region = 'named'
";
/// A program that has a key in marked memory, byte by byte so that no other copy of it is made.
const KEEPER: &str = r"
import select, sys, time
sys.path.insert(0, '/root')
import elision
text = b'key of 4711\n'
def fill(view):
    for i in range(len(view)):
        view[i] = text[i % len(text)]
def log(line):
    with open('/run/keeper.log', 'a') as file:
        file.write(line + '\n')
region = elision.Region('python-key', 8192)
region.fill(fill)
watch = elision.Watch()
log('watching')
while True:
    select.select([watch], [], [])
    if watch.restored():
        log('restored: ' + ('there' if region.use(lambda view: view[0]) else 'gone'))
";

/// The repository's file of this name in the agent's crate.
fn packaging(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../agent/packaging").join(name)
}

fn wait_for(guest: &mut Guest, command: &str) {
    let until = Instant::now() + Duration::from_secs(120);
    while sh(guest, &format!("({command}) >/dev/null 2>&1 && echo yes || echo no")).trim() != "yes" {
        assert!(Instant::now() < until, "{command}: {}", sh(guest, "journalctl -n 30 --no-pager; true"));
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Installs the agent as `docs/agent.md` says.
fn install(guest: &mut Guest) {
    put(guest, &programs::agent().expect("the agent"), "/usr/sbin/elision-agent");
    put(guest, &packaging("elision-agent.service"), "/etc/systemd/system/elision-agent.service");
    put(guest, &packaging("90-elision-agent.rules"), "/etc/udev/rules.d/90-elision-agent.rules");
    // The guests of these tests have udev switched off.
    for unit in ["systemd-udevd.service", "systemd-udev-trigger.service"] {
        sh(guest, &format!("rm -f /etc/systemd/system/{unit}"));
    }
    sh(guest, "chmod 644 /etc/systemd/system/elision-agent.service; systemctl daemon-reload");
    sh(guest, "systemctl start systemd-udevd.service && systemctl enable elision-agent.service");
}

fn started_by_its_port(guest: &mut Guest) {
    let active = "systemctl is-active elision-agent; true";
    assert_eq!(sh(guest, active).trim(), "inactive", "control: udev has not seen the port yet");
    // As at a boot.
    sh(guest, "systemctl start systemd-udev-trigger.service");
    wait_for(guest, "systemctl is-active elision-agent");
    sh(guest, "kill -KILL $(systemctl show -P MainPID elision-agent)");
    wait_for(
        guest,
        "systemctl is-active elision-agent && systemctl show elision-agent | grep -q NRestarts=1",
    );
}

fn start_services(guest: &mut Guest) {
    for name in SERVICES {
        let run = format!("/bin/sh -c 'echo $$ >> /run/{name}.starts; exec sleep 100000'");
        let unit = format!("[Service]\nExecStart={}\n", run.replace('$', "$$"));
        sh(guest, &format!("cat > /etc/systemd/system/{name}.service <<'END'\n{unit}END"));
    }
    sh(guest, "systemctl daemon-reload; systemctl start vault plain");
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../mark/python/elision.py");
    put(guest, &python, "/root/elision.py");
    sh(guest, &format!("cat > /root/keeper.py <<'END'\n{KEEPER}END"));
    sh(guest, "systemd-run --unit=keeper python3 /root/keeper.py");
    wait_for(guest, "grep -q watching /run/keeper.log");
}

fn starts(guest: &mut Guest, name: &str) -> usize {
    sh(guest, &format!("cat /run/{name}.starts")).lines().count()
}

fn by_policy(guest: &Guest, policy: &Path, image: &Path, agent: &str) -> Command {
    let mut command = save(guest, image, &[]);
    command.arg("--policy").arg(policy).args(["--agent-policy", agent]);
    command
}

#[test]
fn services_are_restarted_in_a_copy_by_an_agent_that_udev_has_started() {
    if !pages::in_full() {
        return;
    }
    let (port, clone_port, images) = (Port::new(), Port::new(), Images::new());
    let (disk, copy, policy) = (images.path("disk"), images.path("copy"), images.path("policy.toml"));
    std::fs::write(&policy, POLICY).expect("a policy");
    debian::disk(&["udev", "python3"], &disk).expect("a disk");
    let base = GuestOptions::new("6.12").memory_mib(1024);
    let mut guest = port.added_to(&base).root_disk(&disk).boot().expect("the guest boots");
    install(&mut guest);
    started_by_its_port(&mut guest);
    start_services(&mut guest);

    let (whole, alone, image) = (images.path("whole"), images.path("alone"), images.path("image"));
    json(&mut save(&guest, &whole, &[]));
    let said = json(&mut by_policy(&guest, &policy, &alone, "off"));
    assert!(said["agent"]["notes"].to_string().contains("No service is restarted"), "{said}");
    let wrong = images.path("wrong.toml");
    std::fs::write(&wrong, "[[exclude]]\ncomm = 'a'\non_restore = 'restart'\n").expect("a policy");
    refuses(
        save(&guest, &images.path("wrong"), &[]).arg("--policy").arg(&wrong),
        2,
        &["`on_restore` is about"],
    );

    sh(&mut guest, "sync");
    let said = json(&mut by_policy(&guest, &policy, &image, "require"));
    assert_eq!((&said["agent"]["calm"], &said["agent"]["processes"]), (&true.into(), &2.into()), "{said}");
    debian::copy(&disk, &copy).expect("a copy of the disk");
    assert_eq!(SERVICES.map(|name| starts(&mut guest, name)), [1, 1], "the source's services run on");
    let key: Vec<u8> = b"key of 4711\n".iter().copied().cycle().take(128).collect();
    let (with, without) = (copies_of(&whole, &key[64..]), copies_of(&image, &key[64..]));
    println!("copies of the key of the program in Python: {with}, then {without}");
    assert!(with > 0 && without == 0, "{with} {without}");
    drop(guest);

    let options = clone_port.added_to(&base).root_disk(&copy).ram(elision_testbed::RamMode::Plain);
    let folder = GuestOptions::new_folder().expect("a folder");
    let mut command = elision();
    command.arg("restore").arg(&image).arg("--qmp");
    command.arg(elision_testbed::Endpoints::new(&folder).qmp_socket()).args(["--json", "--"]);
    let output =
        command.args(options.command_in(&folder).expect("a command")).output().expect("elision starts");
    assert!(output.status.success(), "{}", words(&output));
    let said: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    println!("{}", said["agent"]);
    assert_eq!(said["agent"]["restarted"], serde_json::json!(["vault.service"]));
    let mut clone = options.attach(&folder).expect("the restored guest answers");
    wait_for(&mut clone, "systemctl is-active vault");
    wait_for(&mut clone, "systemctl is-failed plain");
    assert_eq!(SERVICES.map(|name| starts(&mut clone, name)), [2, 1]);
    wait_for(&mut clone, "grep -q 'restored: gone' /run/keeper.log");
    assert_eq!(clone.console_problems(), Vec::<String>::new());
}
