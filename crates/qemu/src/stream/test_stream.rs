//! Builds migration streams by code, for tests.

use serde_json::{Value, json};

/// Fields with their descriptions and bytes.
pub(super) type Fields = Vec<(Value, Vec<u8>)>;

/// Puts a stream together part by part.
#[derive(Default)]
pub(super) struct StreamBuilder {
    pub(super) bytes: Vec<u8>,
    devices: Vec<Value>,
    next: u32,
}

pub(super) fn name(text: &str) -> Vec<u8> {
    let mut v = vec![u8::try_from(text.len()).unwrap()];
    v.extend(text.as_bytes());
    v
}

/// A field of a device: its description and its bytes.
pub(super) fn field(name: &str, bytes: &[u8]) -> (Value, Vec<u8>) {
    (json!({"name": name, "type": "buffer", "size": bytes.len()}), bytes.to_vec())
}

/// An array field.
pub(super) fn array(name: &str, elements: &[&[u8]]) -> (Value, Vec<u8>) {
    let form = json!({"name": name, "type": "uint", "array_len": elements.len(), "size": elements[0].len()});
    (form, elements.concat())
}

/// A structure of fields.
pub(super) fn nested(name: &str, fields: &[(Value, Vec<u8>)]) -> (Value, Vec<u8>) {
    let bytes: Vec<u8> = fields.iter().flat_map(|f| f.1.clone()).collect();
    let forms: Vec<&Value> = fields.iter().map(|f| &f.0).collect();
    let form = json!({"name": name, "type": "struct", "size": bytes.len(), "struct": {"vmsd_name": name, "fields": forms}});
    (form, bytes)
}

impl StreamBuilder {
    /// The head with capabilities.
    pub(super) fn head(capabilities: &[&str]) -> Self {
        let mut b = Self::default();
        b.put(&[0x51, 0x45, 0x56, 0x4d, 0, 0, 0, 3, 7, 0, 0, 0, 4]).put(b"pc-1");
        if !capabilities.is_empty() {
            b.put(&[5]).put(&name("configuration/capabilities")).put(&[0, 0, 0, 1, 0, 0, 0]);
            b.put(&[u8::try_from(capabilities.len()).unwrap()]);
            for c in capabilities {
                b.put(&name(c));
            }
        }
        b
    }

    pub(super) fn put(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend(bytes);
        self
    }

    pub(super) fn word(&mut self, word: u64) -> &mut Self {
        self.put(&word.to_be_bytes())
    }

    /// RAM with `blocks`; `records` stand in its PART.
    pub(super) fn ram(&mut self, blocks: &[(&str, u64)], addresses: bool, records: &[u8]) -> &mut Self {
        let total: u64 = blocks.iter().map(|b| b.1).sum();
        self.put(&[1, 0, 0, 0, 2]).put(&name("ram")).put(&[0, 0, 0, 0, 0, 0, 0, 4]).word(total | 4);
        for (block, used) in blocks {
            self.put(&name(block)).word(*used);
            if addresses {
                self.word(0xfd00_0000);
            }
        }
        self.word(0x10).put(&[0x7e, 0, 0, 0, 2]);
        self.put(&[2, 0, 0, 0, 2]).put(records).word(0x10).put(&[0x7e, 0, 0, 0, 2]);
        self.put(&[3, 0, 0, 0, 2]).word(0x10).put(&[0x7e, 0, 0, 0, 2])
    }

    /// A device with fields and one optional subsection.
    pub(super) fn device(
        &mut self,
        device: &str,
        instance: u8,
        fields: &[(Value, Vec<u8>)],
        subsection: Option<(&str, &Fields)>,
    ) -> &mut Self {
        self.next += 1;
        let id = (self.next + 10).to_be_bytes();
        self.put(&[4]).put(&id).put(&name(device)).put(&[0, 0, 0, instance, 0, 0, 0, 1]);
        for f in fields {
            self.put(&f.1);
        }
        let forms: Vec<&Value> = fields.iter().map(|f| &f.0).collect();
        let mut form = json!({"name": device, "instance_id": instance, "vmsd_name": device, "version": 1, "fields": forms});
        if let Some((sub, fields)) = subsection {
            self.put(&[5]).put(&name(sub)).put(&[0, 0, 0, 1]);
            for f in fields {
                self.put(&f.1);
            }
            let forms: Vec<&Value> = fields.iter().map(|f| &f.0).collect();
            form["subsections"] = json!([{"vmsd_name": sub, "version": 1, "fields": forms}]);
        }
        self.put(&[0x7e]).put(&id);
        self.devices.push(form);
        self
    }

    /// The finished stream.
    pub(super) fn finish(&mut self) -> Vec<u8> {
        let text = json!({"page_size": 4096, "devices": self.devices, "unknown": 1}).to_string();
        let len = u32::try_from(text.len()).unwrap();
        self.put(&[0, 6]).put(&len.to_be_bytes()).put(text.as_bytes());
        std::mem::take(&mut self.bytes)
    }
}
