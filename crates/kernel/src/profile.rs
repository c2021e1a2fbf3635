//! What is known of one kernel build: layouts and symbols, compiled once and kept by build id.
//!
//! Compiling means finding and decoding kallsyms and BTF in the kernel image, 0.1 to 0.3 s. The
//! result is kept in the user's cache directory. A guest is hostile and could show another
//! guest's build id with types of its own, so a kept profile names the bytes it was made from by
//! their hash, and is used only for an image that holds the same bytes.

use crate::btf::Btf;
use crate::kallsyms::Kallsyms;
use crate::locate::{ImageCopy, ImageRange};
use crate::symbols::Symbols;
use crate::{
    KernelError, aio, batches, bpf_maps, buddy, calls, cgroup, command_line, compressed, cpus, event_files,
    file_systems, files, folios, fpu, frames, given_back, hugetlb, idle_stacks, io_uring, irq_work, keys,
    log, maple, memory_groups, message_queues, names, notifications, orc, page, page_cache, paths, pcp,
    per_cpu_memory, perf, pipes, queued_signals, screens, signal, skb, slab, sockets, stacks, swap, system_v,
    tasks, terminals, ties, tree, unmap, unwind, vmas, xarray,
};
use elision_memory::{Gva, Ram};
use serde::{Deserialize, Serialize};
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Raised when the members below change.
const FORMAT: u32 = 16;
const PROFILE_LIMIT: u64 = 1 << 20;

/// One kernel build.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Profile {
    format: u32,
    pub(crate) build_id: String,
    pub(crate) banner: String,
    evidence: Vec<Evidence>,
    pub(crate) symbols: Symbols,
    pub(crate) aio: Option<aio::AioLayout>,
    pub(crate) batches: batches::BatchLayout,
    pub(crate) bpf: bpf_maps::BpfLayout,
    pub(crate) call: calls::CallLayout,
    pub(crate) cgroup: cgroup::CgroupLayout,
    pub(crate) command_line: command_line::CommandLineLayout,
    pub(crate) compressed: Option<compressed::CompressedLayout>,
    pub(crate) cpu: cpus::CpuLayout,
    pub(crate) event_file: event_files::EventFileLayout,
    pub(crate) file_systems: file_systems::FileSystemLayout,
    pub(crate) files: files::FilesLayout,
    pub(crate) folios: folios::FolioLayout,
    pub(crate) fpu: fpu::FpuLayout,
    pub(crate) frame_owner: frames::FrameOwnerLayout,
    pub(crate) given_back: given_back::GivenBackLayout,
    pub(crate) hugetlb: hugetlb::HugeTlbLayout,
    pub(crate) idle_stack: idle_stacks::IdleStackLayout,
    pub(crate) io_uring: Option<io_uring::UringLayout>,
    pub(crate) irq_work: irq_work::IrqWorkLayout,
    pub(crate) log: log::LogLayout,
    pub(crate) keys: Option<keys::KeyLayout>,
    pub(crate) memory_groups: memory_groups::MemoryGroupLayout,
    pub(crate) maple: maple::MapleLayout,
    pub(crate) orc: orc::OrcLayout,
    pub(crate) messages: message_queues::MessageLayouts,
    pub(crate) mm: vmas::MmLayout,
    pub(crate) name: names::NameLayout,
    pub(crate) packet: skb::PacketLayout,
    pub(crate) orphan: frames::OrphanLayout,
    pub(crate) namespace: system_v::NamespaceLayout,
    pub(crate) notification: notifications::NotificationLayout,
    pub(crate) page: page::PageLayout,
    pub(crate) page_cache: page_cache::PageCacheLayout,
    pub(crate) path: paths::PathLayout,
    pub(crate) pcp: pcp::PcpLayout,
    pub(crate) per_cpu_memory: per_cpu_memory::PerCpuLayout,
    pub(crate) perf: perf::PerfLayout,
    pub(crate) pipe: pipes::PipeLayout,
    pub(crate) queued_signal: queued_signals::QueuedSignalLayout,
    pub(crate) sheaf: slab::SheafLayout,
    pub(crate) screen: screens::ScreenLayout,
    pub(crate) signal: signal::SignalLayout,
    pub(crate) slab: slab::SlabLayout,
    pub(crate) slab_cache: slab::CacheLayout,
    pub(crate) socket: sockets::SocketLayout,
    pub(crate) stack: stacks::StackLayout,
    pub(crate) swap: swap::SwapLayout,
    pub(crate) system_v: Option<system_v::IpcLayout>,
    pub(crate) task: tasks::TaskLayout,
    pub(crate) terminal: terminals::TerminalLayout,
    pub(crate) tie: ties::TieLayout,
    pub(crate) xarray: xarray::XarrayLayout,
    pub(crate) tree: tree::TreeLayout,
    pub(crate) unmap: unmap::UnmapLayout,
    pub(crate) unwind: unwind::UnwindLayout,
    pub(crate) packet_socket: sockets::PacketSocketLayout,
    pub(crate) tcp: sockets::TcpLayout,
    pub(crate) udp: sockets::UdpLayout,
    pub(crate) upper: sockets::UpperLayout,
    pub(crate) unix: sockets::UnixLayout,
    pub(crate) zone: buddy::ZoneLayout,
}

