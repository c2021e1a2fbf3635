//! Streams made by code: what is kept, what is dropped, and what is refused.

use super::test_stream::{Fields, StreamBuilder, array, field, name, nested};
use super::{Cleared, DeviceState, PageSink, SinkClosed};
use crate::error::QemuError;
use elision_memory::{FileOffset, Gva, RamBlock};
use proptest::prelude::*;
use serde_json::Value;

const MAIN: &str = "pc.ram";
const SECRET: u8 = 0xa5;
const VIDEO: u8 = 0x77;

fn page(out: &mut Vec<u8>, offset: u64, block: Option<&str>, content: Result<[u8; 4096], u8>) {
    let kind = if content.is_ok() { 0x08 } else { 0x02 };
    let same = if block.is_some() { 0 } else { 0x20 };
    out.extend((offset | kind | same).to_be_bytes());
    out.extend(block.map(name).unwrap_or_default());
    match content {
        Ok(bytes) => out.extend(bytes),
        Err(fill) => out.push(fill),
    }
}

fn be32(v: u32) -> Vec<u8> {
    v.to_be_bytes().to_vec()
}

fn be64(v: u64) -> Vec<u8> {
    v.to_be_bytes().to_vec()
}

fn words(name: &str, count: usize, value: u64) -> (Value, Vec<u8>) {
    let element = be64(value);
    array(name, &vec![element.as_slice(); count])
}

fn segment(selector: u32, base: u64, flags: u32) -> Fields {
    vec![field("selector", &be32(selector)), field("base", &be64(base)), field("flags", &be32(flags))]
}

/// The fields of a vCPU at privilege level `cpl`, all its data registers full of a secret.
fn cpu(cpl: u32) -> Fields {
    let secret = u64::from_ne_bytes([SECRET; 8]);
    let segments: Vec<Fields> =
        (0..6_u32).map(|i| segment((8 * i) | cpl, 0x1000 * u64::from(i), cpl << 13)).collect();
    let form = nested("env.segs", &segments[0]).0;
    let mut form = form;
    form["array_len"] = 6.into();
    let segments = segments.iter().flatten().flat_map(|f| f.1.clone()).collect();
    vec![
        words("env.regs", 16, secret),
        field("env.eip", &be64(secret)),
        field("env.eflags", &be64(0x10_0346)),
        field("env.hflags", &be32(0x0040_01f8)),
        field("env.fpuc", &[0x02, 0x7f]),
        field("env.fpus_vmstate", &[1, 2]),
        field("env.fptag_vmstate", &[0, 0xff]),
        array("env.fpregs", &[&[SECRET; 10], &[SECRET; 10]]),
        (form, segments),
        nested("env.tr", &segment(0x40, 0xffff_fe00, 0)),
        nested("env.idt", &segment(0, 0xffff_ff00, 0)),
        field("env.cr[0]", &be64(0x8000_0001)),
        field("env.cr[2]", &be64(secret)),
        field("env.cr[3]", &be64(0x1234_5000)),
        field("env.cr[4]", &be64(0x20)),
        field("env.mxcsr", &be32(0x1fa0)),
        words("env.xmm_regs", 32, secret),
        field("env.efer", &be64(0xd01)),
        field("env.kernelgsbase", &be64(0xffff_8880)),
        field("env.xstate_bv", &be64(0x2_02e7)),
    ]
}

fn apic(isr: u32, spurious: u32) -> Fields {
    let isr = [&be32(0)[..], &be32(isr), &[0; 4], &[0; 4], &[0; 4], &[0; 4], &[0; 4], &[0; 4]];
    let ones = vec![[0xff_u8; 4].as_slice(); 8];
    let zeros = vec![[0_u8; 4].as_slice(); 8];
    vec![
        field("apicbase", &be32(0xfee0_0800)),
        field("tpr", &[0x10]),
        field("spurious_vec", &be32(spurious)),
        array("isr", &isr),
        array("tmr", &ones),
        array("irr", &zeros),
    ]
}

