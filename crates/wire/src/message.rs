//! What host and agent say to each other.
//!
//! ```text
//! host                                        agent
//! Hello {versions}                     ->
//!                                      <-     Hello {versions, may, generation}
//! Prepare {processes, groups}          ->     hooks before the save, files written, pages brought in from swap
//!                                      <-     Done {count, notes}
//! Freeze {the same}                    ->     processes stand still; the word in memory becomes `Calm`
//!                                      <-     Done
//! Thaw                                 ->     the word becomes `Idle`, they run on
//!                                      <-     Done
//! Saved                                ->     hooks after the save
//!                                      <-     Done
//! ...
//! Restored {time, seed, identity}      ->     in a restored guest
//!                                      <-     Restored {report}
//! ```
//! The host asks and the agent answers, one question at a time. Every message has the session, which the host
//! chooses by chance, and the number of the question in it: an answer with others was meant for somebody else.
//!
//! Both sides begin with `Hello`, whose form never changes; the version of all that follows is the highest that both
//! know. Members that a side does not know are ignored.

use crate::mac::Mac;
use serde::{Deserialize, Serialize};

/// Versions of the protocol, from the oldest to the newest that is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// The oldest.
    pub from: u16,
    /// The newest.
    pub to: u16,
}

/// What this crate speaks.
pub const VERSIONS: Versions = Versions { from: 1, to: 1 };

impl Versions {
    /// The newest version that both sides speak.
    #[must_use]
    pub fn common(self, other: Self) -> Option<u16> {
        let newest = self.to.min(other.to);
        (newest >= self.from && newest >= other.from).then_some(newest)
    }
}

/// Most notes in one answer.
pub const MOST_NOTES: usize = 32;
/// Longest note in bytes.
pub const LONGEST_NOTE: usize = 240;

/// Most network cards that get a new address.
pub const MOST_CARDS: usize = 16;

/// Adds a note to an answer, cut to what one may have.
pub fn note(notes: &mut Vec<String>, text: &str) {
    if notes.len() < MOST_NOTES {
        let cut = (0..=LONGEST_NOTE.min(text.len())).rev().find(|&n| text.is_char_boundary(n)).unwrap_or(0);
        notes.push(text.get(..cut).unwrap_or_default().to_owned());
    }
}

/// A message with what it belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope<T> {
    /// Chosen by the host by chance when it connects.
    pub session: u64,
    /// Number of the question in the session; the answer has the same.
    pub id: u32,
    /// The message.
    #[serde(flatten)]
    pub body: T,
}

/// A question of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case")]
pub enum Ask {
    /// Who is there?
    Hello {
        /// What the host speaks.
        versions: Versions,
    },
    /// Make these processes ready for a save, while they run.
    Prepare(Calm),
    /// Let these processes stand still, until [`Ask::Thaw`] or until the time is over.
    Freeze(Calm),
    /// Let them run on.
    Thaw,
    /// The checkpoint is made.
    Saved,
    /// This guest was restored: put it in order.
    Restored {
        /// Time on the host, in nanoseconds since 1970.
        unix_time_ns: Option<u64>,
        /// Bytes that nobody else has, in hexadecimal digits: for the guest's random numbers.
        seed: Option<String>,
        /// What makes a clone another machine than its source.
        #[serde(default)]
        identity: Identity,
    },
}

/// Which processes are meant, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Calm {
    /// After this time the agent lets everything run on by itself, in milliseconds.
    pub limit_ms: u32,
    /// The processes.
    pub processes: Vec<ProcessId>,
    /// Control groups (v2) all of whose processes are meant, whichever they are.
    #[serde(default)]
    pub groups: Vec<String>,
    /// Write everything that the guest has not written to its disks yet, and not only files of the processes.
    #[serde(default)]
    pub write_all: bool,
    /// With [`Ask::Freeze`]: services that a restored copy has restarted, by the names of their units.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub restart: Vec<String>,
}

/// A process, told apart from a later one with the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "(u32, u64, u8)", into = "(u32, u64, u8)")]
pub struct ProcessId {
    /// Number in the guest's first pid namespace.
    pub pid: u32,
    /// When it was started, in hundredths of a second since the boot, as `/proc/PID/stat` has it. 0: not known.
    pub started: u64,
    /// Whether its descendants are meant too.
    pub descendants: bool,
}

impl From<(u32, u64, u8)> for ProcessId {
    fn from((pid, started, descendants): (u32, u64, u8)) -> Self {
        Self { pid, started, descendants: descendants != 0 }
    }
}

impl From<ProcessId> for (u32, u64, u8) {
    fn from(id: ProcessId) -> Self {
        (id.pid, id.started, u8::from(id.descendants))
    }
}

