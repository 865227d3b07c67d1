//! The soak: many processes contend for one lock for a while, and everything goes wrong that can.
//!
//! Any test binary of the suite runs it: `cargo test -p sync-redis --test conformance -- soak 60`.
//! A seed decides beforehand what happens when ([`plan`]); whom it happens to is decided on the
//! spot, mostly the process that holds the lock just then ([`arena`]). Each process reaches the
//! store through a proxy of its own. Afterwards the history of all of them is judged.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use sync_core::{BootClock, Clock};
use tokio::time::{sleep, timeout};

use self::arena::Arena;
use self::outcome::Outcome;
use self::plan::{Targets, Terms};
use crate::checker::{self, Outside, check};
use crate::child::Orders;
use crate::failed::Failed;
use crate::history;
use crate::register::Register;
use crate::store::Store;

mod arena;
mod dice;
mod outcome;
mod plan;
mod tail;
mod witness;
mod worker;

pub(crate) use self::worker::work;

const USAGE: &str = "\
usage: soak [SECONDS] [--seed N] [--processes N] [--ttl SECONDS] [--faults LIST] [--relaxed] [--keep]

LIST is some of clients, network and servers, joined by commas (default: clients,network).
With --relaxed violations are counted and no failure: for a store that may lose what it said.
With --keep the history stays, as it does after a failure.";

/// What a run is to be.
#[derive(Debug, Clone)]
struct Settings {
    length: Duration,
    seed: u64,
    processes: usize,
    ttl: Duration,
    /// How long the store keeps what the dead held.
    kept: Duration,
    targets: Targets,
    relaxed: bool,
    keep: bool,
}

impl Settings {
    fn parse(
        arguments: impl IntoIterator<Item = String>,
        ttl: Duration,
        kept: impl FnOnce(Duration) -> Duration,
    ) -> Result<Self, String> {
        let targets = Targets { clients: true, network: true, servers: false };
        let (length, seed) = (Duration::from_secs(60), BootClock::new().now().as_nanos());
        let (processes, relaxed, keep) = (8, false, false);
        let mut settings = Self { length, seed, processes, ttl, kept: ttl, targets, relaxed, keep };
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
            match &*argument {
                "--seed" => settings.seed = number(&value()?)?,
                "--processes" => settings.processes = number(&value()?)?,
                "--ttl" => settings.ttl = seconds(&value()?)?,
                "--faults" => settings.targets = targets_of(&value()?)?,
                "--relaxed" => settings.relaxed = true,
                "--keep" => settings.keep = true,
                length => settings.length = seconds(length)?,
            }
        }
        if settings.processes < 2 {
            return Err("one process alone does not contend".to_owned());
        }
        settings.kept = kept(settings.ttl);
        Ok(settings)
    }
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{text:?} is no number"))
}

fn seconds(text: &str) -> Result<Duration, String> {
    let length = Duration::try_from_secs_f64(number(text)?).map_err(|e| e.to_string())?;
    if length < Duration::from_millis(1) { Err(format!("{text:?} is no time")) } else { Ok(length) }
}

fn targets_of(list: &str) -> Result<Targets, String> {
    let mut targets = Targets::default();
    for word in list.split(',') {
        match word {
            "clients" => targets.clients = true,
            "network" => targets.network = true,
            "servers" => targets.servers = true,
            other => return Err(format!("{other:?} is not among clients, network and servers")),
        }
    }
    Ok(targets)
}

