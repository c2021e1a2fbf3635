//! Any bytes as a kernel's type information: every question gets an answer, in bounded time.
#![no_main]

use elision_kernel::btf::{Btf, TypeId};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = Btf::find(bytes, &|_, _| true);
    let Ok(btf) = Btf::parse(bytes) else { return };
    for id in btf.types().chain([TypeId(0), TypeId(u32::MAX)]).take(300) {
        let _ = (btf.kind(id), btf.resolve(id), btf.size_of(id), btf.array(id), btf.pointee(id));
        for (name, _) in btf.members(id).take(20) {
            let _ = (btf.member(id, name), btf.size_of_member(id, &format!("{name}[1].next")));
        }
        let name = btf.name(id);
        let _ = (btf.struct_(name), btf.func(name), btf.var(name), btf.require_size(name));
        for (name, _) in btf.enumerators(id).take(20) {
            assert!(btf.enumerator(name).is_some() || name == "\u{fffd}" || name.is_empty());
        }
    }
});
