//! Terminals (`drivers/tty`): what they hold of input and output on its way.
//!
//! ```text
//! tty_struct: ldisc -> ops; disc_data -> n_tty_data: read_buf, echo_buf      line discipline
//!             write_buf[..write_cnt]                                         what a write call brings
//!             link -> the other end of a pseudo terminal
//!             port: buf.head -> tty_buffer -> tty_buffer ...                 what the driver received
//!                   buf.free -> tty_buffer ...                               and received before
//!                   xmit_buf                                                 what the driver sends
//!             driver_data -> uart_state: xmit.buf | hvc_struct: outbuf | vc_data: the screen
//! ```
//!
//! A `tty_buffer` has `2 * size` bytes behind it: characters all over, or, if it has flags, one half
//! characters and one half flags.

use crate::layout::layout;
use crate::tasks::Process;
use crate::{Content, Kernel, KernelError};
use elision_memory::{Gva, PAGE_SIZE};

layout! {
    pub(crate) struct TerminalLayout {
        signal: offset("task_struct", &["signal"]),
        tty: offset("signal_struct", &["tty"]),
        name: offset("tty_struct", &["name"]),
        name_len: count("tty_struct", "name"),
        operations: offset("tty_struct", &["ops"]),
        link: offset("tty_struct", &["link"]),
        discipline: offset("tty_struct", &["ldisc"]),
        discipline_data: offset("tty_struct", &["disc_data"]),
        driver_data: offset("tty_struct", &["driver_data"]),
        write_buf: offset("tty_struct", &["write_buf"]),
        write_len: number("tty_struct", &["write_cnt"]),
        port: offset("tty_struct", &["port"]),
        discipline_operations: offset("tty_ldisc", &["ops"]),
        read_buf: offset("n_tty_data", &["read_buf"]),
        read_len: count("n_tty_data", "read_buf"),
        echo_buf: offset("n_tty_data", &["echo_buf"]),
        echo_len: count("n_tty_data", "echo_buf"),
        received: offset("tty_port", &["buf.head"]),
        spare: offset("tty_port", &["buf.free"]),
        port_xmit: optional("tty_port", &["xmit_buf"]),
        next: offset("tty_buffer", &["next"]),
        used: number("tty_buffer", &["used"]),
        size: number("tty_buffer", &["size"]),
        flags: number("tty_buffer", &["flags"]),
        data: offset("tty_buffer", &["data"]),
        uart_xmit: optional("uart_state", &["xmit.buf"]),
        hvc_out: optional("hvc_struct", &["outbuf"]),
        hvc_out_len: number_opt("hvc_struct", &["outbuf_size"]),
        hvc_size: size_opt("hvc_struct"),
    }
}

const NAME_LIMIT: usize = 64;
const WHAT: &str = "terminal";
const BUFFER: &str = "terminal's buffer";
/// A terminal holds at most 640 KiB of input, in buffers of at least 256 bytes.
const BUFFER_LIMIT: u64 = 1 << 14;
/// No buffer of a terminal is larger.
const LEN_LIMIT: u64 = 1 << 20;
/// Flag of a buffer without flags, where a whole word holds it.
const NO_FLAGS: u64 = 1;

