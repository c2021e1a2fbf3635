//! The words that options of a save take, each with its help, and the policy's own word for it.

use clap::ValueEnum;
use elision_policy::{Cache, Dependents, Dirty, KernelLog, Video};

/// How a VM is saved while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LiveArg {
    /// By `precopy` where the host has the memory for it, otherwise by `snapshot`.
    Auto,
    /// Copy memory while the VM runs, and once more what it changes meanwhile: the shortest pause. Takes as much
    /// memory of the host as is kept of the VM's.
    Precopy,
    /// Have QEMU guard the memory against changes and write it then. QEMU must be allowed to use userfaultfd.
    Snapshot,
}

/// Declares the words of one option: as an argument, and what they mean in a policy.
macro_rules! choices {
    ($( $(#[$doc:meta])* $name:ident for $policy:ident {
        $( $(#[$word_doc:meta])* $word:ident ),* $(,)?
    } )*) => { $(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
        pub(crate) enum $name { $( $(#[$word_doc])* $word ),* }

        impl From<$name> for $policy {
            fn from(arg: $name) -> Self {
                match arg { $( $name::$word => Self::$word ),* }
            }
        }
    )* };
}

choices! {
    /// What becomes of video memory.
    VideoArg for Video {
        /// Blank it when an excluded process has a virtual console (the default).
        Auto,
        /// Keep it as it is.
        Keep,
        /// Blank it.
        Blank,
    }
    /// What becomes of the log of the guest's kernel.
    KernelLogArg for KernelLog {
        /// Clear the lines that excluded processes wrote (the default).
        Auto,
        /// Clear all of it.
        Clear,
    }
    /// What becomes of processes that share data with those left out.
    DependentsArg for Dependents {
        /// Keep them (the default).
        Keep,
        /// Leave them out too, and those that share data with them.
        Exclude,
        /// Make no image if there is one, and list them.
        Refuse,
    }
    /// What becomes of the page cache that belongs to processes left out.
    CacheArg for Cache {
        /// Keep it (the default).
        Keep,
        /// Leave out what only they have open or mapped, or what their cgroup is charged for.
        Exclude,
    }
    /// What happens when cached data to leave out is not on its disk yet.
    DirtyArg for Dirty {
        /// Make no image, and name the files (the default).
        Refuse,
        /// Give the guest time to write it.
        Wait,
    }
}
