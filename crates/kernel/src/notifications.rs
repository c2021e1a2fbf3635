//! Events of the file system that nobody has read (`fs/notify`): `inotify` and `fanotify`.
//!
//! ```text
//! private_data -> fsnotify_group.notification_list: fsnotify_event in
//!   inotify_event_info: name_len, name[]
//!   fanotify_name_event: fanotify_event (type), fanotify_info: lengths of handles and names, then all of them
//! ```

use crate::layout::{Number, layout};
use crate::{Content, Kernel, KernelError, OpenFile};
use elision_memory::Gva;

layout! {
    pub(crate) struct NotificationLayout {
        events: optional("fsnotify_group", &["notification_list"]),
        link: optional("fsnotify_event", &["list"]),
        name: optional("inotify_event_info", &["name"]),
        name_len: number_opt("inotify_event_info", &["name_len"]),
        kind: optional("fanotify_event", &["mask"]),
        with_name: enumerator("FANOTIFY_EVENT_TYPE_FID_NAME"),
        info: optional("fanotify_name_event", &["info"]),
        handles: optional("fanotify_info", &["buf"]),
        folder: number_opt("fanotify_info", &["dir_fh_totlen"]),
        other_folder: number_opt("fanotify_info", &["dir2_fh_totlen"]),
        file: number_opt("fanotify_info", &["file_fh_totlen"]),
        first_name: number_opt("fanotify_info", &["name_len"]),
        other_name: number_opt("fanotify_info", &["name2_len"]),
    }
}

const WHAT: &str = "file system event";
/// `NAME_MAX` of any file system, with room to spare.
const NAME_LIMIT: u64 = 1 << 12;
/// The type of a `fanotify` event is three bits of the word behind its mask.
const BEHIND_MASK: u64 = 4;
const TYPE: u64 = 7;
/// The bytes that end two names.
const ENDS: u64 = 2;

impl Kernel<'_> {
    /// Whether an open file tells of events in the file system.
    #[must_use]
    pub fn is_notification_file(&self, file: &OpenFile) -> bool {
        ["inotify_fops", "fanotify_fops"].into_iter().any(|name| self.symbol(name) == Some(file.operations))
    }

    /// The names in the events that nobody has read.
    pub fn notified_names(&self, file: &OpenFile, visit: &mut dyn FnMut(Content)) -> Result<(), KernelError> {
        let layout = &self.profile.notification;
        let (Some(events), Some(link)) = (layout.events, layout.link) else { return Ok(()) };
        let is_inotify = self.symbol("inotify_fops") == Some(file.operations);
        self.for_each_in_list(file.private.wrapping_add(events), WHAT, &mut |at| {
            let event = Gva(at.0.wrapping_sub(link));
            let name = if is_inotify { self.inotify_name(event)? } else { self.fanotify_names(event)? };
            if let Some((at, len)) = name {
                if len > NAME_LIMIT {
                    return Err(KernelError::Torn { what: WHAT, at: event, why: "its name is too long" });
                }
                visit(Content::Bytes(at..at.wrapping_add(len)));
            }
            Ok(())
        })
    }

    fn inotify_name(&self, event: Gva) -> Result<Option<(Gva, u64)>, KernelError> {
        let layout = &self.profile.notification;
        let (Some(name), Some(len)) = (layout.name, layout.name_len) else { return Ok(None) };
        Ok(Some((event.wrapping_add(name), self.number(event, len, WHAT)?)))
    }

    /// The names stand behind the handles, each with a byte that ends it.
    fn fanotify_names(&self, event: Gva) -> Result<Option<(Gva, u64)>, KernelError> {
        let layout = &self.profile.notification;
        let (Some(kind), Some(with_name), Some(info), Some(handles)) =
            (layout.kind, layout.with_name, layout.info, layout.handles)
        else {
            return Ok(None);
        };
        let kind = self.u32(event.wrapping_add(kind.saturating_add(BEHIND_MASK)), WHAT)?;
        if u64::from(kind) & TYPE != with_name {
            return Ok(None);
        }
        let info = event.wrapping_add(info);
        let total = |members: [Option<Number>; 3]| {
            members.into_iter().flatten().try_fold(0_u64, |sum, member| {
                Ok::<_, KernelError>(sum.saturating_add(self.number(info, member, WHAT)?))
            })
        };
        let before = total([layout.folder, layout.other_folder, layout.file])?;
        let names = total([layout.first_name, layout.other_name, None])?;
        Ok(Some((info.wrapping_add(handles.saturating_add(before)), names.saturating_add(ENDS))))
    }
}
