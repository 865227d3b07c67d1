//! The command line that the examples `redis-lock`, `redis-elect`, `etcd-lock` … share: all that
//! such an example writes itself is how it connects.
//!
//! ```no_run
//! use std::process::ExitCode;
//! use sync_conformance::cli::{self, About, Target};
//! use sync_core::{Coordinator, Error, memory};
//!
//! fn main() -> ExitCode {
//!     let about = About { name: "memory", title: "a store in memory", url: "not used" };
//!     cli::lock(&about, connect)
//! }
//!
//! async fn connect(target: Target) -> Result<Coordinator, Error> {
//!     memory::Store::new().connect(&target.options)
//! }
//! ```

mod arguments;
pub mod cases;
mod claim;
mod command;
mod console;
mod contender;
mod ending;
pub mod example;

use std::process::ExitCode;
use std::time::Duration;

use sync_core::{Coordinator, Error};
use tokio::runtime::Builder;

pub use arguments::{About, Target};

use arguments::Plan;
use console::Console;
use contender::Contender;
use ending::Ending;

/// The claim was not got within the wait.
const NOT_ACQUIRED: u8 = 124;
/// The claim was lost while COMMAND ran.
const LOST: u8 = 125;
/// COMMAND cannot be found.
const NOT_FOUND: u8 = 127;
/// Something that was given cannot be used.
const USAGE: u8 = 2;
/// Anything else.
const FAILED: u8 = 1;

/// Within what time the store must have answered at the start, whatever `connect` says.
const START_WITHIN: Duration = Duration::from_secs(9);

/// Runs `STORE-lock` from the process's arguments: COMMAND under a lock.
///
/// Returns what the process is to exit with; its help says what each status means.
pub fn lock<C>(about: &About, connect: C) -> ExitCode
where
    C: AsyncFnOnce(Target) -> Result<Coordinator, Error>,
{
    run(Plan::lock(about, std::env::args_os()), connect)
}

/// Runs `STORE-elect` from the process's arguments: COMMAND while elected, or the leader's name
/// at each change.
///
/// Returns what the process is to exit with; its help says what each status means.
pub fn elect<C>(about: &About, connect: C) -> ExitCode
where
    C: AsyncFnOnce(Target) -> Result<Coordinator, Error>,
{
    run(Plan::elect(about, std::env::args_os()), connect)
}

fn run<C>(plan: Result<Plan, clap::Error>, connect: C) -> ExitCode
where
    C: AsyncFnOnce(Target) -> Result<Coordinator, Error>,
{
    let plan = match plan {
        Ok(plan) => plan,
        Err(error) => {
            let _ = error.print();
            // Help that was asked for is a success.
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let console = Console::new(plan.program.clone());
    // Two workers: what renews and what watches the deadline do not wait for one another.
    let runtime = match Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("{}: there is no runtime: {error}", plan.program);
            return ExitCode::from(FAILED);
        }
    };
    let code = runtime.block_on(async {
        let ending = match Ending::on_signals() {
            Ok(ending) => ending,
            Err(error) => return console.failed("cannot watch for signals", &error).await,
        };
        tokio::select! {
            biased;
            code = ending.overdue() => {
                let text = "the store has not answered in time; what is left there ends with its TTL";
                console.complain(text).await;
                code
            }
            code = connected(&plan, connect, &console, &ending) => code,
        }
    });
    // Not waited for: a look-up of a name, or a pipe that nobody reads, may hang in there.
    runtime.shutdown_background();
    ExitCode::from(code)
}

async fn connected<C>(plan: &Plan, connect: C, console: &Console, ending: &Ending) -> u8
where
    C: AsyncFnOnce(Target) -> Result<Coordinator, Error>,
{
    let connecting = tokio::time::timeout(START_WITHIN, connect(plan.target()));
    let sync = tokio::select! {
        biased;
        code = ending.told() => return code,
        connected = connecting => match connected {
            Ok(Ok(sync)) => sync,
            Ok(Err(error)) => return console.error(&error).await,
            Err(_) => {
                console.complain(format!("no answer of the store within {START_WITHIN:?}")).await;
                return FAILED;
            }
        },
    };
    let code = Contender { plan, sync: &sync, console, ending }.run().await;
    if let Err(error) = sync.shutdown().await {
        console.complain(error).await;
    }
    code
}
