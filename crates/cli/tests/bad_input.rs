//! Bad input: a clear error, the documented exit status, a VM that runs on, and no image left behind.

mod support;

use elision_qemu::Qmp;
use elision_testbed::{Guest, GuestOptions, Spawn, Status};
use serde_json::json as object;
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use support::{Images, Window, elision, json, refuses, runs, save, save_stopped, words};

/// A guest with one process to leave out, and a folder for images that must not appear.
struct Scene {
    guest: Guest,
    watch: Qmp,
    images: Images,
    pid: i32,
    counted: u64,
    _window: Window,
}

impl Scene {
    fn new() -> Self {
        let window = Window::new();
        let mut guest = window.added_to(GuestOptions::new("6.1")).boot().expect("the guest boots");
        let spawn = Spawn::new("victim", "heap=32M", "sleep=10ms").uid(1234);
        let pid = guest.control().spawn(&spawn).expect("a process").pid;
        let watch = window.open();
        Self { guest, watch, images: Images::new(), pid, counted: 0, _window: window }
    }

    fn target(&self) -> PathBuf {
        self.images.path("vm.elision")
    }

    fn socket(&self) -> PathBuf {
        self.guest.endpoints().qmp_socket()
    }

    /// A save that must fail, without a trace.
    fn refuses(&mut self, exclude: &[&str], status: i32, parts: &[&str]) {
        refuses(&mut save(&self.guest, &self.target(), exclude), status, parts);
        self.unharmed(&[]);
    }

