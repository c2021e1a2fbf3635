//! A migration that sends the memory of a running VM, and stops it when little of it is left to send.
//!
//! ```text
//! downtime-limit 0     pass 1: all pages ─> pass 2: those changed since ─> ...     the VM runs
//! downtime-limit 10 ms, twice as much every 300 ms: until what is left takes no longer
//!                      STOP, "pre-switchover" ─> migrate-continue ─> the last pages, devices, "completed"
//! ```
//! QEMU ends the passes when it can send what is left within the limit at the pace that it measured, and with a limit
//! of 0 only when nothing is left (`migration/migration.c`). With the capability `pause-before-switchover`
//! it waits between the stop and the last pages, so that the registers can be asked for: later its global lock is taken
//! until all is sent. A guest that changes memory faster than it is sent is stopped all the same, as the
//! limit grows.

use crate::error::Result;
use crate::migration::{Progress, ReturnPath, poll};
use crate::qmp::Qmp;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const STOPPED: &str = "pre-switchover";
/// Left to send when the stop is near.
const LITTLE: u64 = 32 << 20;
/// Bytes per second that are next to nothing.
const HELD_BACK: u64 = 1 << 20;
/// How long the last pages may take, at first.
const FIRST_LIMIT: Duration = Duration::from_millis(10);
/// After which time they may take twice as long.
const STEP: Duration = Duration::from_millis(300);
/// The longest that QEMU takes is 2000 s.
const LAST_LIMIT: Duration = Duration::from_secs(60);
const LONGEST_BREAK: Duration = Duration::from_millis(2);

/// Waits until QEMU has sent most pages once. It may have stopped the VM then, if it has sent all.
pub(crate) fn wait_for_first_pass(qmp: &mut Qmp, progress: &Progress) -> Result<()> {
    poll(qmp, progress, LONGEST_BREAK, |_, info| {
        let number = |name| info["ram"][name].as_u64();
        let passes = number("dirty-sync-count").unwrap_or(0);
        let is_near = passes >= 1 && number("remaining").is_some_and(|left| left < LITTLE);
        Ok(is_stopped(info) || passes > 1 || is_near)
    })
}

/// Has QEMU stop the VM, which it is allowed to on `path` if it asks. Returns a moment in which it still ran, shortly
/// before the stop.
pub(crate) fn stop(qmp: &mut Qmp, progress: &Progress, path: Option<ReturnPath>) -> Result<Instant> {
    let mut ran = Instant::now();
    let mut limit = FIRST_LIMIT;
    allow(qmp, limit)?;
    path.map_or(Ok(()), |path| path.allow_stop())?;
    let mut since = ran;
    poll(qmp, progress, LONGEST_BREAK, |qmp, info| {
        if is_stopped(info) {
            return Ok(true);
        }
        ran = Instant::now();
        if since.elapsed() > STEP && limit < LAST_LIMIT {
            limit *= 2;
            since = Instant::now();
            tracing::debug!(?limit, "the guest changes memory faster than it is sent");
            allow(qmp, limit)?;
        }
        Ok(false)
    })?;
    Ok(ran)
}

/// Has QEMU send so little that it comes to no end for some seconds, or as much as it can again. One that is at its
/// end already stops the VM, or asks whether it may in a loop that takes a whole processor.
pub(crate) fn hold_back(qmp: &mut Qmp, holds: bool) -> Result<()> {
    let limit = if holds { HELD_BACK } else { 0 };
    qmp.execute("migrate-set-parameters", json!({"max-bandwidth": limit})).map(drop)
}

/// Has QEMU send the last pages.
pub(crate) fn go_on(qmp: &mut Qmp) -> Result<()> {
    qmp.take_events(); // what others did until now
    qmp.execute("migrate-continue", json!({"state": STOPPED})).map(drop)
}

fn allow(qmp: &mut Qmp, limit: Duration) -> Result<()> {
    let limit = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
    qmp.execute("migrate-set-parameters", json!({"downtime-limit": limit})).map(drop)
}

fn is_stopped(info: &Value) -> bool {
    info["status"] == STOPPED
}
