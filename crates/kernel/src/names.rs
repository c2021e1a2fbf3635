//! Names of files that are not there: in dentries that nobody can find any more, or that say so.
//!
//! ```text
//! dentry: d_inode 0, d_lockref.count 0, d_hash      negative: "there is no such file", kept in case of a second look
//!         d_inode,   d_lockref.count 1, d_hash 0    deleted, or never in a folder: as long as somebody has it open
//!         d_lockref.count < 0                       dead, until readers are done with it
//! d_name: len, name -> in the dentry | external_name: count, name
//! ```
//! The hash of a name and its length stay, and so does the dentry's place. Whoever looks for the file finds the
//! right hash with another name, and looks into the folder. A dentry that somebody holds may be about to give its
//! name to a new file: it stays.

use crate::layout::layout;
use crate::{Kernel, KernelError};
use elision_memory::Gva;
use std::ops::Range;

layout! {
    pub(crate) struct NameLayout {
        inode: offset("dentry", &["d_inode"]),
        lock: number("dentry", &["d_lockref.lock"]),
        holders: number("dentry", &["d_lockref.count"]),
        built_in: offset("dentry", &["d_iname", "d_shortname"]),
        operations: offset("dentry", &["d_op"]),
        users: number("external_name", &["u.count", "count"]),
        text: offset("external_name", &["name"]),
    }
}

const WHAT: &str = "name of a file";
const CACHE: &str = "dentry";
const NAME_LIMIT: u32 = 255;
/// The sign of a 32-bit number.
const NEGATIVE: u64 = 1 << 31;

impl Kernel<'_> {
    /// The names that negative dentries have, and dead ones.
    pub fn names_of_nobody(&self, visit: &mut dyn FnMut(Range<Gva>)) -> Result<(), KernelError> {
        let layout = &self.profile.name;
        self.for_each_object_named(CACHE, &mut |dentry, _| {
            let number = |member| self.number(dentry, member, WHAT);
            let holders = number(layout.holders)?;
            if holders & NEGATIVE != 0 {
                // Its text elsewhere may be somebody else's by now.
                self.name_in_dentry(dentry)?.into_iter().for_each(&mut *visit);
            } else if holders == 0 && number(layout.lock)? == 0 && self.is_negative(dentry)? {
                self.own_name(dentry)?.into_iter().for_each(&mut *visit);
            }
            Ok(())
        })
    }

    /// The name of a file that is in no folder, by its dentry, if it has one of its own.
    pub fn name_without_folder(&self, dentry: Gva) -> Result<Option<Range<Gva>>, KernelError> {
        let path = &self.profile.path;
        if self.pointer(dentry.wrapping_add(path.hash_pprev), WHAT)?.0 != 0 {
            return Ok(None);
        }
        let Some(name) = self.own_name(dentry)? else { return Ok(None) };
        // The root of a file system is in no folder either.
        let is_root = name.end.0 - name.start.0 == 1 && self.u8(name.start, WHAT)? == b'/';
        Ok(Some(name).filter(|_| !is_root))
    }

    /// The dentry of an open file.
    pub fn dentry_of(&self, file: Gva) -> Result<Gva, KernelError> {
        self.pointer(file.wrapping_add(self.profile.path.file_dentry), WHAT)
    }

    fn is_negative(&self, dentry: Gva) -> Result<bool, KernelError> {
        let is_hashed = self.pointer(dentry.wrapping_add(self.profile.path.hash_pprev), WHAT)?.0 != 0;
        Ok(is_hashed && self.pointer(dentry.wrapping_add(self.profile.name.inode), WHAT)?.0 == 0)
    }

    /// The name where it stands in the dentry itself.
    fn name_in_dentry(&self, dentry: Gva) -> Result<Option<Range<Gva>>, KernelError> {
        let (path, layout) = (&self.profile.path, &self.profile.name);
        let name = self.pointer(dentry.wrapping_add(path.name), WHAT)?;
        let len = u64::from(self.u32(dentry.wrapping_add(path.name_len), WHAT)?);
        // Which of the two comes next differs.
        let behind = [layout.operations, layout.lock.offset].into_iter().filter(|at| *at > layout.built_in);
        let room = behind.min().map_or(0, |next| next - layout.built_in);
        let is_here = name == dentry.wrapping_add(layout.built_in) && (1..=room).contains(&len);
        Ok(is_here.then(|| name..name.wrapping_add(len)))
    }

    /// The name of a dentry, wherever it stands, unless others have the same.
    fn own_name(&self, dentry: Gva) -> Result<Option<Range<Gva>>, KernelError> {
        let (path, layout) = (&self.profile.path, &self.profile.name);
        if let Some(name) = self.name_in_dentry(dentry)? {
            return Ok(Some(name));
        }
        let name = self.pointer(dentry.wrapping_add(path.name), WHAT)?;
        let len = self.u32(dentry.wrapping_add(path.name_len), WHAT)?;
        let holder = Gva(name.0.wrapping_sub(layout.text));
        let Some(object) = self.slab_object(holder) else { return Ok(None) };
        let end = name.wrapping_add(u64::from(len));
        let is_own = len <= NAME_LIMIT && end <= object.end && self.number(holder, layout.users, WHAT)? == 1;
        Ok(is_own.then_some(name..end))
    }
}
