//! Sockets: data that nobody has read, what stays when it was read, names, and files in messages.

use super::Scene;
use elision_actor::secret::SECRET_LEN;
use rustix::fd::{AsFd, OwnedFd};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, netlink};
use std::io::{self, IoSlice, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::{UnixDatagram, UnixStream};

/// A server that stays, for the channels that send to one.
const SERVER: u16 = 7007;
const DATAGRAM_SERVER: &str = "/tmp/server";
/// Where the server tells what it read, when it is told to read.
const GO: &str = "/tmp/server-go";
const READ: &str = "/tmp/server-read";

fn connection() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    Ok((client, listener.accept()?.0))
}

fn hold_both(scene: &mut Scene<'_>, ends: (impl Into<OwnedFd>, impl Into<OwnedFd>)) {
    scene.hold(ends.0);
    scene.hold(ends.1);
}

/// 4 KiB in a stream that nobody reads.
pub(super) fn unix_stream_unread(scene: &mut Scene<'_>) -> io::Result<()> {
    let (mut writer, reader) = UnixStream::pair()?;
    scene.whisper(|secret| writer.write_all(&secret.repeat(128)))?;
    hold_both(scene, (writer, reader));
    Ok(())
}

/// The same in several buffers, read by the child: what is freed is soon used again.
pub(super) fn unix_stream_read(scene: &mut Scene<'_>) -> io::Result<()> {
    const BUFFERS: usize = 12;
    let (mut writer, mut reader) = UnixStream::pair()?;
    scene.whisper(|secret| {
        let block = secret.repeat(128);
        (0..BUFFERS).try_for_each(|_| writer.write_all(&block))?;
        reader.read_exact(&mut [0; BUFFERS * 128 * SECRET_LEN])
    })?;
    hold_both(scene, (writer, reader));
    Ok(())
}

/// A datagram that nobody reads.
pub(super) fn unix_dgram_unread(scene: &mut Scene<'_>) -> io::Result<()> {
    let (writer, reader) = UnixDatagram::pair()?;
    scene.whisper(|secret| writer.send(&secret.repeat(8)).map(drop))?;
    hold_both(scene, (writer, reader));
    Ok(())
}

/// A record that nobody reads.
pub(super) fn unix_seqpacket_unread(scene: &mut Scene<'_>) -> io::Result<()> {
    let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
    let (writer, reader) = rustix::net::socketpair(AddressFamily::UNIX, kind, flags, None)?;
    scene.whisper(|secret| Ok(rustix::io::write(&writer, &secret.repeat(8)).map(drop)?))?;
    hold_both(scene, (writer, reader));
    Ok(())
}

/// A socket whose abstract name is the secret.
pub(super) fn unix_abstract_name(scene: &mut Scene<'_>) -> io::Result<()> {
    let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::DGRAM, None)?;
    scene.whisper(|secret| Ok(rustix::net::bind(&socket, &SocketAddrUnix::new_abstract_name(secret)?)?))?;
    scene.hold(socket);
    Ok(())
}

/// A pipe and a socket with unread data that are open nowhere but in a message, the socket in one in a socket
/// in a message.
pub(super) fn unix_scm_inflight(scene: &mut Scene<'_>) -> io::Result<()> {
    let (reader, writer) = rustix::pipe::pipe()?;
    scene.whisper(|secret| Ok(rustix::io::write(&writer, &secret.repeat(64)).map(drop)?))?;
    let (inner, inner_end) = UnixStream::pair()?;
    scene.whisper(|secret| (&inner).write_all(&secret.repeat(64)))?;
    let (middle, middle_end) = UnixStream::pair()?;
    send_file(&middle, &inner_end)?;
    let (outer, outer_end) = UnixStream::pair()?;
    send_file(&outer, &middle_end)?;
    send_file(&outer, &reader)?;
    hold_both(scene, (outer, outer_end));
    Ok(())
}