impl Kernel<'_> {
    /// The controlling terminal of a process (`tty_struct`).
    pub fn controlling_terminal(&self, process: &Process) -> Result<Option<Gva>, KernelError> {
        self.terminal_of_task(process.leader)
    }

    fn terminal_of_task(&self, task: Gva) -> Result<Option<Gva>, KernelError> {
        let layout = &self.profile.terminal;
        let signal = self.pointer(task.wrapping_add(layout.signal), "task")?;
        let tty = self.pointer(signal.wrapping_add(layout.tty), "signal state")?;
        Ok((tty.0 != 0).then_some(tty))
    }

    /// Name of a task's terminal relative to `/dev`: `ttyS0`, `tty1`, `pts/0`.
    pub(crate) fn controlling_tty(&self, task: Gva) -> Result<Option<String>, KernelError> {
        self.terminal_of_task(task)?.map(|tty| self.terminal_name(tty)).transpose()
    }

    /// Name of a terminal relative to `/dev`.
    pub fn terminal_name(&self, tty: Gva) -> Result<String, KernelError> {
        let layout = &self.profile.terminal;
        let limit = usize::try_from(layout.name_len).unwrap_or(NAME_LIMIT).min(NAME_LIMIT);
        let name = self.string(tty.wrapping_add(layout.name), limit, WHAT)?;
        // The kernel calls the slave side of a pseudo terminal pts0; devpts calls it pts/0.
        Ok(match name.strip_prefix("pts") {
            Some(n) if n.starts_with(|c: char| c.is_ascii_digit()) => format!("pts/{n}"),
            _ => name,
        })
    }

    /// The other end of a pseudo terminal.
    pub fn terminal_peer(&self, tty: Gva) -> Result<Option<Gva>, KernelError> {
        let peer = self.pointer(tty.wrapping_add(self.profile.terminal.link), WHAT)?;
        Ok((peer.0 != 0).then_some(peer))
    }

    /// Everything that a terminal holds of input and output. Whether its line discipline is one whose
    /// buffers are known.
    pub fn terminal_content(&self, tty: Gva, visit: &mut dyn FnMut(Content)) -> Result<bool, KernelError> {
        let layout = &self.profile.terminal;
        let known = self.discipline_content(tty, visit)?;
        let write_buf = self.pointer(tty.wrapping_add(layout.write_buf), WHAT)?;
        self.buffer(write_buf, self.number(tty, layout.write_len, WHAT)?, visit)?;

        let port = self.pointer(tty.wrapping_add(layout.port), WHAT)?;
        if port.0 != 0 {
            self.flip_buffers(port.wrapping_add(layout.received), false, visit)?;
            self.flip_buffers(port.wrapping_add(layout.spare), true, visit)?;
            if let Some(xmit) = layout.port_xmit {
                let xmit = self.pointer(port.wrapping_add(xmit), WHAT)?;
                self.buffer(xmit, PAGE_SIZE as u64, visit)?;
            }
        }
        self.driver_content(tty, visit)?;
        Ok(known)
    }

    fn discipline_content(&self, tty: Gva, visit: &mut dyn FnMut(Content)) -> Result<bool, KernelError> {
        let layout = &self.profile.terminal;
        let data = self.pointer(tty.wrapping_add(layout.discipline_data), WHAT)?;
        let discipline = self.pointer(tty.wrapping_add(layout.discipline), WHAT)?;
        if data.0 == 0 || discipline.0 == 0 {
            return Ok(true); // hung up
        }
        let operations = self.pointer(discipline.wrapping_add(layout.discipline_operations), WHAT)?;
        if operations != self.require("n_tty_ops")? {
            return Ok(false);
        }
        self.buffer(data.wrapping_add(layout.read_buf), layout.read_len, visit)?;
        self.buffer(data.wrapping_add(layout.echo_buf), layout.echo_len, visit)?;
        Ok(true)
    }

    /// The characters of a chain of `tty_buffer`s. Those that are spare hold what was read.
    fn flip_buffers(
        &self,
        head: Gva,
        spare: bool,
        visit: &mut dyn FnMut(Content),
    ) -> Result<(), KernelError> {
        let layout = &self.profile.terminal;
        let mut at = self.pointer(head, WHAT)?;
        for _ in 0..BUFFER_LIMIT {
            if at.0 == 0 {
                return Ok(());
            }
            let size = self.number(at, layout.size, BUFFER)?.min(LEN_LIMIT + 1);
            let data = at.wrapping_add(layout.data);
            let flags = self.number(at, layout.flags, BUFFER)?;
            let has_flags = if layout.flags.bytes == 1 { flags != 0 } else { flags & NO_FLAGS == 0 };
            if has_flags && !spare {
                self.buffer(data, size, visit)?;
                // Flags that are not set yet are what an earlier use has left.
                let used = self.number(at, layout.used, BUFFER)?.min(size);
                self.buffer(data.wrapping_add(size + used), size - used, visit)?;
            } else {
                self.buffer(data, 2 * size, visit)?;
            }
            at = self.pointer(at.wrapping_add(layout.next), BUFFER)?;
        }
        Err(KernelError::Torn { what: BUFFER, at: head, why: "there are more than a terminal can have" })
    }

    fn driver_content(&self, tty: Gva, visit: &mut dyn FnMut(Content)) -> Result<(), KernelError> {
        let layout = &self.profile.terminal;
        let operations = self.pointer(tty.wrapping_add(layout.operations), WHAT)?;
        let is = |name| self.symbol(name) == Some(operations);
        let data = self.pointer(tty.wrapping_add(layout.driver_data), WHAT)?;
        if data.0 == 0 {
            return Ok(());
        }
        if is("uart_ops") {
            if let Some(xmit) = layout.uart_xmit {
                let xmit = self.pointer(data.wrapping_add(xmit), "serial port")?;
                self.buffer(xmit, PAGE_SIZE as u64, visit)?;
            }
        } else if is("hvc_ops") {
            let (Some(out), Some(len)) = (layout.hvc_out, layout.hvc_out_len) else { return Ok(()) };
            let at = data.wrapping_add(out);
            // Kernels since 6.10 have it behind the structure, older ones point to it.
            let out = if layout.hvc_size == Some(out) { at } else { self.pointer(at, WHAT)? };
            self.buffer(out, self.number(data, len, WHAT)?, visit)?;
        } else if is("con_ops") {
            self.screen_content(data, visit)?;
        }
        Ok(())
    }

    /// One buffer, if it is there.
    pub(crate) fn buffer(
        &self,
        at: Gva,
        len: u64,
        visit: &mut dyn FnMut(Content),
    ) -> Result<(), KernelError> {
        if at.0 == 0 || len == 0 {
            return Ok(());
        }
        if len > 2 * LEN_LIMIT {
            return Err(KernelError::Torn { what: BUFFER, at, why: "it is longer than it can be" });
        }
        visit(Content::Bytes(at..at.wrapping_add(len)));
        Ok(())
    }
}