/// A small machine of one vCPU, with a page of the main memory in its stream if `with_main`.
fn machine(capabilities: &[&str], with_main: bool, cpl: u32) -> Vec<u8> {
    let mut records = vec![];
    page(&mut records, 0x1000, Some("vga.vram"), Ok([VIDEO; 4096]));
    page(&mut records, 0x2000, None, Err(7));
    if with_main {
        page(&mut records, 0x3000, Some(MAIN), Ok([SECRET; 4096]));
        page(&mut records, 0x4000, None, Ok([SECRET; 4096]));
        page(&mut records, 0x5000, None, Err(SECRET));
    }
    page(&mut records, 0, Some("bios"), Ok([1; 4096]));
    page(&mut records, 0, Some("bios"), Ok([2; 4096]));
    let shared = capabilities.contains(&"x-ignore-shared");
    let blocks = [(MAIN, 0x10000), ("vga.vram", 0x3000), ("bios", 0x1000)];
    let avx512: Fields = vec![words("env.opmask_regs", 2, u64::MAX), field("other", &[SECRET])];
    let common: Fields = vec![field("halted", &be32(1)), field("interrupt_request", &be32(4))];
    StreamBuilder::head(capabilities)
        .ram(&blocks, shared, &records)
        .device("cpu_common", 0, &common, None)
        .device("cpu", 0, &cpu(cpl), Some(("cpu/avx512", &avx512)))
        .device("apic", 0, &apic(0, 0x1ff), None)
        .device("ps2kbd", 0, &keyboard(), None)
        .device("serial", 0, &serial().0, Some(("serial/recv_fifo", &serial().1)))
        .finish()
}

fn keyboard() -> Fields {
    let common: Fields = vec![
        field("queue.rptr", &be32(254)),
        field("queue.wptr", &be32(1)),
        field("queue.count", &be32(3)),
        field("queue.data", &[SECRET; 256]),
    ];
    vec![nested("parent_obj", &common)]
}

fn serial() -> (Fields, Fields) {
    let fifo: Fields = vec![field("data", &[SECRET; 16]), field("head", &be32(2)), field("num", &be32(1))];
    let state: Fields = vec![
        field("rbr", &[SECRET]),
        field("lsr", &[0x61]),
        field("fcr_vmstate", &[1]),
        field("tsr", &[SECRET]),
    ];
    (state, vec![nested("recv_fifo", &fifo)])
}

/// Reads a stream whose main memory is one block, of the length that the stream itself says.
fn read(bytes: &[u8]) -> crate::Result<DeviceState> {
    let name = [&[6], MAIN.as_bytes()].concat();
    let at = bytes.windows(name.len()).position(|w| w == name).unwrap_or(0) + name.len();
    let len = bytes.get(at..at + 8).map_or(0, |b| u64::from_be_bytes(b.try_into().unwrap()));
    DeviceState::read(bytes, &[RamBlock::whole(MAIN, len)])
}

fn plain(state: &DeviceState) -> Vec<u8> {
    let mut out = vec![];
    state.write_to(&mut out).unwrap();
    out
}

fn pages_of(bytes: &[u8], byte: u8) -> usize {
    bytes.windows(64).step_by(64).filter(|w| w.iter().all(|&b| b == byte)).count()
}

#[test]
fn main_memory_is_dropped_and_the_rest_is_kept() {
    let stream = machine(&[], true, 0);
    assert!(pages_of(&stream, SECRET) > 120, "the control: the stream has the pages");
    let state = read(&stream).unwrap();
    assert_eq!(state.passed_pages(), 3);
    assert!(state.main_blocks().eq([(MAIN, 0x10000)]));
    let out = plain(&state);
    assert!(pages_of(&out, SECRET) < 10, "only registers and queues are left");
    assert!(pages_of(&out, VIDEO) > 60);
    assert!(pages_of(&out, 2) > 60 && pages_of(&out, 1) == 0, "the last copy of a page wins");
}

/// Keeps the first byte of each page that comes, or closes after so many.
struct Taken(Vec<(u64, u8)>, usize);

impl PageSink for Taken {
    fn page(&mut self, offset: FileOffset, bytes: &[u8; 4096]) -> Result<(), SinkClosed> {
        assert!(bytes.iter().all(|b| *b == bytes[0]));
        self.fill(offset, bytes[0])
    }

