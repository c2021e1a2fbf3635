//! What a user wants left out of a checkpoint, with no knowledge of how it is found.
//!
//! - [`Selector`]: one kind of process, file or memory region, from `--exclude KIND=PATTERN` or from a policy file.
//! - [`Policy`]: all selectors and the options of the save, from a TOML file, from arguments, or both.
//! - [`ProcessFacts`]: what a selector is matched against.
//!
//! ```
//! use elision_policy::{ProcessFacts, Selector};
//!
//! let selector: Selector = "exe=/usr/lib/postgresql/*/bin/postgres".parse()?;
//! let process = ProcessFacts {
//!     pid: 812,
//!     comm: "postgres",
//!     exe: Some("/usr/lib/postgresql/15/bin/postgres"),
//!     args: None,
//!     uid: 101,
//!     cgroup: None,
//!     tty: None,
//! };
//! assert!(selector.matches(&process));
//! # Ok::<(), elision_policy::PolicyError>(())
//! ```

mod container;
mod entry;
mod error;
mod file;
mod glob;
mod policy;
mod region;
mod selector;
mod unit;

pub use container::Container;
pub use error::PolicyError;
pub use glob::PathGlob;
pub use policy::{Cache, Dependents, Dirty, KernelLog, Policy, SaveOptions, Video};
pub use region::Region;
pub use selector::{Criterion, Kind, OnRestore, ProcessFacts, Selector};
pub use unit::Unit;