/// What makes a clone another machine than its source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// A new name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Whether the guest shall have a new `/etc/machine-id`.
    #[serde(default)]
    pub new_machine_id: bool,
    /// Whether the guest shall have a new id of this boot.
    #[serde(default)]
    pub new_boot_id: bool,
    /// New addresses of the network cards, in the order of the cards' names; empty: each keeps its own. At most
    /// [`MOST_CARDS`], and what is more than there are cards is not used.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub macs: Vec<Mac>,
}

impl Identity {
    /// Whether nothing is to be changed.
    #[must_use]
    pub fn is_same(&self) -> bool {
        *self == Self::default()
    }
}

/// What a host may ask for. The guest's owner allows each by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Capability {
    /// To let processes stand still.
    Calm,
    /// To have files written and pages brought in from swap.
    Prepare,
    /// To set the clock.
    Clock,
    /// To stir the guest's random numbers.
    Random,
    /// To change the machine's name and ids, and the addresses of its network cards.
    Identity,
    /// To have the hooks of the guest's owner run.
    Hooks,
    /// To have services restarted in a restored copy.
    Restart,
    /// Of a newer agent.
    #[serde(other)]
    Unknown,
}

/// Sixteen random bytes of an agent, in hexadecimal digits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Nonce(pub String);

impl Nonce {
    /// The bytes, if there are 16.
    #[must_use]
    pub fn bytes(&self) -> Option<[u8; 16]> {
        let mut bytes = [0; 16];
        if self.0.len() != 2 * bytes.len() || !self.0.is_ascii() {
            return None;
        }
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(self.0.get(2 * i..2 * i + 2)?, 16).ok()?;
        }
        Some(bytes)
    }
}

impl From<[u8; 16]> for Nonce {
    fn from(bytes: [u8; 16]) -> Self {
        Self(bytes.iter().map(|b| format!("{b:02x}")).collect())
    }
}

/// Where an agent keeps the word by which its restored copy knows that it is one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generation {
    /// The agent's process id.
    pub pid: u32,
    /// Address of the [`Mark`] in its memory.
    pub address: u64,
    /// What stands in it.
    pub nonce: Nonce,
}

/// What the agent has in its memory for the saver to find and to change in the copy.
///
/// ```text
/// 0   16  "ELISION AGENT 1\n"
/// 16  16  nonce: chosen by chance when the agent starts, and again in a restored copy
/// 32  4   word, little-endian
/// ```
/// It stands in one page that nobody else maps.
#[derive(Clone, Copy, Debug)]
pub struct Mark;

impl Mark {
    /// What it begins with.
    pub const MAGIC: [u8; 16] = *b"ELISION AGENT 1\n";
    /// Where the nonce is.
    pub const NONCE: usize = 16;
    /// Where the word is.
    pub const WORD: usize = 32;
    /// Bytes of it.
    pub const LEN: usize = 36;
}

/// The word of a [`Mark`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Word {
    /// Nothing stands still.
    Idle = 0,
    /// Processes stand still for a save. Only this the saver replaces, and only in the copy.
    Calm = 1,
    /// Written by the saver: this is a copy.
    Restored = 2,
}

impl Word {
    /// As it stands in memory.
    #[must_use]
    pub fn bytes(self) -> [u8; 4] {
        (self as u32).to_le_bytes()
    }
}

/// An answer of the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Answer {
    /// To [`Ask::Hello`].
    Hello {
        /// What the agent speaks.
        versions: Versions,
        /// Version of the agent.
        agent: String,
        /// What the guest's owner allows.
        may: Vec<Capability>,
        /// Where the agent can be marked in a copy.
        generation: Generation,
    },
    /// To [`Ask::Prepare`], [`Ask::Freeze`], [`Ask::Thaw`] and [`Ask::Saved`].
    Done(Done),
    /// To [`Ask::Restored`].
    Restored(Report),
    /// The agent does not do that.
    Refused {
        /// Why, in short.
        reason: Reason,
        /// Why, in words.
        text: String,
    },
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// Of how many processes.
    pub processes: u32,
    /// To [`Ask::Thaw`]: how long they stood still by the guest's clock, which stands while the VM does; in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub still_us: Option<u64>,
    /// What was not done, or only in part; in words.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// Why an agent does not do what it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// No version in common.
    Version,
    /// The guest's owner does not allow it.
    NotAllowed,
    /// It was asked at a wrong time.
    Order,
    /// It was not done in time.
    Late,
    /// It could not be done.
    Failed,
    /// The question was not understood.
    NotUnderstood,
    /// Of a newer agent.
    #[serde(other)]
    Unknown,
}

