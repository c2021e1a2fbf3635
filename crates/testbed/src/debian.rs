//! Disks with a Debian root filesystem, whose first process is systemd: built from packages of the machine's own
//! mirror by `mmdebstrap`, and kept in the cache under a name that says what is in them.
//!
//! ```text
//! mmdebstrap: packages ── debian.sh: units, masks ── mke2fs -d ── .cache/roots/SUITE-HASH.ext4 ── a copy for each guest
//! ```
//! The guest's first filesystem loads the disk's driver and gives over to systemd. The server that takes requests
//! is a unit of its own, started last. There is no network and no udev.

use crate::error::{Context, Error, output_of};
use crate::{apt_sources, kernels, paths};
use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What every guest has besides the packages that are essential.
const BASE: [&str; 6] = ["systemd-sysv", "dbus", "libpam-systemd", "procps", "iproute2", "kmod"];
/// Makes the tree ready and writes it to the image.
const SETUP: &str = include_str!("debian.sh");
/// Configuration of apt that the mirror may need.
const NEEDED_BY_MIRRORS: [&str; 3] = ["Acquire::Check-", "Acquire::http::", "Acquire::https::"];

/// A new disk at `path` with these packages and what they depend on.
pub fn disk(packages: &[&str], path: &Path) -> Result<(), Error> {
    copy(&root(packages)?, path)
}

/// A copy of a disk as it is; its VM must not be running.
pub fn copy(disk: &Path, path: &Path) -> Result<(), Error> {
    output_of(Command::new("cp").args(["--sparse=always", "--reflink=auto"]).arg(disk).arg(path)).map(drop)
}

/// The image with these packages, from the cache or else built.
fn root(packages: &[&str]) -> Result<PathBuf, Error> {
    let roots = paths::cache().join("roots");
    fs::create_dir_all(&roots).context("create", &roots)?;
    let lock_path = roots.join("lock");
    let lock = File::create(&lock_path).context("create", &lock_path)?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).context("lock", &lock_path)?;
    let sources = kernels::paragraphs("6.1", &apt_sources::of_machine(Path::new("/etc/apt")));
    let suite = sources.lines().find_map(|l| l.strip_prefix("Suites: ")).unwrap_or_default().to_owned();
    let include = BASE.iter().chain(packages).copied().collect::<Vec<_>>().join(",");
    let hash = blake3::hash(format!("{suite}\n{include}\n{SETUP}").as_bytes()).to_hex();
    let image = roots.join(format!("{suite}-{}.ext4", &hash[..16]));
    if !image.is_file() {
        build(&sources, &suite, &include, &image)?;
    }
    Ok(image)
}

fn build(sources: &str, suite: &str, include: &str, image: &Path) -> Result<(), Error> {
    let work = image.with_extension("work");
    let _ = fs::remove_dir_all(&work);
    let mount = work.join("mount");
    fs::create_dir_all(&mount).context("create", &mount)?;
    let at = |name: &str| work.join(name);
    let write = |name: &str, text: &str| fs::write(at(name), text).context("write", at(name));
    write("chosen.sources", sources)?;
    write("setup.sh", SETUP)?;
    let machine = output_of(Command::new("apt-config").arg("dump"))?;
    let needed = machine.lines().filter(|line| NEEDED_BY_MIRRORS.iter().any(|n| line.starts_with(n)));
    write("apt.conf", &needed.map(|line| format!("{line}\n")).collect::<String>())?;
    // Without root rights, mmdebstrap works as another user.
    write("image", "")?;
    fs::set_permissions(at("image"), Permissions::from_mode(0o666)).context("open up", at("image"))?;

    let setup =
        format!("sh {} \"$1\" {} {}", at("setup.sh").display(), mount.display(), at("image").display());
    let mut command = Command::new("mmdebstrap");
    command
        .args(["--quiet", "--variant=minbase", "--architectures=amd64", "--format=null"])
        .arg(format!("--include={include}"))
        .arg(format!("--aptopt={}", at("apt.conf").display()))
        .args(["--aptopt=Acquire::Languages \"none\"", "--dpkgopt=force-unsafe-io"])
        .args(
            ["doc", "man", "locale", "info"]
                .map(|kind| format!("--dpkgopt=path-exclude=/usr/share/{kind}/*")),
        )
        .arg(format!("--customize-hook={setup}"))
        .args([suite, "/dev/null"])
        .arg(at("chosen.sources"));
    output_of(&mut command)?;
    fs::set_permissions(at("image"), Permissions::from_mode(0o644)).context("close", at("image"))?;
    fs::rename(at("image"), image).context("rename to", image)?;
    let _ = fs::remove_dir_all(&work);
    Ok(())
}
