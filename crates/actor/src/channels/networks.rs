//! Sockets off the beaten track: IPv6, a network namespace of the process's own, packet sockets and their rings,
//! and families of which nobody knows what they hold.

use super::Scene;
use rustix::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::io::{self, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};

const LOOPBACK: i32 = 1;
/// Blocks of a ring, one page each, with two frames.
const BLOCKS: u32 = 8;

/// A result of libc.
fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn socket(family: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes plain numbers; the descriptor is new.
    unsafe { Ok(OwnedFd::from_raw_fd(checked(libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol))?)) }
}

fn set<T>(socket: &OwnedFd, level: i32, option: i32, value: &T) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of::<T>()).map_err(io::Error::other)?;
    let value = std::ptr::from_ref(value).cast();
    // SAFETY: `value` has `len` bytes that the kernel reads.
    checked(unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, value, len) }).map(drop)
}

fn tcp_unread(scene: &mut Scene<'_>, at: SocketAddr) -> io::Result<()> {
    let listener = TcpListener::bind(at)?;
    let mut from = TcpStream::connect(listener.local_addr()?)?;
    let (to, _) = listener.accept()?;
    scene.whisper(|secret| from.write_all(&secret.repeat(64)))?;
    scene.hold(from);
    scene.hold(to);
    Ok(())
}

/// Unread data in a TCP connection by IPv6.
pub(super) fn tcp6(scene: &mut Scene<'_>) -> io::Result<()> {
    tcp_unread(scene, (Ipv6Addr::LOCALHOST, 0).into())
}

/// An unread datagram of UDP by IPv6.
pub(super) fn udp6(scene: &mut Scene<'_>) -> io::Result<()> {
    let to = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0))?;
    let from = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0))?;
    from.connect(to.local_addr()?)?;
    scene.whisper(|secret| from.send(&secret.repeat(8)).map(drop))?;
    scene.hold(from);
    scene.hold(to);
    Ok(())
}

/// Unread data in a TCP connection inside a network namespace of this process's own.
pub(super) fn namespace(scene: &mut Scene<'_>) -> io::Result<()> {
    // SAFETY: takes a plain number; this process has one thread.
    checked(unsafe { libc::unshare(libc::CLONE_NEWNET) })?;
    let by = socket(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
    // SAFETY: all zeros is an `ifreq`, with the name and the flags set below.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(*b"lo") {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_UP).map_err(io::Error::other)?;
    // SAFETY: `request` is an `ifreq`, as this request wants.
    checked(unsafe { libc::ioctl(by.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) })?;
    tcp_unread(scene, (Ipv4Addr::LOCALHOST, 0).into())
}

/// Data in a connection that nobody has accepted, at a socket of MPTCP.
pub(super) fn mptcp_backlog(scene: &mut Scene<'_>) -> io::Result<()> {
    let to = socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP)?;
    rustix::net::bind(&to, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0))?;
    rustix::net::listen(&to, 8)?;
    let listener = TcpListener::from(to);
    let address = listener.local_addr()?;
    scene.whisper(|secret| TcpStream::connect(address)?.write_all(&secret.repeat(64)))?;
    scene.hold(listener);
    Ok(())
}

/// A protocol that no other process of the guest uses.
fn own_protocol() -> u16 {
    let part = u16::try_from(std::process::id() % 0x1000).unwrap_or(0);
    (0x9000 | part).to_be()
}

fn link() -> libc::sockaddr_ll {
    // SAFETY: all zeros is an address.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = 17; // AF_PACKET
    address.sll_protocol = own_protocol();
    address.sll_ifindex = LOOPBACK;
    address.sll_halen = 6;
    address
}

/// A packet socket that gets what is sent with that protocol, made ready by `prepare`.
fn listener(prepare: impl FnOnce(&OwnedFd) -> io::Result<()>) -> io::Result<OwnedFd> {
    let to = socket(libc::AF_PACKET, libc::SOCK_DGRAM, 0)?;
    prepare(&to)?;
    let (address, len) = (link(), libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()));
    let len = len.map_err(io::Error::other)?;
    // SAFETY: the address has `len` bytes.
    checked(unsafe { libc::bind(to.as_raw_fd(), (&raw const address).cast(), len) })?;
    Ok(to)
}

/// Sends packets to it. The address is made before the child is: its protocol is this process's.
fn send(scene: &Scene<'_>, packets: u32) -> io::Result<()> {
    let (address, len) = (link(), libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()));
    let len = len.map_err(io::Error::other)?;
    scene.whisper(|secret| {
        let from = socket(libc::AF_PACKET, libc::SOCK_DGRAM, 0)?;
        let data = secret.repeat(16);
        for _ in 0..packets {
            let to = (&raw const address).cast();
            // SAFETY: data and address have the lengths that are given.
            let sent =
                unsafe { libc::sendto(from.as_raw_fd(), data.as_ptr().cast(), data.len(), 0, to, len) };
            if sent < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    })
}

/// Unread packets in a packet socket.
pub(super) fn packets(scene: &mut Scene<'_>) -> io::Result<()> {
    let to = listener(|_| Ok(()))?;
    send(scene, 4)?;
    scene.hold(to);
    Ok(())
}

/// Packets in the ring of a packet socket, which nobody maps.
pub(super) fn ring(scene: &mut Scene<'_>) -> io::Result<()> {
    let to = listener(|to| {
        let size = libc::tpacket_req {
            tp_block_size: 4096,
            tp_block_nr: BLOCKS,
            tp_frame_size: 2048,
            tp_frame_nr: 2 * BLOCKS,
        };
        set(to, libc::SOL_PACKET, libc::PACKET_RX_RING, &size)
    })?;
    send(scene, 2 * BLOCKS)?;
    scene.hold(to);
    Ok(())
}

/// A socket of MPTCP.
pub(super) fn mptcp(scene: &mut Scene<'_>) -> io::Result<()> {
    scene.hold(socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP)?);
    Ok(())
}

/// A socket of the kernel's cryptography.
pub(super) fn cryptography(scene: &mut Scene<'_>) -> io::Result<()> {
    scene.hold(socket(libc::AF_ALG, libc::SOCK_SEQPACKET, 0)?);
    Ok(())
}

/// A TCP connection that the kernel can be asked to encrypt.
pub(super) fn tls(scene: &mut Scene<'_>) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let from: OwnedFd = TcpStream::connect(listener.local_addr()?)?.into();
    let (to, _) = listener.accept()?;
    set(&from, libc::IPPROTO_TCP, libc::TCP_ULP, b"tls")?;
    scene.hold(from);
    scene.hold(to);
    Ok(())
}
