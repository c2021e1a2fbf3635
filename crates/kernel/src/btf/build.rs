//! Blobs made by code, for tests: the same format as a kernel's, a few types long.

/// A blob under construction. Types are numbered from 1 in the order they are added.
#[derive(Default)]
pub(crate) struct BtfBuilder {
    types: Vec<u8>,
    strings: Vec<u8>,
    layout: Vec<u8>,
    count: u32,
}

/// One member of a struct under construction: name, type, offset in bits, width of a bitfield.
pub(crate) type NewMember<'a> = (&'a str, u32, u32, u32);

impl BtfBuilder {
    pub(crate) fn new() -> Self {
        Self { strings: vec![0], ..Self::default() }
    }

    fn string(&mut self, name: &str) -> u32 {
        if name.is_empty() {
            return 0;
        }
        let at = u32::try_from(self.strings.len()).unwrap();
        self.strings.extend_from_slice(name.as_bytes());
        self.strings.push(0);
        at
    }

    /// Any record: kind number, flag, name, count of elements, size or type, and the words behind.
    pub(crate) fn raw(
        &mut self,
        kind: u8,
        flag: bool,
        name: &str,
        vlen: u32,
        value: u32,
        words: &[u32],
    ) -> u32 {
        let info = u32::from(flag) << 31 | u32::from(kind) << 24 | vlen;
        let head = [self.string(name), info, value];
        for word in head.iter().chain(words) {
            self.types.extend_from_slice(&word.to_le_bytes());
        }
        self.count += 1;
        self.count
    }

    pub(crate) fn int(&mut self, name: &str, bytes: u32) -> u32 {
        self.raw(1, false, name, 0, bytes, &[bytes * 8])
    }

    pub(crate) fn ptr(&mut self, to: u32) -> u32 {
        self.raw(2, false, "", 0, to, &[])
    }

    pub(crate) fn array(&mut self, of: u32, count: u32) -> u32 {
        self.raw(3, false, "", 0, 0, &[of, of, count])
    }

    pub(crate) fn typedef(&mut self, name: &str, of: u32) -> u32 {
        self.raw(8, false, name, 0, of, &[])
    }

    /// A struct (kind 4) or union (kind 5); bitfields set the kind's flag.
    pub(crate) fn compound(&mut self, kind: u8, name: &str, size: u32, members: &[NewMember<'_>]) -> u32 {
        let flag = members.iter().any(|m| m.3 != 0);
        let mut words = vec![];
        for (name, id, at, width) in members {
            words.extend([self.string(name), *id, *at | *width << 24]);
        }
        self.raw(kind, flag, name, u32::try_from(members.len()).unwrap(), size, &words)
    }

    pub(crate) fn struct_(&mut self, name: &str, size: u32, members: &[NewMember<'_>]) -> u32 {
        self.compound(4, name, size, members)
    }

    pub(crate) fn enum_(&mut self, name: &str, signed: bool, values: &[(&str, i32)]) -> u32 {
        let mut words = vec![];
        for (name, value) in values {
            words.extend([self.string(name), u32::from_le_bytes(value.to_le_bytes())]);
        }
        self.raw(6, signed, name, u32::try_from(values.len()).unwrap(), 4, &words)
    }

    /// Describes kind `number` in the layout section, as kernels from 7.1 on may.
    pub(crate) fn describe(&mut self, number: u8, fixed: u8, element: u8) {
        let at = usize::from(number) * 4;
        self.layout.resize(self.layout.len().max(at + 4), 0);
        self.layout[at..at + 2].copy_from_slice(&[fixed, element]);
    }

    pub(crate) fn build(&self) -> Vec<u8> {
        let len = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap();
        let (types, strings, layout) = (len(&self.types), len(&self.strings), len(&self.layout));
        let mut header = vec![if layout == 0 { 24 } else { 32 }, 0, types, types, strings];
        if layout != 0 {
            header.extend([types + strings, layout]);
        }
        let mut out = vec![0x9f, 0xeb, 1, 0];
        out.extend(header.iter().flat_map(|word: &u32| word.to_le_bytes()));
        out.extend_from_slice(&self.types);
        out.extend_from_slice(&self.strings);
        out.extend_from_slice(&self.layout);
        out
    }
}

/// A small kernel's types, with every kind the format has.
pub(crate) fn sample() -> Vec<u8> {
    let mut b = BtfBuilder::new();
    let int = b.int("int", 4);
    let long = b.int("long unsigned int", 8);
    let char_ = b.int("char", 1);
    let name = b.array(char_, 16);
    let list = b.struct_("list_head", 16, &[("next", 7, 0, 0), ("prev", 7, 64, 0)]);
    let volatile = b.raw(9, false, "", 0, int, &[]);
    assert_eq!(b.ptr(list), 7);
    let lists = b.array(list, 3);
    let anonymous = b.compound(5, "", 8, &[("pid", int, 0, 0), ("tgid", long, 0, 0)]);
    let typed = b.typedef("list_t", list);
    let deep = b.struct_("", 16, &[("", anonymous, 0, 0), ("state", volatile, 64, 0)]);
    b.struct_(
        "task_struct",
        136,
        &[
            ("tasks", typed, 0, 0),
            ("", deep, 128, 0),
            ("comm", name, 256, 0),
            ("queues", lists, 384, 0),
            ("frozen", int, 768 + 3, 2),
            ("matrix", 14, 800, 0),
            ("tail", 15, 1088, 0),
        ],
    );
    let row = b.array(int, 3);
    assert_eq!(b.array(row, 3), 14);
    assert_eq!(b.array(long, 0), 15);
    b.enum_("pageflags", false, &[("PG_locked", 0), ("PG_high", i32::MIN)]);
    b.enum_("signed", true, &[("MINUS", -5)]);
    let wide = [b.string("WIDE"), 1, 0x8000_0000];
    b.raw(19, false, "wide", 1, 8, &wide);
    b.raw(7, false, "declared", 0, 0, &[]);
    let constant = b.raw(10, false, "", 0, typed, &[]);
    let restrict = b.raw(11, false, "", 0, constant, &[]);
    let tag = b.raw(18, false, "user", 0, restrict, &[]);
    b.typedef("chain_t", tag);
    let proto = b.raw(13, false, "", 1, int, &[0, long]);
    let func = b.raw(12, false, "do_exit", 1, proto, &[]);
    let var = b.raw(14, false, "jiffies", 0, long, &[1]);
    b.raw(15, false, ".data", 1, 8, &[var, 0, 8]);
    b.raw(16, false, "double", 0, 8, &[]);
    b.raw(17, false, "kfunc", 0, func, &[u32::MAX]);
    b.build()
}
