//! Copies of one guest in one network: their cards must not have the same address.

mod support;

#[path = "support/agent.rs"]
#[allow(dead_code)] // this file uses a part
mod port;

use elision_testbed::{Endpoints, Guest, GuestOptions, RamMode};
use elision_wire::{Answer, Ask, Capability, Envelope, Generation, Report, VERSIONS, encode};
use port::{Port, false_agent, options_with, start};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use support::{Images, elision, json as result, restore_with, save, save_as, sh, words};

/// Of the two cards, as QEMU was told.
const ADDRESSES: [&str; 2] = ["52:54:00:aa:00:01", "52:54:00:aa:00:02"];

/// Options of a guest with two cards.
fn with_cards(options: &GuestOptions) -> GuestOptions {
    let mut options = options.clone();
    for (n, mac) in ADDRESSES.iter().enumerate() {
        let device = format!("virtio-net-pci,netdev=net{n},mac={mac}");
        // The second one has a network of its own.
        let net = format!("user,id=net{n},net=10.0.{}.0/24", n + 2);
        options = options.extra(&["-netdev", &net, "-device", &device]);
    }
    options
}

/// The addresses of eth0 and eth1, as the kernel has them.
fn addresses(guest: &mut Guest) -> Vec<String> {
    let text = sh(guest, "cat /sys/class/net/eth0/address /sys/class/net/eth1/address");
    text.lines().map(str::to_owned).collect()
}

/// Whether frames that are for the card reach the guest: something is fetched from the host.
fn fetches(guest: &mut Guest, net: u8) {
    let server = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = server.local_addr().expect("a port").port();
    let served = std::thread::spawn(move || {
        let (mut socket, _) = server.accept().expect("the guest connects");
        socket.write_all(b"from the host\n").expect("it takes bytes");
        socket.shutdown(std::net::Shutdown::Write).expect("an end");
        let _ = socket.read(&mut [0; 16]);
    });
    // The host answers to the address that it learns anew.
    let fetched = sh(guest, &format!("timeout 20 nc 10.0.{net}.2 {port} </dev/null"));
    assert_eq!(fetched, "from the host\n");
    served.join().expect("it was served");
}

/// An agent from before there were new addresses: it does not know the question.
fn old_agent(ask: &Envelope<Ask>) -> Vec<u8> {
    let body = match ask.body {
        Ask::Hello { .. } => Answer::Hello {
            versions: VERSIONS,
            agent: "0.0.1".to_owned(),
            may: vec![Capability::Identity],
            generation: Generation::default(),
        },
        _ => Answer::Restored(Report::default()),
    };
    encode(&Envelope { session: ask.session, id: ask.id, body }).expect("a frame")
}

