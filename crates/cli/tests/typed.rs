//! A password typed by emulated key presses on a virtual console: it is in the terminal, in the process and
//! in the keyboard itself, and after a save without the console's processes in none of them.
//!
//! ```text
//! QMP sendkey ── PS/2 keyboard's ring (scan codes) ── tty1: flip buffers, n_tty ── read in a shell
//! ```

mod support;

use elision_qemu::Vm;
use elision_testbed::{Guest, GuestOptions, search, secret};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};
use support::{Images, json, restore, save, sh};

/// Scan codes (set 1) of the digits of a secret.
const CODES: [(u8, u8); 16] = [
    (b'0', 0x0b),
    (b'1', 0x02),
    (b'2', 0x03),
    (b'3', 0x04),
    (b'4', 0x05),
    (b'5', 0x06),
    (b'6', 0x07),
    (b'7', 0x08),
    (b'8', 0x09),
    (b'9', 0x0a),
    (b'a', 0x1e),
    (b'b', 0x30),
    (b'c', 0x2e),
    (b'd', 0x20),
    (b'e', 0x12),
    (b'f', 0x21),
];
/// A password is this much of a secret: twice as many scan codes fit well into the keyboard's ring.
const LEN: usize = 16;

fn password(label: &str) -> Vec<u8> {
    secret(label)[..LEN].to_vec()
}

fn scan_codes(text: &[u8]) -> Vec<u8> {
    let code = |key: &u8| CODES.iter().find(|(k, _)| k == key).expect("a digit").1;
    text.iter().map(code).flat_map(|code| [code, code | 0x80]).collect()
}

fn type_keys(guest: &Guest, keys: &[u8]) {
    for key in keys {
        let name = if *key == b'\n' { "ret".to_owned() } else { char::from(*key).to_string() };
        guest.endpoints().monitor(&format!("sendkey {name} 1")).expect("a key press");
        std::thread::sleep(Duration::from_millis(60)); // the keyboard keeps 16 codes for the guest
    }
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < Duration::from_secs(60), "timed out waiting for {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// How often each password stands in the RAM of an image.
fn in_ram(options: &GuestOptions, image: &Path, labels: &[&str]) -> Vec<usize> {
    let needles: Vec<Vec<u8>> = labels.iter().map(|label| password(label)).collect();
    let file = fs::File::open(image.join("ram.img")).expect("the image's RAM");
    let ram = elision_memory::Ram::shared(&file, options.layout().expect("a layout")).expect("RAM");
    search::find(&ram, &needles).expect("a search").iter().map(Vec::len).collect()
}

/// How many of each password's scan codes stand in a row in a device state.
fn in_devices(state: &[u8], labels: &[&str]) -> Vec<usize> {
    let longest = |label: &&str| {
        let codes = scan_codes(&password(label));
        let is_in = |n: &usize| codes.windows(*n).any(|part| state.windows(*n).any(|w| w == part));
        (1..=codes.len()).rev().find(is_in).unwrap_or(0)
    };
    labels.iter().map(longest).collect()
}

/// What QEMU itself would save of the devices. Elision clears the keyboard in every image.
fn device_state(guest: &Guest) -> Vec<u8> {
    let mut vm = Vm::attach(&guest.endpoints().qmp_socket()).expect("QMP");
    vm.stop().expect("the VM stops");
    let state = vm.device_state().expect("a device state");
    vm.cont().expect("the VM goes on");
    let mut bytes = Vec::new();
    state.write_to(&mut bytes).expect("memory");
    bytes
}

#[test]
fn a_password_typed_on_a_virtual_console_is_left_out() {
    let options = GuestOptions::new("7").extra(&["-device", "VGA"]);
    let mut guest = options.boot().expect("the guest boots");
    sh(
        &mut guest,
        "setsid -c sh -c 'read -s p; echo read > /tmp/typed; sleep 10000; true' < /dev/tty1 > /dev/tty1 2>&1 & true",
    );
    wait_for("the shell to read", || sh(&mut guest, "stty -F /dev/tty1 -a").contains("-echo "));
    let labels = ["typed and read", "typed and not read"];
    type_keys(&guest, &password(labels[0]));
    type_keys(&guest, b"\n");
    wait_for("the shell to have read", || sh(&mut guest, "cat /tmp/typed 2>&1 || true").contains("read"));
    type_keys(&guest, &password(labels[1]));

    let keys = device_state(&guest);
    let images = Images::new();
    let (plain, elided) = (images.path("plain"), images.path("elided"));
    json(&mut save(&guest, &plain, &[]));
    let saved = json(&mut save(&guest, &elided, &["tty=tty1"]));
    let (before, after) = (in_ram(&options, &plain, &labels), in_ram(&options, &elided, &labels));
    let state = fs::read(elided.join("state.bin")).expect("the image's device state");
    let (keys, left) = (in_devices(&keys, &labels), in_devices(&state, &labels));
    println!(
        "{labels:?}: copies in RAM {before:?}, then {after:?}; scan codes in a row {keys:?}, then {left:?}"
    );
    assert!(before.iter().all(|&n| n > 0), "control: in the terminal and in the shell, {before:?}");
    assert!(keys.iter().all(|&n| n == 2 * LEN), "control: in the keyboard, {keys:?}");
    assert_eq!(after, [0, 0], "in the RAM of the elided image");
    assert!(left.iter().all(|&n| n < 6), "in the devices of the elided image, {left:?}");
    assert!(saved["plan"]["edited_bytes"]["terminal"].as_u64() > Some(0), "{saved}");

    let mut restored = restore(&options, &elided);
    wait_for("the shell to end", || !sh(&mut restored, "ps").contains("sleep 10000"));
    sh(
        &mut restored,
        "setsid -c sh -c 'read p; echo \"$p\" > /tmp/again' < /dev/tty1 > /dev/tty1 2>&1 & true",
    );
    std::thread::sleep(Duration::from_secs(2));
    type_keys(&restored, b"again\n");
    wait_for("new keys to arrive", || sh(&mut restored, "cat /tmp/again 2>&1 || true").contains("again"));
    assert!(restored.console_problems().is_empty(), "{:?}", restored.console_problems());
}
