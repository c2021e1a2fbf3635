//! Stock kernels for guests, fetched by package name through apt and kept in a cache.
//!
//! | name | package source | kernel |
//! |---|---|---|
//! | `5.10` | Debian bullseye, its security archive where configured | 5.10 |
//! | `6.1` | Debian bookworm, its security archive where configured | 6.1 |
//! | `6.12` | Debian trixie, its security archive where configured | 6.12 |
//! | `7` | Debian trixie-backports and sid, whichever is newer | 7.x |
//!
//! The mirror is the one in the machine's own apt configuration. On a machine of another
//! distribution each name gives the newest kernel of that distribution, and says so.

use crate::apt::{Apt, Package, newest};
use crate::apt_sources::{self, Source};
use crate::error::{Context, Error};
use crate::paths;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::path::{Path, PathBuf};

/// Names of the kernels that every test of all kernels runs on, oldest first.
pub const NAMES: [&str; 4] = ["5.10", "6.1", "6.12", "7"];

const META_PACKAGE: &str = "linux-image-cloud-amd64";

/// A kernel to boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    /// The name tests use.
    pub name: String,
    /// Its package.
    pub package: String,
    /// The package's exact version.
    pub version: String,
    /// What `uname -r` says.
    pub release: String,
    /// The image to boot.
    #[serde(skip)]
    pub vmlinuz: PathBuf,
}

/// The kernel called `name`, from the cache or else fetched.
pub fn get(name: &str) -> Result<Kernel, Error> {
    if !NAMES.contains(&name) {
        return Err(Error::UnknownKernel(name.to_owned()));
    }
    let kernels = paths::cache().join("kernels");
    std::fs::create_dir_all(&kernels).context("create", &kernels)?;
    let lock_path = kernels.join("lock");
    let lock = File::create(&lock_path).context("create", &lock_path)?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).context("lock", &lock_path)?;
    let folder = kernels.join(name);
    match cached(&folder) {
        Some(kernel) => Ok(kernel),
        None => fetch(name, &folder),
    }
}

/// The kernels in the cache, without fetching any.
#[must_use]
pub fn in_cache() -> Vec<Kernel> {
    NAMES.iter().filter_map(|n| cached(&paths::cache().join("kernels").join(n))).collect()
}

fn cached(folder: &Path) -> Option<Kernel> {
    let text = std::fs::read_to_string(folder.join("kernel.json")).ok()?;
    let mut kernel: Kernel = serde_json::from_str(&text).ok()?;
    kernel.vmlinuz = folder.join("vmlinuz");
    kernel.vmlinuz.is_file().then_some(kernel)
}

fn fetch(name: &str, folder: &Path) -> Result<Kernel, Error> {
    let machine = apt_sources::of_machine(Path::new("/etc/apt"));
    let debian: Vec<Source> = machine.iter().filter(|s| s.is_debian()).cloned().collect();
    let apt_folder = paths::cache().join("apt").join(name);
    let (apt, package) = match debian_paragraphs(name, &debian) {
        Some(text) => {
            let apt = Apt::new(&apt_folder, &text)?;
            let package = from_meta_package(name, &apt)?;
            (apt, package)
        }
        None => {
            let apt = Apt::new(&apt_folder, &own_paragraphs(&machine))?;
            let package = newest_of_own(name, &apt)?;
            eprintln!("No Debian package source here: kernel {name} is {} {}", package.name, package.version);
            (apt, package)
        }
    };
    let unpacked = folder.with_extension("unpacked");
    let _ = std::fs::remove_dir_all(&unpacked);
    std::fs::create_dir_all(&unpacked).context("create", &unpacked)?;
    let image = unpack_image(&apt, &package, &unpacked)?
        .ok_or_else(|| no_kernel(name, format!("{} {} holds no vmlinuz", package.name, package.version)))?;
    let _ = std::fs::remove_dir_all(folder);
    std::fs::create_dir_all(folder).context("create", folder)?;
    let vmlinuz = folder.join("vmlinuz");
    std::fs::rename(&image, &vmlinuz).context("move the kernel to", &vmlinuz)?;
    let kernel = Kernel {
        name: name.to_owned(),
        release: package.name.trim_start_matches("linux-image-").to_owned(),
        version: package.version,
        package: package.name,
        vmlinuz,
    };
    let record = folder.join("kernel.json");
    let text = serde_json::json!(kernel).to_string();
    std::fs::write(&record, text).context("write", &record)?;
    let _ = std::fs::remove_dir_all(&unpacked);
    let _ = std::fs::remove_dir_all(&apt_folder); // indexes are large and soon stale
    Ok(kernel)
}

