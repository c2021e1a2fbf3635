//! What the program inside a test guest and the host that drives it must agree on.
//!
//! - [`protocol`]: requests and replies on the second serial port.
//! - [`secret`]: secrets derived on both sides, so that none passes through a channel.
//! - [`slot`]: counters in shared memory, found by the host in the guest's RAM.
//! - [`blob`]: how ground truth is framed on the debug port.

pub mod blob;
pub mod protocol;
pub mod secret;
pub mod slot;
