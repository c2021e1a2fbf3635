//! TCP: the other end of a connection inside the guest, and how to make a connection end by a reset.
//!
//! ```text
//! inet_hashinfo: ehash[ehash_mask + 1] -> sock_common.skc_nulls_node -> .. -> odd
//! sock_common: skc_rcv_saddr, skc_num <-> skc_daddr, skc_dport       the peer's are the same, swapped
//! ```
//!
//! When its last descriptor is closed, a socket that lingers for no time drops its queues and sends a reset
//! (`__tcp_close`, `tcp_disconnect`). Until then nothing of its queues may be sent: new data and fast
//! retransmissions wait for the socket's pacing (`tcp_pacing_check`), which is told to wait for good, and
//! timers are taken back and cannot be set for soon (`tcp_write_timer_handler`, `__tcp_set_rto`).

use super::{INET, Socket, WHAT};
use crate::layout::{Number, layout};
use crate::{Kernel, KernelError, WordEdit};
use elision_memory::Gva;
use std::collections::{BTreeMap, BTreeSet};

layout! {
    pub(crate) struct TcpLayout {
        node: offset("sock_common", &["skc_nulls_node"]),
        local: offset("sock_common", &["skc_rcv_saddr"]),
        remote: offset("sock_common", &["skc_daddr"]),
        local_port: offset("sock_common", &["skc_num"]),
        remote_port: offset("sock_common", &["skc_dport"]),
        local_v6: optional("sock_common", &["skc_v6_rcv_saddr"]),
        remote_v6: optional("sock_common", &["skc_v6_daddr"]),
        net_table: optional("net", &["ipv4.tcp_death_row.hashinfo"]),
        buckets: optional("inet_hashinfo", &["ehash"]),
        mask: optional("inet_hashinfo", &["ehash_mask"]),
        bucket_size: size_opt("inet_ehash_bucket"),
        flags: offset("sock_common", &["skc_flags"]),
        linger: enumerator("SOCK_LINGER"),
        linger_time: offset("sock", &["sk_lingertime"]),
        pacing: number("sock", &["sk_pacing_status"]),
        next_send: number_opt("tcp_sock", &["tcp_wstamp_ns"]),
        round_trip: number_opt("tcp_sock", &["srtt_us"]),
        variance: number_opt("tcp_sock", &["rttvar_us"]),
        timeout: number_opt("inet_connection_sock", &["icsk_rto"]),
        pending: number_opt("inet_connection_sock", &["icsk_pending"]),
    }
}

const CLOSED: u64 = 7;
const TIME_WAIT: u64 = 6;
const NEW_REQUEST: u64 = 12;
/// More buckets than any kernel makes, and more sockets than fit into them.
const TABLE_LIMIT: u64 = 1 << 24;
/// `SK_PACING_NEEDED`: the socket itself paces what it sends.
const PACED: u64 = 1;
/// In nanoseconds since boot: never.
const NEVER: u64 = 1 << 62;
/// In microseconds, more than a quarter of an hour; the smoothed time counts in eighths.
const LONG: u64 = 1 << 30;
/// In ticks, two minutes or more.
const LONG_TICKS: u64 = 1 << 17;

/// Addresses of both ends as IPv6 sees them, the socket's own first, with ports.
type Pair = ([u8; 16], u16, [u8; 16], u16);

/// The TCP connections of a guest by their addresses, read when they are first asked for.
#[derive(Debug, Default)]
pub struct TcpTable {
    read: BTreeSet<Gva>,
    sockets: BTreeMap<Pair, Vec<(Gva, Gva)>>,
}

