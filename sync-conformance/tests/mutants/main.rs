//! The suite bites: each of many deliberate faults of the core, of a store and of the crates for
//! real ones makes the cases fail that are named for it; without a fault the same cases pass.
//!
//! `scripts/mutants` builds and runs this. Each case runs in a process of its own, in which
//! `SYNC_MUTANT` names the fault. `WRITE_DOCS=1` writes the table in `docs/mutants.md`, which is
//! compared otherwise.
//!
//! One fault against the whole suite, or against the cases of a filter:
//! `SYNC_MUTANT=flag-only SYNC_MUTANTS_STORE=memory scripts/mutants FILTER`

#![cfg(unix)]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::sync::OnceLock;
use std::time::Instant;
use std::{env, io};

use libtest_mimic::{Arguments, Failed, Trial};

use crate::broken::{Broken, Defect};
use crate::catalogue::{Store, Variant};

mod broken;
mod catalogue;
#[path = "../../../sync-consul/tests/conformance.rs"]
#[allow(dead_code, reason = "its main is not used here")]
mod consul;
#[path = "../../../sync-etcd/tests/conformance.rs"]
#[allow(dead_code, reason = "its main is not used here")]
mod etcd;
#[path = "../memory.rs"]
#[allow(dead_code, reason = "its main is not used here")]
mod memory;
#[path = "../../../sync-redis/tests/conformance.rs"]
#[allow(dead_code, reason = "its main is not used here")]
mod redis;

/// The store against which this process is to run the suite.
const STORE: &str = "SYNC_MUTANTS_STORE";

/// How many run side by side unless `--test-threads` says otherwise. They mostly sleep.
const SIDE_BY_SIDE: usize = 8;

fn main() -> ExitCode {
    if let Ok(store) = env::var(STORE) {
        return suite(&store);
    }
    let mut arguments = Arguments::from_args();
    arguments.test_threads = arguments.test_threads.or(Some(SIDE_BY_SIDE));
    let trials = if cfg!(sync_mutants) { trials() } else { Vec::new() };
    let files = match tempfile::tempdir() {
        Ok(files) => files,
        Err(e) => {
            eprintln!("there is no place for files: {e}");
            return ExitCode::FAILURE;
        }
    };
    FILES.get_or_init(|| files.path().to_owned());
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Runs the suite as this process' environment says.
fn suite(store: &str) -> ExitCode {
    let chosen = env::var("SYNC_MUTANT").unwrap_or_default();
    if store == Store::Redis.name() {
        return sync_conformance::main(redis::Redis);
    }
    if store == Store::Etcd.name() {
        return etcd::run("etcd", 1);
    }
    if store == Store::EtcdCluster.name() {
        return etcd::run("etcd-cluster", 3);
    }
    if store == Store::Consul.name() {
        return consul::run("consul", 1);
    }
    if store == Store::ConsulCluster.name() {
        return consul::run("consul-cluster", 3);
    }
    let defect = Defect::ALL.iter().find(|defect| chosen == format!("store:{}", defect.name()));
    sync_conformance::main(Broken::new(defect.copied()))
}

fn trials() -> Vec<Trial> {
    let variants = catalogue::all();
    let cases: BTreeSet<_> = variants.iter().flat_map(Variant::cases).collect();
    let sound = cases.into_iter().map(|(store, case)| {
        let name = format!("sound::{}::{case}", store.name());
        Trial::test(name, move || match outcome(None, store, case)? {
            Outcome::Passed => Ok(()),
            other => Err(format!("{other:?}"))?,
        })
    });
    let faults = variants
        .iter()
        .cloned()
        .map(|variant| Trial::test(variant.name(), move || is_caught(&variant)));
    let table = Trial::test("the_table_in_the_docs", {
        let table = catalogue::table(&variants);
        move || catalogue::compare(&table)
    });
    faults.chain(sound).chain([table]).collect()
}

fn is_caught(variant: &Variant) -> Result<(), Failed> {
    if variant.cases.is_empty() {
        Err("no case is named for it")?;
    }
    for (store, case) in variant.cases() {
        let began = Instant::now();
        match outcome(Some(&variant.chosen), store, case)? {
            Outcome::Failed(why) => {
                let (took, why) = (began.elapsed().as_secs_f32(), why.join(" "));
                println!("{}: caught by {case} in {took:.1} s: {why}", variant.name());
            }
            Outcome::Passed => Err(format!("{case} has noticed nothing"))?,
            Outcome::Skipped => Err(format!("{case} does not apply"))?,
        }
    }
    Ok(())
}

#[derive(Debug)]
enum Outcome {
    Passed,
    Failed(Vec<String>),
    Skipped,
}

/// Where all cases put their files: one that fails keeps its history, of which there is no need
/// here. In one place, where they also see which ports are taken.
static FILES: OnceLock<PathBuf> = OnceLock::new();

/// What comes of one case in a process of its own.
fn outcome(variant: Option<&str>, store: Store, case: &str) -> Result<Outcome, Failed> {
    let name = format!("{}::{case}", store.name());
    let mut command = Command::new(env::current_exe()?);
    command.args(["--exact", &name, "--test-threads=1"]).env(STORE, store.name());
    command.env_remove("SYNC_MUTANT").env_remove("RUST_BACKTRACE");
    command.envs(FILES.get().map(|files| ("TMPDIR", files)));
    if let Some(variant) = variant {
        command.env("SYNC_MUTANT", variant);
    }
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().last().unwrap_or_default();
    let counted = |counts: &str| last == format!("{}: {counts}", store.name());
    if counted("1 passed, 0 failed, 0 skipped") {
        Ok(Outcome::Passed)
    } else if counted("0 passed, 1 failed, 0 skipped") {
        let reason = text.lines().skip_while(|line| *line != format!("---- {name} ----"));
        let reason = reason.skip(1).take_while(|line| !line.is_empty());
        let reason = reason.take_while(|line| !line.starts_with("its history is in"));
        if reason.clone().any(|line| line.contains("does not serve")) {
            Err(format!("no server could be started for {name}"))?;
        }
        Ok(Outcome::Failed(reason.map(|line| line.trim().to_owned()).take(3).collect()))
    } else if counted("0 passed, 0 failed, 1 skipped") {
        Ok(Outcome::Skipped)
    } else {
        let status = io::Error::other(format!("{}: {last:?}", output.status));
        Err(format!("there is no outcome of {name}, and perhaps no such case: {status}"))?
    }
}
