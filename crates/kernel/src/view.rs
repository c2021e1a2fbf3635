//! Typed reads of kernel memory by virtual address.

use crate::layout::Number;
use crate::locate::{self, ImageRange};
use crate::profile::{Profile, ProfileCache};
use crate::{KernelError, Slabs};
use elision_memory::{Gfn, Gpa, Gva, PAGE_SIZE, PageTables, Ram};
use std::sync::Arc;

/// A guest's kernel: its memory, its layout, and where its regions begin in this boot.
///
/// All of it is constant once the guest has booted, so a view opened while the VM runs serves
/// while it is stopped.
pub struct Kernel<'a> {
    pub(crate) ram: &'a Ram,
    pub(crate) profile: Arc<Profile>,
    image: ImageRange,
    tables: PageTables,
    page_offset: Gva,
    vmemmap: Gva,
    /// Physical address of each 2 MiB of the `struct page` array.
    vmemmap_parts: Vec<Option<Gpa>>,
    pub(crate) per_cpu: Vec<u64>,
    /// The thread flag for pending signals.
    pub(crate) sigpending_flag: u64,
    /// The slabs, where they are known.
    pub(crate) slabs: Option<&'a Slabs>,
}

/// A change of kernel memory in the copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WordEdit {
    /// Where.
    pub at: Gva,
    /// The new bytes.
    pub bytes: Vec<u8>,
}

impl WordEdit {
    pub(crate) fn u64(at: Gva, value: u64) -> Self {
        Self { at, bytes: value.to_le_bytes().to_vec() }
    }

    pub(crate) fn u32(at: Gva, value: u32) -> Self {
        Self { at, bytes: value.to_le_bytes().to_vec() }
    }
}

/// What a part of the kernel's half of the address space is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Region {
    /// All of RAM, one after the other.
    Direct,
    /// The array of `struct page`.
    StructPages,
    /// The kernel's image.
    Image,
    /// Everything else: vmalloc, modules, per-CPU areas.
    Other,
}

const VMEMMAP_PART: u64 = 2 << 20;

impl<'a> Kernel<'a> {
    /// Finds the kernel in RAM. `roots` are the page tables in use by the vCPUs (CR3), if known:
    /// they save a scan of all RAM.
    pub fn open(ram: &'a Ram, roots: &[Gpa], cache: &ProfileCache) -> Result<Self, KernelError> {
        let mut last = KernelError::NotFound;
        for image in locate::candidates(ram, roots) {
            match Self::open_at(ram, image, cache) {
                Ok(kernel) => return Ok(kernel),
                Err(error) => last = error,
            }
        }
        if roots.is_empty() || !matches!(last, KernelError::NotFound) {
            return Err(last);
        }
        Self::open(ram, &[], cache)
    }

    fn open_at(ram: &'a Ram, image: ImageRange, cache: &ProfileCache) -> Result<Self, KernelError> {
        let profile = Arc::new(cache.profile_of(ram, &image)?);
        let mut kernel = Self {
            ram,
            profile,
            tables: image.tables,
            image,
            page_offset: Gva(0),
            vmemmap: Gva(0),
            vmemmap_parts: Vec::new(),
            per_cpu: Vec::new(),
            sigpending_flag: 0,
            slabs: None,
        };
        // The process whose tables led here may have ended; the kernel's own tables stay, and stand in its image.
        if let Some((top, _)) = kernel.symbol("init_top_pgt").and_then(|top| kernel.locate(top)) {
            kernel.tables = PageTables::new(top, image.tables.la57());
        }
        kernel.page_offset = kernel.region("page_offset_base")?;
        kernel.vmemmap = kernel.region("vmemmap_base")?;
        let page_array = ram.layout().frame_limit().0 * kernel.profile.page.size;
        kernel.vmemmap_parts = (0..page_array.div_ceil(VMEMMAP_PART))
            .map(|i| {
                let at = kernel.vmemmap.wrapping_add(i * VMEMMAP_PART);
                kernel.tables.translate(ram, at).filter(|t| t.size.bytes() >= VMEMMAP_PART).map(|t| t.gpa)
            })
            .collect();
        kernel.per_cpu = kernel.per_cpu_offsets()?;
        kernel.sigpending_flag = kernel.read_sigpending_flag()?;
        Ok(kernel)
    }

