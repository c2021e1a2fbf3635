//! Free objects of compressed swap (`mm/zsmalloc.c`), which zram and zswap keep their pages in.
//!
//! ```text
//! zspage: pool -> zs_pool: size_class[...] -> size_class: size, objs_per_zspage, fullness_list[...]
//!                                                           `-> zspage <-> zspage
//! zspage: first_zpdesc -> zpdesc (a page's descriptor) -> next -> ...       its pages, one after the other
//!         freeobj = number of the first free object; the first word of a free object = number of the next << 1
//! ```
//! Known where the kernel has it built in, with its types: as a module its types are not read. A page's descriptor that
//! says so leads to its pool; older kernels do not mark such pages.

use crate::frames::FrameKind;
use crate::layout::layout;
use crate::{Content, Kernel, KernelError};
use elision_memory::{Gfn, Gva, PAGE_SIZE};
use std::collections::BTreeSet;

layout! {
    pub(crate) struct CompressedLayout {
        zspage_of_page: offset("zpdesc", &["zspage"]),
        next_page: offset("zpdesc", &["next"]),
        list: offset("zspage", &["list"]),
        pool: offset("zspage", &["pool"]),
        first_page: offset("zspage", &["first_zpdesc"]),
        free: offset("zspage", &["freeobj"]),
        classes: offset("zs_pool", &["size_class"]),
        class_count: count("zs_pool", "size_class"),
        fullness: offset("size_class", &["fullness_list"]),
        fullness_count: count("size_class", "fullness_list"),
        object_size: offset("size_class", &["size"]),
        object_count: offset("size_class", &["objs_per_zspage"]),
        page_count: offset("size_class", &["pages_per_zspage"]),
    }
}

const WHAT: &str = "compressed swap";
const LIST_HEAD: u64 = 16;
/// A free object's link to the next one.
const LINK: u64 = 8;
/// More than any kernel has, of classes, of lists in a class, and of pages in a zspage.
const CLASS_LIMIT: u64 = 1024;
const FULLNESS_LIMIT: u64 = 64;
const PAGE_LIMIT: u32 = 64;

/// The objects of one size.
struct Class {
    at: Gva,
    size: u64,
    objects: u64,
    pages: u32,
}

impl Kernel<'_> {
    /// What free objects hold, without their links.
    pub fn free_compressed(&self, visit: &mut dyn FnMut(Content)) -> Result<(), KernelError> {
        let Some(layout) = &self.profile.compressed else { return Ok(()) };
        if self.swap_areas()? == 0 {
            return Ok(());
        }
        let scan = self.scan_descriptors();
        let mut pools = BTreeSet::new();
        for (gfn, _) in scan.frames().filter(|(_, kind)| *kind == FrameKind::Compressed) {
            // One that is just being made or given back leads nowhere.
            let zspage = self.pointer(self.page_of(gfn).wrapping_add(layout.zspage_of_page), WHAT)?;
            if let Ok(pool) = self.pointer(zspage.wrapping_add(layout.pool), WHAT) {
                pools.insert(pool);
            }
        }
        // A page belongs to one zspage.
        let mut pages_left = self.ram.layout().frame_limit().0;
        for pool in pools {
            for class in self.classes(layout, pool)? {
                for n in 0..layout.fullness_count.min(FULLNESS_LIMIT) {
                    let head = class.at.wrapping_add(layout.fullness + LIST_HEAD * n);
                    self.for_each_in_list(head, WHAT, &mut |entry| {
                        let zspage = Gva(entry.0.wrapping_sub(layout.list));
                        pages_left = pages_left
                            .checked_sub(u64::from(class.pages))
                            .ok_or(torn(zspage, "there is more of it than memory"))?;
                        self.free_objects_of(layout, zspage, &class, visit)
                    })?;
                }
            }
        }
        Ok(())
    }

    /// The classes of a pool, each once: neighbours of like shape are merged.
    fn classes(&self, layout: &CompressedLayout, pool: Gva) -> Result<Vec<Class>, KernelError> {
        let mut found = BTreeSet::new();
        for i in 0..layout.class_count.min(CLASS_LIMIT) {
            found.insert(self.pointer(pool.wrapping_add(layout.classes + 8 * i), WHAT)?);
        }
        let class = |at: Gva| {
            let size = u64::from(self.u32(at.wrapping_add(layout.object_size), WHAT)?);
            let objects = u64::from(self.u32(at.wrapping_add(layout.object_count), WHAT)?);
            let pages = self.u32(at.wrapping_add(layout.page_count), WHAT)?;
            let room = u64::from(pages) * PAGE_SIZE as u64;
            let fits = size.checked_mul(objects).is_some_and(|len| len <= room);
            if size < 2 * LINK || size % LINK != 0 || pages == 0 || pages > PAGE_LIMIT || !fits {
                return Err(torn(at, "its objects do not fit"));
            }
            Ok(Class { at, size, objects, pages })
        };
        found.into_iter().filter(|at| at.0 != 0).map(class).collect()
    }

    fn free_objects_of(
        &self,
        layout: &CompressedLayout,
        zspage: Gva,
        class: &Class,
        visit: &mut dyn FnMut(Content),
    ) -> Result<(), KernelError> {
        if class.objects < 2 {
            return Ok(()); // the only object of a zspage goes with it
        }
        let mut pages = Vec::new();
        let mut at = self.pointer(zspage.wrapping_add(layout.first_page), WHAT)?;
        for _ in 0..class.pages {
            pages.push(self.frame_of(at).ok_or(torn(zspage, "a page of it is no page"))?);
            at = self.pointer(at.wrapping_add(layout.next_page), WHAT)?;
        }
        let mut free = u64::from(self.u32(zspage.wrapping_add(layout.free), WHAT)?);
        for _ in 0..class.objects {
            if free >= class.objects {
                break;
            }
            let start = free * class.size;
            let link = place(&pages, start).and_then(|(gfn, at)| self.ram.word(gfn.gpa().wrapping_add(at)));
            free = link.ok_or(torn(zspage, "an object lies outside of it"))? >> 1;
            let (mut at, end) = (start + LINK, start + class.size);
            while let Some((gfn, offset)) = place(&pages, at).filter(|_| at < end) {
                let len = (PAGE_SIZE as u64 - offset).min(end - at);
                visit(Content::Page { at: gfn.gpa().wrapping_add(offset), len });
                at += len;
            }
        }
        Ok(())
    }
}

/// Where a byte of a zspage stands.
fn place(pages: &[Gfn], at: u64) -> Option<(Gfn, u64)> {
    let page = usize::try_from(at / PAGE_SIZE as u64).ok()?;
    Some((*pages.get(page)?, at % PAGE_SIZE as u64))
}

fn torn(at: Gva, why: &'static str) -> KernelError {
    KernelError::Torn { what: WHAT, at, why }
}