    /// The VM runs on with everything in it, and only `left` stands where images go.
    fn unharmed(&mut self, left: &[&str]) {
        assert_eq!(self.images.names(), left);
        assert!(runs(&mut self.watch));
        self.guest.control().ping().expect("the guest answers");
        assert_eq!(self.guest.control().status(self.pid).expect("the guest answers"), Status::Running);
        let until = Instant::now() + Duration::from_secs(5);
        loop {
            let counted = self.guest.control().count("victim").expect("counters").expect("its counter");
            if counted > self.counted {
                self.counted = counted;
                return;
            }
            assert!(Instant::now() < until, "the process stands still");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn a_save_that_cannot_be_done_changes_nothing() {
    let mut scene = Scene::new();
    selections(&mut scene);
    targets(&mut scene);
    sockets(&mut scene);
    full_disk(&mut scene);
    a_paused_vm(&mut scene);
    // The control: with good input the same save works.
    json(&mut save(&scene.guest, &scene.target(), &["uid=1234"]));
    scene.unharmed(&["vm.elision"]);
    assert_eq!(scene.guest.console_problems(), Vec::<String>::new());
}

fn selections(scene: &mut Scene) {
    scene.refuses(
        &["comm=no-such-thing"],
        3,
        &["Nothing in the guest matches `comm=no-such-thing`", "optional"],
    );
    scene.refuses(&["pid=999999"], 3, &["Nothing in the guest matches `pid=999999`"]);
    // One that matches does not make up for one that does not.
    scene.refuses(&["uid=1234", "uid=4321"], 3, &["uid=4321"]);
    scene.refuses(&["pid=1"], 3, &["process 1", "cannot be left out", "panics when its first process ends"]);
    scene.refuses(&["pid=2"], 3, &["process 2 (kthreadd)", "thread of the guest's kernel"]);
    scene.refuses(&["comm=kthreadd"], 3, &["kthreadd", "cannot be left out"]);
    // A user is a wish for that user's processes; init is root's.
    scene.refuses(&["uid=0"], 3, &["process 1"]);
    refuses(elision().args(["plan", "--exclude", "pid=1", "--qmp"]).arg(scene.socket()), 3, &["process 1"]);
    scene.unharmed(&[]);

    let policy = scene.images.path("policy.toml");
    for (text, part) in [("[[exclude]]\nuid = 'x'\n", "policy.toml"), ("[[exclude]\n", "policy.toml")] {
        std::fs::write(&policy, text).expect("a file");
        refuses(save(&scene.guest, &scene.target(), &[]).arg("--policy").arg(&policy), 2, &[part]);
    }
    std::fs::remove_file(&policy).expect("the file");
    scene.unharmed(&[]);
}

fn targets(scene: &mut Scene) {
    let target = scene.target();
    std::fs::write(&target, "mine").expect("a file");
    refuses(&mut save(&scene.guest, &target, &["uid=1234"]), 2, &["vm.elision exists", "another name"]);
    scene.unharmed(&["vm.elision"]);
    assert_eq!(std::fs::read(&target).expect("the file"), b"mine");
    std::fs::remove_file(&target).expect("the file");

    std::fs::create_dir(&target).expect("a folder");
    refuses(&mut save(&scene.guest, &target, &["uid=1234"]), 2, &["vm.elision exists"]);
    scene.unharmed(&["vm.elision"]);
    std::fs::remove_dir(&target).expect("an empty folder");

    let inside = scene.images.path("missing/vm.elision");
    refuses(&mut save(&scene.guest, &inside, &["uid=1234"]), 2, &["missing is not a directory", "create it"]);
    // Somebody else's file where the unfinished image would be.
    let partial = scene.images.path(".vm.elision.elision-partial");
    std::fs::write(&partial, "mine").expect("a file");
    refuses(&mut save(&scene.guest, &target, &["uid=1234"]), 4, &["is in the way", "remove it"]);
    assert_eq!(std::fs::read(&partial).expect("the file"), b"mine");
    std::fs::remove_file(&partial).expect("the file");
    scene.unharmed(&[]);
}

fn sockets(scene: &mut Scene) {
    let save_by = |socket: &Path, image: &Path| {
        let mut command = elision();
        command.arg("save").arg("--qmp").arg(socket).args(["--exclude", "uid=1234"]).arg(image);
        command
    };
    let target = scene.target();
    let other = Qmp::connect(&scene.socket()).expect("another client");
    let in_use = ["does not answer", "one client at a time", "Close the other client"];
    scene.refuses(&["uid=1234"], 4, &in_use);
    refuses(elision().arg("ps").arg("--qmp").arg(scene.socket()), 4, &in_use);
    drop(other);

    let missing = scene.images.path("no-such-socket");
    refuses(&mut save_by(&missing, &target), 4, &["no-such-socket", "Is the VM running", "elision run"]);
    let file = scene.images.path("file");
    std::fs::write(&file, "text").expect("a file");
    refuses(&mut save_by(&file, &target), 4, &["Cannot connect to the QMP socket", "elision run"]);
    std::fs::remove_file(&file).expect("the file");

    let strange = scene.images.path("strange");
    let listener = UnixListener::bind(&strange).expect("a socket");
    let server = std::thread::spawn(move || {
        let (mut peer, _) = listener.accept().expect("a client");
        peer.write_all(b"220 mail.example ESMTP\r\n").expect("a greeting");
    });
    refuses(&mut save_by(&strange, &target), 4, &["is not a QMP socket", "220 mail.example"]);
    server.join().expect("the server");
    std::fs::remove_file(&strange).expect("the socket");
    let control = scene.guest.endpoints().control_socket();
    assert!(control.exists());
    scene.unharmed(&[]);
}

/// A small disk mounted for `elision` alone, or, where that is forbidden, a limit on the size of a file.
fn full_disk(scene: &mut Scene) {
    let disk = scene.images.path("disk");
    std::fs::create_dir(&disk).expect("a folder");
    let image = disk.join("vm.elision");
    let mount = "mount -t tmpfs -o size=4m none \"$DISK\" || exit 99; \"$@\"; status=$?; ls -A \"$DISK\" > \"$LEFT\"; exit $status";
    let limit = "trap '' XFSZ; ulimit -f 8000; exec \"$@\"";
    let left = scene.images.path("left");
    let attempt = |unshare: bool, live: Option<&str>| {
        let mut command = Command::new(if unshare { "unshare" } else { "sh" });
        command.env("DISK", &disk).env("LEFT", &left);
        let script = if unshare { mount } else { limit };
        command.args(if unshare { &["--mount", "sh"][..] } else { &[] }).args(["-c", script, "sh"]);
        command
            .arg(env!("CARGO_BIN_EXE_elision"))
            .arg("save")
            .arg("--qmp")
            .arg(scene.guest.endpoints().qmp_socket());
        command.args(["--exclude", "uid=1234"]).args(live).arg(&image);
        command
    };
    let parts = ["No room for", "ram.img", "bytes", "more than the disk"];
    let may_mount = Command::new("unshare")
        .args(["--mount", "mount", "-t", "tmpfs", "none"])
        .arg(&disk)
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    println!("a full disk: {}", if may_mount { "a small one is mounted" } else { "mounting is forbidden" });
    if may_mount {
        for live in [None, Some("--live=snapshot")] {
            refuses(&mut attempt(true, live), 4, &parts);
            assert_eq!(std::fs::read(&left).expect("a list"), b"", "something is left on the full disk");
            std::fs::remove_file(&left).expect("the list");
        }
    }
    refuses(&mut attempt(false, None), 4, &parts);
    std::fs::remove_dir(&disk).expect("nothing is left in it");
    scene.unharmed(&[]);
}

fn a_paused_vm(scene: &mut Scene) {
    let target = scene.target();
    let saved = save_stopped(&scene.guest, &target, &["uid=1234"]);
    assert!(saved.status.success(), "{}", words(&saved));
    assert!(words(&saved).contains("The VM is paused. It stays so"), "{}", words(&saved));
    assert!(!runs(&mut scene.watch), "a VM that was paused must stay so");
    assert!(elision().arg("verify").arg(&target).output().expect("elision starts").status.success());
    std::fs::remove_dir_all(&target).expect("the image");
    // QEMU cannot send its devices twice without running in between.
    let parts = ["postmigrate", "continue it first", "`cont`"];
    refuses(&mut save(&scene.guest, &target, &["uid=1234"]), 4, &parts);
    assert!(!runs(&mut scene.watch), "a VM that was paused must stay so");
    // A save that fails before leaves it paused too.
    refuses(&mut save(&scene.guest, &target, &["uid=4321"]), 3, &["Nothing in the guest matches"]);
    assert!(!runs(&mut scene.watch));
    scene.guest.endpoints().cont().expect("it runs on");
    scene.unharmed(&[]);
}

/// A QEMU without a disk, so that it stays in its firmware.
struct Firmware {
    child: Child,
    folder: tempfile::TempDir,
}

impl Firmware {
    fn start(shared: bool) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name).display().to_string();
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-nodefaults", "-display", "none", "-accel", "tcg", "-m", "64"]);
        if shared {
            let object = format!("memory-backend-file,id=pc.ram,size=64M,mem-path={},share=on", at("ram"));
            command.args(["-machine", "q35,memory-backend=pc.ram", "-object", &object]);
        } else {
            command.args(["-machine", "q35"]);
        }
        command.args(["-qmp", &format!("unix:{},server=on,wait=off", at("qmp"))]);
        let child = command.stdin(Stdio::null()).spawn().expect("QEMU starts");
        let firmware = Self { child, folder };
        let begin = Instant::now();
        while Qmp::connect(&firmware.socket()).is_err() {
            assert!(begin.elapsed() < Duration::from_secs(20), "QEMU does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        firmware
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("qmp")
    }

    /// Every verb says so, and the VM runs on.
    fn has_no_kernel(&self) {
        const WORDS: [&str; 3] =
            ["No running Linux kernel was found", "boot loader", "wait until it has booted"];
        let images = Images::new();
        let image = images.path("vm.elision");
        for way in [&[][..], &["--live"]] {
            let mut command = elision();
            command.arg("save").args(way).arg("--qmp").arg(self.socket()).arg(&image);
            refuses(&mut command, 4, &WORDS);
        }
        refuses(elision().arg("ps").arg("--qmp").arg(self.socket()), 4, &WORDS);
        let mut plan = elision();
        refuses(plan.args(["plan", "--exclude", "uid=7", "--qmp"]).arg(self.socket()), 4, &WORDS);
        assert_eq!(images.names(), Vec::<String>::new());
        let mut qmp = Qmp::connect(&self.socket()).expect("the socket is free");
        let status = qmp.execute("query-status", object!({})).expect("a status");
        assert_eq!(status["running"], true, "{status}");
    }
}

impl Drop for Firmware {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_guest_in_its_firmware_has_no_kernel() {
    Firmware::start(true).has_no_kernel();
    Firmware::start(false).has_no_kernel();
}
