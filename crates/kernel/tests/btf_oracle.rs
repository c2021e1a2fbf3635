//! Every type of four real kernels, compared with what an independent parser reads.

mod common;

use btf_rs::{BtfType, Type};
use common::vmlinuz;
use elision_kernel::btf::{Btf, Kind, TypeId};
use std::collections::HashMap;
use std::time::Instant;

/// Types that every kernel since 5.10 has, and members that the walkers read.
const MEMBERS: [(&str, &str); 5] = [
    ("task_struct", "tasks.next"),
    ("task_struct", "signal"),
    ("mm_struct", "pgd"),
    ("page", "_refcount.counter"),
    ("zone", "free_area[1].free_list[0].next"),
];

#[test]
fn types_of_5_10_equal_the_oracle() {
    compare("5.10");
}

#[test]
fn types_of_6_1_equal_the_oracle() {
    compare("6.1");
}

#[test]
fn types_of_6_12_equal_the_oracle() {
    compare("6.12");
}

#[test]
fn types_of_7_equal_the_oracle() {
    compare("7");
}

fn compare(kernel: &str) {
    let kernel = elision_testbed::kernels::get(kernel).unwrap();
    let image = vmlinuz::load(&vmlinuz::unpack(&std::fs::read(&kernel.vmlinuz).unwrap()));
    let found = Btf::find(&image, &|_, _| true).unwrap();
    let start = Instant::now();
    let btf = Btf::parse(found.bytes()).unwrap();
    println!("{} types of {} indexed in {:?}", btf.types().count(), kernel.release, start.elapsed());

    let oracle = btf_rs::Btf::from_bytes(found.bytes()).unwrap();
    let mut first: HashMap<String, TypeId> = HashMap::new();
    for id in btf.types() {
        let theirs = oracle.resolve_type_by_id(id.0).unwrap();
        same_type(&btf, id, &oracle, &theirs);
        if btf.kind(id).is_some_and(|k| matches!(k, Kind::Struct | Kind::Union)) {
            first.entry(btf.name(id).to_owned()).or_insert(id);
        }
    }
    let last = btf.types().last().unwrap();
    assert!(oracle.resolve_type_by_id(last.0 + 1).is_err(), "the oracle has more types");

    first.remove("");
    assert!(first.len() > 5000, "{} structs", first.len());
    for (name, id) in &first {
        assert_eq!(btf.struct_(name), Some(*id), "{name}");
    }
    for (name, path) in MEMBERS {
        assert!(btf.has(name, path), "{name}.{path}");
    }
    assert_eq!(btf.require_size("page"), Ok(64));
    assert!(btf.func("do_exit").is_some() && btf.enumerator("PG_locked").is_some());
    assert!(!btf.has("task_struct", "no_such_member") && btf.struct_("no_such_struct").is_none());
}

fn same_type(btf: &Btf, id: TypeId, oracle: &btf_rs::Btf, theirs: &Type) {
    let name = |t: &dyn BtfType| oracle.resolve_name(t).unwrap_or_default();
    let kind = btf.kind(id).unwrap();
    let spelled = format!("{kind:?}").to_lowercase();
    assert_eq!(spelled, theirs.name().replace('-', ""), "{id:?}");
    let their_name = theirs.as_btf_type().filter(|t| t.get_name_offset().is_some()).map(name);
    assert_eq!(btf.name(id), their_name.unwrap_or_default(), "{id:?}");
    let size = btf.size_of(id).map(|size| usize::try_from(size).unwrap());
    match theirs {
        Type::Struct(s) | Type::Union(s) => {
            assert_eq!(size, Some(s.size()), "{id:?}");
            let mine = btf
                .members(id)
                .map(|(name, m)| (name.to_owned(), m.bit_offset, m.bit_size.unwrap_or(0), m.type_id.0));
            let theirs = s.members.iter().map(|m| {
                let width = m.bitfield_size().unwrap_or(0);
                (name(m), u64::from(m.bit_offset()), width, m.get_type_id().unwrap())
            });
            assert!(mine.eq(theirs), "members of {id:?} {}", btf.name(id));
        }
        Type::Array(a) => {
            let (element, count) = btf.array(id).unwrap();
            assert_eq!((Some(element.0), count as usize), (a.get_type_id(), a.len()), "{id:?}");
        }
        Type::Enum(e) => {
            assert_eq!(size, Some(e.size()), "{id:?}");
            let value = |v: u32| {
                if e.is_signed() { i64::from(i32::from_ne_bytes(v.to_ne_bytes())) } else { i64::from(v) }
            };
            let theirs = e.members.iter().map(|m| (name(m), value(m.val())));
            assert!(btf.enumerators(id).map(|(n, v)| (n.to_owned(), v)).eq(theirs), "{id:?}");
        }
        Type::Enum64(e) => {
            let theirs = e.members.iter().map(|m| (name(m), i64::from_ne_bytes(m.val().to_ne_bytes())));
            assert!(btf.enumerators(id).map(|(n, v)| (n.to_owned(), v)).eq(theirs), "{id:?}");
        }
        Type::Ptr(p) => assert_eq!(btf.pointee(id).map(|t| t.0), p.get_type_id(), "{id:?}"),
        Type::Int(i) => assert_eq!(size, Some(i.size()), "{id:?}"),
        Type::Float(f) => assert_eq!(size, Some(f.size()), "{id:?}"),
        Type::Datasec(d) => assert_eq!(size, Some(d.size()), "{id:?}"),
        Type::Typedef(_) | Type::Volatile(_) | Type::Const(_) | Type::Restrict(_) | Type::TypeTag(_) => {
            let behind = oracle.resolve_chained_type(theirs.as_btf_type().unwrap()).unwrap();
            let resolved = btf.resolve(id).unwrap();
            let mut end = behind;
            while let Type::Typedef(_)
            | Type::Volatile(_)
            | Type::Const(_)
            | Type::Restrict(_)
            | Type::TypeTag(_) = &end
            {
                end = oracle.resolve_chained_type(end.as_btf_type().unwrap()).unwrap();
            }
            assert_eq!(oracle.resolve_type_by_id(resolved.0).unwrap(), end, "{id:?}");
        }
        _ => assert_eq!(size, None, "{id:?}"),
    }
}
