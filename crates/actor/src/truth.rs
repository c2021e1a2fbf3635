//! Ground truth: what the guest's own kernel says about its processes and frames.
//!
//! Everything is collected into memory that was touched before, the frame tables last, and only
//! then compressed and written, so that the writer moves little of what it describes. It sleeps
//! afterwards instead of ending.

use crate::debug_port::DebugPort;
use crate::procfs;
use crate::spawn::ACTOR;
use elision_actor::blob;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};

const PRESENT_OR_SWAPPED: u64 = 3 << 62;
const RESERVE: usize = 24 << 20;

/// Starts the writer and waits until all is written; returns its process id and the length before compression.
pub(crate) fn start(symbols: bool, types: bool) -> io::Result<(i32, u64)> {
    let args = ["truth", if symbols { "symbols" } else { "-" }, if types { "types" } else { "-" }];
    let mut child = Command::new(ACTOR).args(args).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut line)?;
    }
    let bytes = line.trim().parse().map_err(|_| io::Error::other("Ground truth could not be written"))?;
    Ok((pid, bytes))
}

/// The writer itself.
pub(crate) fn run(symbols: bool, types: bool) -> io::Result<()> {
    let mut port = DebugPort::open()?;
    let frames = usize::try_from(file_len("/proc/kpageflags")).map_err(io::Error::other)?;
    let mut out = vec![0xff; RESERVE + 2 * frames];
    out.clear();
    let mut packed = zstd::stream::Encoder::new(Vec::with_capacity(RESERVE / 2), 1)?;
    packed.include_checksum(true)?;

    for name in ["version", "iomem", "meminfo", "modules", "swaps", "mounts"] {
        append_file(&mut out, name, &format!("/proc/{name}"));
    }
    append_file(&mut out, "kernel-cmdline", "/proc/cmdline");
    if symbols {
        std::fs::write("/proc/sys/kernel/kptr_restrict", "0")?;
        append_file(&mut out, "kallsyms", "/proc/kallsyms");
    }
    if types {
        append_file(&mut out, "btf", "/sys/kernel/btf/vmlinux");
    }
    let pids = procfs::pids()?;
    let list: Vec<String> = pids.iter().map(ToString::to_string).collect();
    blob::append(&mut out, "pids", list.join("\n").as_bytes());
    for pid in pids {
        append_process(&mut out, pid);
    }
    for name in ["buddyinfo", "zoneinfo", "kpagecount", "kpageflags"] {
        append_file(&mut out, name, &format!("/proc/{name}"));
    }
    append_file(&mut out, "buddyinfo-after", "/proc/buddyinfo");
    blob::append(&mut out, blob::END, b"");

    packed.write_all(&out)?;
    port.write_all(&packed.finish()?)?;
    println!("{}", out.len());
    loop {
        std::thread::sleep(std::time::Duration::from_secs(3600));
        std::hint::black_box(&out);
    }
}

/// Length of a table of one word per frame, which `/proc` does not tell.
fn file_len(path: &str) -> u64 {
    let Ok(file) = File::open(path) else { return 0 };
    let mut len = 0;
    let mut word = [0; 8];
    for step in (12..40).rev() {
        while file.read_at(&mut word, len + (1 << step) - 8).is_ok_and(|n| n == 8) {
            len += 1 << step;
        }
    }
    len
}

/// Appends a file as far as it can be read; one that cannot be opened is left out.
fn append_file(out: &mut Vec<u8>, tag: &str, path: &str) {
    let Ok(mut file) = File::open(path) else { return };
    // The length is only known afterwards, so its digits get a fixed width.
    let header = out.len();
    out.extend_from_slice(format!("\n@@{tag} {:012}\n", 0).as_bytes());
    let start = out.len();
    let mut chunk = [0; 16384];
    while let Ok(n @ 1..) = file.read(&mut chunk) {
        out.extend_from_slice(&chunk[..n]);
    }
    let head = format!("\n@@{tag} {:012}\n", out.len() - start);
    out[header..start].copy_from_slice(head.as_bytes());
}

fn append_process(out: &mut Vec<u8>, pid: i32) {
    for name in ["maps", "status", "cgroup", "comm", "stat", "cmdline"] {
        append_file(out, &format!("{name}/{pid}"), &format!("/proc/{pid}/{name}"));
    }
    if let Ok(exe) = std::fs::read_link(format!("/proc/{pid}/exe")) {
        blob::append(out, &format!("exe/{pid}"), exe.as_os_str().as_encoded_bytes());
    }
    if let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) {
        let ids: Vec<String> = tasks.filter_map(|t| t.ok()?.file_name().into_string().ok()).collect();
        blob::append(out, &format!("task/{pid}"), ids.join("\n").as_bytes());
    }
    if let Ok(pages) = pagemap(pid) {
        blob::append(out, &format!("pagemap/{pid}"), &pages);
    }
}

/// Pairs of words: address and `/proc/PID/pagemap` entry of each page that is present or swapped out.
fn pagemap(pid: i32) -> io::Result<Vec<u8>> {
    let file = File::open(format!("/proc/{pid}/pagemap"))?;
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let mut out = Vec::new();
    let mut chunk = [0; 8 * 2048];
    for range in maps.lines().filter_map(|l| l.split(' ').next()?.split_once('-')) {
        let (Ok(mut at), Ok(end)) = (u64::from_str_radix(range.0, 16), u64::from_str_radix(range.1, 16))
        else {
            continue;
        };
        if at >> 63 != 0 {
            continue; // the vsyscall page has no pagemap
        }
        while at < end {
            let want = usize::try_from((end - at) / 4096 * 8).unwrap_or(usize::MAX).min(chunk.len());
            let n = file.read_at(&mut chunk[..want], at / 4096 * 8)?;
            if n < 8 {
                break;
            }
            for entry in chunk[..n].chunks_exact(8) {
                let word = entry.iter().rev().fold(0, |v: u64, b| v << 8 | u64::from(*b));
                if word & PRESENT_OR_SWAPPED != 0 {
                    out.extend_from_slice(&at.to_le_bytes());
                    out.extend_from_slice(entry);
                }
                at += 4096;
            }
        }
    }
    Ok(out)
}
