//! A server that signs with a key from elsewhere. A checkpoint has no key, and a restored copy fetches it again.
//!
//! ```text
//! server KEY-FILE ADDRESS      the file stands for a service that gives out keys
//! ```
//! Each connection is answered by a line: the sum of a fixed text under the key. The key stands in marked memory alone. The server
//! waits for connections and for the guest's agent; after a restore it has its new key before anybody asks for an answer.

use elision_mark::{Region, Watch};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::env;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::TcpListener;

const KEY_BYTES: usize = 4096;

fn main() -> io::Result<()> {
    let mut args = env::args().skip(1);
    let (Some(source), Some(address)) = (args.next(), args.next()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "server KEY-FILE ADDRESS"));
    };
    let mut key = Region::new("server-key", KEY_BYTES)?;
    fetch(&mut key, &source)?;
    let listener = TcpListener::bind(&address)?;
    let mut watch = None;
    println!("serving");
    loop {
        // An agent may come later, and end.
        watch = watch.or_else(|| Watch::new().ok());
        let limit = if watch.is_none() { Some(Timespec { tv_sec: 1, tv_nsec: 0 }) } else { None };
        let mut waited = vec![PollFd::new(&listener, PollFlags::IN)];
        waited.extend(watch.as_ref().map(|watch| PollFd::new(watch, PollFlags::IN)));
        poll(&mut waited, limit.as_ref())?;
        let ready: Vec<bool> = waited.iter().map(|one| !one.revents().is_empty()).collect();
        drop(waited);
        let (is_asked, is_told) = (ready.first() == Some(&true), ready.get(1) == Some(&true));
        match watch.as_mut().filter(|_| is_told).map(Watch::restored) {
            Some(Ok(true)) => {
                println!("restored: the key is {}", if key.holds() { "still there" } else { "gone" });
                fetch(&mut key, &source)?;
            }
            Some(Err(_)) => watch = None,
            Some(Ok(false)) | None => {}
        }
        if is_asked {
            let mut client = listener.accept()?.0;
            // Without an agent's word, or before it comes: the region itself tells.
            let answer = match key.read(sign) {
                Some(sum) => format!("{sum:016x}\n"),
                None => {
                    fetch(&mut key, &source)?;
                    "again\n".to_owned()
                }
            };
            let _ = client.write_all(answer.as_bytes());
        }
    }
}

fn fetch(key: &mut Region, source: &str) -> io::Result<()> {
    // A file has no buffer of its own: there is no other copy of the key.
    let mut file = File::open(source)?;
    key.write(|bytes| file.read_exact(bytes))
}

/// Something that depends on every byte of the key.
fn sign(key: &[u8]) -> u64 {
    key.iter()
        .fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