    fn fill(&mut self, offset: FileOffset, byte: u8) -> Result<(), SinkClosed> {
        self.0.push((offset.0, byte));
        if self.0.len() > self.1 { Err(SinkClosed) } else { Ok(()) }
    }
}

/// A stream with these pages of a main memory of three, some as bytes and some as a filling.
fn three_pages(pages: &[(u64, u8)]) -> Vec<u8> {
    let mut records = vec![];
    page(&mut records, 0, Some("bios"), Ok([1; 4096]));
    for (offset, byte) in pages {
        page(&mut records, *offset, Some(MAIN), if *byte < 128 { Err(*byte) } else { Ok([*byte; 4096]) });
    }
    let blocks = [(MAIN, 0x3000), ("bios", 0x1000)];
    StreamBuilder::head(&[]).ram(&blocks, false, &records).device("d", 0, &[field("f", &[1])], None).finish()
}

#[test]
fn main_memory_goes_to_the_sink_in_its_order() {
    let sent = [(0x2000, 200), (0, 0), (0x1000, 201), (0x2000, 3)];
    let mut taken = Taken(vec![], usize::MAX);
    let state =
        DeviceState::read_whole(&three_pages(&sent)[..], &[RamBlock::whole(MAIN, 0x3000)], &mut taken)
            .unwrap();
    assert_eq!(taken.0, sent);
    assert_eq!(pages_of(&plain(&state), 200), 0, "nothing of it is kept");
}

#[test]
fn main_memory_in_several_blocks_goes_to_its_places() {
    let node = |name: &str, offset, len| RamBlock { name: name.into(), offset: FileOffset(offset), len };
    let main = [node("m0", 0, 0x1000), node("m1", 0x20_0000, 0x2000)];
    let stream = |records: &[u8]| {
        // Another order than that of the places.
        let blocks = [("m1", 0x2000), ("bios", 0x1000), ("m0", 0x1000)];
        StreamBuilder::head(&[])
            .ram(&blocks, false, records)
            .device("d", 0, &[field("f", &[1])], None)
            .finish()
    };
    let mut records = vec![];
    page(&mut records, 0, Some("m1"), Ok([200; 4096]));
    page(&mut records, 0x1000, None, Ok([201; 4096]));
    page(&mut records, 0, Some("bios"), Ok([1; 4096]));
    let short = stream(&records);
    page(&mut records, 0, Some("m0"), Err(0));
    let mut taken = Taken(vec![], usize::MAX);
    let state = DeviceState::read_whole(&stream(&records)[..], &main, &mut taken).unwrap();
    assert_eq!(taken.0, [(0x20_0000, 200), (0x20_1000, 201), (0, 0)]);
    assert!(state.main_blocks().eq([("m0", 0x1000), ("m1", 0x2000)]));
    assert_eq!(pages_of(&plain(&state), 200) + pages_of(&plain(&state), 201), 0, "nothing of it is kept");
    let mut taken = Taken(vec![], usize::MAX);
    let err = DeviceState::read_whole(&short[..], &main, &mut taken).unwrap_err().to_string();
    assert!(err.contains("1 pages of the main memory never came"), "{err}");
    // A block that is not said to be main memory, and of which nothing came, would be missing from the image.
    let err = DeviceState::read(&short[..], &main[1..]).unwrap_err();
    assert!(matches!(err, QemuError::SharedBlock { ref block } if block == "m0"), "{err}");
}

