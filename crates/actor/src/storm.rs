//! A small storm of ordinary work with checks: a guest that was damaged shows it here.
//!
//! Two workers do the same work side by side: processes, threads, pipes, sockets, files, mappings and memory.
//! What touches the whole guest, caches and free memory, the first does alone.

use crate::region::{PAGE, Region};
use elision_actor::protocol::Health;
use rustix::fd::AsFd;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process::{Command, Stdio};
use std::sync::{Condvar, Mutex};

/// Processes at the same time.
const AT_ONCE: u32 = 4;
/// What goes through pipes and sockets: more than they hold.
const STREAM_LEN: usize = 200_000;
/// Small files in one folder.
const FILES: u32 = 20;
/// Most memory that is taken at once, in pages.
const MEMORY_PAGES: usize = 4 << 10;

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
        let works: [(&str, Work); 11] = [
            ("process", process),
            ("processes", processes),
            ("threads", threads),
            ("pipe", pipe),
            ("TCP", tcp),
            ("unix stream", unix_stream),
            ("unix datagrams", unix_datagrams),
            ("tmpfs", tmpfs),
            ("mapping", mapping),
            ("caches", caches),
            ("memory", memory),
        ];
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

/// Several programs at once.
fn processes(id: u32, round: u32) -> io::Result<bool> {
    let mut all = Vec::new();
    for i in 0..AT_ONCE {
        let text = format!("{id}-{round}-{i}");
        let child =
            Command::new("/bin/busybox").args(["echo", "-n", &text]).stdout(Stdio::piped()).spawn()?;
        all.push((child, text));
    }
    let mut right = true;
    for (child, text) in all {
        let out = child.wait_with_output()?;
        right &= out.status.success() && out.stdout == text.as_bytes();
    }
    Ok(right)
}

/// Threads that wait for each other and sum up parts of a pattern.
fn threads(id: u32, round: u32) -> io::Result<bool> {
    let data = pattern(id, round, 60_000);
    let sum = |part: &[u8]| part.iter().map(|b| u64::from(*b)).sum::<u64>();
    let (turn, changed, total) = (Mutex::new(0), Condvar::new(), Mutex::new(0));
    let broken = || io::Error::other("a thread panicked");
    let parts: Vec<_> = data.chunks(data.len() / 6).collect();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..)
            .zip(&parts)
            .map(|(i, part)| {
                let (turn, changed, total) = (&turn, &changed, &total);
                scope.spawn(move || {
                    let now = turn.lock().ok()?;
                    let mut now = changed.wait_while(now, |now| *now != i).ok()?;
                    *total.lock().ok()? += sum(part);
                    *now += 1;
                    changed.notify_all();
                    Some(())
                })
            })
            .collect();
        workers.into_iter().all(|worker| worker.join().is_ok_and(|done| done.is_some()))
    });
    Ok(*total.lock().map_err(|_| broken())? == sum(&data))
}

/// Sends a pattern on one end, sends back what comes on the other, and compares.
fn echo<S: Read + Write + Send>(
    id: u32,
    round: u32,
    (near, back): (S, S),
    far: S,
    end: fn(&S) -> io::Result<()>,
) -> io::Result<bool> {
    let data = pattern(id, round, STREAM_LEN);
    let (mut near, mut back, mut far) = (near, back, far);
    let mut got = Vec::new();
    let passed = std::thread::scope(|scope| {
        let echoed = scope.spawn(move || {
            let mut all = Vec::new();
            far.read_to_end(&mut all)?;
            far.write_all(&all)?;
            end(&far)
        });
        near.write_all(&data)?;
        end(&near)?;
        back.read_to_end(&mut got)?;
        echoed.join().unwrap_or_else(|_| Err(io::Error::other("the other end panicked")))
    });
    passed.map(|()| got == data)
}

fn tcp(id: u32, round: u32) -> io::Result<bool> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let near = TcpStream::connect(listener.local_addr()?)?;
    let (far, _) = listener.accept()?;
    echo(id, round, (near.try_clone()?, near), far, |s| s.shutdown(Shutdown::Write))
}

fn unix_stream(id: u32, round: u32) -> io::Result<bool> {
    let (near, far) = UnixStream::pair()?;
    echo(id, round, (near.try_clone()?, near), far, |s| s.shutdown(Shutdown::Write))
}

fn unix_datagrams(id: u32, round: u32) -> io::Result<bool> {
    let (near, far) = UnixDatagram::pair()?;
    let data = pattern(id, round, 6_000);
    let parts: Vec<_> = data.chunks(data.len() / 6).collect();
    for part in &parts {
        near.send(part)?;
    }
    let mut right = true;
    for part in parts {
        let mut got = vec![0; part.len() + 1];
        let len = far.recv(&mut got)?;
        right &= got.get(..len) == Some(part);
    }
    Ok(right)
}

fn pipe(id: u32, round: u32) -> io::Result<bool> {
    let data = pattern(id, round, STREAM_LEN);
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

/// Files that are found again after the kernel has given up what it caches of names and inodes.
fn caches(id: u32, round: u32) -> io::Result<bool> {
    let folder = format!("/tmp/storm-files-{id}");
    std::fs::create_dir_all(&folder)?;
    let name = |i: u32| format!("{folder}/{i}");
    for i in 0..FILES {
        std::fs::write(name(i), pattern(i, round, 3_000))?;
    }
    if id == 0 {
        std::fs::write("/proc/sys/vm/drop_caches", "3")?;
    }
    let mut right = std::fs::read_dir(&folder)?.count() == FILES as usize;
    for i in 0..FILES {
        right &= std::fs::read(name(i))? == pattern(i, round, 3_000);
    }
    std::fs::remove_dir_all(&folder)?;
    Ok(right)
}

/// Takes some of the memory that is left, a third at most: frames come zeroed, and keep what is written.
fn memory(id: u32, round: u32) -> io::Result<bool> {
    if id != 0 {
        return Ok(true);
    }
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:")).unwrap_or("");
    let kib: usize = line.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0);
    let pages = (kib / 4 / 3).min(MEMORY_PAGES);
    let mark = |i: usize| (i as u64 ^ u64::from(round) << 40).to_le_bytes();
    let mut taken = vec![0_u8; pages * PAGE];
    let zeroed = taken.chunks(PAGE).all(|page| page.iter().all(|b| *b == 0));
    for (i, page) in taken.chunks_mut(PAGE).enumerate() {
        page.iter_mut().skip(PAGE - 8).zip(mark(i)).for_each(|(to, from)| *to = from);
    }
    let kept = taken.chunks(PAGE).enumerate().all(|(i, page)| page.ends_with(&mark(i)));
    Ok(zeroed && kept)
}
