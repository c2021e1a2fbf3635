//! Copies of a guest's RAM with damaged kernel structures: planning ends within a time limit with
//! a plan or an error, and never panics. Each round's damage follows from its number alone.
//!
//! `ELISION_ALL=1` makes a thousand copies of each kernel's guest, else a few of one.

mod damage;
mod members;
mod targets;

use damage::{FORGED, Random, by_chance};
use elision_kernel::{Kernel, KernelError, ProfileCache};
use elision_memory::{Gpa, Gva, Ram, RamLayout};
use elision_plan::{Options, PlanError, Selection, VcpuState, plan};
use elision_policy::{Policy, Selector};
use elision_testbed::{Error, Guest, GuestOptions, Spawn, pages};
use std::collections::BTreeMap;
use std::fs::File;
use std::sync::mpsc;
use std::time::{Duration, Instant};
use targets::Targets;

/// For one copy of 512 MiB, in a build without optimisation and on a busy machine.
const TIME_LIMIT: Duration = Duration::from_secs(60);
/// Memory of the process itself: twice that of the guest, with two guests at a time.
const MEMORY_LIMIT: u64 = 2 << 30;
/// Page tables in use are known to whoever saves a VM, but not for a RAM file alone.
const WITHOUT_ROOTS: u64 = 4;
/// The kernel's types and symbols are read anew only in some rounds.
const WITHOUT_PROFILE: u64 = 10;

#[test]
fn damaged_copies_of_6_1_end_in_a_plan_or_an_error() -> Result<(), Error> {
    damaged_copies("6.1", if pages::in_full() { 1000 } else { 60 })
}

#[test]
fn damaged_copies_of_6_12_end_in_a_plan_or_an_error() -> Result<(), Error> {
    if pages::in_full() { damaged_copies("6.12", 1000) } else { Ok(()) }
}

#[test]
fn damaged_copies_of_7_end_in_a_plan_or_an_error() -> Result<(), Error> {
    if pages::in_full() { damaged_copies("7", 1000) } else { Ok(()) }
}

/// A stopped guest at rest, and what else a plan is made of.
struct Copy {
    file: File,
    layout: RamLayout,
    vcpus: Vec<VcpuState>,
    roots: Vec<Gpa>,
    cache: ProfileCache,
    policy: Policy,
}

fn damaged_copies(kernel: &str, rounds: u64) -> Result<(), Error> {
    let folder = tempfile::tempdir_in("/dev/shm").expect("a folder");
    let (copy, targets) = copy_of_a_guest(kernel, folder.path())?;
    let whole = planned(&copy, &copy.cache, &copy.roots, |_| String::new());
    assert_eq!(whole.ending, "plan", "control: the undamaged copy");
    let mut tally = Tally::default();
    for round in 0..rounds {
        let disabled = ProfileCache::disabled();
        let cache = if round % WITHOUT_PROFILE == 0 { &disabled } else { &copy.cache };
        let roots = if round % WITHOUT_ROOTS == 0 { &[] } else { copy.roots.as_slice() };
        let ended = planned(&copy, cache, roots, |ram| {
            format!("{kernel} {round}: {}", by_chance(ram, &targets, &mut Random(round)))
        });
        tally.add(&ended);
    }
    println!("{kernel}: {tally}");
    if pages::in_full() {
        let title = format!("Plans on damaged copies of a guest's RAM, kernel {kernel}");
        pages::write_result(&format!("corruption-{kernel}"), &title, &[format!("```text\n{tally}```")])?;
    }
    let (plans, errors) = (tally.endings.get("plan").copied().unwrap_or(0), tally.endings.len() - 1);
    assert!(plans > 0 && errors >= 3, "control: damage must be felt, and not everywhere");

    for (what, forge) in FORGED {
        let ended = planned(&copy, &copy.cache, &copy.roots, |ram| {
            forge(ram, &targets);
            format!("{kernel}: {what}")
        });
        println!("  {what}: {} after {:?}, {} MiB", ended.ending, ended.took, ended.memory >> 20);
    }
    Ok(())
}

