//! Versions of QEMU for guests: the machine's own, and others fetched by package name and unpacked beside it.
//!
//! | name | package source |
//! |---|---|
//! | `7.2` | Debian bookworm |
//! | `10` | Debian bookworm-backports |
//!
//! A version that the machine has installed is not fetched. One that was unpacked uses the libraries of the
//! machine's own, which must therefore be installed, and gets its firmware by `-L`.

use crate::apt::{Apt, newest};
use crate::apt_sources::{self, Source};
use crate::error::{Context, Error, output_of};
use crate::paths;
use std::fs::File;
use std::path::Path;
use std::process::Command;

/// Names of the versions that tests of all versions run on, oldest first.
pub const NAMES: [&str; 2] = ["7.2", "10"];

/// The program as found on the machine.
const PROGRAM: &str = "qemu-system-x86_64";
/// The program, and the firmware that fits to it.
const PACKAGES: [&str; 3] = ["qemu-system-x86", "qemu-system-data", "seabios"];
const FIRMWARE: [&str; 2] = ["usr/share/qemu", "usr/share/seabios"];

/// The words that begin a command of QEMU `name`, from the machine, from the cache or else fetched.
pub fn get(name: &str) -> Result<Vec<String>, Error> {
    if !NAMES.contains(&name) {
        return Err(none(name, "the names are those of the table"));
    }
    if version_of(Path::new(PROGRAM)).is_some_and(|version| is_version(name, &version)) {
        return Ok(vec![PROGRAM.to_owned()]);
    }
    let all = paths::cache().join("qemu");
    std::fs::create_dir_all(&all).context("create", &all)?;
    let lock_path = all.join("lock");
    let lock = File::create(&lock_path).context("create", &lock_path)?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).context("lock", &lock_path)?;
    let folder = all.join(name);
    if !folder.is_dir() {
        fetch(name, &folder)?;
    }
    let program = folder.join("usr/bin").join(PROGRAM);
    match version_of(&program) {
        Some(version) if is_version(name, &version) => Ok(command(&program, &folder)),
        Some(version) => Err(none(name, format!("the package's version is {version}"))),
        None => Err(none(name, format!("{} does not start: {}", program.display(), missing(&program)))),
    }
}

fn command(program: &Path, folder: &Path) -> Vec<String> {
    let firmware = FIRMWARE.iter().flat_map(|f| ["-L".to_owned(), folder.join(f).display().to_string()]);
    std::iter::once(program.display().to_string()).chain(firmware).collect()
}

fn fetch(name: &str, folder: &Path) -> Result<(), Error> {
    let machine = apt_sources::of_machine(Path::new("/etc/apt"));
    let debian: Vec<Source> = machine.into_iter().filter(Source::is_debian).collect();
    let suites: &[&str] = if name == "10" { &["bookworm-backports"] } else { &["bookworm"] };
    let archive =
        apt_sources::best(&debian, false).ok_or_else(|| none(name, "no Debian package source here"))?;
    let sources: Vec<String> = suites.iter().map(|suite| archive.paragraph(suite)).collect();
    let apt_folder = paths::cache().join("apt").join(format!("qemu-{name}"));
    let apt = Apt::new(&apt_folder, &sources.join("\n"))?;
    let unpacked = folder.with_extension("unpacked");
    let _ = std::fs::remove_dir_all(&unpacked);
    std::fs::create_dir_all(&unpacked).context("create", &unpacked)?;
    for package in PACKAGES {
        let found = newest(apt.show(&[package.to_owned()])?);
        apt.unpack(&found.ok_or_else(|| none(name, format!("no package {package}")))?, &unpacked)?;
    }
    let _ = std::fs::remove_dir_all(&apt_folder); // indexes are large and soon stale
    std::fs::rename(&unpacked, folder).context("move QEMU to", folder)
}

/// The version in `QEMU emulator version 10.0.2 (Debian ...)`.
fn version_of(program: &Path) -> Option<String> {
    let text = output_of(Command::new(program).arg("--version")).ok()?;
    let version = text.lines().next()?.split_whitespace().nth(3)?;
    Some(version.to_owned())
}

fn is_version(name: &str, version: &str) -> bool {
    version.strip_prefix(name).is_some_and(|rest| rest.starts_with('.'))
}

/// The libraries that the machine lacks.
fn missing(program: &Path) -> String {
    let text = output_of(Command::new("ldd").arg(program)).unwrap_or_default();
    let lines = text.lines().filter(|l| l.contains("not found")).map(str::trim);
    lines.collect::<Vec<_>>().join(", ")
}

fn none(name: &str, reason: impl Into<String>) -> Error {
    Error::NoHypervisor { name: name.to_owned(), reason: reason.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_told_by_its_whole_numbers() {
        assert!(is_version("7.2", "7.2.22") && is_version("10", "10.0.2"));
        assert!(!is_version("7.2", "7.20.1") && !is_version("10", "100.1") && !is_version("10", "9.10"));
    }

    #[test]
    fn every_version_starts() {
        let has_debian = apt_sources::of_machine(Path::new("/etc/apt")).iter().any(Source::is_debian);
        for name in NAMES {
            let words = match get(name) {
                Err(Error::NoHypervisor { reason, .. }) if !has_debian => {
                    println!("{name} cannot be had here: {reason}");
                    continue;
                }
                words => words.unwrap(),
            };
            let version = version_of(Path::new(&words[0])).unwrap();
            assert!(is_version(name, &version), "{words:?} is {version}");
        }
        assert!(get("1").is_err());
    }
}