/// Runs the soak if the first argument says so.
pub(crate) fn main(store: &Arc<dyn Store>) -> Option<ExitCode> {
    let mut arguments = std::env::args().skip(1);
    if arguments.next()? != "soak" {
        return None;
    }
    let arguments: Vec<String> = arguments.collect();
    if arguments.iter().any(|argument| argument == "--help") {
        println!("{USAGE}");
        return Some(ExitCode::SUCCESS);
    }
    let settings = match Settings::parse(arguments, store.ttl(), |ttl| store.kept(ttl)) {
        Ok(settings) => settings,
        Err(why) => {
            eprintln!("{why}\n\n{USAGE}");
            return Some(ExitCode::from(2));
        }
    };
    let outcome = crate::suite::runtime("soak")
        .map_err(Failed::from)
        .and_then(|runtime| runtime.block_on(run(store, &settings)));
    Some(match outcome {
        Ok(outcome) => {
            println!("{outcome}");
            if outcome.wrong().is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(failed) => {
            println!("soak: FAILED: {} (seed {})", failed.to_text(), settings.seed);
            ExitCode::FAILURE
        }
    })
}

async fn run(store: &Arc<dyn Store>, settings: &Settings) -> Result<Outcome, Failed> {
    let server = Arc::new(store.start().await?);
    if server.is_in_process() {
        Err("the store lives in this process: no other can contend for it")?;
    }
    if settings.targets.servers && !server.is_ours() {
        Err("the server is somebody else's to stop")?;
    }
    let url = server.url();
    let version = store.version(&url).await?;
    println!("soak of {version} for {:?}, seed {}", settings.length, settings.seed);
    let dir = tempfile::Builder::new().prefix("sync-soak-").tempdir()?;
    let started = BootClock::new().now().as_nanos();
    let namespace = format!("soak-{:x}-{started:x}", std::process::id());
    let at = |name: &str| dir.path().join(name);
    let orders = Orders::new("soak", &url, &namespace, settings.ttl, at("history"))
        .with("name", "x")
        .with("register", at("register").display())
        .with("notes", at("notes").display());

    let arena =
        Arena::start(settings, Arc::clone(store), Arc::clone(&server), &orders, at("history"));
    let arena = arena.await?;
    let arena = Arc::new(arena);
    let failed = contend(&arena, settings).await.err().map(|failed| failed.to_text());
    let done = arena.done();
    // Those that still run, after a failure, do so no longer.
    drop(arena);

    let (orphans, left) = match failed {
        None => orphans(store, &url, &namespace, settings.ttl).await?,
        Some(_) => (0, Vec::new()),
    };
    let history = history::read(&at("history"))?;
    let outside = if settings.relaxed { Outside::Expected } else { Outside::Forbidden };
    let acquisitions = checker::acquisitions(&history).into_iter().next().unwrap_or_default();
    let mut report = check(&history, outside);
    let apart = outcome::take_apart(&mut report, &done);
    let outcome = Outcome {
        store: store.name().to_owned(),
        version,
        settings: settings.clone(),
        done: done.iter().fold(BTreeMap::new(), |mut counts, done| {
            *counts.entry(done.mishap).or_default() += 1;
            counts
        }),
        to_leaders: done.iter().filter(|done| done.to_leader).count(),
        report,
        apart,
        failovers: outcome::failovers(&done, &acquisitions),
        register: Register::open(&at("register"))?.contents()?,
        notes: read_notes(&at("notes"))?,
        orphans,
        left,
        failed,
    };
    let violated = !outcome.report.is_clean() || !outcome.apart.is_empty();
    if settings.keep || !outcome.wrong().is_empty() || violated {
        println!("the history is in {}", dir.keep().display());
    }
    Ok(outcome)
}

/// The run itself: all faults, the recovery from them, and an orderly end.
async fn contend(arena: &Arc<Arena>, settings: &Settings) -> Result<(), Failed> {
    let Settings { seed, length, ttl, kept, targets, .. } = *settings;
    let terms = Terms { length, ttl, kept, cluster: arena.is_a_cluster() };
    let plan = plan::plan(seed, targets, terms);
    let (play, rest) = (Arc::clone(arena).play(plan), sleep(settings.length));
    let (played, ()) = tokio::join!(play, rest);
    played?;
    arena.recover().await?;
    arena.finish().await
}

/// How much stands in the store, and what of it still does once time should have removed it.
async fn orphans(
    store: &Arc<dyn Store>,
    url: &str,
    namespace: &str,
    ttl: Duration,
) -> Result<(usize, Vec<String>), Failed> {
    let mut left = store.leftovers(url, namespace).await?;
    let at_once = left.len();
    let gone = async {
        while !left.is_empty() {
            sleep(Duration::from_millis(100)).await;
            left = store.leftovers(url, namespace).await?;
        }
        Ok::<(), Failed>(())
    };
    if let Ok(outcome) = timeout(ttl * 3 + Duration::from_secs(10), gone).await {
        outcome?;
    }
    Ok((at_once, left))
}

fn read_notes(path: &Path) -> std::io::Result<BTreeMap<String, usize>> {
    witness::read(path)
}

impl fmt::Display for Targets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = [(self.clients, "clients"), (self.network, "network"), (self.servers, "servers")];
        let some: Vec<_> = all.into_iter().filter(|(on, _)| *on).map(|(_, name)| name).collect();
        f.write_str(&some.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Settings, String> {
        let words = line.split_whitespace().map(ToOwned::to_owned);
        Settings::parse(words, Duration::from_secs(2), |ttl| ttl * 2)
    }

    #[test]
    fn the_arguments_say_what_a_run_is() {
        let plain = parse("").unwrap();
        assert_eq!((plain.length.as_secs(), plain.processes), (60, 8));
        assert_eq!((plain.ttl.as_secs(), plain.targets.to_string()), (2, "clients,network".into()));
        let all = parse("1.5 --seed 7 --processes 3 --ttl 10 --faults servers,clients --relaxed");
        let Settings { length, seed, processes, ttl, kept, targets, relaxed, .. } = all.unwrap();
        assert_eq!((length.as_millis(), seed, processes, ttl.as_secs()), (1500, 7, 3, 10));
        assert_eq!(kept.as_secs(), 20);
        assert!(relaxed && targets.clients && targets.servers && !targets.network);
        for bad in ["x", "0", "-1", "--seed", "--seed x", "--faults all", "--processes 1", "nan"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
