//! Modules in a guest's kernel: they come over its serial port.

use super::sh;
use elision_testbed::{Guest, GuestOptions, modules};
use std::process::Command;

/// Less than one argument of a program can be; whole groups of base64.
const ARGUMENT: usize = 64 << 10;

/// Loads the module called `name` of the guest's own kernel.
pub(crate) fn load(guest: &mut Guest, options: &GuestOptions, name: &str) {
    let kernel = options.kernel().expect("a kernel");
    let module = modules::get(&kernel, name).unwrap_or_else(|e| panic!("{name}: {e}"));
    let pack = ["-c", "gzip -9c \"$0\" | base64 -w 0"];
    let packed = Command::new("sh").args(pack).arg(&module).output().expect("a shell");
    assert!(packed.status.success(), "{name} is not packed");
    let packed = String::from_utf8(packed.stdout).expect("text");
    for piece in packed.as_bytes().chunks(ARGUMENT) {
        let piece = std::str::from_utf8(piece).expect("text");
        sh(guest, &format!("echo {piece} >> /tmp/{name}.base64"));
    }
    sh(guest, &format!("base64 -d /tmp/{name}.base64 | gunzip > /tmp/{name}.ko && insmod /tmp/{name}.ko"));
}