/// What a restored agent has put in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Whether the agent saw by itself, by its word, that it was restored.
    pub noticed: bool,
    /// Control groups that were ended as a whole.
    pub groups_ended: u32,
    /// Processes in them that were still there.
    pub processes_ended: u32,
    /// Whether the kernel's random numbers were stirred with the host's seed.
    pub reseeded: bool,
    /// By how much the clock was set forward (or back), in milliseconds.
    pub clock_ms: Option<i64>,
    /// The machine's new name.
    #[serde(default)]
    pub hostname: Option<String>,
    /// The machine's new id.
    #[serde(default)]
    pub machine_id: Option<String>,
    /// The new id of this boot.
    #[serde(default)]
    pub boot_id: Option<String>,
    /// The network cards that have a new address; nothing from an agent that was not asked, or that does not know the
    /// question.
    #[serde(default)]
    pub network_cards: Option<Vec<NewAddress>>,
    /// Hooks that ran well.
    pub hooks: u32,
    /// Services that are restarted.
    #[serde(default)]
    pub restarted: Vec<String>,
    /// Programs that had asked to be told of a restore.
    #[serde(default)]
    pub programs_told: u32,
    /// What was not done, or only in part; in words.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// A network card that has a new address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewAddress {
    /// Its name in the guest.
    pub name: String,
    /// The address until now.
    pub from: Mac,
    /// The address from now on.
    pub to: Mac,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_is_the_documented_one() {
        let processes = vec![ProcessId { pid: 812, started: 4711, descendants: true }];
        let calm = Calm { limit_ms: 5000, processes, groups: vec!["/a".to_owned()], ..Calm::default() };
        let ask = Envelope { session: 1, id: 2, body: Ask::Freeze(calm) };
        let text = r#"{"session":1,"id":2,"ask":"freeze","limit_ms":5000,"processes":[[812,4711,1]],"groups":["/a"],"write_all":false}"#;
        assert_eq!(serde_json::to_string(&ask).unwrap(), text);
        assert_eq!(serde_json::from_str::<Envelope<Ask>>(text).unwrap(), ask);
        let answer = r#"{"session":1,"id":2,"answer":"done","processes":1,"of a newer agent":[]}"#;
        let done = Answer::Done(Done { processes: 1, ..Done::default() });
        assert_eq!(serde_json::from_str::<Envelope<Answer>>(answer).unwrap().body, done);
    }

    #[test]
    fn an_older_agent_s_report_says_nothing_of_network_cards() {
        let text = r#"{"noticed":true,"groups_ended":0,"processes_ended":0,"reseeded":true,"clock_ms":null,"hooks":0}"#;
        assert_eq!(serde_json::from_str::<Report>(text).unwrap().network_cards, None);
        let card = r#"{"name":"eth0","from":"52:54:00:00:00:01","to":"02:00:00:00:00:02"}"#;
        let text = text.replace("\"hooks\":0", &format!("\"hooks\":0,\"network_cards\":[{card}]"));
        let cards = serde_json::from_str::<Report>(&text).unwrap().network_cards.unwrap();
        assert_eq!(serde_json::to_string(&cards[0]).unwrap(), card);
        // One that is not asked for new addresses is asked as before there were any.
        assert!(!serde_json::to_string(&Identity::default()).unwrap().contains("macs"));
    }

    #[test]
    fn what_a_newer_agent_may_do_is_no_error() {
        let may: Vec<Capability> = serde_json::from_str(r#"["calm","fly"]"#).unwrap();
        assert_eq!(may, [Capability::Calm, Capability::Unknown]);
    }

    #[test]
    fn the_newest_common_version_is_spoken() {
        let versions = |from, to| Versions { from, to };
        assert_eq!(versions(1, 3).common(versions(2, 5)), Some(3));
        assert_eq!(versions(4, 5).common(versions(1, 9)), Some(5));
        assert_eq!(versions(1, 2).common(versions(3, 4)), None);
        assert_eq!(versions(2, 1).common(versions(1, 2)), None);
    }

    #[test]
    fn a_nonce_is_sixteen_bytes() {
        let bytes = [0xa5; 16];
        assert_eq!(Nonce::from(bytes).bytes(), Some(bytes));
        for wrong in ["", "a5", "zz5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a", "äääääääääääääääääääääääääääääääää"]
        {
            assert_eq!(Nonce(wrong.to_owned()).bytes(), None, "{wrong}");
        }
    }

    #[test]
    fn notes_are_few_and_short() {
        let mut notes = Vec::new();
        for _ in 0..100 {
            note(&mut notes, &"ä".repeat(1000));
        }
        assert!(notes.len() == MOST_NOTES && notes.iter().all(|n| n.len() == LONGEST_NOTE));
    }
}