/// Package sources for the kernel of that name.
pub(crate) fn paragraphs(name: &str, machine: &[Source]) -> String {
    let debian: Vec<Source> = machine.iter().filter(|s| s.is_debian()).cloned().collect();
    debian_paragraphs(name, &debian).unwrap_or_else(|| own_paragraphs(machine))
}

/// Paragraphs for the suites of `name`, if the machine has Debian sources.
fn debian_paragraphs(name: &str, debian: &[Source]) -> Option<String> {
    let (suites, codename) = match name {
        "5.10" => (&["bullseye"][..], Some("bullseye")),
        "6.1" => (&["bookworm"][..], Some("bookworm")),
        "6.12" => (&["trixie"][..], Some("trixie")),
        _ => (&["trixie-backports", "sid"][..], None),
    };
    let archive = apt_sources::best(debian, false)?;
    let mut paragraphs: Vec<String> = suites.iter().map(|s| archive.paragraph(s)).collect();
    if let (Some(security), Some(codename)) = (apt_sources::best(debian, true), codename) {
        paragraphs.push(security.paragraph(&format!("{codename}-security")));
    }
    Some(paragraphs.join("\n"))
}

/// The image package that the newest meta package depends on.
fn from_meta_package(name: &str, apt: &Apt) -> Result<Package, Error> {
    let meta = newest(apt.show(&[META_PACKAGE.to_owned()])?)
        .ok_or_else(|| no_kernel(name, format!("no {META_PACKAGE}")))?;
    let image = meta.depends.split(',').filter_map(|d| d.split_whitespace().next()).find(|d| {
        d.strip_prefix("linux-image-").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    });
    let image = image.ok_or_else(|| no_kernel(name, format!("{META_PACKAGE} depends on no image")))?;
    newest(apt.show(&[image.to_owned()])?).ok_or_else(|| no_kernel(name, format!("no {image}")))
}

/// Paragraphs for the machine's own distribution.
fn own_paragraphs(machine: &[Source]) -> String {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let codename = release.lines().find_map(|l| l.strip_prefix("VERSION_CODENAME=")).unwrap_or("");
    let codename = codename.trim_matches('"');
    let mut paragraphs = Vec::new();
    for source in machine.iter().filter(|s| s.components.iter().any(|c| c == "main")) {
        for suite in source.suites.iter().filter(|s| s.split('-').next() == Some(codename)) {
            paragraphs.push(source.paragraph(suite));
        }
    }
    paragraphs.join("\n")
}

/// The newest ordinary kernel of the machine's own distribution.
fn newest_of_own(name: &str, apt: &Apt) -> Result<Package, Error> {
    let special = ["unsigned", "dbg", "-rt", "lowlatency", "64k", "-oem", "-unsigned", "template"];
    let mut names = apt.names("^linux-image-[0-9]")?;
    names.retain(|n| !special.iter().any(|s| n.contains(s)));
    if names.is_empty() {
        return Err(no_kernel(name, "no linux-image-* package".to_owned()));
    }
    newest(apt.show(&names)?).ok_or_else(|| no_kernel(name, "no linux-image-* package".to_owned()))
}

/// Unpacks a package and, as long as no kernel image was among it, the parts that it depends on: newer
/// packages leave the image to one of them.
fn unpack_image(apt: &Apt, package: &Package, folder: &Path) -> Result<Option<PathBuf>, Error> {
    apt.unpack(package, folder)?;
    for part in parts(package) {
        if find_image(folder).is_some() {
            break;
        }
        if let Some(part) = newest(apt.show(&[part.to_owned()])?) {
            apt.unpack(&part, folder)?;
        }
    }
    Ok(find_image(folder))
}