/// Bytes of the image that a profile was made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Evidence {
    offset: u64,
    len: u64,
    hash: String,
}

impl Evidence {
    fn of(bytes: &[u8], range: Range<usize>) -> Option<Self> {
        let hash = blake3::hash(bytes.get(range.clone())?).to_string();
        Some(Self { offset: range.start as u64, len: range.len() as u64, hash })
    }

    fn holds(&self, ram: &Ram, image: &ImageRange) -> bool {
        let inside = self.offset.checked_add(self.len).is_some_and(|end| end <= image.len);
        let Some(len) = usize::try_from(self.len).ok().filter(|_| inside) else { return false };
        let mut bytes = vec![0; len];
        let at = image.physical.wrapping_add(self.offset);
        ram.read(at, &mut bytes).is_ok() && blake3::hash(&bytes).to_string() == self.hash
    }
}

impl Profile {
    fn compile(image: &ImageCopy, base: Gva) -> Result<Self, KernelError> {
        let trusted = |offset: usize, len: usize| image.is_read_only(offset, len);
        let banner = banner(image).ok_or(KernelError::NotFound)?;
        let btf = Btf::find(&image.bytes, &trusted)?;
        let kallsyms = Kallsyms::find(&image.bytes, base, &trusted)?;
        let symbols = Symbols::collect(&kallsyms, base);
        let evidence =
            std::iter::once(position_of(&image.bytes, btf.bytes())).flatten().chain(kallsyms.tables());
        let page = page::PageLayout::compile(&btf)?;
        let stack = stacks::StackLayout::compile(&btf)?;
        if !page.is_sane() || !stack.is_sane() {
            return Err(KernelError::Incomplete("types with possible sizes"));
        }
        Ok(Self {
            format: FORMAT,
            build_id: build_id(image).unwrap_or_else(|| blake3::hash(banner.as_bytes()).to_string()),
            banner,
            evidence: evidence.filter_map(|r| Evidence::of(&image.bytes, r)).collect(),
            symbols,
            aio: aio::AioLayout::find(&btf)?,
            batches: batches::BatchLayout::compile(&btf)?,
            bpf: bpf_maps::BpfLayout::compile(&btf)?,
            call: calls::CallLayout::compile(&btf)?,
            cgroup: cgroup::CgroupLayout::compile(&btf)?,
            command_line: command_line::CommandLineLayout::compile(&btf)?,
            compressed: compressed::CompressedLayout::compile(&btf).ok(),
            cpu: cpus::CpuLayout::compile(&btf)?,
            event_file: event_files::EventFileLayout::compile(&btf)?,
            file_systems: file_systems::FileSystemLayout::compile(&btf)?,
            files: files::FilesLayout::compile(&btf)?,
            folios: folios::FolioLayout::compile(&btf)?,
            fpu: fpu::FpuLayout::compile(&btf)?,
            frame_owner: frames::FrameOwnerLayout::compile(&btf)?,
            given_back: given_back::GivenBackLayout::compile(&btf)?,
            hugetlb: hugetlb::HugeTlbLayout::compile(&btf)?,
            idle_stack: idle_stacks::IdleStackLayout::compile(&btf)?,
            io_uring: io_uring::UringLayout::find(&btf)?,
            irq_work: irq_work::IrqWorkLayout::compile(&btf)?,
            log: log::LogLayout::compile(&btf)?,
            keys: keys::KeyLayout::find(&btf)?,
            memory_groups: memory_groups::MemoryGroupLayout::compile(&btf)?,
            maple: maple::MapleLayout::compile(&btf)?,
            messages: message_queues::MessageLayouts::compile(&btf)?,
            mm: vmas::MmLayout::compile(&btf)?,
            name: names::NameLayout::compile(&btf)?,
            packet: skb::PacketLayout::compile(&btf)?,
            orphan: frames::OrphanLayout::compile(&btf)?,
            namespace: system_v::NamespaceLayout::compile(&btf)?,
            notification: notifications::NotificationLayout::compile(&btf)?,
            page,
            page_cache: page_cache::PageCacheLayout::compile(&btf)?,
            path: paths::PathLayout::compile(&btf)?,
            pcp: pcp::PcpLayout::compile(&btf)?,
            per_cpu_memory: per_cpu_memory::PerCpuLayout::compile(&btf)?,
            perf: perf::PerfLayout::compile(&btf)?,
            pipe: pipes::PipeLayout::compile(&btf)?,
            socket: sockets::SocketLayout::compile(&btf)?,
            tree: tree::TreeLayout::compile(&btf)?,
            unmap: unmap::UnmapLayout::compile(&btf)?,
            unwind: unwind::UnwindLayout::compile(&btf)?,
            orc: orc::OrcLayout::compile(&btf)?,
            packet_socket: sockets::PacketSocketLayout::compile(&btf)?,
            tcp: sockets::TcpLayout::compile(&btf)?,
            udp: sockets::UdpLayout::compile(&btf)?,
            upper: sockets::UpperLayout::compile(&btf)?,
            unix: sockets::UnixLayout::compile(&btf)?,
            queued_signal: queued_signals::QueuedSignalLayout::compile(&btf)?,
            sheaf: slab::SheafLayout::compile(&btf)?,
            screen: screens::ScreenLayout::compile(&btf)?,
            signal: signal::SignalLayout::compile(&btf)?,
            slab: slab::SlabLayout::compile(&btf)?,
            slab_cache: slab::CacheLayout::compile(&btf)?,
            stack,
            swap: swap::SwapLayout::compile(&btf)?,
            system_v: system_v::IpcLayout::find(&btf)?,
            task: tasks::TaskLayout::compile(&btf)?,
            terminal: terminals::TerminalLayout::compile(&btf)?,
            tie: ties::TieLayout::compile(&btf)?,
            xarray: xarray::XarrayLayout::compile(&btf)?,
            zone: buddy::ZoneLayout::compile(&btf)?,
        })
    }

