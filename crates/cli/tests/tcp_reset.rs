//! A TCP connection of an excluded process ends by a reset, and not a byte of what was cleared in it is sent.
//!
//! The peer is a process of the same guest that stays. It reads nothing before the save, so that both ends'
//! queues are full, and everything that it can get after the restore.

mod support;

use elision_testbed::{Guest, GuestOptions, Spawn, Status};
use std::path::Path;
use std::time::{Duration, Instant};
use support::{Images, copies, end_limit, end_of, json, restore, save};

/// The server's port, as `/proc/net/tcp` writes it.
const PORT: &str = ":1B5F";
const RESET: i64 = 104;
/// What the server writes while the connection is open.
const OPEN: i64 = -1;

/// What the server read: bytes, zeros among them, and how the connection ended.
type Read = (u64, u64, i64);

#[test]
fn connections_end_by_a_reset_on_6_1() {
    a_connection_ends_by_a_reset("6.1");
}

#[test]
fn connections_end_by_a_reset_on_6_12() {
    a_connection_ends_by_a_reset("6.12");
}

#[test]
fn connections_end_by_a_reset_on_7() {
    a_connection_ends_by_a_reset("7");
}

fn a_connection_ends_by_a_reset(kernel: &str) {
    let options = GuestOptions::new(kernel);
    let (mut guest, sender) = connected(&options, "tcp-sent");
    let (unsent, unread) = settled(&mut guest);
    let images = Images::new();
    let (plain, elided) = (images.path("plain"), images.path("elided"));
    json(&mut save(&guest, &plain, &[]));
    let saved = json(&mut save(&guest, &elided, &["uid=1234"]));
    assert_eq!(queues(&mut guest), (unsent, unread), "the queues moved during the saves");
    drop(guest);
    assert!(saved["plan"]["edited_bytes"]["connection-reset"].as_u64() > Some(0), "{saved}");
    assert!(copies(&plain, &["sender"])[0] > 1000, "control");
    assert_eq!(copies(&elided, &["sender"]), [0]);

    // Control: left alone, the sender's queue goes to the server.
    let all = read_by_server(&mut restore(&options, &plain), |read| read.0 > unread);
    assert_eq!((all.1, all.2), (0, OPEN), "in the plain image: {all:?}");

    let mut restored = restore(&options, &elided);
    let end = end_of(&mut restored, sender, end_limit());
    assert!(matches!(end, Status::Signalled { signal: 9, .. }), "{end:?}");
    let read = read_by_server(&mut restored, |read| read.2 != OPEN);
    println!("{kernel}: {unsent} bytes unsent, {unread} unread; the server read {read:?}, plain {all:?}");
    assert_eq!(read.2, RESET, "how the connection ended for its peer");
    assert!(read.0 <= unread && read.1 == read.0, "{read:?} of {unread}");
    assert_eq!(restored.control().health(1).expect("health").errors, Vec::<String>::new());
    assert!(restored.console_problems().is_empty(), "{:?}", restored.console_problems());
}

#[test]
fn a_connection_that_is_open_elsewhere_sends_nothing_more_on_6_1() {
    a_shared_connection_sends_nothing("6.1");
}

#[test]
fn a_connection_that_is_open_elsewhere_sends_nothing_more_on_7() {
    a_shared_connection_sends_nothing("7");
}

/// The sender's end stays open in a message: only the hold on it keeps its queue from being sent.
fn a_shared_connection_sends_nothing(kernel: &str) {
    let options = GuestOptions::new(kernel);
    let (mut guest, sender) = connected(&options, "tcp-shared");
    let (unsent, unread) = settled(&mut guest);
    let images = Images::new();
    let elided = images.path("elided");
    json(&mut save(&guest, &elided, &["uid=1234"]));
    assert_eq!(queues(&mut guest), (unsent, unread), "the queues moved during the saves");
    drop(guest);

    let mut restored = restore(&options, &elided);
    let end = end_of(&mut restored, sender, end_limit());
    assert!(matches!(end, Status::Signalled { signal: 9, .. }), "{end:?}");
    let read = read_by_server(&mut restored, |read| read.0 >= unread);
    assert_eq!(read, (unread, unread, OPEN), "what had arrived before the save");
    // The window is open now, and an unheld connection would use it within a few round trips.
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(read_by_server(&mut restored, |_| true), read, "after 3 seconds with an open window");
    assert!(restored.console_problems().is_empty(), "{:?}", restored.console_problems());
}

/// A guest with a server that stays and a sender of an excluded user, and the sender's process.
fn connected(options: &GuestOptions, channel: &str) -> (Guest, i32) {
    let mut guest = options.boot().expect("the guest boots");
    guest.control().spawn(&Spawn::new("server", "socket-server", "sleep=20ms")).expect("a server");
    let sender = guest.control().spawn(&Spawn::new("sender", channel, "block").uid(1234)).expect("a sender");
    (guest, sender.pid)
}

/// How much waits at the sender and at the server, when that does not change any more.
fn settled(guest: &mut Guest) -> (u64, u64) {
    let (mut last, mut since) = (queues(guest), Instant::now());
    let begin = Instant::now();
    while since.elapsed() < Duration::from_secs(2) {
        assert!(begin.elapsed() < Duration::from_secs(60), "the connection does not come to rest");
        std::thread::sleep(Duration::from_millis(100));
        let now = queues(guest);
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    assert!(last.0 > 0 && last.1 > 0, "control: {last:?} bytes wait");
    last
}

/// How much waits just now.
fn queues(guest: &mut Guest) -> (u64, u64) {
    let table = guest.control().sh("cat /proc/net/tcp").expect("a shell").output;
    let mut found = (0, 0);
    for line in table.lines() {
        let fields: Vec<_> = line.split_whitespace().collect();
        let [_, local, remote, "01", queues, ..] = fields[..] else { continue };
        let (sent, received) = queues.split_once(':').expect("two queues");
        let bytes = |text| u64::from_str_radix(text, 16).expect("a hexadecimal number");
        if local.ends_with(PORT) {
            found.1 = bytes(received);
        } else if remote.ends_with(PORT) {
            found.0 = bytes(sent);
        }
    }
    found
}

/// Lets the server read, and waits until it has read enough.
fn read_by_server(guest: &mut Guest, enough: impl Fn(&Read) -> bool) -> Read {
    let begin = Instant::now();
    loop {
        let file = Path::new("/tmp/server-read");
        let command = format!("touch /tmp/server-go; cat {}", file.display());
        let output = guest.control().sh(&command).expect("a shell").output;
        let fields: Vec<i64> = output.split_whitespace().filter_map(|field| field.parse().ok()).collect();
        if let [total, zeros, end] = fields[..] {
            let read = (total.unsigned_abs(), zeros.unsigned_abs(), end);
            if enough(&read) {
                return read;
            }
        }
        assert!(begin.elapsed() < Duration::from_secs(60), "the server has read {output:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}
