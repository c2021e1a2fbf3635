//! QEMU's command line as a list of options, and the comma-separated form of their values.
//!
//! ```text
//! -NAME | --NAME            an option without a value, from a fixed list
//! -NAME VALUE               every other option
//! VALUE                     a disk image
//! value = [implied,]key=value,key=value...        a comma inside of a value is doubled
//! ```

use crate::error::{QemuError, Result};
use serde_json::Value;

/// Options that stand alone, of QEMU 6 to 10.
const WITHOUT_VALUE: [&str; 41] = [
    "alt-grab",
    "async-teardown",
    "audio-help",
    "ctrl-grab",
    "curses",
    "daemonize",
    "enable-kvm",
    "enable-sync-profile",
    "full-screen",
    "h",
    "help",
    "mem-prealloc",
    "no-acpi",
    "no-fd-bootchk",
    "no-frame",
    "no-hpet",
    "no-kvm",
    "no-quit",
    "no-reboot",
    "no-shutdown",
    "no-user-config",
    "nodefaults",
    "nodefconfig",
    "nographic",
    "nouserconfig",
    "old-param",
    "one-insn-per-tb",
    "only-migratable",
    "portrait",
    "preconfig",
    "s",
    "S",
    "sdl",
    "semihosting",
    "singlestep",
    "snapshot",
    "usb",
    "version",
    "win2k-hack",
    "xen-attach",
    "xen-domid-restrict",
];

/// One option of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Item {
    /// Stands alone.
    Flag(String),
    /// With its value. The name has no dashes.
    Option(String, String),
    /// A disk image.
    Positional(String),
}

/// A QEMU command: the program and its options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct QemuCommand {
    pub(crate) program: String,
    pub(crate) items: Vec<Item>,
}

impl QemuCommand {
    pub(crate) fn parse(command: &[String]) -> Result<Self> {
        let mut words = command.iter().cloned();
        let program = words.next().ok_or_else(|| bad("it is empty"))?;
        let mut items = vec![];
        while let Some(word) = words.next() {
            let name = word.strip_prefix("--").or_else(|| word.strip_prefix('-')).filter(|n| !n.is_empty());
            let Some(name) = name.map(String::from) else {
                items.push(Item::Positional(word));
                continue;
            };
            if WITHOUT_VALUE.contains(&name.as_str()) {
                items.push(Item::Flag(name));
            } else {
                let value = words.next().ok_or_else(|| bad(format!("the option -{name} has no value")))?;
                items.push(Item::Option(name, value));
            }
        }
        Ok(Self { program, items })
    }

    pub(crate) fn words(self) -> Vec<String> {
        let mut words = vec![self.program];
        for item in self.items {
            match item {
                Item::Flag(name) => words.push(format!("-{name}")),
                Item::Option(name, value) => words.extend([format!("-{name}"), value]),
                Item::Positional(word) => words.push(word),
            }
        }
        words
    }

    /// The values of an option, in order.
    pub(crate) fn values<'a>(&'a self, names: &'a [&str]) -> impl Iterator<Item = &'a str> {
        self.items.iter().filter_map(|i| match i {
            Item::Option(name, value) if names.contains(&name.as_str()) => Some(value.as_str()),
            _ => None,
        })
    }

    pub(crate) fn remove_option(&mut self, remove: impl Fn(&str, &str) -> bool) {
        self.items.retain(|i| !matches!(i, Item::Option(name, value) if remove(name, value)));
    }

    pub(crate) fn add(&mut self, name: &str, value: impl Into<String>) {
        self.items.push(Item::Option(name.into(), value.into()));
    }
}

/// The keys and values of an option in either of QEMU's two forms: `a,b=c` or JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Keys(pub(crate) Vec<(String, String)>);

impl Keys {
    /// `implied` is the key of a first part without `=`.
    pub(crate) fn parse(value: &str, implied: &str) -> Self {
        if value.trim_start().starts_with('{') {
            if let Ok(Value::Object(object)) = serde_json::from_str(value) {
                let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), String::from);
                return Self(object.iter().map(|(k, v)| (k.clone(), text(v))).collect());
            }
        }
        let mut keys = vec![];
        for (i, part) in split_commas(value).into_iter().enumerate() {
            match part.split_once('=') {
                Some((key, value)) => keys.push((key.to_string(), value.to_string())),
                None if i == 0 => keys.push((implied.to_string(), part)),
                // A word alone switches a property on; with "no" before it, off.
                None => match part.strip_prefix("no") {
                    Some(key) => keys.push((key.to_string(), "off".into())),
                    None => keys.push((part, "on".into())),
                },
            }
        }
        Self(keys)
    }

    /// The value that counts: the last one.
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().rev().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }
}

