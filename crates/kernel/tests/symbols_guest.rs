//! Symbols and types read out of a running guest's RAM, compared with what the guest itself says
//! in `/proc/kallsyms` and `/sys/kernel/btf/vmlinux`: no difference is allowed.

use elision_kernel::btf::Btf;
use elision_kernel::kallsyms::Kallsyms;
use elision_memory::{Gpa, Gva};
use elision_testbed::truth::Truth;
use elision_testbed::{Error, GuestOptions};
use std::time::Instant;

#[test]
fn symbols_of_5_10_equal_the_guests_own() -> Result<(), Error> {
    compare("5.10")
}

#[test]
fn symbols_of_6_1_equal_the_guests_own() -> Result<(), Error> {
    compare("6.1")
}

#[test]
fn symbols_of_6_12_equal_the_guests_own() -> Result<(), Error> {
    compare("6.12")
}

#[test]
fn symbols_of_7_equal_the_guests_own() -> Result<(), Error> {
    compare("7")
}

fn compare(kernel: &str) -> Result<(), Error> {
    let mut guest = GuestOptions::new(kernel).boot()?;
    let truth = guest.truth(true, true)?;
    let told: Vec<_> = truth.symbols().into_iter().filter(|s| s.module.is_empty()).collect();
    let text = told.iter().find(|s| s.name == "_text").map(|s| Gva(s.address)).unwrap();
    assert_ne!(text, Gva(0), "the guest hides its addresses");

    let (start, end) = image(&truth);
    let mut bytes = vec![0; usize::try_from(end.0 - start.0).unwrap()];
    guest.ram()?.read(start, &mut bytes).unwrap();

    let began = Instant::now();
    let found = Kallsyms::find(&bytes, text, &|_, _| true).unwrap();
    println!("{kernel}: {found:?} of {} MiB in {:?}", bytes.len() >> 20, began.elapsed());
    let mut mine: Vec<_> = found.symbols().map(|s| (s.address.0, s.kind, s.name)).collect();
    let mut theirs: Vec<_> = told.iter().map(|s| (s.address, s.kind, s.name.as_str())).collect();
    mine.sort_unstable();
    theirs.sort_unstable();
    assert!(theirs.len() > 50_000);
    let different = mine.iter().zip(&theirs).find(|(mine, theirs)| mine != theirs);
    assert_eq!((different, mine.len()), (None, theirs.len()));

    let btf = Btf::find(&bytes, &|_, _| true).unwrap();
    assert!(truth.btf() == Some(btf.bytes()), "the types differ from the guest's own");
    Ok(())
}

/// Physical range of the kernel, from its first byte of code to its last of data.
fn image(truth: &Truth) -> (Gpa, Gpa) {
    let text = truth.text("iomem");
    let range = |name: &str| {
        let line = text.lines().find(|l| l.trim_end().ends_with(name)).unwrap();
        let (start, end) = line.split(':').next().unwrap().trim().split_once('-').unwrap();
        (Gpa(u64::from_str_radix(start, 16).unwrap()), Gpa(u64::from_str_radix(end, 16).unwrap() + 1))
    };
    (range("Kernel code").0, range("Kernel bss").1)
}
