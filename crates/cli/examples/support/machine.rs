//! VMs as a user starts them: with `elision run`, and with `elision restore`.

use super::{Failure, cleanup};
use elision_testbed::{Guest, GuestOptions, RamMode, accel, kernels};
use serde_json::Value;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

const READY: &str = "ACTOR READY";
const BOOT_LIMIT: Duration = Duration::from_secs(180);
/// Some kernels panic early in one of a few emulated boots.
const ATTEMPTS: u32 = 3;

/// The folder in which cargo puts what it builds; `elision` and this program's folder are in it.
pub(crate) fn build_folder() -> Result<PathBuf, Failure> {
    let program = std::env::current_exe()?;
    let folder = program.ancestors().nth(2).ok_or("This program stands in no build folder")?;
    Ok(folder.to_owned())
}

/// The `elision` command that was built beside this program.
pub(crate) fn elision() -> Result<PathBuf, Failure> {
    let path = build_folder()?.join("elision");
    if path.is_file() {
        Ok(path)
    } else {
        Err(format!("{} is not there: build it first, as ./demo and ./bench do", path.display()).into())
    }
}

/// Runs `elision` and gives all it said. Only the exit statuses in `expected` are right.
pub(crate) fn run_elision(words: &[String], expected: &[i32]) -> Result<Output, Failure> {
    let output = Command::new(elision()?).args(words).output()?;
    match output.status.code() {
        Some(code) if expected.contains(&code) => Ok(output),
        _ => {
            let text = String::from_utf8_lossy(&output.stderr);
            Err(format!("elision {} failed ({}):\n{}", words.join(" "), output.status, text.trim_end())
                .into())
        }
    }
}

/// The same with the result as JSON.
pub(crate) fn json_of(words: &[String], expected: &[i32]) -> Result<Value, Failure> {
    let mut words = words.to_vec();
    let at = words.iter().position(|w| w == "--").unwrap_or(words.len());
    words.insert(at, "--json".to_owned());
    Ok(serde_json::from_slice(&run_elision(&words, expected)?.stdout)?)
}

/// How often the secrets of one file were found, by the result of `elision audit --json`.
pub(crate) fn found(audited: &Value, secret_file: &str) -> u64 {
    let files = audited["searched"].as_array().into_iter().flatten();
    let findings = files.flat_map(|file| file["findings"].as_array().into_iter().flatten());
    let of_file = findings.filter(|finding| finding["secret_file"] == secret_file);
    of_file.filter_map(|finding| finding["count"].as_u64()).sum()
}

/// Fetches the kernel and finds out about KVM, each said on stdout when it takes its time.
pub(crate) fn get_ready(options: &GuestOptions, kernel: &str) -> Result<(), Failure> {
    if !kernels::in_cache().iter().any(|k| k.name == kernel) {
        println!("Fetching a stock kernel ({kernel}) through apt; this takes about a minute the first time.");
    }
    options.kernel()?;
    println!("Finding out whether KVM runs guests here; otherwise QEMU translates their code.");
    println!("The VM runs under {}.", accel::choose(kernel).option());
    Ok(())
}

/// The QEMU command with its files in `folder`, kernel and initramfs beside them under short names.
pub(crate) fn command(options: &GuestOptions, folder: &Path) -> Result<Vec<String>, Failure> {
    let mut words = options.clone().ram(RamMode::Plain).command_in(folder)?;
    for (option, name) in [("-kernel", "vmlinuz"), ("-initrd", "initramfs.cpio")] {
        if let Some(at) = words.iter().position(|w| w == option) {
            let target = std::mem::replace(&mut words[at + 1], name.to_owned());
            if !Path::new(name).exists() {
                std::os::unix::fs::symlink(target, name)?;
            }
        }
    }
    // `elision run` and `elision restore` add the QMP socket.
    if let Some(at) = words.iter().position(|w| w == "-qmp") {
        words.drain(at..at + 2);
    }
    Ok(words)
}

/// The words after `elision` that start such a VM.
pub(crate) fn run_words(options: &GuestOptions, folder: &Path) -> Result<Vec<String>, Failure> {
    let mut words = vec!["run".to_owned(), "--qmp".to_owned(), socket(folder), "--".to_owned()];
    words.extend(command(options, folder)?);
    Ok(words)
}

/// The QMP socket of the VM with its files in `folder`.
pub(crate) fn socket(folder: &Path) -> String {
    folder.join("qmp.sock").display().to_string()
}

/// Starts the VM and waits until its processes run. What `elision run` and QEMU say goes to `FOLDER/qemu.log`.
pub(crate) fn start(options: &GuestOptions, folder: &Path) -> Result<Guest, Failure> {
    for attempt in 1.. {
        std::fs::create_dir_all(folder)?;
        let log = File::create(folder.join("qemu.log"))?;
        let mut run = Command::new(elision()?);
        run.args(run_words(options, folder)?).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let mut child = cleanup::spawn(&mut run)?;
        let begin = Instant::now();
        let reason = loop {
            let console = std::fs::read(folder.join("console.log")).unwrap_or_default();
            if String::from_utf8_lossy(&console).contains(READY) {
                return Ok(options.clone().ram(RamMode::Plain).attach(folder)?);
            }
            if let Some(status) = child.try_wait()? {
                break format!("QEMU ended early ({status})");
            }
            if begin.elapsed() > BOOT_LIMIT {
                break format!("it did not boot within {} s", BOOT_LIMIT.as_secs());
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        cleanup::end_last();
        let log = std::fs::read_to_string(folder.join("qemu.log")).unwrap_or_default();
        std::fs::remove_dir_all(folder)?;
        if attempt == ATTEMPTS {
            return Err(format!("The VM did not start: {reason}\n{log}").into());
        }
    }
    Err("The VM did not start".into())
}

/// The RAM file that `elision run` made for the VM with its files in `folder`: one without a name.
pub(crate) fn ram_file(folder: &Path) -> Result<PathBuf, Failure> {
    let socket = std::os::unix::net::UnixStream::connect(socket(Path::new(folder)))?;
    let pid = rustix::net::sockopt::socket_peercred(&socket)?.pid.as_raw_nonzero();
    let log = std::fs::read_to_string(folder.join("qemu.log"))?;
    let number = log.split("mem-path=/proc/self/fd/").nth(1).and_then(|rest| rest.split(',').next());
    let number = number.ok_or("elision run did not say where the VM's memory is")?;
    Ok(PathBuf::from(format!("/proc/{pid}/fd/{number}")))
}

/// The words after `elision` that restore `image` with the VM's files in `folder`.
pub(crate) fn restore_words(
    options: &GuestOptions,
    image: &str,
    folder: &Path,
) -> Result<Vec<String>, Failure> {
    let mut words: Vec<String> =
        ["restore", image, "--qmp", &socket(folder), "--"].map(str::to_owned).to_vec();
    words.extend(command(options, folder)?);
    Ok(words)
}

/// Bytes that a file, or a folder with all its files, takes on disk.
pub(crate) fn stored(path: &Path) -> Result<u64, Failure> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::symlink_metadata(path)?;
    let mut bytes = metadata.blocks() * 512;
    if metadata.is_dir() {
        for entry in std::fs::read_dir(path)? {
            bytes += stored(&entry?.path())?;
        }
    }
    Ok(bytes)
}
