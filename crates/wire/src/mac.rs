//! Addresses of network cards.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// In the first byte: the address is one of a group.
const GROUP: u8 = 1;
/// In the first byte: no maker of cards has given it out.
const LOCAL: u8 = 2;

/// Address of an ethernet card; in messages as `52:54:00:12:34:56`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// An address that no maker of cards has given out and that is one card's, of six random bytes.
    #[must_use]
    pub fn from_random(mut bytes: [u8; 6]) -> Self {
        bytes[0] = bytes[0] & !GROUP | LOCAL;
        Self(bytes)
    }

    /// Whether it is one as [`Mac::from_random`] makes them.
    #[must_use]
    pub fn is_local(self) -> bool {
        self.0[0] & (GROUP | LOCAL) == LOCAL
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// The text is no address of a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("This is not an address of a network card")]
pub struct NotAMac;

impl FromStr for Mac {
    type Err = NotAMac;

    fn from_str(text: &str) -> Result<Self, NotAMac> {
        let mut bytes = [0; 6];
        let mut words = text.split(':');
        for byte in &mut bytes {
            let word = words.next().filter(|word| word.len() == 2).ok_or(NotAMac)?;
            if !word.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(NotAMac);
            }
            *byte = u8::from_str_radix(word, 16).map_err(|_| NotAMac)?;
        }
        words.next().is_none().then_some(Self(bytes)).ok_or(NotAMac)
    }
}

impl TryFrom<String> for Mac {
    type Error = NotAMac;

    fn try_from(text: String) -> Result<Self, NotAMac> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_as_it_is_written_and_nothing_else_is_one() {
        let mac = Mac([0x52, 0x54, 0, 0x12, 0xab, 0xff]);
        assert_eq!(mac.to_string(), "52:54:00:12:ab:ff");
        assert_eq!("52:54:00:12:AB:ff".parse(), Ok(mac));
        for wrong in [
            "",
            "52:54:00:12:ab",
            "52:54:00:12:ab:ff:00",
            "5:54:00:12:ab:fff",
            "+2:54:00:12:ab:ff",
            "ä:54:00:12:ab:ff",
        ] {
            assert_eq!(wrong.parse::<Mac>(), Err(NotAMac), "{wrong}");
        }
    }

    #[test]
    fn a_random_address_is_local_and_of_one_card() {
        for first in 0..=u8::MAX {
            assert!(Mac::from_random([first, 0, 0, 0, 0, 1]).is_local());
        }
        assert!(!Mac([0, 0x1b, 0x21, 0, 0, 1]).is_local(), "a maker's");
        assert!(!Mac([3, 0, 0, 0, 0, 1]).is_local(), "a group's");
    }
}
