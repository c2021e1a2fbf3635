//! Modules of the testbed's kernels, for what a guest cannot do without one, such as a block device.
//!
//! A kernel's package is fetched once more for the first module asked for; modules are kept beside the kernel.

use crate::apt::{Apt, newest};
use crate::error::{Context, Error, output_of};
use crate::kernels::{self, Kernel};
use crate::{apt_sources, paths};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The module called `name` of a kernel, from the cache or else fetched, not compressed.
pub fn get(kernel: &Kernel, name: &str) -> Result<PathBuf, Error> {
    let kept = kernel.vmlinuz.with_file_name(format!("{name}.ko"));
    if kept.is_file() {
        return Ok(kept);
    }
    let missing = |reason: String| Error::NoKernel { name: kernel.name.clone(), reason };
    let folder = paths::cache().join("apt").join(format!("{}-modules", kernel.name));
    let text = kernels::paragraphs(&kernel.name, &apt_sources::of_machine(Path::new("/etc/apt")));
    let apt = Apt::new(&folder, &text)?;
    let package = newest(apt.show(std::slice::from_ref(&kernel.package))?)
        .ok_or_else(|| missing(format!("{} is gone", kernel.package)))?;
    let unpacked = folder.join("unpacked");
    fs::create_dir_all(&unpacked).context("create", &unpacked)?;
    apt.unpack(&package, &unpacked)?;
    // Newer packages leave their modules to another one.
    for part in kernels::parts(&package) {
        if find(&unpacked, name).is_none() {
            if let Some(part) = newest(apt.show(&[part.to_owned()])?) {
                apt.unpack(&part, &unpacked)?;
            }
        }
    }
    let found = find(&unpacked, name).ok_or_else(|| missing(format!("{} has no {name}", kernel.package)))?;
    // Beside its place first: a test that runs at the same time must not see half a file.
    let beside = kept.with_extension(format!("{}.part", std::process::id()));
    if found.extension().is_some_and(|e| e == "xz") {
        let file = fs::File::create(&beside).context("create", &beside)?;
        output_of(Command::new("xz").arg("-dc").arg(&found).stdout(file))?;
    } else {
        fs::copy(&found, &beside).context("copy", &found)?;
    }
    fs::rename(&beside, &kept).context("rename to", &kept)?;
    let _ = fs::remove_dir_all(&folder);
    Ok(kept)
}

/// `NAME.ko` or `NAME.ko.xz` anywhere below a folder.
fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    let names = [format!("{name}.ko"), format!("{name}.ko.xz")];
    let mut todo = vec![folder.to_owned()];
    while let Some(folder) = todo.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let kind = entry.file_type().ok()?;
            if kind.is_dir() {
                todo.push(entry.path());
            } else if names.iter().any(|n| entry.file_name() == n.as_str()) {
                return Some(entry.path());
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_is_found_by_its_whole_name() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("lib/modules/6.1/kernel/drivers/block");
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("loopback.ko"), "").unwrap();
        assert_eq!(find(folder.path(), "loop"), None);
        fs::write(deep.join("loop.ko.xz"), "").unwrap();
        assert_eq!(find(folder.path(), "loop"), Some(deep.join("loop.ko.xz")));
    }
}