fn send_file(socket: impl AsFd, file: impl AsFd) -> io::Result<()> {
    let files = [file.as_fd()];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut message = rustix::net::SendAncillaryBuffer::new(&mut space);
    if !message.push(rustix::net::SendAncillaryMessage::ScmRights(&files)) {
        return Err(io::Error::other("no room for a file in a message"));
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(b"f")], &mut message, rustix::net::SendFlags::empty())?;
    Ok(())
}

fn datagrams() -> io::Result<(UdpSocket, UdpSocket)> {
    let (from, to) = (UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?, UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?);
    from.connect(to.local_addr()?)?;
    Ok((from, to))
}

/// Datagrams that nobody reads, some peeked at, which moves them to another queue.
pub(super) fn udp_unread(scene: &mut Scene<'_>) -> io::Result<()> {
    let (from, to) = datagrams()?;
    scene.whisper(|secret| {
        from.send(&secret.repeat(8))?;
        to.peek(&mut [0; 1])?;
        from.send(&secret.repeat(8)).map(drop)
    })?;
    hold_both(scene, (from, to));
    Ok(())
}

/// The same, read by the child.
pub(super) fn udp_read(scene: &mut Scene<'_>) -> io::Result<()> {
    let (from, to) = datagrams()?;
    scene.whisper(|secret| {
        from.send(&secret.repeat(8))?;
        to.recv(&mut [0; 8 * SECRET_LEN]).map(drop)
    })?;
    hold_both(scene, (from, to));
    Ok(())
}

/// A few bytes that nobody reads.
pub(super) fn tcp_unread(scene: &mut Scene<'_>) -> io::Result<()> {
    let (mut from, to) = connection()?;
    scene.whisper(|secret| from.write_all(secret))?;
    hold_both(scene, (from, to));
    Ok(())
}

/// The same, read by the child.
pub(super) fn tcp_read(scene: &mut Scene<'_>) -> io::Result<()> {
    let (mut from, mut to) = connection()?;
    scene.whisper(|secret| {
        from.write_all(secret)?;
        to.read_exact(&mut [0; SECRET_LEN])
    })?;
    hold_both(scene, (from, to));
    Ok(())
}

/// 32 KiB that nobody reads.
pub(super) fn tcp_32k(scene: &mut Scene<'_>) -> io::Result<()> {
    let (mut from, to) = connection()?;
    scene.whisper(|secret| from.write_all(&secret.repeat(1024)))?;
    hold_both(scene, (from, to));
    Ok(())
}

/// As much as both ends take.
pub(super) fn tcp_unsent(scene: &mut Scene<'_>) -> io::Result<()> {
    let (from, to) = connection()?;
    scene.whisper(|secret| fill(&from, secret))?;
    hold_both(scene, (from, to));
    Ok(())
}

fn fill(mut to: &TcpStream, secret: &[u8; SECRET_LEN]) -> io::Result<()> {
    to.set_nonblocking(true)?;
    let block = secret.repeat(512);
    loop {
        match to.write(&block) {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(e) => return Err(e),
        }
    }
}

/// Data in a connection that nobody has accepted.
pub(super) fn tcp_backlog_accept(scene: &mut Scene<'_>) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address: SocketAddr = listener.local_addr()?;
    scene.whisper(|secret| TcpStream::connect(address)?.write_all(&secret.repeat(64)))?;
    scene.hold(listener);
    Ok(())
}

/// The page from which this process takes buffers for what it sends, after the receiver has read it. The
/// bytes go from memory that the child filled to the kernel, and the memory goes away.
pub(super) fn tcp_fragment(scene: &mut Scene<'_>) -> io::Result<()> {
    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
    const COPIES: usize = 512;
    const LEN: usize = COPIES * SECRET_LEN;
    let (mut from, mut to) = connection()?;
    // SAFETY: a new mapping that is used here alone and lives until the end of this function; the child
    // writes before it ends, this process only reads.
    unsafe {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let shared = mmap_anonymous(std::ptr::null_mut(), LEN, protection, MapFlags::SHARED)?;
        scene.whisper(|secret| {
            std::slice::from_raw_parts_mut(shared.cast::<u8>(), LEN).copy_from_slice(&secret.repeat(COPIES));
            Ok(())
        })?;
        let sent = from.write_all(std::slice::from_raw_parts(shared.cast::<u8>(), LEN));
        std::slice::from_raw_parts_mut(shared.cast::<u8>(), LEN).fill(0);
        munmap(shared, LEN)?;
        sent?;
    }
    let reading = to.try_clone()?;
    scene.whisper(|_| (&reading).read_exact(&mut [0; LEN]))?;
    to.flush()?;
    hold_both(scene, (from, to));
    Ok(())
}

