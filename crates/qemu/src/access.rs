//! How a VM's RAM is reached from outside: by the file that QEMU shares, or in QEMU's own memory.
//!
//! ```text
//! RAM block   0 ............................ used
//! QEMU        address ................ address + used      one run of mappings, all of one kind
//!               shared file ──> the file                   (elision run, share=on)
//!               private file, anonymous memory ──> the process
//! ```
//! Which of QEMU's mappings is the RAM is not guessed: QEMU tells the address at which it maps a guest address
//! (`gpa2hva`). A file may be unlinked, or never have had a name (memfd), so it is opened through `/proc`.

use crate::error::{QemuError, Result};
use crate::layout::VmRam;
use crate::maps::{Vma, mappings, run};
use crate::process::QemuProcess;
use crate::qmp::Qmp;
use elision_memory::{ProcessRam, Ram};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// `HUGETLBFS_MAGIC` of `linux/magic.h`.
const HUGETLBFS: i64 = 0x9584_58f6;

/// Where the first byte of the RAM block is.
#[derive(Debug)]
pub(crate) struct RamAccess {
    /// In QEMU's address space.
    address: u64,
    /// The file that QEMU maps there.
    file: Option<File>,
    shared: bool,
}

impl RamAccess {
    /// Asks QEMU and `/proc`.
    pub(crate) fn find(process: &QemuProcess, qmp: &mut Qmp, ram: &VmRam) -> Result<Self> {
        let pid = process.pid;
        let mut addresses = vec![];
        for region in ram.layout.regions() {
            let address = host_address(&qmp.human(&format!("gpa2hva {:#x}", region.gpa.0))?)?;
            addresses
                .push(address.checked_sub(region.offset.0).ok_or_else(|| bad("an address is too small"))?);
        }
        let &[address, ref others @ ..] = addresses.as_slice() else { return Err(bad("there is no RAM")) };
        if others.iter().any(|other| *other != address) {
            return Err(bad("QEMU does not map the RAM in one piece"));
        }
        let mappings = mappings(pid)?;
        let vma = run(&mappings, address, ram.file_len)?;
        if vma.inode == 0 {
            // Shared anonymous memory has an inode too.
            return Ok(Self { address, file: None, shared: false });
        }
        if vma.offset.checked_add(address - vma.start) != Some(0) {
            return Err(bad("the RAM does not begin at the start of its file"));
        }
        let file = open_mapped(pid, vma).ok_or(QemuError::RamFile { pid })?;
        let found = file.metadata().map_err(QemuError::io("see the length of the RAM file"))?.len();
        if found < ram.file_len {
            return Err(bad(format!("the RAM file has {found:#x} bytes instead of {:#x}", ram.file_len)));
        }
        Ok(Self { address, file: Some(file), shared: vma.shared })
    }

    /// The file, if its content is the RAM whoever writes to it.
    pub(crate) fn shared_file(&self) -> Option<&File> {
        self.file.as_ref().filter(|_| self.shared)
    }

    /// Opens the RAM for reading.
    pub(crate) fn open(&self, pid: u32, ram: &VmRam) -> Result<Ram> {
        let layout = ram.layout.clone();
        match self.shared_file() {
            // Reading a hole of hugetlbfs through a mapping would take a huge page for it.
            Some(file) if !is_hugetlbfs(file)? => Ok(Ram::shared(file, layout)?),
            _ => {
                let file = self.file.as_ref().map(File::try_clone).transpose();
                let file = file.map_err(QemuError::io("keep the RAM file open"))?;
                Ok(Ram::of_process(ProcessRam { pid, address: self.address, file }, layout)?)
            }
        }
    }
}

fn is_hugetlbfs(file: &File) -> Result<bool> {
    let found = rustix::fs::fstatfs(file).map_err(QemuError::os("ask for the RAM file's file system"))?;
    Ok(found.f_type == HUGETLBFS)
}

/// Opens the file of a mapping: by the mapping itself (needs privileges), by QEMU's own descriptor, by name.
fn open_mapped(pid: u32, vma: &Vma) -> Option<File> {
    if let Ok(file) = File::open(format!("/proc/{pid}/map_files/{}", vma.range)) {
        return Some(file);
    }
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).ok();
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

/// The number in `Host virtual address for 0x100000 (pc.ram) is 0x7f103c0ff000`.
fn host_address(text: &str) -> Result<u64> {
    text.trim()
        .rsplit_once(" is 0x")
        .and_then(|(_, hex)| u64::from_str_radix(hex, 16).ok())
        .ok_or_else(|| bad(format!("QEMU does not tell where it maps the RAM: {}", text.trim())))
}

fn bad(why: impl Into<String>) -> QemuError {
    QemuError::RamLayout { why: why.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_address_is_read() {
        let text = "Host virtual address for 0x100000 (pc.ram) is 0x7f103c0ff000\n";
        assert_eq!(host_address(text).unwrap(), 0x7f10_3c0f_f000);
        assert!(host_address("No memory is mapped at address 0x100000").is_err());
    }
}
