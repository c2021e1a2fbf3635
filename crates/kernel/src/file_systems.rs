//! The file systems of the guest, and the files of each that have pages in the page cache.
//!
//! ```text
//! super_blocks ──> super_block: s_type ─> name
//!                    s_mounts ──> mount: where its files can be seen
//!                    s_inodes ──> inode: i_data (the page cache), i_dentry ──> dentry: its names
//! ```
//! A file can have many names: those of its hard links, below each place where its file system is mounted, in
//! any mount namespace. It has none when its name was removed, or when the kernel forgot it for want of memory
//! (`fs/dcache.c`); its pages can outlive both.

use crate::files::REGULAR;
use crate::layout::layout;
use crate::{Kernel, KernelError};
use elision_memory::Gva;

layout! {
    pub(crate) struct FileSystemLayout {
        list: offset("super_block", &["s_list"]),
        kind: offset("super_block", &["s_type"]),
        flags: offset("super_block", &["s_flags"]),
        mounts: offset("super_block", &["s_mounts"]),
        inodes: offset("super_block", &["s_inodes"]),
        name: offset("file_system_type", &["name"]),
        // A ring of `list_head`, or in newer kernels a chain of pointers.
        mount_instance: optional("mount", &["mnt_instance"]),
        next_mount: optional("mount", &["mnt_next_for_sb"]),
        namespace: offset("mount", &["mnt_ns"]),
        in_list: offset("inode", &["i_sb_list"]),
        block_bits: offset("inode", &["i_blkbits"]),
        size: offset("inode", &["i_size"]),
        cache: offset("inode", &["i_data"]),
        pages: offset("address_space", &["nrpages"]),
        names: offset("inode", &["i_dentry"]),
        of_inode: offset("dentry", &["d_alias", "d_u.d_alias"]),
    }
}

const WHAT: &str = "file system";
const NAME_LIMIT: usize = 32;
const READ_ONLY: u64 = 1;
/// More mounts or hard links than this are not looked at.
const NAMES_LIMIT: usize = 4096;

/// How a file system keeps track of what it has read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheForm {
    /// Memory is all there is: tmpfs, ramfs, hugetlbfs.
    Memory,
    /// A ring of `buffer_head` for each page (`fs/buffer.c`).
    Buffers,
    /// A bit for each block of a page, where blocks are smaller (`fs/iomap/buffered-io.c`).
    Iomap,
    /// Whole pages only (`fs/btrfs/extent_io.c`).
    Btrfs,
    /// Other mounts stand behind its files: overlayfs.
    Stacked,
    /// Not known here.
    Unknown,
}

/// A mounted file system.
#[derive(Clone, Debug)]
pub struct FileSystem {
    /// The name of its type, as in `/proc/filesystems`.
    pub name: String,
    /// How it keeps track of what it has read.
    pub form: CacheForm,
    /// Whether nothing can be written to it.
    pub read_only: bool,
    at: Gva,
    mounts: Vec<Gva>,
}

/// A regular file of which something is cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CachedFile {
    /// Its `inode`.
    pub inode: Gva,
    /// Its page cache (`address_space`).
    pub mapping: Gva,
    /// The size of a block, as a power of two.
    pub block_bits: u8,
    /// Whether its content may stand in the blocks of the file system itself, which hold that of other files too.
    pub may_be_inline: bool,
}

