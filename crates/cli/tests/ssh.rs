//! A password typed over ssh: the server, its shell and their terminal are left out together.
//!
//! ```text
//! ssh -tt ── ProxyCommand ── FIFOs ── QEMU's third serial port ── nc ── TCP ── dropbear ── pty ── sh: read -s
//! ```
//! A serial line in place of a network: the guests have no network driver.

mod support;

use elision_testbed::{Guest, GuestOptions, programs, secret};
use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use support::{Images, copies, json, restore, save, sh};

const LIMIT: Duration = Duration::from_secs(60);

/// A guest's third serial port, as two FIFOs.
fn line(options: &GuestOptions, folder: &Path) -> GuestOptions {
    for name in ["line.in", "line.out"] {
        let status = Command::new("mkfifo").arg(folder.join(name)).status().expect("mkfifo");
        assert!(status.success(), "mkfifo");
    }
    let chardev = format!("pipe,id=line,path={}", folder.join("line").display());
    options.clone().extra(&["-chardev", &chardev, "-serial", "chardev:line"])
}

/// A session in the guest's shell.
struct Session {
    ssh: Child,
    seen: Arc<Mutex<String>>,
}

impl Session {
    fn open(guest: &mut Guest, folder: &Path) -> Self {
        let key = folder.join("key");
        let made =
            Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key).status();
        assert!(made.expect("ssh-keygen").success(), "ssh-keygen");
        let public = fs::read_to_string(key.with_extension("pub")).expect("a key");
        sh(
            guest,
            &format!("mkdir -p -m 700 /root/.ssh && echo '{}' > /root/.ssh/authorized_keys", public.trim()),
        );
        sh(
            guest,
            "chmod go-w / /root; mkdir -p /etc/dropbear; dropbearkey -t ed25519 -f /etc/dropbear/key 2>&1",
        );
        sh(guest, "stty -F /dev/ttyS2 raw -echo");
        sh(guest, "dropbear -E -p 127.0.0.1:22 -r /etc/dropbear/key > /dev/null 2> /tmp/dropbear.log");
        sh(guest, "setsid nc 127.0.0.1 22 < /dev/ttyS2 > /dev/ttyS2 2> /tmp/nc.log & true");

        let at = |name: &str| folder.join(name).display().to_string();
        let proxy = format!("cat {} & exec cat > {}", at("line.out"), at("line.in"));
        let mut ssh = Command::new("ssh")
            .args(["-tt", "-F", "/dev/null", "-o", "StrictHostKeyChecking=no", "-o", "BatchMode=yes"])
            .args([
                "-o",
                &format!("UserKnownHostsFile={}", at("known")),
                "-o",
                &format!("ProxyCommand={proxy}"),
            ])
            .args(["-o", "ConnectTimeout=100", "-i", &at("key"), "root@guest"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("ssh (package openssh-client)");
        let seen = Arc::new(Mutex::new(String::new()));
        let out: [Box<dyn Read + Send>; 2] =
            [Box::new(ssh.stdout.take().expect("stdout")), Box::new(ssh.stderr.take().expect("stderr"))];
        for mut from in out {
            let seen = Arc::clone(&seen);
            std::thread::spawn(move || {
                let mut bytes = [0; 256];
                while let Ok(n @ 1..) = from.read(&mut bytes) {
                    seen.lock().expect("text").push_str(&String::from_utf8_lossy(&bytes[..n]));
                }
            });
        }
        Self { ssh, seen }
    }

    fn say(&mut self, line: &str) {
        let stdin = self.ssh.stdin.as_mut().expect("stdin");
        stdin
            .write_all(line.as_bytes())
            .and_then(|()| stdin.write_all(b"\r"))
            .and_then(|()| stdin.flush())
            .expect("ssh reads");
    }

    /// Waits until the session has printed `text`.
    fn wait_for(&self, text: &str) {
        let begin = Instant::now();
        while !self.seen.lock().expect("text").contains(text) {
            let seen = self.seen.lock().expect("text").clone();
            assert!(begin.elapsed() < LIMIT, "the session never said {text:?}, but {seen:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.ssh.kill();
        let _ = self.ssh.wait();
    }
}

#[test]
fn a_password_typed_over_ssh_is_left_out_with_its_server() {
    let files =
        programs::get("dropbear-bin", &["usr/sbin/dropbear", "usr/bin/dropbearkey"]).expect("dropbear");
    let files = files
        .into_iter()
        .map(|(path, file)| (path.replacen("usr/sbin", "bin", 1).replacen("usr/bin", "bin", 1), file));
    let plain_options = GuestOptions::new("7").files(files.collect());
    let folders = [(); 2].map(|()| tempfile::tempdir().expect("a folder"));
    let options = line(&plain_options, folders[0].path());
    let mut guest = options.boot().expect("the guest boots");
    let mut session = Session::open(&mut guest, folders[0].path());
    session.say("echo shell-$((40 + 2))");
    session.wait_for("shell-42");
    session.say("read -s password; echo got-${#password}");
    std::thread::sleep(Duration::from_millis(500));
    let password = String::from_utf8(secret("password").to_vec()).expect("text");
    session.say(&password);
    session.wait_for("got-32");
    assert!(!session.seen.lock().expect("text").contains(&password), "the terminal echoes the password");

    let images = Images::new();
    let (plain, elided) = (images.path("plain"), images.path("elided"));
    json(&mut save(&guest, &plain, &[]));
    let saved = json(&mut save(&guest, &elided, &["comm=dropbear"]));
    assert!(saved["excluded"].as_array().is_some_and(|pids| pids.len() >= 2), "server and shell: {saved}");
    let (before, after) = (copies(&plain, &["password"])[0], copies(&elided, &["password"])[0]);
    println!("copies of the password: {before}, then {after}");
    assert!(before > 0, "control: the password is nowhere in the plain save");
    assert_eq!(after, 0, "in the elided save");

    let mut restored = restore(&line(&plain_options, folders[1].path()), &elided);
    let health = restored.control().health(1).expect("the guest answers");
    assert!(health.errors.is_empty(), "{health:?}");
    let left = sh(&mut restored, "ps | grep '[d]ropbear' || true");
    assert_eq!(left.trim(), "", "the server still runs");
    assert!(restored.console_problems().is_empty(), "{:?}", restored.console_problems());
    session.say("echo still-$((40 + 3))");
    session.wait_for("still-43"); // in the source
}
