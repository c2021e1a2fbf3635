//! Modules of the testbed's kernels, for what a guest cannot do without one, such as a block device.
//!
//! A kernel's package is fetched once more for the first module asked for; modules are kept beside the kernel.

use crate::apt::{Apt, newest};
use crate::error::{Context, Error, output_of};
use crate::kernels::{self, Kernel};
use crate::programs::Files;
use crate::{apt_sources, paths};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The module called `name` of a kernel, from the cache or else fetched, not compressed.
pub fn get(kernel: &Kernel, name: &str) -> Result<PathBuf, Error> {
    Package { kernel, lock: None, unpacked: None }.module(name)
}

/// Modules of a kernel and those that they need, for [`GuestOptions::files`](crate::GuestOptions::files), in the
/// order in which they can be loaded.
pub fn with_needs(kernel: &Kernel, names: &[&str]) -> Result<Files, Error> {
    let mut package = Package { kernel, lock: None, unpacked: None };
    let mut files = Files::new();
    for name in names {
        package.add(name, &mut files)?;
    }
    Ok(files)
}

/// A kernel's package, fetched when a module is not in the cache, and removed at the end.
struct Package<'k> {
    kernel: &'k Kernel,
    /// One test fetches it, the others wait.
    lock: Option<fs::File>,
    unpacked: Option<PathBuf>,
}

impl Package<'_> {
    fn add(&mut self, name: &str, files: &mut Files) -> Result<(), Error> {
        let file = format!("{name}.ko");
        if files.iter().any(|(known, _)| *known == file) {
            return Ok(());
        }
        let module = self.module(name)?;
        let content = fs::read(&module).context("read", &module)?;
        for need in needs(&content) {
            self.add(&need, files)?;
        }
        files.push((file, module));
        Ok(())
    }

    fn module(&mut self, name: &str) -> Result<PathBuf, Error> {
        let kept = self.kernel.vmlinuz.with_file_name(format!("{name}.ko"));
        if kept.is_file() {
            return Ok(kept);
        }
        self.lock()?;
        if kept.is_file() {
            return Ok(kept);
        }
        let reason = format!("{} has no module {name}", self.kernel.package);
        let missing = Error::NoKernel { name: self.kernel.name.clone(), reason };
        let found = find(self.unpack()?, name).ok_or(missing)?;
        // Beside its place first: a test that runs at the same time must not see half a file.
        let beside = kept.with_extension(format!("{}.part", std::process::id()));
        if found.extension().is_some_and(|e| e == "xz") {
            let file = fs::File::create(&beside).context("create", &beside)?;
            output_of(Command::new("xz").arg("-dc").arg(&found).stdout(file))?;
        } else {
            fs::copy(&found, &beside).context("copy", &found)?;
        }
        fs::rename(&beside, &kept).context("rename to", &kept)?;
        Ok(kept)
    }

    fn lock(&mut self) -> Result<(), Error> {
        if self.lock.is_none() {
            let path = self.kernel.vmlinuz.with_file_name("modules.lock");
            let lock = fs::File::create(&path).context("create", &path)?;
            rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).context("lock", &path)?;
            self.lock = Some(lock);
        }
        Ok(())
    }

    fn folder(&self) -> PathBuf {
        paths::cache().join("apt").join(format!("{}-modules", self.kernel.name))
    }

    fn unpack(&mut self) -> Result<&Path, Error> {
        if self.unpacked.is_none() {
            let kernel = self.kernel;
            let reason = format!("{} is gone", kernel.package);
            let gone = Error::NoKernel { name: kernel.name.clone(), reason };
            let text = kernels::paragraphs(&kernel.name, &apt_sources::of_machine(Path::new("/etc/apt")));
            let apt = Apt::new(&self.folder(), &text)?;
            let package = newest(apt.show(std::slice::from_ref(&kernel.package))?).ok_or(gone)?;
            let unpacked = self.folder().join("unpacked");
            fs::create_dir_all(&unpacked).context("create", &unpacked)?;
            apt.unpack(&package, &unpacked)?;
            // Newer packages leave their modules to another one.
            for part in kernels::parts(&package) {
                if let Some(part) = newest(apt.show(&[part.to_owned()])?) {
                    apt.unpack(&part, &unpacked)?;
                }
            }
            self.unpacked = Some(unpacked);
        }
        Ok(self.unpacked.as_deref().unwrap_or(Path::new("")))
    }
}

impl Drop for Package<'_> {
    fn drop(&mut self) {
        if self.unpacked.is_some() {
            let _ = fs::remove_dir_all(self.folder());
        }
    }
}

/// The modules that a module says it needs: `depends=a,b` among its NUL-terminated notes.
fn needs(module: &[u8]) -> Vec<String> {
    let at = memchr::memmem::find(module, b"\0depends=").map(|at| at + b"\0depends=".len());
    let text = at.and_then(|at| module.get(at..)?.split(|&b| b == 0).next());
    let text = text.map(String::from_utf8_lossy).unwrap_or_default();
    text.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// `NAME.ko` or `NAME.ko.xz` anywhere below a folder. A dash in the name of a file is as good as an underscore.
fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    let names = [format!("{name}.ko"), format!("{name}.ko.xz")];
    let mut todo = vec![folder.to_owned()];
    while let Some(folder) = todo.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let kind = entry.file_type().ok()?;
            if kind.is_dir() {
                todo.push(entry.path());
            } else if names.iter().any(|n| entry.file_name().to_string_lossy().replace('-', "_") == *n) {
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
    fn a_module_tells_what_it_needs() {
        assert_eq!(needs(b"ELF\0license=GPL\0depends=raid6_pq,xor\0name=btrfs\0"), ["raid6_pq", "xor"]);
        assert!(needs(b"ELF\0depends=\0name=xor\0").is_empty() && needs(b"ELF").is_empty());
    }

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
