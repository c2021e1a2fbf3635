//! Paths of files: up from a dentry to the root, across mounts (`struct dentry`, `struct mount`).

use crate::layout::layout;
use crate::{Kernel, KernelError};
use elision_memory::Gva;

layout! {
    pub(crate) struct PathLayout {
        file_dentry: offset("file", &["f_path.dentry"]),
        file_mnt: offset("file", &["f_path.mnt"]),
        file_mapping: offset("file", &["f_mapping"]),
        dentry_parent: offset("dentry", &["d_parent"]),
        name: offset("dentry", &["d_name.name"]),
        name_len: offset("dentry", &["d_name.len"]),
        hash_pprev: offset("dentry", &["d_hash.pprev"]),
        mount_mnt: offset("mount", &["mnt"]),
        mount_parent: offset("mount", &["mnt_parent"]),
        mount_point: offset("mount", &["mnt_mountpoint"]),
        mnt_root: offset("vfsmount", &["mnt_root"]),
    }
}

/// `PATH_MAX`: the kernel itself shows no longer path.
const PATH_LIMIT: usize = 4096;
const NAME_LIMIT: u32 = 255;
const WHAT: &str = "path";

/// Where the way up from a dentry ends, with the names on it, the last one first.
enum Climb {
    /// At the root of all mounts.
    Arrived(Vec<String>),
    /// At the root of its file system, that of the mount being another one.
    Detached(Vec<String>),
}

impl Kernel<'_> {
    /// Path of an open file, as `/proc/PID/exe` and `/proc/PID/maps` would show it.
    pub(crate) fn file_path(&self, file: Gva) -> Result<String, KernelError> {
        let layout = &self.profile.path;
        let start = self.pointer(file.wrapping_add(layout.file_dentry), WHAT)?;
        let vfsmount = self.pointer(file.wrapping_add(layout.file_mnt), WHAT)?;
        match self.climb(start, Gva(vfsmount.0.wrapping_sub(layout.mount_mnt)))? {
            // The file has no place in the tree of its mount: memfd, System V shared memory.
            Climb::Detached(names) if names.is_empty() => Ok(format!("/{} (deleted)", self.name_of(start)?)),
            Climb::Detached(names) | Climb::Arrived(names) => self.joined(&names, start),
        }
    }

    /// Path of a dentry in a mount of its file system, if it can be seen there.
    pub(crate) fn path_below(&self, dentry: Gva, mount: Gva) -> Result<Option<String>, KernelError> {
        match self.climb(dentry, mount)? {
            Climb::Arrived(names) => self.joined(&names, dentry).map(Some),
            Climb::Detached(_) => Ok(None),
        }
    }

    /// Where a mount stands.
    pub(crate) fn path_of_mount(&self, mount: Gva) -> Result<Option<String>, KernelError> {
        let layout = &self.profile.path;
        let parent = self.pointer(mount.wrapping_add(layout.mount_parent), WHAT)?;
        if parent == mount {
            return Ok(Some("/".to_owned()));
        }
        self.path_below(self.pointer(mount.wrapping_add(layout.mount_point), WHAT)?, parent)
    }

    /// The names from a dentry up to the root of all mounts, or to that of its file system when the mount does
    /// not show the dentry.
    fn climb(&self, start: Gva, mount: Gva) -> Result<Climb, KernelError> {
        let layout = &self.profile.path;
        let (mut dentry, mut mount) = (start, mount);
        let (mut names, mut len): (Vec<String>, usize) = (Vec::new(), 0);
        while len < PATH_LIMIT {
            len += 1; // the slash; a step to another mount counts as well
            let root = self.pointer(mount.wrapping_add(layout.mount_mnt + layout.mnt_root), WHAT)?;
            let parent = self.pointer(dentry.wrapping_add(layout.dentry_parent), WHAT)?;
            if dentry == root {
                let parent_mount = self.pointer(mount.wrapping_add(layout.mount_parent), WHAT)?;
                if parent_mount == mount {
                    return Ok(Climb::Arrived(names));
                }
                dentry = self.pointer(mount.wrapping_add(layout.mount_point), WHAT)?;
                mount = parent_mount;
            } else if parent == dentry {
                return Ok(Climb::Detached(names));
            } else {
                let name = self.name_of(dentry)?;
                len += name.len();
                names.push(name);
                dentry = parent;
            }
        }
        Err(KernelError::Torn { what: WHAT, at: start, why: "it is longer than any path may be" })
    }

    /// The name of an open file that has no place in any tree, such as a memfd.
    pub(crate) fn detached_name(&self, file: Gva) -> Result<Option<String>, KernelError> {
        let layout = &self.profile.path;
        let dentry = self.pointer(file.wrapping_add(layout.file_dentry), WHAT)?;
        let mount = self.pointer(file.wrapping_add(layout.file_mnt), WHAT)?;
        let parent = self.pointer(dentry.wrapping_add(layout.dentry_parent), WHAT)?;
        let root = self.pointer(mount.wrapping_add(layout.mnt_root), WHAT)?;
        if parent == dentry && dentry != root { self.name_of(dentry).map(Some) } else { Ok(None) }
    }

    fn joined(&self, names: &[String], dentry: Gva) -> Result<String, KernelError> {
        let mut path: String = names.iter().rev().flat_map(|name| ["/", name]).collect();
        if path.is_empty() {
            path.push('/');
        } else if self.u64(dentry.wrapping_add(self.profile.path.hash_pprev), WHAT)? == 0 {
            path.push_str(" (deleted)");
        }
        Ok(path)
    }

    fn name_of(&self, dentry: Gva) -> Result<String, KernelError> {
        let layout = &self.profile.path;
        let len = self.u32(dentry.wrapping_add(layout.name_len), WHAT)?;
        if len > NAME_LIMIT {
            return Err(KernelError::Torn {
                what: WHAT,
                at: dentry,
                why: "a file name is longer than 255 bytes",
            });
        }
        let name = self.pointer(dentry.wrapping_add(layout.name), WHAT)?;
        self.string(name, len as usize, WHAT)
    }
}
