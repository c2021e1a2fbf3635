//! Network cards of a restored guest: two clones in one network must not have the same address.
//!
//! ```text
//! /sys/class/net/eth0/device           a card, and no bridge, tunnel or other device that the kernel made up
//!                     type             1: ethernet
//!                     address          52:54:00:12:34:56
//!                     bonding_slave    it belongs to a bond, which gives it its address
//! ```
//! The driver in the guest tells the card the new address, so that both have the same one. What hangs on the address (leases,
//! IPv6 addresses that were made of it) is for the hooks, which are run afterwards.

use crate::error::{AgentError, Context, chain};
use crate::sys;
use elision_wire::{MOST_CARDS, Mac, NewAddress, note};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

const CARDS: &str = "/sys/class/net";
/// `ARPHRD_ETHER`.
const ETHERNET: &str = "1";

/// Gives each card one of the addresses; those that got one.
pub(crate) fn set_addresses(macs: &[Mac], notes: &mut Vec<String>) -> Vec<NewAddress> {
    let socket = match socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None) {
        Ok(socket) => socket,
        Err(error) => {
            note(notes, &format!("network cards keep their addresses: no socket: {error}"));
            return Vec::new();
        }
    };
    let cards = cards(Path::new(CARDS));
    let usable = macs.iter().copied().filter(|mac| mac.is_local()).take(MOST_CARDS);
    let mut usable = usable.collect::<Vec<_>>().into_iter();
    let mut changed = Vec::new();
    for card in cards {
        let kept = match usable.next() {
            None => "the host has given no address for it".to_owned(),
            Some(_) if card.is_in_a_bond => "it belongs to a bond".to_owned(),
            Some(to) => match set(&socket, &card.name, to) {
                Ok(was_down) => {
                    if was_down {
                        note(
                            notes,
                            &format!("{} was down for a moment, so its routes may be gone", card.name),
                        );
                    }
                    changed.push(NewAddress { name: card.name, from: card.address, to });
                    continue;
                }
                Err(error) => chain(&error),
            },
        };
        note(notes, &format!("{} keeps its address: {kept}", card.name));
    }
    changed
}

#[derive(Debug, PartialEq, Eq)]
struct Card {
    name: String,
    address: Mac,
    is_in_a_bond: bool,
}

/// The machine's ethernet cards, by their names.
fn cards(folder: &Path) -> Vec<Card> {
    let devices = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut cards: Vec<_> = devices.filter_map(|device| card(&device.path())).collect();
    cards.sort_by(|a, b| a.name.cmp(&b.name));
    cards
}

fn card(path: &Path) -> Option<Card> {
    let read = |what: &str| fs::read_to_string(path.join(what)).ok();
    if !path.join("device").exists() || read("type")?.trim() != ETHERNET {
        return None;
    }
    Some(Card {
        name: path.file_name()?.to_str()?.to_owned(),
        address: read("address")?.trim().parse().ok()?,
        is_in_a_bond: path.join("bonding_slave").exists(),
    })
}

/// Gives a card an address; whether it had to be down for that.
fn set(socket: &OwnedFd, name: &str, to: Mac) -> Result<bool, AgentError> {
    let file = || PathBuf::from(name);
    match sys::set_mac(socket, name, to) {
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
        answer => return answer.map(|()| false).context("set the address of", file()),
    }
    // Drivers of some cards do so only while nothing goes through them.
    let flags = sys::interface_flags(socket, name).context("look at", file())?;
    sys::set_interface_flags(socket, name, flags & !sys::UP).context("take down", file())?;
    let set = sys::set_mac(socket, name, to);
    sys::set_interface_flags(socket, name, flags).context("bring up", file())?;
    set.map(|()| true).context("set the address of", file())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A device as sysfs shows it.
    fn device(folder: &Path, name: &str, files: &[(&str, &str)]) {
        fs::create_dir(folder.join(name)).unwrap();
        files.iter().for_each(|(file, text)| fs::write(folder.join(name).join(file), text).unwrap());
    }

    #[test]
    fn cards_are_told_from_what_the_kernel_made_up() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let address = ("address", "52:54:00:00:00:01\n");
        device(folder, "eth1", &[("device", ""), ("type", "1\n"), address]);
        device(folder, "eth0", &[("device", ""), ("type", "1\n"), address, ("bonding_slave", "")]);
        device(folder, "br0", &[("type", "1\n"), address]);
        device(folder, "lo", &[("type", "772\n"), address]);
        device(folder, "ib0", &[("device", ""), ("type", "32\n"), ("address", "80:00:00:00:00:00:00:01\n")]);
        let card = |name: &str, is_in_a_bond| Card {
            name: name.to_owned(),
            address: Mac([0x52, 0x54, 0, 0, 0, 1]),
            is_in_a_bond,
        };
        assert_eq!(cards(folder), [card("eth0", true), card("eth1", false)]);
        assert!(cards(&folder.join("none")).is_empty());
    }
}
