//! A small storm of ordinary work with checks: a guest that was damaged shows it here.

use crate::region::{PAGE, Region};
use elision_actor::protocol::Health;
use rustix::fd::AsFd;
use std::fs::File;
use std::io::{self, Read, Write};
use std::process::{Command, Stdio};

/// Runs `rounds` rounds on two threads and prints the result as JSON.
pub(crate) fn run(rounds: u32) -> io::Result<()> {
    let threads: Vec<_> = (0..2).map(|id| std::thread::spawn(move || storm(id, rounds))).collect();
    let mut health = Health { checks: 0, errors: Vec::new() };
    for thread in threads {
        match thread.join() {
            Ok(part) => {
                health.checks += part.checks;
                health.errors.extend(part.errors);
            }
            Err(_) => health.errors.push("A worker panicked".to_owned()),
        }
    }
    println!("{}", serde_json::to_string(&health)?);
    Ok(())
}

/// One kind of work: worker and round in, whether its data was right out.
type Work = fn(u32, u32) -> io::Result<bool>;

fn storm(id: u32, rounds: u32) -> Health {
    let mut health = Health { checks: 0, errors: Vec::new() };
    for round in 0..rounds {
        let works: [(&str, Work); 4] =
            [("process", process), ("pipe", pipe), ("tmpfs", tmpfs), ("mapping", mapping)];
        for (name, work) in works {
            health.checks += 1;
            match work(id, round) {
                Ok(true) => {}
                Ok(false) => health.errors.push(format!("Wrong data in {name}, worker {id}, round {round}")),
                Err(e) => health.errors.push(format!("Error in {name}, worker {id}, round {round}: {e}")),
            }
        }
    }
    health
}

fn pattern(id: u32, round: u32, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    let mut key = blake3::Hasher::new();
    key.update(&id.to_le_bytes()).update(&round.to_le_bytes());
    key.finalize_xof().fill(&mut out);
    out
}

fn process(id: u32, round: u32) -> io::Result<bool> {
    let text = format!("{id}-{round}");
    let out = Command::new("/bin/busybox").args(["echo", "-n", &text]).output()?;
    Ok(out.status.success() && out.stdout == text.as_bytes())
}

fn pipe(id: u32, round: u32) -> io::Result<bool> {
    let data = pattern(id, round, 200_000);
    let mut cat =
        Command::new("/bin/busybox").arg("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let (Some(mut input), Some(mut output)) = (cat.stdin.take(), cat.stdout.take()) else { return Ok(false) };
    let expected = data.clone();
    let writer = std::thread::spawn(move || input.write_all(&data));
    let mut got = Vec::new();
    output.read_to_end(&mut got)?;
    let written = writer.join().is_ok_and(|w| w.is_ok());
    Ok(cat.wait()?.success() && written && got == expected)
}

fn tmpfs(id: u32, round: u32) -> io::Result<bool> {
    let path = format!("/tmp/storm-{id}");
    let data = pattern(id, round, 300_000);
    std::fs::write(&path, &data)?;
    let same = std::fs::read(&path)? == data;
    std::fs::remove_file(&path)?;
    Ok(same)
}

fn mapping(id: u32, round: u32) -> io::Result<bool> {
    let path = format!("/tmp/storm-map-{id}");
    let file = File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
    let len = 16 * PAGE;
    file.set_len(len as u64)?;
    let data = pattern(id, round, len);
    Region::of_file(file.as_fd(), len, true)?.write(0, &data);
    let same = std::fs::read(&path)? == data;
    std::fs::remove_file(&path)?;
    let mut copy = vec![0; 8 << 20];
    copy[(4 << 20)..(4 << 20) + len].copy_from_slice(&data);
    Ok(same && copy.iter().filter(|b| **b != 0).count() == data.iter().filter(|b| **b != 0).count())
}