#[test]
fn copies_have_addresses_of_their_own_and_are_reached_by_them() {
    let port = Port::new();
    let base = with_cards(&options_with("6.12", &["virtio_net"]).vcpus(1));
    let mut guest = port.added_to(&base).boot().expect("the guest boots");
    sh(
        &mut guest,
        "mkdir -p /etc/elision/hooks.d
        echo 'allow = [\"calm\", \"random\", \"clock\", \"hooks\", \"identity\"]' > /etc/elision/agent.toml
        printf '#!/bin/sh\\necho $1 $(cat /sys/class/net/eth0/address) >> /run/hooks\\n' > /etc/elision/hooks.d/10
        chmod 755 /etc/elision/hooks.d/10",
    );
    start(&mut guest);
    sh(
        &mut guest,
        "for n in 0 1; do ip addr add 10.0.$((n + 2)).15/24 dev eth$n && ip link set eth$n up; done",
    );
    assert_eq!(addresses(&mut guest), ADDRESSES);
    [2, 3].into_iter().for_each(|net| fetches(&mut guest, net));
    let images = Images::new();
    let image = images.path("image");
    result(&mut save(&guest, &image, &[]));
    assert_eq!(addresses(&mut guest), ADDRESSES, "the source");

    // The control: without the option a copy has those of its source.
    let (mut copy, said) = restore_with(&Port::new().added_to(&base), &image, &["--agent-policy", "require"]);
    assert_eq!(said["agent"]["network_cards"], Value::Null);
    assert_eq!(addresses(&mut copy), ADDRESSES);
    drop(copy);

    let mut known: BTreeSet<String> = ADDRESSES.map(str::to_owned).into();
    for _ in 0..2 {
        let (mut copy, said) = restore_with(&Port::new().added_to(&base), &image, &["--new-mac"]);
        println!("{}", said["agent"]);
        let cards = said["agent"]["network_cards"].as_array().expect("a list");
        let now = addresses(&mut copy);
        let expected: Vec<_> =
            (0..2).map(|n| json!({"name": format!("eth{n}"), "from": ADDRESSES[n], "to": now[n]})).collect();
        assert_eq!(*cards, expected);
        assert_eq!(said["agent"]["notes"], json!([]));
        // The hook that asks for leases sees the new address.
        let hooks = sh(&mut copy, "cat /run/hooks");
        assert_eq!(hooks.lines().last(), Some(format!("new-address {}", now[0]).as_str()), "{hooks}");
        [2, 3].into_iter().for_each(|net| fetches(&mut copy, net));
        assert!(copy.console_problems().is_empty(), "{:?}", copy.console_problems());
        known.extend(now);
    }
    assert_eq!(known.len(), 6, "two cards of the source and of two copies: {known:?}");
    drop(guest);

    says_what_cannot_be_done(&base, &image);
}

/// Of an old agent, of none, and of one whose owner does not allow it.
fn says_what_cannot_be_done(base: &GuestOptions, image: &Path) {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("agent");
    false_agent(&socket, |ask| Some(old_agent(ask)));
    let port = Port::new();
    let args = ["--new-mac", "--agent", socket.to_str().expect("a path")];
    let (mut copy, said) = restore_with(&port.added_to(base), image, &args);
    assert!(said["agent"]["notes"].to_string().contains("keep those of the image"), "{said}");
    assert_eq!(said["agent"]["network_cards"], Value::Null);
    assert_eq!(addresses(&mut copy), ADDRESSES);
    // The same guest once more, from now on with an owner who allows nothing.
    sh(&mut copy, "kill -9 $(cat /run/agent.pid); echo 'allow = [\"calm\"]' > /etc/elision/agent.toml");
    start(&mut copy);
    let images = Images::new();
    let strict = images.path("strict");
    // Stopped in any case: QEMU takes no snapshot of a VM whose memory is mapped from an image.
    result(&mut save_as(None, &copy, &strict, &[]));
    drop(copy);
    let (mut copy, said) = restore_with(&Port::new().added_to(base), &strict, &["--new-mac"]);
    assert_eq!(said["agent"]["network_cards"], json!([]));
    assert!(said["agent"]["notes"].to_string().contains("does not allow to change the machine's identity"));
    assert_eq!(addresses(&mut copy), ADDRESSES);
    // An agent that is gone.
    sh(&mut copy, "kill -9 $(cat /run/agent.pid)");
    let gone = images.path("gone");
    result(&mut save_as(None, &copy, &gone, &[]));
    drop(copy);

    let port = Port::new();
    let options = port.added_to(base).ram(RamMode::Plain);
    let folder = GuestOptions::new_folder().expect("a folder");
    let mut command = elision();
    command.arg("restore").arg(&gone).arg("--new-mac").arg("--qmp").arg(Endpoints::new(&folder).qmp_socket());
    let output = command.arg("--").args(options.command_in(&folder).expect("a command")).output();
    let output = output.expect("elision starts");
    assert_eq!(output.status.code(), Some(4), "{}", words(&output));
    assert!(words(&output).contains("The VM runs"), "{}", words(&output));
    let mut copy = options.attach(&folder).expect("the VM runs");
    assert_eq!(addresses(&mut copy), ADDRESSES);

    let refused = elision().arg("restore").arg(&gone).args(["--new-mac", "--agent-policy", "off"]).output();
    let refused = refused.expect("elision starts");
    assert_eq!(refused.status.code(), Some(2), "{}", words(&refused));
}