fn copy_of_a_guest(kernel: &str, folder: &std::path::Path) -> Result<(Copy, Targets), Error> {
    let mut guest = GuestOptions::new(kernel).boot()?;
    let places = "heap,stack,thp,hugetlb,shm,memfd,tmpfs,cow,pipe-unread";
    let victim = Spawn::new("victim", places, "block").uid(1234).cgroup("/elision.slice/pod-abc");
    guest.control().spawn(&victim.tty("pty"))?;
    guest.control().spawn(&Spawn::new("forked", "heap,stack,shm", "fork").uid(1234))?;
    let marked = format!("{places},marked-memfd,dontdump-shared");
    let bystander = guest.control().spawn(&Spawn::new("bystander", &marked, "block"))?;
    guest.control().spawn(&Spawn::new("threads", places, "threads=8"))?;
    let truth = guest.truth(true, true)?;
    // Damage may take a mark away, which is not what is tested here.
    let selector = |text: &str| Selector { optional: true, ..text.parse().expect("a selector") };
    let selectors = ["uid=1234", "region=named", "region=dontdump"].map(selector).to_vec();
    let policy = Policy { selectors, ..Policy::default() };
    let (vcpus, roots) = stop_at_rest(&guest, &policy)?;

    let path = folder.join("ram");
    std::fs::copy(guest.endpoints().ram_file(), &path).expect("a copy");
    let file = File::open(&path).expect("the copy");
    let ram = guest.ram()?;
    let view = Kernel::open(&ram, &roots, &ProfileCache::disabled()).expect("a kernel");
    let targets = Targets::collect(&view, &truth, bystander.pid);
    let words: usize = targets.words.values().map(Vec::len).sum();
    println!("{kernel}: {words} words under {} names to damage", targets.words.len());
    assert!(targets.words.len() > 60 && words > 50_000, "control: {:?}", targets.words.keys());
    let cache = ProfileCache::in_folder(&folder.join("profiles"));
    Ok((Copy { file, layout: guest.layout().clone(), vcpus, roots, cache, policy }, targets))
}

/// Stops the guest at a moment when no vCPU is in user mode, whose kernel GS base is not shown, and when
/// no excluded process is in the middle of something: a saver would let it run on and try again.
fn stop_at_rest(guest: &Guest, policy: &Policy) -> Result<(Vec<VcpuState>, Vec<Gpa>), Error> {
    let ram = guest.ram()?;
    guest.endpoints().stop_when(|| {
        let text = guest.endpoints().monitor("info registers -a")?;
        let value = |cpu: &str, name: &str| {
            let at = cpu.find(name).expect("a register") + name.len();
            let digits = cpu[at..].trim_start_matches([' ', '=']);
            let digits: String = digits.chars().take_while(char::is_ascii_hexdigit).collect();
            u64::from_str_radix(&digits, 16).expect("a number")
        };
        let cpus: Vec<&str> = text.split("CPU#").skip(1).collect();
        let states: Vec<VcpuState> = (0..)
            .zip(&cpus)
            .map(|(index, cpu)| VcpuState {
                index,
                user_mode: value(cpu, "CPL=") != 0,
                gs_base: Gva(value(cpu, "\nGS =0000")),
                kernel_gs_base: Gva(0),
                rip: Gva(value(cpu, "RIP")),
                rsp: Gva(value(cpu, "RSP")),
                rax: value(cpu, "RAX"),
                rcx: value(cpu, "RCX"),
                rdi: Gva(value(cpu, "RDI")),
            })
            .collect();
        if states.len() != 2 || states.iter().any(|vcpu| vcpu.user_mode || vcpu.gs_base.0 >> 63 == 0) {
            return Ok(None);
        }
        let roots: Vec<Gpa> = cpus.iter().map(|cpu| Gpa(value(cpu, "CR3="))).collect();
        let planned = end_to_end(&ram, &roots, &ProfileCache::disabled(), policy, &states);
        let rests = planned.map_or_else(|error| !error.is_transient(), |()| true);
        Ok(rests.then_some((states, roots)))
    })
}

/// How one round ended.
struct Ended {
    ending: String,
    took: Duration,
    memory: u64,
    damage: String,
}