impl Kernel<'_> {
    /// All mounted file systems.
    pub fn file_systems(&self) -> Result<Vec<FileSystem>, KernelError> {
        let layout = &self.profile.file_systems;
        let mut found = Vec::new();
        self.for_each_in_list(self.require("super_blocks")?, WHAT, &mut |entry| {
            let at = Gva(entry.0.wrapping_sub(layout.list));
            let kind = self.pointer(at.wrapping_add(layout.kind), WHAT)?;
            let name = self.string(self.pointer(kind.wrapping_add(layout.name), WHAT)?, NAME_LIMIT, WHAT)?;
            let read_only = self.u64(at.wrapping_add(layout.flags), WHAT)? & READ_ONLY != 0;
            let form = self.cache_form(&name);
            found.push(FileSystem { name, form, read_only, at, mounts: self.mounts_of(at)? });
            Ok(())
        })?;
        Ok(found)
    }

    fn cache_form(&self, name: &str) -> CacheForm {
        match name {
            "tmpfs" | "ramfs" | "rootfs" | "devtmpfs" | "hugetlbfs" | "secretmem" => CacheForm::Memory,
            "ext4" | "ext3" | "ext2" => CacheForm::Buffers,
            "xfs" => CacheForm::Iomap,
            "btrfs" if self.tracks_pages_only() => CacheForm::Btrfs,
            "overlay" => CacheForm::Stacked,
            _ => CacheForm::Unknown,
        }
    }

    fn mounts_of(&self, super_block: Gva) -> Result<Vec<Gva>, KernelError> {
        let layout = &self.profile.file_systems;
        let head = super_block.wrapping_add(layout.mounts);
        let mut mounts = Vec::new();
        if let Some(instance) = layout.mount_instance {
            self.for_each_in_list(head, WHAT, &mut |entry| {
                mounts.push(Gva(entry.0.wrapping_sub(instance)));
                Ok(())
            })?;
        } else if let Some(next) = layout.next_mount {
            let mut at = self.pointer(head, WHAT)?;
            while at.0 != 0 && mounts.len() < NAMES_LIMIT {
                mounts.push(at);
                at = self.pointer(at.wrapping_add(next), WHAT)?;
            }
        }
        mounts.truncate(NAMES_LIMIT);
        Ok(mounts)
    }

    /// Calls `visit` with each regular file of a file system of which something is cached. `budget` bounds
    /// the files looked at, over all calls that share it.
    pub fn for_each_cached_file(
        &self,
        file_system: &FileSystem,
        budget: &mut u64,
        visit: &mut dyn FnMut(CachedFile) -> Result<(), KernelError>,
    ) -> Result<(), KernelError> {
        let layout = &self.profile.file_systems;
        self.for_each_in_list(file_system.at.wrapping_add(layout.inodes), WHAT, &mut |entry| {
            let torn = KernelError::Torn {
                what: WHAT,
                at: entry,
                why: "it has more files than the guest has room for",
            };
            *budget = budget.checked_sub(1).ok_or(torn)?;
            let inode = Gva(entry.0.wrapping_sub(layout.in_list));
            if self.inode_format(inode)? != REGULAR {
                return Ok(());
            }
            let mapping = inode.wrapping_add(layout.cache);
            let is_cached = self.u64(mapping.wrapping_add(layout.pages), WHAT)? != 0;
            let block_bits = self.u8(inode.wrapping_add(layout.block_bits), WHAT)?;
            let size = self.u64(inode.wrapping_add(layout.size), WHAT)?;
            // Of btrfs, files that have no more than a block.
            let small = size != 0 && (size - 1) >> block_bits.min(63) == 0;
            let may_be_inline = small && file_system.form == CacheForm::Btrfs;
            if is_cached || may_be_inline {
                visit(CachedFile { inode, mapping, block_bits, may_be_inline })?;
            }
            Ok(())
        })
    }

    /// All paths by which a file can be seen. `stacks` are the mounts of stacked file systems: a file of a layer
    /// is seen below each of them too, as it may be one of that stack.
    pub fn names_of_file(
        &self,
        file_system: &FileSystem,
        file: &CachedFile,
        stacks: &[String],
    ) -> Result<Vec<String>, KernelError> {
        let layout = &self.profile.file_systems;
        let mut names = Vec::new();
        let mut node = self.pointer(file.inode.wrapping_add(layout.names), WHAT)?;
        for _ in 0..NAMES_LIMIT {
            if node.0 == 0 {
                break;
            }
            let dentry = Gva(node.0.wrapping_sub(layout.of_inode));
            for mount in &file_system.mounts {
                let Some(path) = self.path_below(dentry, *mount)? else { continue };
                if self.is_private(*mount)? {
                    names.extend(stacks.iter().map(|stack| format!("{}{path}", stack.trim_end_matches('/'))));
                }
                names.push(path);
            }
            node = self.pointer(node, WHAT)?;
        }
        Ok(names)
    }

    /// Where the stacked ones of these file systems are mounted.
    pub fn stacks(&self, file_systems: &[FileSystem]) -> Result<Vec<String>, KernelError> {
        let stacked = file_systems.iter().filter(|f| f.form == CacheForm::Stacked);
        let mut paths = Vec::new();
        for mount in stacked.flat_map(|f| &f.mounts) {
            paths.extend(self.path_of_mount(*mount)?);
        }
        Ok(paths)
    }

    /// Whether a mount is in no namespace: one that another file system made for itself.
    fn is_private(&self, mount: Gva) -> Result<bool, KernelError> {
        let namespace = self.u64(mount.wrapping_add(self.profile.file_systems.namespace), WHAT)?;
        Ok(namespace >> 12 == u64::MAX >> 12) // an error pointer
    }
}
