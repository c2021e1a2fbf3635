//! A kernel whose type information cannot be used is named as that, and nothing is guessed in its place.

mod common;

use common::vmlinuz;
use elision_kernel::btf::Btf;
use elision_kernel::{Kernel, KernelError, ProfileCache};
use elision_memory::{Gpa, Ram, RamLayout};
use elision_testbed::{GuestOptions, kernels, search};
use std::error::Error;
use std::fs::File;
use std::path::Path;

/// Every text of an error and its causes.
fn chain(error: &KernelError) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text = format!("{text}: {error}");
        next = error.source();
    }
    text
}

/// The guest's memory with some bytes changed in this view only.
fn changed(file: &Path, layout: &RamLayout, at: &[Gpa], bytes: &[u8]) -> Ram {
    let file = File::open(file).expect("the RAM file");
    let mut ram = Ram::private(&file, layout.clone()).expect("its RAM");
    for at in at {
        ram.poke(*at, bytes).expect("RAM");
    }
    ram
}

#[test]
fn a_kernel_without_usable_types_is_refused() {
    let kernel = kernels::get("6.1").expect("a kernel");
    let image = vmlinuz::load(&vmlinuz::unpack(&std::fs::read(&kernel.vmlinuz).expect("its image")));
    let types = Btf::find(&image, &|_, _| true).expect("its types");
    let guest = GuestOptions::new("6.1").vcpus(1).boot().expect("the guest boots");
    guest.endpoints().stop().expect("a stop");

    let (layout, file) = (guest.layout().clone(), guest.endpoints().ram_file());
    let found = search::find(&guest.ram().expect("its RAM"), &[&types.bytes()[..256]]).expect("a search");
    // Below the PCI hole an offset in the RAM file is the guest-physical address.
    let headers: Vec<Gpa> = found.into_iter().flatten().map(|offset| Gpa(offset.0)).collect();
    assert!(!headers.is_empty(), "control: the types stand in RAM");

    let cache = tempfile::tempdir().expect("a folder");
    let open =
        |ram: &Ram, cache: &ProfileCache| Kernel::open(ram, &[], cache).map(|k| k.release().to_owned());
    let kept = ProfileCache::in_folder(cache.path());
    let whole = changed(&file, &layout, &[], b"");
    assert_eq!(open(&whole, &kept).expect("control: with its types it is read"), kernel.release);
    assert!(cache.path().read_dir().expect("a folder").next().is_some(), "control: the profile is kept");

    // No magic number, a header with lengths that lead outside, a first type that is none.
    let cases: [(&str, u64, &[u8]); 3] =
        [("no magic", 0, &[0, 0]), ("wild lengths", 8, &[0xff; 16]), ("no types", 24, &[0xff; 200])];
    for (what, offset, bytes) in cases {
        let places: Vec<Gpa> = headers.iter().map(|at| Gpa(at.0 + offset)).collect();
        let broken = changed(&file, &layout, &places, bytes);
        // A profile kept from the whole kernel must not stand in for what this one lacks.
        for cache in [&ProfileCache::disabled(), &kept] {
            let error = open(&broken, cache).expect_err(what);
            let told = chain(&error);
            println!("{what}: {told}");
            let named = matches!(error, KernelError::Types(_) | KernelError::Incomplete(_));
            assert!(
                named && (told.contains("type information") || told.contains("BTF")),
                "{what}: {error:?}"
            );
        }
    }
}