/// Damages a private view of the copy and plans; a panic or too long a time ends the test.
fn planned(
    copy: &Copy,
    cache: &ProfileCache,
    roots: &[Gpa],
    damage: impl FnOnce(&mut Ram) -> String,
) -> Ended {
    let mut ram = Ram::private(&copy.file, copy.layout.clone()).expect("a view of the copy");
    let damage = damage(&mut ram);
    let (cache, roots) = (cache.clone(), roots.to_vec());
    let (vcpus, policy) = (copy.vcpus.clone(), copy.policy.clone());
    let (sender, receiver) = mpsc::channel();
    let began = Instant::now();
    let thread = std::thread::spawn(move || {
        let ending = match end_to_end(&ram, &roots, &cache, &policy, &vcpus) {
            Ok(()) => "plan".to_owned(),
            Err(error) => name(&error),
        };
        let _ = sender.send(ending);
    });
    let mut memory = 0;
    loop {
        match receiver.recv_timeout(Duration::from_millis(5)) {
            Ok(ending) => {
                thread.join().expect("no panic after the end");
                return Ended { ending, took: began.elapsed(), memory, damage };
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => panic!("a panic: {damage}"),
            Err(mpsc::RecvTimeoutError::Timeout) => memory = memory.max(own_memory()),
        }
        assert!(began.elapsed() < TIME_LIMIT, "no end within {TIME_LIMIT:?}: {damage}");
        assert!(memory < MEMORY_LIMIT, "{} MiB in use: {damage}", memory >> 20);
    }
}

/// Bytes of memory that belong to this process alone.
fn own_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").expect("the process's own status");
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("its memory");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}

fn end_to_end(
    ram: &Ram,
    roots: &[Gpa],
    cache: &ProfileCache,
    policy: &Policy,
    vcpus: &[VcpuState],
) -> Result<(), PlanError> {
    let kernel = Kernel::open(ram, roots, cache)?;
    let selection = Selection::of(&kernel, policy)?;
    let outcome = plan(&kernel, &selection, vcpus, Options::default())?;
    // What follows relies on this order.
    let drops = &outcome.plan.drops;
    let apart = drops.windows(2).all(|pair| pair[0].first.0 + pair[0].count <= pair[1].first.0);
    assert!(apart && !outcome.plan.edits.is_empty(), "a plan that cannot be carried out");
    let relations = selection.relations(&kernel)?;
    assert!(relations.iter().all(|r| selection.excluded.contains(&r.excluded)));
    for process in &selection.processes {
        kernel.command_line(process)?;
    }
    Ok(())
}

/// An error's variant, and the kind of structure for one that names it.
fn name(error: &PlanError) -> String {
    assert!(!error.to_string().is_empty());
    let variant = |debug: String| debug.split(|c: char| !c.is_alphanumeric()).next().unwrap_or("").to_owned();
    match error {
        PlanError::Kernel(KernelError::Torn { what, .. }) => format!("torn {what}"),
        PlanError::Kernel(KernelError::Unreadable { what, .. }) => format!("unreadable {what}"),
        PlanError::Kernel(kernel) => variant(format!("{kernel:?}")),
        other => variant(format!("{other:?}")),
    }
}

/// All endings of many rounds, and the slowest.
#[derive(Default)]
struct Tally {
    endings: BTreeMap<String, usize>,
    total: Duration,
    slowest: Duration,
    slowest_damage: String,
    memory: u64,
}

impl Tally {
    fn add(&mut self, ended: &Ended) {
        *self.endings.entry(ended.ending.clone()).or_default() += 1;
        self.total += ended.took;
        self.memory = self.memory.max(ended.memory);
        if ended.took > self.slowest {
            (self.slowest, self.slowest_damage) = (ended.took, ended.damage.clone());
        }
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let rounds: usize = self.endings.values().sum();
        let (total, slowest, memory) = (self.total, self.slowest, self.memory >> 20);
        writeln!(f, "{rounds} copies in {total:?}, at most {memory} MiB")?;
        writeln!(f, "  slowest {slowest:?} ({})", self.slowest_damage)?;
        self.endings.iter().try_for_each(|(ending, n)| writeln!(f, "  {n:5} {ending}"))
    }
}
