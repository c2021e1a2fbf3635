//! Any bytes on the agent's port, in pieces of any size, read by both sides.
#![no_main]

use elision_wire::{Answer, Ask, Reader, encode};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let (size, bytes) = bytes.split_first().map_or((1, bytes), |(n, rest)| (usize::from(*n).max(1), rest));
    let (mut agent, mut host) = (Reader::default(), Reader::default());
    for piece in bytes.chunks(size) {
        agent.feed(piece);
        while let Some(read) = agent.message::<Ask>() {
            let Ok(ask) = read else { continue };
            // What was understood can be said again, and is understood in the same way.
            let mut again = Reader::default();
            again.feed(&encode(&ask).expect("a message that was read fits into a frame"));
            assert_eq!(again.message::<Ask>(), Some(Ok(ask)));
        }
        host.feed(piece);
        while host.message::<Answer>().is_some() {}
    }
});
