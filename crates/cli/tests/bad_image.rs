//! Wrong, truncated and tampered images of a real guest, given to every verb that takes one.

mod support;

use elision_qemu::Qmp;
use elision_testbed::{Endpoints, GuestOptions, RamMode, Spawn, secret};
use serde_json::Value;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use support::{Images, copies, elision, json, refuses, save, words};

const MANIFEST: &str = "manifest.json";
const FILES: [&str; 3] = ["ram.img", "state.bin", "exclusions.bin"];

/// An image of a real guest, and a place to restore it.
struct Scene {
    options: GuestOptions,
    images: Images,
    image: PathBuf,
    secret: PathBuf,
    folder: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let options = GuestOptions::new("6.1");
        let mut guest = options.boot().expect("the guest boots");
        guest.control().spawn(&Spawn::new("victim", "heap", "sleep").uid(1234)).expect("a process");
        let images = Images::new();
        let image = images.path("vm.elision");
        json(&mut save(&guest, &image, &["uid=1234"]));
        let secret_file = images.path("secret");
        fs::write(&secret_file, secret("victim")).expect("a file");
        let folder = GuestOptions::new_folder().expect("a folder");
        Self { options, images, image, secret: secret_file, folder }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.image.join(name)
    }

    fn verify(&self) -> Command {
        let mut command = elision();
        command.arg("verify").arg(&self.image);
        command
    }

    fn restore(&self) -> Command {
        let words = self.options.clone().ram(RamMode::Plain).command_in(&self.folder).expect("a command");
        let mut command = elision();
        command
            .arg("restore")
            .arg(&self.image)
            .arg("--qmp")
            .arg(self.socket())
            .arg("--json")
            .arg("--")
            .args(words);
        command
    }

    fn socket(&self) -> PathBuf {
        Endpoints::new(&self.folder).qmp_socket()
    }

    /// Every verb refuses the image, and no QEMU is left.
    fn every_verb_refuses(&self, status: i32, parts: &[&str]) {
        let image = |verb: &str| {
            let mut command = elision();
            command.arg(verb).arg(&self.image);
            command
        };
        for verb in ["verify", "inspect", "ps"] {
            refuses(&mut image(verb), status, parts);
        }
        refuses(image("audit").arg("--secret-file").arg(&self.secret), status, parts);
        self.restore_fails(status, parts);
    }

    fn restore_fails(&self, status: i32, parts: &[&str]) {
        let output = self.restore().output().expect("elision starts");
        let told = words(&output);
        assert_eq!(output.status.code(), Some(status), "{told}");
        assert!(parts.iter().all(|part| told.contains(part)), "{told}");
        assert!(Qmp::connect(&self.socket()).is_err(), "a QEMU runs");
    }

    /// Verify answers no and names the file.
    fn is_damaged(&self, kind: &str, name: &str) {
        let output = self.verify().arg("--json").output().expect("elision starts");
        assert_eq!(output.status.code(), Some(1), "{}", words(&output));
        let answer: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let problems = answer["problems"].as_array().expect("problems");
        let named =
            |p: &Value| p["problem"] == kind && p["message"].as_str().is_some_and(|m| m.contains(name));
        assert!(problems.iter().any(named), "{answer}");
    }

    fn is_whole(&self) {
        let output = self.verify().output().expect("elision starts");
        assert!(output.status.success(), "{}", words(&output));
    }
}

/// Turns one bit around.
fn flip(path: &Path, at: u64, bit: u32) {
    let file = OpenOptions::new().read(true).write(true).open(path).expect("a file");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("a byte");
    file.write_all_at(&[byte[0] ^ (1 << bit)], at).expect("a byte");
}

fn len(path: &Path) -> u64 {
    fs::metadata(path).expect("a file").len()
}

/// An offset in the file that holds data.
fn with_data(path: &Path, near: u64) -> u64 {
    let file = File::open(path).expect("a file");
    rustix::fs::seek(file, rustix::fs::SeekFrom::Data(near)).expect("data")
}

#[test]
fn damaged_images_are_refused() {
    let scene = Scene::new();
    scene.is_whole();
    bit_flips(&scene);
    truncated(&scene);
    manifests(&scene);
    forged_state(&scene);
    not_images(&scene);
    // The control: put right again, the image is whole, clean, and can be restored.
    scene.is_whole();
    assert_eq!(copies(&scene.image, &["victim"]), [0]);
    let output = scene.restore().output().expect("elision starts");
    assert!(output.status.success(), "{}", words(&output));
    drop(scene.options.attach(&scene.folder).expect("the restored guest answers"));
}

/// Bits here and there in each file.
fn bit_flips(scene: &Scene) {
    for name in FILES {
        let path = scene.file(name);
        let kind = if name == "ram.img" { "ram-chunk" } else { "checksum" };
        for eighth in [0, 3, 7] {
            let at = with_data(&path, len(&path) / 8 * eighth);
            flip(&path, at, u32::try_from(eighth).expect("small"));
            scene.is_damaged(kind, name);
            if name == "state.bin" {
                scene.restore_fails(1, &["state.bin was changed or damaged"]);
                let ps = elision().arg("ps").arg(&scene.image).output().expect("elision starts");
                assert_eq!(ps.status.code(), Some(1), "{}", words(&ps));
            }
            flip(&path, at, u32::try_from(eighth).expect("small"));
        }
    }
    // Data where there was a hole.
    let path = scene.file("ram.img");
    let file = OpenOptions::new().write(true).open(&path).expect("a file");
    let hole = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(0)).expect("a hole");
    file.write_all_at(b"x", hole).expect("a byte");
    scene.is_damaged("ram-chunk", "ram.img");
    file.write_all_at(&[0], hole).expect("a byte");
    scene.is_whole();
}