impl Kernel<'_> {
    /// The sockets that are the other end of a TCP connection, if that is inside the guest.
    pub fn tcp_peers(&self, socket: &Socket, table: &mut TcpTable) -> Result<Vec<Gva>, KernelError> {
        if !socket.is_tcp() || socket.listens() || socket.state == CLOSED {
            return Ok(Vec::new());
        }
        let net = self.pointer(socket.at.wrapping_add(self.profile.socket.net), WHAT)?;
        let own = match self.profile.tcp.net_table {
            Some(at) => Some(self.pointer(net.wrapping_add(at), WHAT)?),
            None => None,
        };
        for info in [own, self.symbol("tcp_hashinfo")].into_iter().flatten().filter(|info| info.0 != 0) {
            if table.read.insert(info) {
                self.read_tcp_table(info, &mut table.sockets)?;
            }
        }
        let (local, local_port, remote, remote_port) = self.pair(socket)?;
        let Some(found) = table.sockets.get(&(remote, remote_port, local, local_port)) else {
            return Ok(Vec::new());
        };
        // The same addresses can be in use in several namespaces: the own one goes first.
        let near: Vec<_> = found.iter().filter(|(_, other)| *other == net).collect();
        let peers = if near.is_empty() { found.iter().collect() } else { near };
        Ok(peers.into_iter().map(|(peer, _)| *peer).filter(|peer| *peer != socket.at).collect())
    }

    fn read_tcp_table(
        &self,
        info: Gva,
        sockets: &mut BTreeMap<Pair, Vec<(Gva, Gva)>>,
    ) -> Result<(), KernelError> {
        let layout = &self.profile.tcp;
        let (Some(buckets), Some(mask), Some(size)) = (layout.buckets, layout.mask, layout.bucket_size)
        else {
            return Ok(());
        };
        let torn = |why| KernelError::Torn { what: "table of TCP connections", at: info, why };
        let buckets = self.pointer(info.wrapping_add(buckets), WHAT)?;
        let mask = u64::from(self.u32(info.wrapping_add(mask), WHAT)?);
        if mask >= TABLE_LIMIT {
            return Err(torn("it is too large"));
        }
        let mut left = TABLE_LIMIT;
        for i in 0..=mask {
            let mut node = self.pointer(buckets.wrapping_add(size * i), WHAT)?;
            while node.0 & 1 == 0 && node.0 != 0 {
                left = left.checked_sub(1).ok_or_else(|| torn("a chain in it does not end"))?;
                let at = Gva(node.0.wrapping_sub(layout.node));
                let state = self.number(at, self.profile.socket.state, WHAT)?;
                // These two are smaller structures that hold no data.
                if state != TIME_WAIT && state != NEW_REQUEST {
                    let socket = self.socket(at)?;
                    let net = self.pointer(at.wrapping_add(self.profile.socket.net), WHAT)?;
                    sockets.entry(self.pair(&socket)?).or_default().push((at, net));
                }
                node = self.pointer(node, WHAT)?;
            }
        }
        Ok(())
    }

    pub(super) fn pair(&self, socket: &Socket) -> Result<Pair, KernelError> {
        let layout = &self.profile.tcp;
        let at = |offset| socket.at.wrapping_add(offset);
        let address = |v4: u64, v6: Option<u64>| {
            let mut address = [0; 16];
            match v6.filter(|_| socket.family != INET) {
                Some(v6) => self.read(at(v6), &mut address, WHAT)?,
                None => {
                    let mut short = [0; 4];
                    self.read(at(v4), &mut short, WHAT)?;
                    let [a, b, c, d] = short;
                    address = std::net::Ipv4Addr::new(a, b, c, d).to_ipv6_mapped().octets();
                }
            }
            Ok::<_, KernelError>(address)
        };
        let local = address(layout.local, layout.local_v6)?;
        let remote = address(layout.remote, layout.remote_v6)?;
        let remote_port = u16::from_be(self.u16(at(layout.remote_port), WHAT)?);
        Ok((local, self.u16(at(layout.local_port), WHAT)?, remote, remote_port))
    }

    /// What makes a TCP connection end by a reset without another byte of data; nothing for other sockets.
    pub fn reset_edits(&self, socket: &Socket) -> Result<Vec<WordEdit>, KernelError> {
        if !socket.is_tcp() || socket.listens() || socket.state == CLOSED {
            return Ok(Vec::new());
        }
        let layout = &self.profile.tcp;
        let missing = || KernelError::Incomplete("types of TCP connections");
        let linger = layout.linger.filter(|bit| *bit < 64).ok_or_else(missing)?;
        let flags = socket.at.wrapping_add(layout.flags);
        let mut edits = vec![
            WordEdit::u64(flags, self.u64(flags, WHAT)? | 1 << linger),
            WordEdit::u64(socket.at.wrapping_add(layout.linger_time), 0),
            word(socket.at, layout.pacing, PACED),
        ];
        for (member, value) in [
            (layout.next_send, NEVER),
            (layout.round_trip, LONG),
            (layout.variance, LONG),
            (layout.timeout, LONG_TICKS),
            (layout.pending, 0),
        ] {
            edits.push(word(socket.at, member.ok_or_else(missing)?, value));
        }
        Ok(edits)
    }
}

fn word(at: Gva, member: Number, value: u64) -> WordEdit {
    let bytes = value.to_le_bytes().into_iter().take(member.bytes).collect();
    WordEdit { at: at.wrapping_add(member.offset), bytes }
}
