//! Real programs for guests: fetched by package name through apt with the libraries that they load, and
//! kept in a cache. Nothing is installed on the machine.

use crate::apt::{Apt, newest};
use crate::error::{Context, Error, output_of};
use crate::{apt_sources, initramfs, kernels, paths};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where Debian keeps libraries, below the root of a package.
const LIBRARIES: [&str; 2] = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];
const LOADER: &str = "ld-linux-x86-64.so.2";

/// Files to be put into a guest: the path there, without its first slash, and the file here.
pub type Files = Vec<(String, PathBuf)>;

/// Programs of a package, named by their paths in it, with all libraries that they load.
pub fn get(package: &str, programs: &[&str]) -> Result<Files, Error> {
    let root = paths::cache().join("programs").join(package);
    if !root.is_dir() {
        fetch(package, &root)?;
    }
    let mut files = Files::new();
    for program in programs {
        let binary = root.join(program);
        for (path, file) in libraries(&root, &binary)? {
            if !files.iter().any(|(p, _)| *p == path) {
                files.push((path, file));
            }
        }
        files.push(((*program).to_owned(), binary));
    }
    Ok(files)
}

/// An example of a crate of this workspace, as one static file.
pub fn rust_example(package: &str, example: &str) -> Result<PathBuf, Error> {
    initramfs::build_static("release", &["-p", package, "--example", example], &format!("examples/{example}"))
}

/// The guest agent, as one static file.
pub fn agent() -> Result<PathBuf, Error> {
    initramfs::build_static("agent", &["-p", "elision-agent"], "elision-agent")
}

/// A C program of this workspace, given by its path in it, as one static file in `folder`.
pub fn c_program(source: &str, folder: &Path) -> Result<PathBuf, Error> {
    let source = paths::repository().join(source);
    let program = folder.join(source.file_stem().unwrap_or_default());
    let flags = ["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-static", "-o"];
    output_of(Command::new("cc").args(flags).arg(&program).arg(&source))?;
    Ok(program)
}

/// Unpacks the package and what it depends on into one folder.
fn fetch(package: &str, root: &Path) -> Result<(), Error> {
    let folder = paths::cache().join("apt").join(package);
    let text = kernels::paragraphs("6.1", &apt_sources::of_machine(Path::new("/etc/apt")));
    let apt = Apt::new(&folder, &text)?;
    let missing = |name: &str| Error::Input(format!("No package {name} is on offer"));
    let found = |name: &str| {
        let package = newest(apt.show(&[name.to_owned()])?);
        package.ok_or_else(|| missing(name))
    };
    let main = found(package)?;
    let unpacked = root.with_extension(format!("{}.part", std::process::id()));
    fs::create_dir_all(&unpacked).context("create", &unpacked)?;
    apt.unpack(&main, &unpacked)?;
    for dependency in main.depends.split(',').filter_map(|d| d.split_whitespace().next()) {
        apt.unpack(&found(dependency)?, &unpacked)?;
    }
    // Another test may have been faster.
    if fs::rename(&unpacked, root).is_err() {
        let _ = fs::remove_dir_all(&unpacked);
    }
    let _ = fs::remove_dir_all(&folder);
    Ok(())
}

/// What the loader of the unpacked C library would load for a program.
fn libraries(root: &Path, binary: &Path) -> Result<Files, Error> {
    let folders = LIBRARIES.map(|l| root.join(l));
    let loader = folders.iter().map(|f| f.join(LOADER)).find(|l| l.is_file());
    let loader = loader.ok_or_else(|| Error::Input(format!("{} has no loader", root.display())))?;
    let path = folders.each_ref().map(|f| f.display().to_string()).join(":");
    let text = output_of(Command::new(&loader).args(["--library-path", &path, "--list"]).arg(binary))?;
    let mut files: Files = text
        .lines()
        .filter_map(|line| {
            let (name, file) = line.trim().split_once(" => ")?;
            let file = file.split(" (").next()?;
            Some((format!("lib/x86_64-linux-gnu/{name}"), PathBuf::from(file)))
        })
        .collect();
    files.push((format!("lib64/{LOADER}"), loader));
    Ok(files)
}