#[test]
fn memory_that_is_not_whole_is_refused() {
    let read = |sent: &[(u64, u8)], len| {
        let mut taken = Taken(vec![], 5);
        DeviceState::read_whole(&three_pages(sent)[..], &[RamBlock::whole(MAIN, len)], &mut taken).map(drop)
    };
    let all = [(0, 1), (0x1000, 1), (0x2000, 1)];
    read(&all, 0x3000).unwrap();
    for (sent, len, why) in [
        (&all[..2], 0x3000, "1 pages of the main memory never came"),
        (&[all[0], all[0], all[2]], 0x3000, "1 pages of the main memory never came"),
        (&all, 0x4000, "has 0x3000 bytes instead of 0x4000"),
        (&all, 0x2000, "has 0x3000 bytes instead of 0x2000"),
        (&all.repeat(2), 0x3000, "cannot be taken over"),
    ] {
        let error = read(sent, len).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn both_ways_of_capture_give_the_same_plain_form() {
    let full = plain(&read(&machine(&[], true, 0)).unwrap());
    let ignoring = plain(&read(&machine(&["x-ignore-shared"], false, 0)).unwrap());
    assert_eq!(full, ignoring);
    assert_eq!(plain(&read(&full).unwrap()), full, "the plain form is its own plain form");
}

#[test]
fn a_vcpu_is_read() {
    let vcpus = read(&machine(&[], false, 3)).unwrap().vcpus().unwrap();
    let [v] = vcpus.as_slice() else { panic!("one vCPU, not {vcpus:?}") };
    assert!(v.in_user_mode() && v.halted);
    assert_eq!((v.index, v.cpl, v.cs, v.cr3), (0, 3, 11, 0x1234_5000));
    assert_eq!((v.fs_base, v.gs_base, v.kernel_gs_base), (Gva(0x4000), Gva(0x5000), Gva(0xffff_8880)));
    assert_eq!((v.tr_base, v.idt_base), (Gva(0xffff_fe00), Gva(0xffff_ff00)));
    assert!(!read(&machine(&[], false, 0)).unwrap().vcpus().unwrap()[0].in_user_mode());
}

fn number(state: &DeviceState, section: &str, path: &str) -> u64 {
    let bytes = state.field(section, 0, path).unwrap_or_else(|| panic!("{section} {path}"));
    bytes.iter().fold(0, |n, &b| (n << 8) | u64::from(b))
}

#[test]
fn vector_registers_are_cleared_wherever_they_stand() {
    let mut state = read(&machine(&[], false, 0)).unwrap();
    let cleared = state.clear_vector_state(0).unwrap();
    assert_eq!(cleared, Cleared { bytes: 20 + 256 + 17, nonzero: 20 + 256 + 17 });
    for (path, value) in [
        ("env.fpregs[1]", 0),
        ("env.xmm_regs[31]", 0),
        ("cpu/avx512/env.opmask_regs[1]", 0),
        ("cpu/avx512/other", 0),
        ("env.fpuc", 0x37f),
        ("env.fptag_vmstate", 0),
        ("env.mxcsr", 0x1f80),
        ("env.xstate_bv", 0x200),
    ] {
        assert_eq!(number(&state, "cpu", path), value, "{path}");
    }
    assert_ne!(number(&state, "cpu", "env.regs[3]"), 0, "general registers stay");
    assert!(state.clear_vector_state(1).is_err(), "there is no second vCPU");
    read(&plain(&state)).unwrap();
}

#[test]
fn general_registers_are_cleared_in_user_mode_only() {
    let mut kernel = read(&machine(&[], false, 0)).unwrap();
    assert!(matches!(kernel.clear_general_registers(0), Err(QemuError::Vcpu { cpu: 0, .. })));
    assert_ne!(number(&kernel, "cpu", "env.regs[0]"), 0);
    let mut user = read(&machine(&[], false, 3)).unwrap();
    assert_eq!(user.clear_general_registers(0).unwrap().nonzero, 17 * 8);
    for path in ["env.regs[0]", "env.regs[15]", "env.eip", "env.cr[2]"] {
        assert_eq!(number(&user, "cpu", path), 0, "{path}");
    }
    assert_eq!(number(&user, "cpu", "env.eflags"), 0x202);
    assert_eq!(number(&user, "cpu", "env.hflags"), 0x0040_00f0);
    assert_eq!(number(&user, "cpu", "env.cr[3]"), 0x1234_5000);
    assert_eq!(number(&user, "cpu", "env.segs[1]/selector"), 11);
}

#[test]
fn an_interrupt_is_made_pending_at_both_places() {
    let mut state = read(&machine(&[], false, 3)).unwrap();
    state.raise_interrupt(0, 0xec).unwrap();
    assert_eq!(number(&state, "apic", "irr[7]"), 1 << 12);
    assert_eq!(number(&state, "apic", "tmr[7]"), 0xffff_efff);
    assert_eq!(number(&state, "cpu_common", "interrupt_request"), 4 | 2);
    assert_eq!(number(&state, "cpu", "env.hflags") & 8, 0);
    assert!(state.raise_interrupt(0, 31).is_err(), "an exception is no interrupt");
    assert!(state.raise_interrupt(1, 0xec).is_err());
}

#[test]
fn an_interrupt_waits_until_the_vcpu_accepts_it() {
    let with = |fields: Fields, flags: u64| {
        let mut cpu = cpu(3);
        cpu[2] = field("env.eflags", &be64(flags));
        let common: Fields = vec![field("halted", &be32(0)), field("interrupt_request", &be32(0))];
        let bytes = StreamBuilder::head(&[])
            .ram(&[(MAIN, 0x1000)], false, &[])
            .device("cpu_common", 0, &common, None)
            .device("cpu", 0, &cpu, None)
            .device("apic", 0, &fields, None)
            .finish();
        read(&bytes).unwrap().raise_interrupt(0, 0x3f)
    };
    assert!(with(apic(0, 0x1ff), 0x202).unwrap());
    assert!(!with(apic(0, 0x1ff), 0x002).unwrap(), "interrupts are off");
    assert!(with(apic(0, 0x0ff), 0x202).is_err(), "the APIC is off");
    assert!(!with(apic(1 << 16, 0x1ff), 0x202).unwrap(), "vector 0x30 is being served");
    assert!(with(apic(1, 0x1ff), 0x202).unwrap());
}

#[test]
fn input_that_was_read_is_cleared_and_input_that_waits_stays() {
    let mut state = read(&machine(&[], false, 0)).unwrap();
    assert_eq!(state.clear_keyboard().nonzero, 253);
    let keys = state.field("ps2kbd", 0, "parent_obj/queue.data").unwrap();
    let left: Vec<usize> = (0..256).filter(|&i| keys[i] != 0).collect();
    assert_eq!(left, [0, 254, 255]);
    assert_eq!(state.clear_serial().nonzero, 15 + 2);
    let fifo = state.field("serial", 0, "serial/recv_fifo/recv_fifo/data").unwrap();
    assert_eq!((fifo[2], fifo[1], fifo[3]), (SECRET, 0, 0));
    assert_eq!(state.field("serial", 0, "tsr"), Some(&[0][..]));
    assert_eq!(state.clear_keyboard().nonzero + state.clear_serial().nonzero, 0, "nothing is left to clear");
}

#[test]
fn packets_that_were_sent_are_cleared_and_one_in_the_making_stays() {
    let cards = |size: u16, position: u32| {
        let header = field("tx.header", &[SECRET; 16]);
        let e1000 = [field("tx.size", &size.to_be_bytes()), header, field("tx.data", &[SECRET; 64])];
        let pcnet = [field("xmit_pos", &be32(position)), field("buffer", &[SECRET; 64])];
        let bytes = StreamBuilder::head(&[])
            .ram(&[(MAIN, 0x1000)], false, &[])
            .device("0000:00:02.0/e1000", 0, &e1000, None)
            .device("0000:00:03.0/pcnet", 0, &[nested("state", &pcnet)], None)
            .finish();
        let mut state = read(&bytes).unwrap();
        let cleared = state.clear_network();
        let kept = |section, path| state.field(section, 0, path).unwrap().iter().filter(|b| **b != 0).count();
        let header = kept("0000:00:02.0/e1000", "tx.header");
        let data = [kept("0000:00:02.0/e1000", "tx.data"), kept("0000:00:03.0/pcnet", "state/buffer")];
        assert_eq!(cleared.nonzero, 16 + 64 + 64 - header - data[0] - data[1]);
        (header, data)
    };
    assert_eq!(cards(0, u32::MAX), (0, [0, 0]));
    assert_eq!(cards(14, 20), (16, [14, 20]));
    assert_eq!(cards(u16::MAX, 65), (16, [64, 64]), "a hostile size stays inside");
}

#[test]
fn the_screen_is_blanked_and_firmware_stays() {
    let mut state = read(&machine(&[], false, 0)).unwrap();
    let blanked = state.blank_video();
    assert_eq!((blanked.pages, blanked.left.len()), (2, 0));
    let out = plain(&state);
    assert_eq!(pages_of(&out, VIDEO), 0);
    assert!(pages_of(&out, 2) > 60);
}

#[test]
fn what_is_not_understood_is_refused() {
    let blocks = [(MAIN, 0x2000), ("b", 0x1000)];
    let mut good = vec![];
    page(&mut good, 0, Some("b"), Err(0));
    let build = |records: &[u8]| {
        StreamBuilder::head(&[]).ram(&blocks, false, records).device("d", 0, &[], None).finish()
    };
    read(&build(&good)).unwrap();
    let mut outside = vec![];
    page(&mut outside, 0x1000, Some("b"), Err(0));
    let mut unknown = vec![];
    page(&mut unknown, 0, Some("c"), Err(0));
    let mut nameless = vec![];
    page(&mut nameless, 0, None, Err(0));
    for (what, records) in [
        ("outside", outside),
        ("unknown", unknown),
        ("nameless", nameless),
        ("compressed", 0x101_u64.to_be_bytes().to_vec()),
        ("hook", 0x80_u64.to_be_bytes().to_vec()),
    ] {
        assert!(matches!(read(&build(&records)), Err(QemuError::Stream { .. })), "{what}");
    }
    let err = read(&build(&[])).unwrap_err();
    assert!(matches!(err, QemuError::SharedBlock { ref block } if block == "b"), "{err}");
    assert!(read(&machine(&["mapped-ram"], false, 0)).is_err(), "another form of the stream");
    assert!(
        DeviceState::read(&build(&good)[..], &[RamBlock::whole("other", 0x2000)]).is_err(),
        "another main block"
    );
    let mut twice = StreamBuilder::head(&[]);
    twice.ram(&blocks, false, &good).ram(&blocks, false, &good).device("d", 0, &[], None);
    assert!(read(&twice.finish()).is_err());
    let mut late = StreamBuilder::head(&[]);
    late.ram(&blocks, false, &good).device("d", 0, &[], None).ram(&blocks, false, &good);
    assert!(read(&late.finish()).is_err(), "RAM behind the devices");
}

#[test]
fn a_stream_cut_anywhere_is_an_error() {
    let stream = machine(&["x-ignore-shared"], false, 0);
    for end in 0..stream.len() {
        let err = read(&stream[..end]).unwrap_err();
        assert!(matches!(err, QemuError::Truncated { .. } | QemuError::Stream { .. }), "{end}: {err}");
    }
    read(&stream).unwrap();
}

#[test]
fn a_hostile_description_is_bounded() {
    let huge = serde_json::json!({"name": "x", "type": "buffer", "size": u64::MAX});
    let endless = serde_json::json!({"name": "x", "type": "struct", "array_len": u64::MAX, "size": 0, "struct": {"fields": []}});
    for form in [huge, endless] {
        let bytes = StreamBuilder::head(&[])
            .ram(&[(MAIN, 0x1000)], false, &[])
            .device("d", 0, &[(form, vec![])], None)
            .finish();
        assert!(read(&bytes).is_err());
    }
    let mut deep = String::new();
    (0..100_000).for_each(|_| deep.push_str(r#"{"devices":[{"name":"a","fields":["#));
    let mut b = StreamBuilder::head(&[]);
    b.ram(&[(MAIN, 0x1000)], false, &[]).put(&[4, 0, 0, 0, 9, 0, 6]);
    let len = u32::try_from(deep.len()).unwrap();
    let mut bytes = std::mem::take(&mut b.bytes);
    bytes.extend(len.to_be_bytes());
    bytes.extend(deep.bytes());
    assert!(read(&bytes).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn corruption_gives_a_state_or_an_error(changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut stream = machine(&["x-ignore-shared"], true, 3);
        for (at, byte) in changes {
            let i = at.index(stream.len());
            stream[i] = byte;
        }
        if let Ok(mut state) = read(&stream) {
            let _ = state.vcpus();
            let _ = state.clear_vector_state(0);
            let _ = state.clear_general_registers(0);
            let _ = state.raise_interrupt(0, 0xec);
            state.clear_keyboard();
            state.clear_serial();
            state.blank_video();
            let _ = read(&plain(&state));
        }
    }

    #[test]
    fn any_bytes_are_refused_or_read(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let mut stream = machine(&[], false, 0);
        stream.truncate(40);
        stream.extend(bytes);
        let _ = read(&stream);
    }
}