/// A message from one process to another by netlink, unread.
pub(super) fn netlink(scene: &mut Scene<'_>) -> io::Result<()> {
    let flags = SocketFlags::CLOEXEC;
    let protocol = Some(netlink::USERSOCK);
    let to = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
    let port = 4_000_000 + rustix::process::getpid().as_raw_nonzero().get().unsigned_abs();
    let address = netlink::SocketAddrNetlink::new(port, 0);
    rustix::net::bind(&to, &address)?;
    scene.whisper(|secret| {
        let from = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
        // A header whose length covers the rest.
        let message = [&528_u32.to_le_bytes()[..], &[0; 12], &secret.repeat(16)].concat();
        rustix::net::sendto(&from, &message, rustix::net::SendFlags::empty(), &address)?;
        Ok(())
    })?;
    scene.hold(to);
    Ok(())
}

/// A server that stays: it takes datagrams and one connection, and reads when it is told to.
pub(super) fn server(scene: &mut Scene<'_>) -> io::Result<()> {
    let datagrams = UnixDatagram::bind(DATAGRAM_SERVER)?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(DATAGRAM_SERVER, mode)?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, SERVER))?;
    hold_both(scene, (datagrams, UdpSocket::bind((Ipv4Addr::LOCALHOST, SERVER))?));
    std::thread::spawn(move || -> io::Result<()> {
        let (mut stream, _) = listener.accept()?;
        while !std::path::Path::new(GO).exists() {
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        let (mut total, mut zeros, mut block) = (0, 0, vec![0; 1 << 16]);
        let end = loop {
            match stream.read(&mut block) {
                Ok(0) => break 0,
                Ok(n) => {
                    total += n;
                    zeros += block.iter().take(n).filter(|b| **b == 0).count();
                    std::fs::write(READ, format!("{total} {zeros} -1"))?;
                }
                Err(e) => break e.raw_os_error().unwrap_or_default(),
            }
        };
        std::fs::write(READ, format!("{total} {zeros} {end}"))
    });
    Ok(())
}

/// A datagram in that server's socket, from a socket without a name.
pub(super) fn unix_dgram_sent(scene: &mut Scene<'_>) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    scene.whisper(|secret| socket.send_to(&secret.repeat(8), DATAGRAM_SERVER).map(drop))?;
    scene.hold(socket);
    Ok(())
}

/// The same by UDP.
pub(super) fn udp_sent(scene: &mut Scene<'_>) -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    scene.whisper(|secret| socket.send_to(&secret.repeat(8), (Ipv4Addr::LOCALHOST, SERVER)).map(drop))?;
    scene.hold(socket);
    Ok(())
}

/// As much as a connection to that server takes.
pub(super) fn tcp_sent(scene: &mut Scene<'_>) -> io::Result<()> {
    let socket = TcpStream::connect((Ipv4Addr::LOCALHOST, SERVER))?;
    scene.whisper(|secret| fill(&socket, secret))?;
    scene.hold(socket);
    Ok(())
}

/// The same, and the connection is in a message to the server too: it stays open when this process ends.
pub(super) fn tcp_shared(scene: &mut Scene<'_>) -> io::Result<()> {
    let socket = TcpStream::connect((Ipv4Addr::LOCALHOST, SERVER))?;
    scene.whisper(|secret| fill(&socket, secret))?;
    let by = UnixDatagram::unbound()?;
    by.connect(DATAGRAM_SERVER)?;
    send_file(&by, &socket)?;
    hold_both(scene, (socket, by));
    Ok(())
}