    /// `6.1.0-56-cloud-amd64`, out of the banner.
    pub(crate) fn release(&self) -> &str {
        self.banner.split_whitespace().nth(2).unwrap_or("unknown")
    }
}

/// Where compiled profiles are kept.
#[derive(Clone, Debug, Default)]
pub struct ProfileCache {
    folder: Option<PathBuf>,
}

impl ProfileCache {
    /// Keeps profiles in a folder, which is made when needed.
    #[must_use]
    pub fn in_folder(folder: &Path) -> Self {
        Self { folder: Some(folder.to_owned()) }
    }

    /// Compiles anew each time.
    #[must_use]
    pub fn disabled() -> Self {
        Self { folder: None }
    }

    /// `$XDG_CACHE_HOME/elision/profiles`, or the same under `~/.cache`.
    #[must_use]
    pub fn of_user() -> Self {
        let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
        let base =
            std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|p| p.is_absolute()).or_else(home);
        Self { folder: base.map(|base| base.join("elision/profiles")) }
    }

    pub(crate) fn profile_of(&self, ram: &Ram, image: &ImageRange) -> Result<Profile, KernelError> {
        if let Some(kept) = self.kept(ram, image) {
            return Ok(kept);
        }
        let copy = ImageCopy::new(ram, image)?;
        let profile = Profile::compile(&copy, image.base)?;
        if let Err(error) = self.keep(&profile) {
            tracing::warn!(%error, "The kernel profile could not be kept for the next time");
        }
        Ok(profile)
    }

    /// A kept profile whose evidence stands in this image. There are few: all are tried.
    fn kept(&self, ram: &Ram, image: &ImageRange) -> Option<Profile> {
        let entries = fs::read_dir(self.folder.as_ref()?).ok()?;
        entries.flatten().take(256).find_map(|entry| {
            if entry.metadata().ok()?.len() > PROFILE_LIMIT {
                return None;
            }
            let profile: Profile = serde_json::from_slice(&fs::read(entry.path()).ok()?).ok()?;
            let usable = profile.format == FORMAT
                && !profile.evidence.is_empty()
                && profile.evidence.iter().all(|e| e.holds(ram, image));
            usable.then_some(profile)
        })
    }

    fn keep(&self, profile: &Profile) -> std::io::Result<()> {
        let Some(folder) = &self.folder else { return Ok(()) };
        fs::create_dir_all(folder)?;
        let partial = folder.join(format!(".{}.{}", profile.build_id, std::process::id()));
        fs::write(&partial, serde_json::to_vec(profile)?)?;
        fs::rename(partial, folder.join(format!("{}.json", profile.build_id)))
    }
}

fn position_of(image: &[u8], part: &[u8]) -> Option<Range<usize>> {
    const PREFIX: usize = 64;
    let mut found = memchr::memmem::find_iter(image, part.get(..PREFIX)?);
    found.find(|&at| image[at..].starts_with(part)).map(|at| at..at + part.len())
}

fn banner(image: &ImageCopy) -> Option<String> {
    const LONGEST: usize = 512;
    memchr::memmem::find_iter(&image.bytes, b"Linux version ").find_map(|at| {
        let text = image.bytes.get(at..(at + LONGEST).min(image.bytes.len()))?;
        let end = text.iter().position(|&b| b == 0 || b == b'\n')?;
        // A format string with the same beginning is in the image too.
        let is_text = text[..end].iter().all(|b| b.is_ascii() && *b != b'%') && end > 20;
        let found = is_text && image.is_read_only(at, end);
        found.then(|| String::from_utf8_lossy(&text[..end]).into_owned())
    })
}

/// The GNU build id note: `namesz 4, descsz 20, type 3, "GNU\0"`, then the id.
fn build_id(image: &ImageCopy) -> Option<String> {
    const NOTE: &[u8] = b"\x04\0\0\0\x14\0\0\0\x03\0\0\0GNU\0";
    memchr::memmem::find_iter(&image.bytes, NOTE).find_map(|at| {
        let start = at + NOTE.len();
        let id = image.bytes.get(start..start + 20)?;
        image.is_read_only(at, NOTE.len() + 20).then(|| id.iter().map(|b| format!("{b:02x}")).collect())
    })
}