fn truncated(scene: &Scene) {
    for name in FILES {
        let (path, aside) = (scene.file(name), scene.images.path("aside"));
        let whole = len(&path);
        fs::rename(&path, &aside).expect("a file");
        scene.every_verb_refuses(1, &[name, "is missing"]);
        for length in [0, whole - 1, whole + 1] {
            File::create(&path).and_then(|file| file.set_len(length)).expect("a file");
            scene.every_verb_refuses(1, &[name, "truncated or mixed up"]);
        }
        fs::remove_file(&path).expect("the file");
        fs::create_dir(&path).expect("a folder");
        scene.every_verb_refuses(4, &[name, "not a regular file"]);
        fs::remove_dir(&path).expect("the folder");
        fs::rename(&aside, &path).expect("a file");
    }
    scene.is_whole();
}

fn manifests(scene: &Scene) {
    let path = scene.file(MANIFEST);
    let text = fs::read(&path).expect("a manifest");
    let put = |bytes: &[u8]| fs::write(&path, bytes).expect("a manifest");
    let with = |change: fn(&mut Value)| {
        let mut manifest: Value = serde_json::from_slice(&text).expect("JSON");
        change(&mut manifest);
        put(manifest.to_string().as_bytes());
    };
    with(|m| m["format"] = 999.into());
    scene.every_verb_refuses(2, &["image format 999", "use a newer version"]);
    with(|m| m["format"] = (-1).into());
    scene.every_verb_refuses(1, &["manifest.json is damaged or incomplete"]);
    for cut in [0, 1, text.len() / 2, text.len() - 3] {
        put(&text[..cut]);
        scene.every_verb_refuses(1, &["manifest.json is damaged or incomplete"]);
    }
    put(&[0xff; 4096]);
    scene.every_verb_refuses(1, &["manifest.json is damaged or incomplete"]);
    with(|m| m["ram_layout"][0]["len"] = u64::MAX.into());
    scene.every_verb_refuses(1, &["manifest.json is damaged or incomplete"]);
    with(|m| m["files"]["state"]["bytes"] = u64::MAX.into());
    scene.every_verb_refuses(1, &["manifest.json is damaged or incomplete"]);
    with(|m| m["files"]["ram"]["chunk_bytes"] = 0.into());
    scene.every_verb_refuses(1, &["manifest.json is damaged or incomplete"]);
    with(|m| m["files"]["state"]["blake3"] = "0".repeat(64).into());
    scene.is_damaged("checksum", "state.bin");
    with(|m| m["files"]["ram"]["root"] = "0".repeat(64).into());
    scene.is_damaged("checksum", "ram.img");

    // One bit anywhere: a clear answer, never a crash.
    for i in 0..24_u32 {
        put(&text);
        let at = len(&path) * u64::from(i) / 24 + u64::from(i % 5);
        flip(&path, at.min(len(&path) - 1), i % 8);
        for verb in ["verify", "inspect"] {
            let output =
                elision().arg(verb).arg(&scene.image).arg("--json").output().expect("elision starts");
            assert!(matches!(output.status.code(), Some(0..=2)), "bit {i} of {at}: {}", words(&output));
        }
    }
    put(&text);
    scene.is_whole();
}

/// A state that is not QEMU's, with a manifest that says it is right.
fn forged_state(scene: &Scene) {
    let (manifest, state) = (scene.file(MANIFEST), scene.file("state.bin"));
    let (text, bytes) = (fs::read(&manifest).expect("a manifest"), fs::read(&state).expect("a state"));
    for forged in [&bytes[..bytes.len() / 2], b"no device state", &[0; 4096]] {
        fs::write(&state, forged).expect("a state");
        let mut changed: Value = serde_json::from_slice(&text).expect("JSON");
        changed["files"]["state"]["bytes"] = forged.len().into();
        changed["files"]["state"]["blake3"] = blake3::hash(forged).to_hex().as_str().into();
        fs::write(&manifest, changed.to_string()).expect("a manifest");
        scene.is_whole();
        scene.restore_fails(4, &["QEMU could not restore the VM", "QEMU said"]);
        let ps = elision().arg("ps").arg(&scene.image).output().expect("elision starts");
        assert_eq!(ps.status.code(), Some(4), "{}", words(&ps));
    }
    fs::write(&manifest, &text).expect("a manifest");
    fs::write(&state, &bytes).expect("a state");
}

fn not_images(scene: &Scene) {
    let folder = scene.images.path("folder");
    fs::create_dir(&folder).expect("a folder");
    for path in [&folder, &scene.secret, &scene.images.path("missing")] {
        for verb in ["verify", "inspect", "ps", "restore"] {
            refuses(elision().arg(verb).arg(path), 2, &["is not an image", "manifest.json"]);
        }
        let mut audit = elision();
        refuses(
            audit.arg("audit").arg(path).arg("--secret-file").arg(&scene.secret),
            2,
            &["is not an image"],
        );
    }
}