    /// The same kernel in a copy of its memory.
    #[must_use]
    pub fn over<'b>(&self, copy: &'b Ram) -> Kernel<'b> {
        Kernel {
            ram: copy,
            profile: Arc::clone(&self.profile),
            image: self.image,
            tables: self.tables,
            page_offset: self.page_offset,
            vmemmap: self.vmemmap,
            vmemmap_parts: self.vmemmap_parts.clone(),
            per_cpu: self.per_cpu.clone(),
            sigpending_flag: self.sigpending_flag,
            slabs: None,
        }
    }

    /// The same kernel, whose slabs were found in the same memory before: then it is not searched for them.
    #[must_use]
    pub fn with_slabs(self, slabs: &'a Slabs) -> Self {
        Self { slabs: Some(slabs), ..self }
    }

    /// The kernel's own name for itself, as in `/proc/version`.
    #[must_use]
    pub fn banner(&self) -> &str {
        &self.profile.banner
    }

    /// The kernel release, as in `uname -r`.
    #[must_use]
    pub fn release(&self) -> &str {
        self.profile.release()
    }

    /// The GNU build id, in hexadecimal.
    #[must_use]
    pub fn build_id(&self) -> &str {
        &self.profile.build_id
    }

    /// Whether the kernel runs with five-level page tables.
    #[must_use]
    pub fn la57(&self) -> bool {
        self.tables.la57()
    }

    /// The memory that is looked at.
    #[must_use]
    pub fn ram(&self) -> &'a Ram {
        self.ram
    }

    fn region(&self, symbol: &'static str) -> Result<Gva, KernelError> {
        let base = Gva(self.u64(self.require(symbol)?, symbol)?);
        // Regions begin in the upper half, on a 1 GiB boundary (arch/x86/mm/kaslr.c).
        let sane = base.0 >> 63 == 1 && base.0 % (1 << 30) == 0;
        if sane {
            Ok(base)
        } else {
            Err(KernelError::Torn { what: symbol, at: base, why: "it is no region base" })
        }
    }

    pub(crate) fn symbol(&self, name: &'static str) -> Option<Gva> {
        self.profile.symbols.get(name, self.image.base)
    }

    pub(crate) fn require(&self, name: &'static str) -> Result<Gva, KernelError> {
        self.profile.symbols.require(name, self.image.base)
    }

    /// Where kernel memory at `gva` stands, with the number of contiguous bytes from there.
    pub(crate) fn locate(&self, gva: Gva) -> Option<(Gpa, u64)> {
        let to_page_end = PAGE_SIZE as u64 - gva.page_offset() as u64;
        if let Some(offset) = gva.0.checked_sub(self.image.base.0).filter(|&o| o < self.image.len) {
            // Inside the image only what is still mapped belongs to the kernel, but no walk here
            // starts from anything else.
            return Some((Gpa(self.image.physical.0 + offset), to_page_end));
        }
        if let Some(offset) = gva.0.checked_sub(self.vmemmap.0) {
            let part = usize::try_from(offset / VMEMMAP_PART).ok()?;
            if let Some(Some(gpa)) = self.vmemmap_parts.get(part) {
                return Some((Gpa(gpa.0 + offset % VMEMMAP_PART), to_page_end));
            }
        }
        if let Some(gpa) = self.direct(gva) {
            return Some((gpa, to_page_end));
        }
        self.tables.translate(self.ram, gva).map(|t| (t.gpa, to_page_end))
    }

    /// The kernel's own page tables.
    pub(crate) fn kernel_tables(&self) -> PageTables {
        self.tables
    }

    /// The frames behind the image's mapping; some were given back after boot.
    pub(crate) fn image_frames(&self) -> impl Iterator<Item = Gfn> + use<> {
        let first = self.image.physical.gfn().0;
        (first..first.saturating_add(self.image.len / PAGE_SIZE as u64)).map(Gfn)
    }

    /// What a kernel address belongs to.
    pub(crate) fn region_of(&self, gva: Gva) -> Region {
        let inside = |base: Gva, len: u64| gva.0.checked_sub(base.0).is_some_and(|offset| offset < len);
        if inside(self.image.base, self.image.len) {
            Region::Image
        } else if inside(self.vmemmap, self.vmemmap_parts.len() as u64 * VMEMMAP_PART) {
            Region::StructPages
        } else if self.direct(gva).is_some() {
            Region::Direct
        } else {
            Region::Other
        }
    }

    /// Whether no user of the guest can have written these bytes.
    pub(crate) fn is_read_only(&self, gva: Gva, len: u64) -> bool {
        let last = gva.wrapping_add(len.saturating_sub(1));
        [gva, last]
            .iter()
            .all(|at| self.tables.translate(self.ram, *at).is_some_and(|t| !t.writable && !t.user))
    }

    /// Where the kernel sees physical memory.
    pub(crate) fn direct_address(&self, gpa: Gpa) -> Gva {
        self.page_offset.wrapping_add(gpa.0)
    }

    /// The physical address behind a direct-map address.
    pub(crate) fn direct(&self, gva: Gva) -> Option<Gpa> {
        let gpa = Gpa(gva.0.checked_sub(self.page_offset.0)?);
        self.ram.layout().contains(gpa.gfn()).then_some(gpa)
    }

    /// Copies kernel memory out.
    pub(crate) fn read(&self, gva: Gva, out: &mut [u8], what: &'static str) -> Result<(), KernelError> {
        let mut at = gva;
        let mut rest = out;
        while !rest.is_empty() {
            let unreadable = KernelError::Unreadable { at, what };
            let Some((gpa, run)) = self.locate(at) else { return Err(unreadable) };
            let n = rest.len().min(usize::try_from(run).unwrap_or(PAGE_SIZE));
            let (now, later) = rest.split_at_mut(n);
            if self.ram.read(gpa, now).is_err() {
                return Err(unreadable);
            }
            at = at.wrapping_add(n as u64);
            rest = later;
        }
        Ok(())
    }

    pub(crate) fn u64(&self, gva: Gva, what: &'static str) -> Result<u64, KernelError> {
        if gva.0 % 8 == 0 {
            // Most of what is read stands here, and looking once is enough.
            let direct = gva.0.checked_sub(self.page_offset.0).and_then(|offset| self.ram.word(Gpa(offset)));
            if let Some(word) = direct {
                return Ok(word);
            }
            let found = self.locate(gva).and_then(|(gpa, _)| self.ram.word(gpa));
            return found.ok_or(KernelError::Unreadable { at: gva, what });
        }
        let mut raw = [0; 8];
        self.read(gva, &mut raw, what)?;
        Ok(u64::from_le_bytes(raw))
    }

    pub(crate) fn u32(&self, gva: Gva, what: &'static str) -> Result<u32, KernelError> {
        let mut raw = [0; 4];
        self.read(gva, &mut raw, what)?;
        Ok(u32::from_le_bytes(raw))
    }

    pub(crate) fn u16(&self, gva: Gva, what: &'static str) -> Result<u16, KernelError> {
        let mut raw = [0; 2];
        self.read(gva, &mut raw, what)?;
        Ok(u16::from_le_bytes(raw))
    }

    pub(crate) fn u8(&self, gva: Gva, what: &'static str) -> Result<u8, KernelError> {
        let mut raw = [0; 1];
        self.read(gva, &mut raw, what)?;
        Ok(raw[0])
    }

    /// An integer member of the structure at `gva`.
    pub(crate) fn number(&self, gva: Gva, member: Number, what: &'static str) -> Result<u64, KernelError> {
        let mut raw = [0; 8];
        let part = raw.get_mut(..member.bytes).unwrap_or_default();
        self.read(gva.wrapping_add(member.offset), part, what)?;
        Ok(u64::from_le_bytes(raw))
    }

    pub(crate) fn pointer(&self, gva: Gva, what: &'static str) -> Result<Gva, KernelError> {
        self.u64(gva, what).map(Gva)
    }

    /// A NUL-terminated string of at most `limit` bytes; other bytes than UTF-8 are replaced.
    pub(crate) fn string(&self, gva: Gva, limit: usize, what: &'static str) -> Result<String, KernelError> {
        let mut out = Vec::new();
        while out.len() < limit {
            let at = gva.wrapping_add(out.len() as u64);
            let n = (PAGE_SIZE - at.page_offset()).min(limit - out.len()).min(64);
            let mut chunk = [0; 64];
            self.read(at, &mut chunk[..n], what)?;
            if let Some(end) = chunk[..n].iter().position(|&b| b == 0) {
                out.extend_from_slice(&chunk[..end]);
                break;
            }
            out.extend_from_slice(&chunk[..n]);
        }
        Ok(String::from_utf8_lossy(&out).into_owned())
    }

    /// The frame described by a `struct page`.
    pub(crate) fn frame_of(&self, page: Gva) -> Option<Gfn> {
        let offset = page.0.checked_sub(self.vmemmap.0)?;
        let size = self.profile.page.size;
        let gfn = Gfn(offset / size);
        (offset % size == 0 && self.ram.layout().contains(gfn)).then_some(gfn)
    }

    /// Where the `struct page` of a frame stands.
    pub(crate) fn page_of(&self, gfn: Gfn) -> Gva {
        self.vmemmap.wrapping_add(gfn.0.wrapping_mul(self.profile.page.size))
    }

    /// The frames behind a range of kernel memory, each with its part of the range.
    pub fn frames_of(&self, gva: Gva, len: u64) -> Result<Vec<(Gpa, u64)>, KernelError> {
        const WHAT: &str = "range to be changed";
        let mut parts = Vec::new();
        let (mut at, mut rest) = (gva, len);
        while rest > 0 {
            let (gpa, run) = self.locate(at).ok_or(KernelError::Unreadable { at, what: WHAT })?;
            if !self.ram.layout().contains(gpa.gfn()) {
                return Err(KernelError::Unreadable { at, what: WHAT });
            }
            let n = run.min(rest);
            parts.push((gpa, n));
            at = at.wrapping_add(n);
            rest -= n;
        }
        Ok(parts)
    }
}
