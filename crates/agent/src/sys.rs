//! The calls into the kernel for which there is no safe way: the only unsafe code of the agent.

use elision_wire::Mac;
use rustix::fd::AsFd;
use rustix::ioctl::{NoArg, Opcode, Setter, Updater, ioctl, opcode};
use std::ffi::c_short;
use std::io;

/// `RNDRESEEDCRNG` of `include/uapi/linux/random.h`.
const RESEED: Opcode = opcode::none(b'R', 7);
/// `SIOCGIFFLAGS`, `SIOCSIFFLAGS` and `SIOCSIFHWADDR` of `include/uapi/linux/sockios.h`.
const GET_FLAGS: Opcode = 0x8913;
const SET_FLAGS: Opcode = 0x8914;
const SET_MAC: Opcode = 0x8924;
/// `ARPHRD_ETHER` of `include/uapi/linux/if_arp.h`.
const ETHERNET: libc::sa_family_t = 1;
/// `IFF_UP` of `include/uapi/linux/if.h`: a network device takes and sends.
pub(crate) const UP: c_short = 1;

/// Lets the kernel make its random numbers from what has been stirred in until now, at once.
pub(crate) fn reseed(device: impl AsFd) -> rustix::io::Result<()> {
    // SAFETY: this request has no argument and touches no memory of the process.
    unsafe { ioctl(device, NoArg::<RESEED>::new()) }
}

/// Whether the calling thread goes before all ordinary ones (sched(7)). What it starts does not.
pub(crate) fn go_first(on: bool) -> io::Result<()> {
    let (policy, priority) =
        if on { (libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, 1) } else { (libc::SCHED_OTHER, 0) };
    let parameter = libc::sched_param { sched_priority: priority };
    // SAFETY: the kernel reads the structure, which lives as long as the call.
    let done = unsafe { libc::sched_setscheduler(0, policy, &raw const parameter) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Gives an ethernet card an address.
pub(crate) fn set_mac(socket: impl AsFd, name: &str, mac: Mac) -> io::Result<()> {
    let mut data = [0; 14];
    for (to, from) in data.iter_mut().zip(mac.0) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    let address = libc::sockaddr { sa_family: ETHERNET, sa_data: data };
    let request = request(name, libc::__c_anonymous_ifr_ifru { ifru_hwaddr: address })?;
    // SAFETY: the kernel reads a `struct ifreq` for this request, and its member for the address is set.
    Ok(unsafe { ioctl(socket, Setter::<SET_MAC, _>::new(request)) }?)
}

/// The flags of a network device.
pub(crate) fn interface_flags(socket: impl AsFd, name: &str) -> io::Result<c_short> {
    let mut request = request(name, libc::__c_anonymous_ifr_ifru { ifru_flags: 0 })?;
    // SAFETY: the kernel reads and writes a `struct ifreq` for this request.
    unsafe { ioctl(socket, Updater::<GET_FLAGS, _>::new(&mut request)) }?;
    // SAFETY: the member for the flags is set, here and again by the kernel.
    Ok(unsafe { request.ifr_ifru.ifru_flags })
}

/// Sets the flags of a network device.
pub(crate) fn set_interface_flags(socket: impl AsFd, name: &str, flags: c_short) -> io::Result<()> {
    let request = request(name, libc::__c_anonymous_ifr_ifru { ifru_flags: flags })?;
    // SAFETY: the kernel reads a `struct ifreq` for this request, and its member for the flags is set.
    Ok(unsafe { ioctl(socket, Setter::<SET_FLAGS, _>::new(request)) }?)
}

/// A request about the network device of a name, which ends with a zero.
fn request(name: &str, value: libc::__c_anonymous_ifr_ifru) -> io::Result<libc::ifreq> {
    let mut ifr_name = [0; libc::IFNAMSIZ];
    if name.len() >= ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    Ok(libc::ifreq { ifr_name, ifr_ifru: value })
}
