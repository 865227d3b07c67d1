//! COMMAND, for as long as the claim allows.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use sync_core::{BootClock, Clock, FencingToken, Hold, Moment};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

use super::ending::Ending;

/// From SIGTERM to SIGKILL when the example was told to stop.
const GRACE: Duration = Duration::from_secs(1);

/// How COMMAND's time under a claim came to its end.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Served {
    /// COMMAND ended by itself: no signal of ours came before.
    pub(super) status: Option<ExitStatus>,
    /// The example was told to stop, and exits with this.
    pub(super) told: Option<u8>,
    /// The claim is gone.
    pub(super) lost: bool,
}

/// Starts COMMAND in this process's group, with the token in its environment.
pub(super) fn start(command: &[OsString], token: FencingToken) -> io::Result<Child> {
    let (program, arguments) = command.split_first().ok_or(io::ErrorKind::NotFound)?;
    Command::new(program)
        .args(arguments)
        .env("SYNC_TOKEN", token.to_string())
        .kill_on_drop(true)
        .spawn()
}

/// Waits for the end of COMMAND and brings it about where the claim, or whoever tells the example
/// to stop, demands it. `on_loss` is called when COMMAND has got its signals for a loss.
pub(super) async fn attend(
    child: &mut Child,
    hold: &Hold,
    margin: Duration,
    ending: &Ending,
    on_loss: impl AsyncFn(),
) -> io::Result<Served> {
    let clock = BootClock::new();
    // After a stop this wakes the loop, which looks at the clock before anything else.
    let mut continued = signal(SignalKind::from_raw(Signal::CONT.as_raw()))?;
    let mut served = Served::default();
    let mut kill_at = None;
    // Whether COMMAND has got a signal of ours: its end is its own no more.
    let mut asked = false;
    loop {
        let deadline = hold.deadline();
        let ask_at = (!asked).then(|| deadline.before(margin));
        tokio::select! {
            biased;
            _ = hold.revoked(), if !served.lost => {
                served.lost = true;
                let ended = child.try_wait()?;
                if ended.is_none() {
                    send(child, Signal::TERM);
                    child.start_kill()?;
                }
                on_loss().await;
                if ended.is_some() {
                    served.status = ended.filter(|_| !asked);
                    return Ok(served);
                }
                asked = true;
            }
            code = ending.told(), if served.told.is_none() => {
                served.told = Some(code);
                send(child, Signal::TERM);
                asked = true;
                kill_at = Some(clock.now() + GRACE);
            }
            status = child.wait() => {
                let status = status?;
                served.status = (!asked).then_some(status);
                return Ok(served);
            }
            () = at(&clock, ask_at) => {
                // Else a renewal has come meanwhile.
                if hold.deadline() == deadline {
                    send(child, Signal::TERM);
                    asked = true;
                }
            }
            () = at(&clock, kill_at) => {
                kill_at = None;
                child.start_kill()?;
            }
            _ = continued.recv() => {}
        }
    }
}

/// What a shell would say of this end.
pub(super) fn to_code(status: ExitStatus) -> u8 {
    match (status.code(), status.signal()) {
        (Some(code), _) => u8::try_from(code & 0xff).unwrap_or(super::FAILED),
        (None, Some(signal)) => by_signal(signal),
        (None, None) => super::FAILED,
    }
}

/// What a shell says of whatever was ended by a signal.
pub(super) fn by_signal(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}

/// Sends a signal to COMMAND, which is its own process until it has been waited for.
fn send(child: &Child, signal: Signal) {
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // It may have ended by itself a moment ago.
        let _ = kill_process(pid, signal);
    }
}

async fn at(clock: &BootClock, moment: Option<Moment>) {
    match moment {
        Some(moment) => clock.sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
