//! A plan depends on memory, kernel and policy alone: with however many threads it is made, it is the same.

use elision_kernel::{Kernel, ProfileCache};
use elision_plan::{Options, PlanError, Selection, plan};
use elision_policy::Policy;
use elision_testbed::{Error, GuestOptions, Spawn};

/// More than the machine has processors, too.
const THREADS: [usize; 4] = [1, 2, 3, 16];

#[test]
fn a_plan_is_the_same_with_any_number_of_threads() -> Result<(), Error> {
    let mut guest = GuestOptions::new("6.1").boot()?;
    let places = "heap,stack,thp,hugetlb,shm,memfd,tmpfs,cow,pipe-unread";
    guest.control().spawn(&Spawn::new("victim", places, "block").uid(1234))?;
    guest.control().spawn(&Spawn::new("forked", "heap,stack,shm,memfd", "fork").uid(1234))?;
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
    Ok(())
}

/// All of a plan, in words.
fn planned(kernel: &Kernel<'_>, selectors: &[&str]) -> Result<String, PlanError> {
    let selectors = selectors.iter().map(|text| text.parse().expect("a selector")).collect();
    let policy = Policy { selectors, ..Policy::default() };
    let selection = Selection::of(kernel, &policy)?;
    let outcome = plan(kernel, &selection, &[], Options::default())?;
    assert!(!outcome.plan.drops.is_empty() && !outcome.plan.edits.is_empty());
    Ok(format!("{selection:?} {outcome:?}"))
}
