//! A plan depends on memory, kernel and policy alone: with however many threads it is made, it is the same, and so it is
//! whether the kernel's counts tell what others map or all page tables do.

use elision_kernel::{Kernel, ProfileCache};
use elision_plan::{DropReason, Options, PlanError, Selection, plan};
use elision_policy::{Policy, Selector};
use elision_testbed::{Error, GuestOptions, Spawn};

/// More than the machine has processors, too.
const THREADS: [usize; 4] = [1, 2, 3, 16];

#[test]
fn a_plan_is_the_same_with_any_number_of_threads() -> Result<(), Error> {
    let mut guest = GuestOptions::new("6.1").boot()?;
    let places = "heap,stack,thp,hugetlb,shm,memfd,tmpfs,cow,pipe-unread";
    guest.control().spawn(&Spawn::new("victim", places, "block").uid(1234))?;
    let forked =
        guest.control().spawn(&Spawn::new("forked", "heap,stack,thp,shm,memfd", "fork").uid(1234))?;
    let marked = format!("{places},marked-memfd,dontdump-shared");
    guest.control().spawn(&Spawn::new("bystander", &marked, "block"))?;
    guest.control().spawn(&Spawn::new("crowd", "heap=16K,memfd", "crowd=100"))?;
    let ram = guest.ram()?;
    let kernel = Kernel::open(&ram, &[], &ProfileCache::disabled()).expect("a kernel");
    guest.endpoints().stop_when(|| match planned(&kernel, &["uid=1234"]) {
        Err(error) if error.is_transient() => Ok(None),
        _ => Ok(Some(())),
    })?;

    let mut plans = Vec::new();
    for selectors in [&["uid=1234"] as &[_], &["uid=1234", "region=named", "region=dontdump"], &[]] {
        let [first, others @ ..] = THREADS.map(|threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
            pool.install(|| planned(&kernel, selectors)).expect("a plan")
        });
        for (other, threads) in others.iter().zip(&THREADS[1..]) {
            assert!(*other == first, "{selectors:?}: the plan of {threads} threads is another one");
        }
        plans.push(first);
    }
    plans.dedup();
    assert_eq!(plans.len(), 3, "control: plans for other policies are other plans");

    // Whoever asks for marked memory has all page tables walked. The second plan needs that in any case.
    let child = format!("pid={}", forked.children[0]);
    for selector in ["uid=1234", &child] {
        let [by_counts, by_tables] = [&[] as &[_], &["region=secretmem"]].map(|more| {
            let selectors = [&[selector], more].concat();
            outcome(&kernel, &selectors).expect("a plan").1
        });
        assert!(by_counts == by_tables, "{selector}: by counts\n{by_counts}\nby page tables\n{by_tables}");
        let shared = by_tables.contains("mapped by other processes too");
        assert_eq!(shared, selector == child, "control: {by_tables}");
    }
    Ok(())
}

#[test]
fn memory_stays_that_is_all_of_a_process_which_stays_too() -> Result<(), Error> {
    let mut guest = GuestOptions::new("7").boot()?;
    let both = guest.control().spawn(&Spawn::new("both", "heap", "share"))?;
    let alone = guest.control().spawn(&Spawn::new("alone", "heap", "block"))?;
    let ram = guest.ram()?;
    let kernel = Kernel::open(&ram, &[], &ProfileCache::disabled()).expect("a kernel");
    guest.endpoints().stop()?;
    for (pid, is_shared) in [(both.children[0], true), (both.pid, true), (alone.pid, false)] {
        let policy = Policy {
            selectors: vec![format!("pid={pid}").parse().expect("a selector")],
            ..Policy::default()
        };
        let mut selection = Selection::of(&kernel, &policy).expect("a process");
        selection.excluded.retain(|excluded| i64::from(*excluded) == i64::from(pid)); // not its child
        let options = Options { best_effort: true, ..Options::default() };
        let summary = plan(&kernel, &selection, &[], options).expect("a plan").plan.summary;
        let said = summary.unaccounted.iter().any(|what| what.contains("shares all its memory"));
        let dropped = summary.dropped_frames.get(&DropReason::Anonymous).copied().unwrap_or(0);
        assert_eq!(said, is_shared, "{pid}: {summary:?}");
        assert_eq!(dropped == 0, is_shared, "{pid}: {summary:?}");
    }
    Ok(())
}

/// All of a plan, in words.
fn planned(kernel: &Kernel<'_>, selectors: &[&str]) -> Result<String, PlanError> {
    let (selection, outcome) = outcome(kernel, selectors)?;
    Ok(format!("{selection:?} {outcome}"))
}

/// What is selected, and what comes of it. Marked memory may be nowhere.
fn outcome(kernel: &Kernel<'_>, selectors: &[&str]) -> Result<(Selection, String), PlanError> {
    let selector = |text: &&str| {
        let mut selector: Selector = text.parse().expect("a selector");
        selector.optional = text.starts_with("region");
        selector
    };
    let policy = Policy { selectors: selectors.iter().map(selector).collect(), ..Policy::default() };
    let selection = Selection::of(kernel, &policy)?;
    let outcome = plan(kernel, &selection, &[], Options::default())?;
    assert!(!outcome.plan.drops.is_empty() && !outcome.plan.edits.is_empty());
    Ok((selection, format!("{outcome:?}")))
}
