//! A FUSE file system that is mounted nowhere.
//!
//! ```text
//! fsopen("fuse") ─> fd=, rootmode=, user_id=, group_id= ─> create ─> fsmount ─> a descriptor of its root
//! ```
//! It ends with the last descriptor or mapping of anything in it.

use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use rustix::mount::{fsconfig_create, fsconfig_set_string, fsmount, fsopen};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// The device by which a server talks to the kernel.
pub(crate) const DEVICE: &str = "/dev/fuse";

/// Makes the file system that is served by `device`, for this user alone. Gives its root.
pub(crate) fn mount(device: &File) -> io::Result<OwnedFd> {
    let context = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
    for (key, value) in [
        ("source", "elision".to_owned()),
        ("fd", device.as_raw_fd().to_string()),
        ("rootmode", "40000".to_owned()),
        ("user_id", user.as_raw().to_string()),
        ("group_id", group.as_raw().to_string()),
    ] {
        fsconfig_set_string(&context, key, value)?;
    }
    fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC
        | MountAttrFlags::MOUNT_ATTR_NOATIME;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}
