//! The root filesystem of every guest: busybox, the actor, and a script that mounts the rest.

use crate::cpio::Cpio;
use crate::error::{Context, Error, output_of};
use crate::paths;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

const TARGET: &str = "x86_64-unknown-linux-gnu";

const INIT: &str = "#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs devtmpfs /dev
$b --install -s /bin
if [ $ROOT_DISK ]; then
    insmod /virtio_blk.ko
    mkdir /new
    mount -t ext4 $ROOT_DISK /new
    cp /bin/actor /bin/busybox /new/usr/bin/
    mount --move /dev /new/dev
    umount /sys /proc
    exec switch_root /new /sbin/init
fi
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t tmpfs -o mode=755 tmpfs /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
echo 4 > /proc/sys/vm/nr_hugepages
# Kernels turn huge pages off in guests of 512 MB or less.
echo madvise > /sys/kernel/mm/transparent_hugepage/enabled
echo madvise > /sys/kernel/mm/transparent_hugepage/defrag
echo 0 > /proc/sys/kernel/kptr_restrict
echo 7 > /proc/sys/kernel/printk
ip link set lo up
export PATH=/bin
exec /bin/actor serve
";

/// The initramfs file with more files in it, which then stands in `folder`.
pub(crate) fn with(files: &[(String, PathBuf)], folder: &Path) -> Result<PathBuf, Error> {
    let base = get()?;
    if files.is_empty() {
        return Ok(base);
    }
    // The kernel unpacks one archive after the other.
    let parents = files.iter().flat_map(|(path, _)| Path::new(path).ancestors().skip(1));
    let folders: BTreeSet<_> = parents.filter(|parent| !parent.as_os_str().is_empty()).collect();
    let mut cpio = Cpio::default();
    folders.iter().for_each(|folder| cpio.folder(&folder.display().to_string(), 0o755));
    for (path, file) in files {
        cpio.file(path, 0o755, &std::fs::read(file).context("read", file)?);
    }
    let path = folder.join("initramfs.cpio");
    let bytes = [std::fs::read(&base).context("read", &base)?, cpio.finish()].concat();
    std::fs::write(&path, bytes).context("write", &path)?;
    Ok(path)
}

/// The initramfs file, built when the actor changed.
fn get() -> Result<PathBuf, Error> {
    static DONE: Mutex<Option<PathBuf>> = Mutex::new(None);
    let mut done = DONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(path) = &*done {
        return Ok(path.clone());
    }
    let path = build()?;
    *done = Some(path.clone());
    Ok(path)
}

fn build() -> Result<PathBuf, Error> {
    let actor = build_actor()?;
    let busybox = find_busybox()?;
    let read = |path: &Path| std::fs::read(path).context("read", path);
    let archive = archive(&read(&busybox)?, &read(&actor)?);
    let hash = blake3::hash(&archive).to_hex();
    let path = paths::built().join(format!("initramfs-{}.cpio", &hash[..16]));
    if !path.is_file() {
        let beside = path.with_extension(format!("{}.part", std::process::id()));
        std::fs::write(&beside, &archive).context("write", &beside)?;
        std::fs::rename(&beside, &path).context("rename to", &path)?;
    }
    Ok(path)
}

fn archive(busybox: &[u8], actor: &[u8]) -> Vec<u8> {
    let mut cpio = Cpio::default();
    for folder in ["bin", "dev", "etc", "proc", "root", "run", "sys", "var"] {
        cpio.folder(folder, 0o755);
    }
    for folder in ["tmp", "var/played"] {
        cpio.folder(folder, 0o1777);
    }
    cpio.character_device("dev/console", 0o600, (5, 1));
    cpio.file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\n");
    cpio.file("bin/busybox", 0o755, busybox);
    cpio.link("bin/sh", "busybox");
    cpio.file("bin/actor", 0o755, actor);
    cpio.file("init", 0o755, INIT.as_bytes());
    cpio.finish()
}

fn build_actor() -> Result<PathBuf, Error> {
    build_static("release", &["-p", "elision-actor"], "elision-actor")
}

/// Builds a program of this workspace as one static file, in a target folder of its own. `what` tells cargo which.
pub(crate) fn build_static(profile: &str, what: &[&str], file: &str) -> Result<PathBuf, Error> {
    let folder = paths::built();
    std::fs::create_dir_all(&folder).context("create", &folder)?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .args(["build", "--quiet", "--profile", profile, "--target", TARGET, "--target-dir"])
        .arg(&folder)
        .args(what)
        .current_dir(paths::repository())
        // With a target named, these flags reach the actor and not its build scripts.
        .env("RUSTFLAGS", "-C target-feature=+crt-static -C strip=symbols");
    for name in ["CARGO_ENCODED_RUSTFLAGS", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "CARGO_BUILD_TARGET"]
    {
        command.env_remove(name);
    }
    output_of(&mut command)?;
    Ok(folder.join(TARGET).join(profile).join(file))
}

/// A busybox that needs no libraries.
fn find_busybox() -> Result<PathBuf, Error> {
    let places = ["/usr/bin/busybox", "/bin/busybox", "/usr/sbin/busybox", "/sbin/busybox"];
    let found = places.iter().map(PathBuf::from).find(|p| p.is_file());
    found.ok_or_else(|| Error::Run {
        program: "busybox (package busybox-static)".to_owned(),
        source: std::io::ErrorKind::NotFound.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_starts_the_actor() {
        let bytes = archive(b"BUSYBOX", b"ACTOR");
        let text = String::from_utf8_lossy(&bytes);
        for part in ["BUSYBOX", "ACTOR", "exec /bin/actor serve", "TRAILER!!!"] {
            assert!(text.contains(part), "{part}");
        }
    }
}