/// The packages of the same kernel that a package depends on, the large one with modules last.
pub(crate) fn parts(package: &Package) -> Vec<&str> {
    let release = package.name.trim_start_matches("linux-image-");
    let mut parts: Vec<&str> =
        package.depends.split(',').filter_map(|d| d.split_whitespace().next()).collect();
    parts.retain(|p| p.starts_with("linux-") && p.ends_with(release));
    parts.sort_by_key(|p| p.contains("modules"));
    parts
}

/// The kernel image in an unpacked package: under `boot`, or beside its modules.
fn find_image(unpacked: &Path) -> Option<PathBuf> {
    let entries = |folder: PathBuf| {
        std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path()).collect::<Vec<_>>()
    };
    let boot = entries(unpacked.join("boot")).into_iter();
    let boot = boot.filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("vmlinuz")));
    let modules = ["usr/lib/modules", "lib/modules"].into_iter().flat_map(|m| entries(unpacked.join(m)));
    boot.chain(modules.map(|m| m.join("vmlinuz"))).find(|p| p.is_file())
}

fn no_kernel(name: &str, reason: String) -> Error {
    Error::NoKernel { name: name.to_owned(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(uri: &str, suite: &str, key: Option<&str>) -> Source {
        Source {
            uris: vec![uri.to_owned()],
            suites: vec![suite.to_owned()],
            components: vec!["main".to_owned()],
            signed_by: key.map(str::to_owned),
        }
    }

    #[test]
    fn suites_come_from_the_mirror_that_the_machine_uses_for_debian() {
        let sources = [
            source("http://vendor.example/apt", "bookworm", None),
            source("http://m.example/debian", "bookworm", Some("/k/debian-archive-keyring.gpg")),
            source(
                "http://m.example/debian-security",
                "bookworm-security",
                Some("/k/debian-archive-keyring.gpg"),
            ),
        ];
        let text = debian_paragraphs("6.12", &sources).unwrap();
        assert!(text.contains("URIs: http://m.example/debian\nSuites: trixie\n"), "{text}");
        assert!(text.contains("URIs: http://m.example/debian-security\nSuites: trixie-security\n"), "{text}");
        assert!(!text.contains("vendor"), "{text}");
        let text = debian_paragraphs("7", &sources).unwrap();
        assert!(text.contains("Suites: trixie-backports\n") && text.contains("Suites: sid\n"), "{text}");
        assert_eq!(debian_paragraphs("6.1", &[]), None);
    }

    #[test]
    fn an_image_is_found_in_both_places() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(find_image(folder.path()), None);
        let modules = folder.path().join("usr/lib/modules/7.3");
        std::fs::create_dir_all(&modules).unwrap();
        std::fs::write(modules.join("vmlinuz"), "x").unwrap();
        assert_eq!(find_image(folder.path()), Some(modules.join("vmlinuz")));
        std::fs::create_dir(folder.path().join("boot")).unwrap();
        std::fs::write(folder.path().join("boot/vmlinuz-6"), "x").unwrap();
        assert_eq!(find_image(folder.path()), Some(folder.path().join("boot/vmlinuz-6")));
    }

    #[test]
    fn the_machines_own_distribution_has_a_kernel() {
        let folder = tempfile::tempdir().unwrap();
        let text = own_paragraphs(&apt_sources::of_machine(Path::new("/etc/apt")));
        let apt = Apt::new(folder.path(), &text).unwrap();
        let package = newest_of_own("6.1", &apt).unwrap();
        assert!(package.name.starts_with("linux-image-"), "{package:?}");
        println!("{package:?}");
        assert!(newest_of_own("6.1", &apt).unwrap().version == package.version);
        assert!(apt.show(&["no-such-package-at-all".to_owned()]).unwrap().is_empty());
    }
}
