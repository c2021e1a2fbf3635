//! What a guest is to be, and the QEMU command that makes it: one that a user could have written.

use crate::accel::{self, Accel};
use crate::endpoints::Endpoints;
use crate::error::Error;
use crate::guest::{BOOT_LIMIT, Guest};
use crate::kernels::Kernel;
use crate::programs::Files;
use crate::{hypervisors, initramfs, kernels, modules, paths};
use elision_memory::{FileOffset, Gpa, RamLayout, RamRegion};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where QEMU keeps the guest's RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RamMode {
    /// A file that others can map, with the backend id `pc.ram`.
    Shared,
    /// QEMU's own memory, as without any option.
    Plain,
    /// A memory backend of this type and with these properties, such as `memory-backend-memfd,share=off`. Its id
    /// is `pc.ram`; one that needs a file has the one of [`RamMode::Shared`].
    Backend(&'static str),
    /// Half of it in each of two NUMA nodes, with memory backends of these types. Their ids are `node0` and `node1`.
    Nodes([&'static str; 2]),
}

/// A guest to boot.
#[derive(Clone, Debug)]
pub struct GuestOptions {
    pub(crate) kernel: String,
    qemu: Option<String>,
    memory_mib: u64,
    vcpus: u32,
    four_level: bool,
    ram: RamMode,
    machine: &'static str,
    accel: Option<Accel>,
    append: Vec<String>,
    extra: Vec<String>,
    files: Files,
    root_disk: Option<PathBuf>,
}

impl GuestOptions {
    /// 512 MiB, two vCPUs, five-level paging where kernel and processor have it, shared RAM;
    /// the machine's own QEMU, or the version that `ELISION_QEMU` names. RAM is QEMU's own where
    /// `ELISION_WAY` is `stream`.
    #[must_use]
    pub fn new(kernel: &str) -> Self {
        Self {
            kernel: kernel.to_owned(),
            qemu: std::env::var("ELISION_QEMU").ok(),
            memory_mib: 512,
            vcpus: 2,
            four_level: false,
            ram: if std::env::var("ELISION_WAY").is_ok_and(|way| way == "stream") {
                RamMode::Plain
            } else {
                RamMode::Shared
            },
            machine: "q35",
            accel: None,
            append: Vec::new(),
            extra: Vec::new(),
            files: Files::new(),
            root_disk: None,
        }
    }

    /// This version of QEMU, one of [`hypervisors::NAMES`].
    #[must_use]
    pub fn qemu(mut self, name: &str) -> Self {
        self.qemu = Some(name.to_owned());
        self
    }

    /// RAM in MiB.
    #[must_use]
    pub fn memory_mib(mut self, mib: u64) -> Self {
        self.memory_mib = mib;
        self
    }

    /// Number of vCPUs.
    #[must_use]
    pub fn vcpus(mut self, n: u32) -> Self {
        self.vcpus = n;
        self
    }

    /// Without LA57: four-level paging.
    #[must_use]
    pub fn four_level(mut self) -> Self {
        self.four_level = true;
        self
    }

    /// Where the RAM is.
    #[must_use]
    pub fn ram(mut self, mode: RamMode) -> Self {
        self.ram = mode;
        self
    }

    /// A `pc` instead of a `q35` machine.
    #[must_use]
    pub fn pc(mut self) -> Self {
        self.machine = "pc";
        self
    }

    /// This accelerator, instead of the one that [`accel::choose`] finds.
    #[must_use]
    pub fn accel(mut self, accel: Accel) -> Self {
        self.accel = Some(accel);
        self
    }

    /// Another word on the kernel's command line.
    #[must_use]
    pub fn append(mut self, word: &str) -> Self {
        self.append.push(word.to_owned());
        self
    }

    /// More words on QEMU's command line.
    #[must_use]
    pub fn extra(mut self, words: &[&str]) -> Self {
        self.extra.extend(words.iter().map(|w| (*w).to_owned()));
        self
    }

    /// More files in the root filesystem, such as those of [`programs::get`](crate::programs::get).
    #[must_use]
    pub fn files(mut self, files: Files) -> Self {
        self.files.extend(files);
        self
    }

    /// With the system on this disk, such as one of [`debian`](crate::debian); the guest changes it.
    #[must_use]
    pub fn root_disk(mut self, disk: &Path) -> Self {
        self.root_disk = Some(disk.to_owned());
        self
    }

    pub(crate) fn ram_mode(&self) -> RamMode {
        self.ram
    }

    /// The kernel.
    pub fn kernel(&self) -> Result<Kernel, Error> {
        kernels::get(&self.kernel)
    }

    /// Where guest-physical RAM stands in the RAM file: a q35 machine keeps 2 GiB below the PCI hole
    /// once RAM reaches up to it, a pc 3 GiB.
    pub fn layout(&self) -> Result<RamLayout, Error> {
        let len = self.memory_mib << 20;
        let (hole, most) = if self.machine == "pc" { (0xe000_0000, 3 << 30) } else { (0xb000_0000, 2 << 30) };
        let below = if len >= hole { most } else { len };
        let mut regions = vec![RamRegion { gpa: Gpa(0), len: below, offset: FileOffset(0) }];
        if len > below {
            regions.push(RamRegion { gpa: Gpa(4 << 30), len: len - below, offset: FileOffset(below) });
        }
        RamLayout::new(regions).map_err(|e| Error::Input(e.to_string()))
    }

    /// A new folder for [`GuestOptions::command_in`]; [`GuestOptions::attach`] removes it at the end.
    pub fn new_folder() -> Result<PathBuf, Error> {
        paths::new_guest_folder()
    }

    /// The QEMU command, with its sockets, logs and RAM file in `folder`. The first word is the program.
    pub fn command_in(&self, folder: &Path) -> Result<Vec<String>, Error> {
        let kernel = self.kernel()?;
        let mut files = self.files.clone();
        if self.root_disk.is_some() {
            files.push(("virtio_blk.ko".to_owned(), modules::get(&kernel, "virtio_blk")?));
        }
        let initramfs = initramfs::with(&files, folder)?;
        let accel = match self.accel {
            Some(accel) => accel,
            None => accel::choose(&self.kernel),
        };
        let at = |name: &str| folder.join(name).display().to_string();
        let mut words = match &self.qemu {
            Some(name) => hypervisors::get(name)?,
            None => vec!["qemu-system-x86_64".to_owned()],
        };
        let mut add = |parts: &[&str]| words.extend(parts.iter().map(|p| (*p).to_owned()));
        add(&["-nodefaults", "-display", "none", "-no-reboot", "-accel", accel.option()]);
        add(&["-cpu", if self.four_level { "max,la57=off" } else { "max" }]);
        add(&["-m", &self.memory_mib.to_string(), "-smp", &self.vcpus.to_string()]);
        let object = |backend: &str, id: &str, mib: u64, file: &str| {
            let path = if backend.starts_with("memory-backend-file") {
                format!(",mem-path={}", at(file))
            } else {
                String::new()
            };
            format!("{backend},id={id},size={mib}M{path}")
        };
        add(&["-machine", self.machine]);
        let backend = match self.ram {
            RamMode::Shared => Some("memory-backend-file,share=on"),
            RamMode::Backend(backend) => Some(backend),
            RamMode::Plain | RamMode::Nodes(_) => None,
        };
        if let Some(backend) = backend {
            let object = object(backend, "pc.ram", self.memory_mib, "ram");
            add(&["-machine", "memory-backend=pc.ram", "-object", &object]);
        }
        if let RamMode::Nodes(backends) = self.ram {
            for (i, backend) in backends.iter().enumerate() {
                let id = format!("node{i}");
                add(&["-object", &object(backend, &id, self.memory_mib / 2, &id)]);
                add(&["-numa", &format!("node,nodeid={i},cpus={i},memdev={id}")]);
            }
        }
        add(&["-kernel", &kernel.vmlinuz.display().to_string()]);
        add(&["-initrd", &initramfs.display().to_string()]);
        let mut append = "console=ttyS0 loglevel=5 panic=-1".to_owned();
        for word in &self.append {
            append.push(' ');
            append.push_str(word);
        }
        if let Some(disk) = &self.root_disk {
            // To the first process as a variable.
            append.push_str(" ROOT_DISK=/dev/vda systemd.show_status=0");
            // What a test's disk holds need not outlive the machine.
            let drive = format!("file={},if=none,id=root,format=raw,cache=unsafe", disk.display());
            add(&["-drive", &drive, "-device", "virtio-blk-pci,drive=root"]);
        }
        add(&["-append", &append]);
        add(&["-chardev", &format!("file,id=console,path={},append=on", at("console.log"))]);
        add(&["-serial", "chardev:console"]);
        add(&["-chardev", &format!("socket,id=control,path={},server=on,wait=off", at("control.sock"))]);
        add(&["-serial", "chardev:control"]);
        add(&["-chardev", &format!("file,id=debug,path={},append=on", at("debug.bin"))]);
        add(&["-device", "isa-debugcon,iobase=0xe9,chardev=debug"]);
        add(&["-qmp", &format!("unix:{},server=on,wait=off", at("qmp.sock"))]);
        words.extend(self.extra.iter().cloned());
        Ok(words)
    }

    /// Boots the guest and waits until it takes requests.
    pub fn boot(&self) -> Result<Guest, Error> {
        Guest::boot(self)
    }

    /// A guest that another program started or restored with [`GuestOptions::command_in`]. It must
    /// run, or come to run. Dropping it ends its QEMU and removes the folder.
    pub fn attach(&self, folder: &Path) -> Result<Guest, Error> {
        self.attach_within(folder, BOOT_LIMIT)
    }

    /// The same with a time limit of its own.
    pub fn attach_within(&self, folder: &Path, limit: Duration) -> Result<Guest, Error> {
        Guest::attach(self, Endpoints::new(folder), limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_is_split_around_the_pci_hole_only_when_it_reaches_it() {
        assert_eq!(GuestOptions::new("6.1").layout().unwrap().regions().len(), 1);
        assert_eq!(GuestOptions::new("6.1").memory_mib(2815).layout().unwrap().regions().len(), 1);
        let large = GuestOptions::new("6.1").memory_mib(5120).layout().unwrap();
        assert_eq!(large.ram_bytes(), 5 << 30);
        assert_eq!(large.offset_of(Gpa(4 << 30), 8), Some(FileOffset(2 << 30)));
        let pc = GuestOptions::new("6.1").pc().memory_mib(5120).layout().unwrap();
        assert_eq!(pc.offset_of(Gpa(4 << 30), 8), Some(FileOffset(3 << 30)));
    }
}
