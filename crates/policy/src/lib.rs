//! What a user wants left out of a checkpoint, with no knowledge of how it is found.
//!
//! - [`Selector`]: one kind of process, from `--exclude KIND=PATTERN` or from a policy file.
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
//!     uid: 101,
//!     cgroup: None,
//!     tty: None,
//! };
//! assert!(selector.matches(&process));
//! # Ok::<(), elision_policy::PolicyError>(())
//! ```

mod error;
mod file;
mod glob;
mod policy;
mod selector;

pub use error::PolicyError;
pub use glob::PathGlob;
pub use policy::{KernelLog, Policy, SaveOptions, Video};
pub use selector::{Criterion, Kind, ProcessFacts, Selector};
