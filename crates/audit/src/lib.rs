//! Looking for secrets where they must not be: in guest memory, device state or any file.
//!
//! - [`Secrets`]: what to look for, from a file; never printed.
//! - [`Needles`]: the secrets in every [`Encoding`], ready to search.
//! - [`Needles::search_ram`], [`Needles::search_file`], [`Needles::search_bytes`]: a [`Report`] each.
//!
//! Not found: a secret that is compressed or encrypted, that stands in another encoding, or that
//! crosses a page border in virtual memory whose two frames are not neighbours in the RAM file or in
//! guest-physical memory.

mod encoding;
mod error;
mod needles;
mod report;
mod search;
mod secrets;
mod typed;

pub use encoding::Encoding;
pub use error::AuditError;
pub use needles::Needles;
pub use report::{Finding, Place, Report};
pub use secrets::{MAX_BYTES, MAX_SECRETS, MIN_BYTES, Secrets};
