//! The messages between Elision on a host and its agent in a guest.
//!
//! Either side may be hostile to the other, so a message is bounded before it is looked at ([`frame`]), and read
//! as one of few forms ([`message`]). Nothing here does any input or output: [`Reader`] is fed with bytes,
//! whatever carried them.
//!
//! ```
//! use elision_wire::{Ask, Envelope, Reader, VERSIONS};
//!
//! let hello = Envelope { session: 7, id: 1, body: Ask::Hello { versions: VERSIONS } };
//! let bytes = elision_wire::encode(&hello)?;
//! let mut reader = Reader::default();
//! reader.feed(&bytes);
//! assert_eq!(reader.message::<Ask>(), Some(Ok(hello)));
//! # Ok::<(), elision_wire::WireError>(())
//! ```

mod frame;
mod mac;
mod message;

pub use frame::{FRAME_BYTES, Reader, WireError, encode};
pub use mac::{Mac, NotAMac};
pub use message::{
    Answer, Ask, Calm, Capability, Done, Envelope, Generation, Identity, LONGEST_NOTE, MOST_CARDS,
    MOST_NOTES, Mark, NewAddress, Nonce, ProcessId, Reason, Report, VERSIONS, Versions, Word, note,
};

/// Name of the virtio-serial port on which the agent listens.
pub const PORT: &str = "org.elision.agent.0";