/// Splits at single commas; a doubled one stands for itself.
fn split_commas(value: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = value.chars().peekable();
    while let Some(c) = chars.next() {
        if c == ',' && chars.peek() != Some(&',') {
            parts.push(String::new());
            continue;
        }
        if c == ',' {
            chars.next();
        }
        if let Some(last) = parts.last_mut() {
            last.push(c);
        }
    }
    parts
}

/// A value for the comma-separated form.
pub(crate) fn escape(value: &str) -> String {
    value.replace(',', ",,")
}

/// A size as QEMU reads it: a number, possibly with a fraction and a suffix. `unit` is for no suffix.
pub(crate) fn parse_size(text: &str, unit: u64) -> Option<u64> {
    let text = text.trim();
    if let Some(hex) = text.strip_prefix("0x") {
        return u64::from_str_radix(hex, 16).ok()?.checked_mul(unit);
    }
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at_checked(digits)?;
    let scale = match suffix.to_ascii_uppercase().as_str() {
        "" => unit,
        "B" => 1,
        "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        "T" => 1 << 40,
        _ => return None,
    };
    let Some((whole, fraction)) = number.split_once('.') else {
        return number.parse::<u64>().ok()?.checked_mul(scale);
    };
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let tenths = u64::try_from(10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?).ok()?;
    let fraction: u64 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    let part = u128::from(fraction) * u128::from(scale) / u128::from(tenths);
    whole.checked_mul(scale)?.checked_add(u64::try_from(part).ok()?)
}

pub(crate) fn bad(why: impl Into<String>) -> QemuError {
    QemuError::Command { why: why.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_are_read_as_qemu_does() {
        let mib = 1 << 20;
        for (text, bytes) in [
            ("512", Some(512 << 20)),
            ("512M", Some(512 << 20)),
            ("2g", Some(2 << 30)),
            ("1.5G", Some(3 << 29)),
            ("0.25G", Some(1 << 28)),
            ("131072K", Some(128 << 20)),
            ("1073741824B", Some(1 << 30)),
            ("0x200", Some(512 << 20)),
            ("1T", Some(1 << 40)),
            ("", None),
            ("lots", None),
            ("99999999999999999999", None),
            ("1Q", None),
        ] {
            assert_eq!(parse_size(text, mib), bytes, "{text:?}");
        }
    }

    #[test]
    fn a_value_that_looks_like_an_option_is_a_value() {
        let command =
            ["qemu", "-append", "-m 5", "-S", "--m", "64", "disk.img", "-name", "-S"].map(String::from);
        let parsed = QemuCommand::parse(&command).unwrap();
        assert_eq!(parsed.values(&["m"]).collect::<Vec<_>>(), ["64"]);
        assert_eq!(parsed.items.iter().filter(|i| **i == Item::Flag("S".into())).count(), 1);
        assert!(parsed.items.contains(&Item::Positional("disk.img".into())));
        assert!(QemuCommand::parse(&["qemu".into(), "-m".into()]).is_err());
        assert!(QemuCommand::parse(&[]).is_err());
    }

    #[test]
    fn keys_in_both_forms() {
        let k = Keys::parse("memory-backend-file,id=a,mem-path=/x,,y,share", "qom-type");
        assert_eq!(k.get("qom-type"), Some("memory-backend-file"));
        assert_eq!(k.get("mem-path"), Some("/x,y"));
        assert_eq!(k.get("share"), Some("on"));
        let k =
            Keys::parse(r#"{"qom-type":"memory-backend-ram","id":"a","size":5,"share":true}"#, "qom-type");
        assert_eq!((k.get("id"), k.get("size"), k.get("share")), (Some("a"), Some("5"), Some("true")));
    }

    proptest! {
        #[test]
        fn an_escaped_value_comes_back(value in "[a-z,=]{0,20}") {
            let keys = Keys::parse(&format!("k,path={}", escape(&value)), "type");
            prop_assert_eq!(keys.get("path"), Some(value.as_str()));
        }

        #[test]
        fn any_text_is_a_size_or_none(text in ".{0,30}", number in "[0-9.]{0,40}[KMG]?") {
            let _ = parse_size(&text, 1 << 20);
            let _ = parse_size(&number, 1 << 20);
        }
    }
}
