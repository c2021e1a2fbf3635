//! Keeps guest memory out of core dumps.
//!
//! Guest RAM is mapped here and parts of it are copied, so a core file of this process could hold what a
//! checkpoint must not. Both locks are needed: a core pattern that begins with a pipe ignores the limit.
//!
//! A process that is not dumpable cannot be traced by others of the same user, and its `/proc` folder
//! belongs to root. It may still read its own, and a program that it starts is dumpable again.

use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};
use std::io;

/// Forbids core dumps of this process.
pub(crate) fn forbid_core_dumps() -> io::Result<()> {
    let maximum = getrlimit(Resource::Core).maximum;
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum })?;
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::dumpable_behavior;

    #[test]
    fn core_dumps_are_off_and_own_proc_files_stay_readable() {
        assert_eq!(dumpable_behavior().unwrap(), DumpableBehavior::Dumpable);
        forbid_core_dumps().unwrap();
        assert_eq!(getrlimit(Resource::Core).current, Some(0));
        assert_eq!(dumpable_behavior().unwrap(), DumpableBehavior::NotDumpable);
        assert!(std::fs::read_link("/proc/self/exe").is_ok());
        assert!(std::fs::read_dir("/proc/self/fd").is_ok());
    }
}
