//! Files that a running guest needs, such as modules of its kernel: they come over its serial port.

use super::sh;
use elision_testbed::{Guest, GuestOptions, modules};
use std::path::Path;
use std::process::Command;

/// Less than one argument of a program can be; whole groups of base64.
const ARGUMENT: usize = 64 << 10;

/// Loads the module called `name` of the guest's own kernel.
pub(crate) fn load(guest: &mut Guest, options: &GuestOptions, name: &str) {
    let kernel = options.kernel().expect("a kernel");
    let module = modules::get(&kernel, name).unwrap_or_else(|e| panic!("{name}: {e}"));
    put(guest, &module, &format!("/tmp/{name}.ko"));
    sh(guest, &format!("insmod /tmp/{name}.ko"));
}

/// Makes a copy of a file in the guest, executable.
pub(crate) fn put(guest: &mut Guest, file: &Path, path: &str) {
    let pack = ["-c", "gzip -9c \"$0\" | base64 -w 0"];
    let packed = Command::new("sh").args(pack).arg(file).output().expect("a shell");
    assert!(packed.status.success(), "{} is not packed", file.display());
    let packed = String::from_utf8(packed.stdout).expect("text");
    for piece in packed.as_bytes().chunks(ARGUMENT) {
        let piece = std::str::from_utf8(piece).expect("text");
        sh(guest, &format!("echo {piece} >> {path}.base64"));
    }
    sh(guest, &format!("base64 -d {path}.base64 | gunzip > {path} && chmod 755 {path} && rm {path}.base64"));
}
