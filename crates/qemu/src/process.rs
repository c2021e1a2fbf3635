//! The QEMU process behind a QMP socket: who it is, how it was started, and its RAM file.
//!
//! The RAM file may be unlinked, or never have had a name (memfd), so it is opened through `/proc`. Which
//! of QEMU's mappings is the RAM is not guessed: QEMU tells the address at which it maps a guest address
//! (`gpa2hva`), and that address must lie in a shared mapping of the right size.

use crate::error::{QemuError, Result};
use crate::layout::VmRam;
use crate::qmp::Qmp;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// The process that runs the VM.
#[derive(Clone, Debug)]
pub struct QemuProcess {
    /// Its process id.
    pub pid: u32,
    /// Its executable.
    pub exe: PathBuf,
    /// Its command line, program first.
    pub command: Vec<String>,
    /// The folder in which relative paths of the command line stand.
    pub folder: PathBuf,
}

/// One line of `/proc/PID/maps`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Vma {
    range: String,
    start: u64,
    end: u64,
    shared: bool,
    offset: u64,
    device: (u32, u32),
    inode: u64,
    path: String,
}

impl QemuProcess {
    /// The process that listens at the other end of the connection.
    pub fn behind(qmp: &Qmp) -> Result<Self> {
        let peer = rustix::net::sockopt::socket_peercred(qmp.socket())
            .map_err(QemuError::os("ask who is behind the QMP socket"))?;
        let pid = u32::try_from(peer.pid.as_raw_nonzero().get()).unwrap_or(0);
        let exe = std::fs::read_link(format!("/proc/{pid}/exe"))
            .map_err(QemuError::io(format!("see the executable of process {pid}")))?;
        let name = exe.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        if !name.contains("qemu") && !name.contains("kvm") {
            return Err(QemuError::NotQemu { pid, exe });
        }
        let folder = std::fs::read_link(format!("/proc/{pid}/cwd"))
            .map_err(QemuError::io(format!("see the working directory of process {pid}")))?;
        Ok(Self { pid, exe, command: command_line(pid)?, folder })
    }

    /// Opens the file that is the VM's RAM, for reading.
    pub fn open_ram(&self, qmp: &mut Qmp, ram: &VmRam) -> Result<File> {
        let region = ram.layout.regions().iter().max_by_key(|r| r.len);
        let region = region.ok_or_else(|| bad("there is no RAM"))?;
        let address = host_address(&qmp.human(&format!("gpa2hva {:#x}", region.gpa.0))?)?;
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", self.pid))
            .map_err(QemuError::io(format!("read the mappings of process {}", self.pid)))?;
        let vmas: Vec<Vma> = maps.lines().filter_map(vma).collect();
        let vma = vmas
            .iter()
            .find(|v| v.start <= address && address < v.end)
            .ok_or_else(|| bad(format!("QEMU maps nothing at {address:#x}")))?;
        if !vma.shared || vma.inode == 0 {
            return Err(QemuError::NotShared { block: ram.block.clone() });
        }
        if vma.offset.checked_add(address - vma.start) != Some(region.offset.0) {
            return Err(bad("the RAM does not begin at the start of its file"));
        }
        let file = self.open_mapped(vma).ok_or(QemuError::RamFile { pid: self.pid })?;
        let found = file.metadata().map_err(QemuError::io("see the length of the RAM file"))?.len();
        if found < ram.file_len {
            return Err(bad(format!("the RAM file has {found:#x} bytes instead of {:#x}", ram.file_len)));
        }
        Ok(file)
    }

    /// Opens the file of a mapping: by the mapping itself (needs privileges), by QEMU's own descriptor, by name.
    fn open_mapped(&self, vma: &Vma) -> Option<File> {
        if let Ok(file) = File::open(format!("/proc/{}/map_files/{}", self.pid, vma.range)) {
            return Some(file);
        }
        let descriptors = std::fs::read_dir(format!("/proc/{}/fd", self.pid)).ok();
        let descriptors = descriptors.into_iter().flatten().flatten().map(|entry| entry.path());
        descriptors.chain([PathBuf::from(&vma.path)]).find_map(|path| {
            let is_same = |m: &std::fs::Metadata| {
                let device = (rustix::fs::major(m.dev()), rustix::fs::minor(m.dev()));
                m.is_file() && m.ino() == vma.inode && device == vma.device
            };
            // Looked at before it is opened: opening a terminal or a pipe could have effects.
            std::fs::metadata(&path).ok().filter(is_same)?;
            let file = File::open(&path).ok()?;
            file.metadata().ok().filter(is_same).map(|_| file)
        })
    }
}

fn command_line(pid: u32) -> Result<Vec<String>> {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline"))
        .map_err(QemuError::io(format!("read the command line of process {pid}")))?;
    let text = String::from_utf8(bytes)
        .map_err(|e| QemuError::io(format!("use the command line of process {pid}"))(io::Error::other(e)))?;
    Ok(text.strip_suffix('\0').unwrap_or(&text).split('\0').map(String::from).collect())
}

/// The number in `Host virtual address for 0x100000 (pc.ram) is 0x7f103c0ff000`.
fn host_address(text: &str) -> Result<u64> {
    text.trim()
        .rsplit_once(" is 0x")
        .and_then(|(_, hex)| u64::from_str_radix(hex, 16).ok())
        .ok_or_else(|| bad(format!("QEMU does not tell where it maps the RAM: {}", text.trim())))
}

fn vma(line: &str) -> Option<Vma> {
    let mut words = line.splitn(6, ' ');
    let range = words.next()?;
    let (start, end) = range.split_once('-')?;
    let permissions = words.next()?;
    let offset = words.next()?;
    let (major, minor) = words.next()?.split_once(':')?;
    let inode = words.next()?.parse().ok()?;
    Some(Vma {
        range: range.to_string(),
        start: u64::from_str_radix(start, 16).ok()?,
        end: u64::from_str_radix(end, 16).ok()?,
        shared: permissions.ends_with('s'),
        offset: u64::from_str_radix(offset, 16).ok()?,
        device: (u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?),
        inode,
        path: words.next().unwrap_or_default().trim_start().to_string(),
    })
}

fn bad(why: impl Into<String>) -> QemuError {
    QemuError::RamLayout { why: why.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_maps_is_read() {
        let v =
            vma("7f103bfff000-7f103ffff000 rw-s 00001000 00:1a 1031                       /dev/shm/a name");
        let v = v.unwrap();
        assert_eq!((v.start, v.end, v.offset), (0x7f10_3bff_f000, 0x7f10_3fff_f000, 0x1000));
        assert_eq!((v.device, v.inode, v.path.as_str()), ((0, 0x1a), 1031, "/dev/shm/a name"));
        assert!(v.shared);
        assert!(!vma("7f103bfff000-7f103ffff000 rw-p 00000000 00:00 0 ").unwrap().shared);
        assert_eq!(vma("nonsense"), None);
    }

    #[test]
    fn a_host_address_is_read() {
        let text = "Host virtual address for 0x100000 (pc.ram) is 0x7f103c0ff000\n";
        assert_eq!(host_address(text).unwrap(), 0x7f10_3c0f_f000);
        assert!(host_address("No memory is mapped at address 0x100000").is_err());
    }
}
