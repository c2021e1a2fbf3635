//! What is cleared in the device state: vCPU registers, keyboard, serial and network leftovers, the screen.

use crate::exit::Exit;
use crate::failure::Failure;
use elision_plan::{Selection, VcpuAction};
use elision_policy::{Policy, Video};
use elision_qemu::DeviceState;
use serde::Serialize;

/// Counts of what was cleared.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Devices {
    /// vCPUs whose vector registers were cleared.
    pub(super) vector_registers: usize,
    /// vCPUs whose general registers were cleared.
    pub(super) general_registers: usize,
    /// Bytes of keyboard, mouse and serial leftovers that held something.
    pub(super) input_bytes: usize,
    /// Bytes of sent packets that network cards held.
    pub(super) network_bytes: usize,
    /// Pages of video memory that held something and were blanked.
    pub(super) video_pages: usize,
}

/// Changes the state as the plan and the policy ask.
pub(super) fn redact(
    state: &mut DeviceState,
    policy: &Policy,
    selection: &Selection,
    vcpus: &[VcpuAction],
) -> Result<Devices, Failure> {
    let mut done = Devices::default();
    for action in vcpus {
        let vcpu = u32::try_from(action.index).unwrap_or(u32::MAX); // they were numbered from u32
        if action.clear_vector {
            state.clear_vector_state(vcpu)?;
            done.vector_registers += 1;
        }
        if action.clear_general {
            state.clear_general_registers(vcpu)?;
            done.general_registers += 1;
        }
        if let Some(vector) = action.interrupt {
            let at_once = state.raise_interrupt(vcpu, vector)?;
            if action.clear_general && !at_once {
                let why =
                    format!("vCPU {vcpu} would run an excluded thread before the guest's kernel can end it");
                return Err(Failure::new(Exit::Refused, why));
            }
        }
    }
    done.input_bytes = state.clear_keyboard().nonzero + state.clear_serial().nonzero;
    done.network_bytes = state.clear_network().nonzero;
    let blank = match policy.save.video() {
        Video::Keep => false,
        Video::Blank => true,
        Video::Auto => selection.excluded().any(|p| p.tty.as_deref().is_some_and(is_virtual_console)),
    };
    if blank {
        let blanked = state.blank_video();
        for device in &blanked.left {
            tracing::warn!("The memory of display {device} has a form that cannot be blanked");
        }
        done.video_pages = blanked.pages;
    }
    Ok(done)
}

/// `tty1` is on the screen; `ttyS0` and `pts/0` are not.
fn is_virtual_console(tty: &str) -> bool {
    tty == "console"
        || tty.strip_prefix("tty").is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::is_virtual_console;

    #[test]
    fn only_virtual_consoles_show_on_the_screen() {
        for (tty, shown) in
            [("tty1", true), ("tty63", true), ("ttyS0", false), ("pts/0", false), ("tty", false)]
        {
            assert_eq!(is_virtual_console(tty), shown, "{tty}");
        }
    }
}
