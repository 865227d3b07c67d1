//! Workloads for measuring, the same for every store.
//!
//! What a machine, a server and a client library cost is not ours to tell, so each workload runs
//! beside the [raw commands](Raw) of a program that does without these crates, on a client of the
//! same kind, in the same run, and what counts is the ratio. The two take turns in short slices, so
//! that whatever else the machine does hits both; the ratio of each round is taken by itself, and
//! the median of the rounds is what is shown, with the quartiles beside it.
//!
//! | workload | what it shows |
//! |---|---|
//! | `free` | one task takes a free name and gives it back |
//! | `parallel` | 64 tasks do so, each on a name of its own |
//! | `handover` | 2, 8 and 32 clients hand one name round, beside a [`Rival`] where there is one |
//! | `held` | what 10,000 held names cost, and those who wait |
//!
//! `cargo bench` measures. `cargo test` runs the same workloads in miniature, and what they measure
//! then means nothing: only that they still run.

use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use libtest_mimic::{Arguments, Trial};
use sync_core::{Coordinator, Environment, Options};
use tokio::runtime::{Builder, Runtime};

use crate::failed::Failed;
use crate::server::Server;
use crate::store::Store;

mod free;
mod goals;
mod handover;
mod held;
mod machine;
mod measure;
mod parallel;
mod raw;
mod table;

pub use self::goals::Goals;
pub use self::raw::{Client, Contender, Raw, Rival};
use self::table::Row;

/// Runs the workloads, as the `main` of a bench with `harness = false` and `test = true`.
///
/// Under `cargo bench` it measures and prints a table; a filter picks workloads by name. Otherwise
/// it runs them in miniature, as tests.
#[must_use]
pub fn main(store: impl Store, raw: impl Raw) -> ExitCode {
    let arguments = Arguments::from_args();
    let measures = arguments.bench && !arguments.list;
    let bench = Arc::new(Bench {
        store: Arc::new(store),
        raw: Arc::new(raw),
        scale: if measures { FULL } else { MINIATURE },
        server: Mutex::default(),
    });
    if measures { bench.measure(&arguments) } else { bench.test(arguments) }
}

/// How much is done.
#[derive(Debug, Clone, Copy)]
struct Scale {
    rounds: usize,
    /// Slices of either side in a round of `free`, and operations in each.
    batches: usize,
    batch: usize,
    /// After this a slice of `free` is over, however much of it is done: a disk may be slow.
    patience: Duration,
    /// How long a slice is where time bounds it.
    slice: Duration,
    /// Handovers without which a slice is not over: a rival may be slow.
    handovers: usize,
    /// Held names, and the renewals of them that are looked at.
    names: usize,
    renewals: u32,
    ttl: Duration,
    /// Who waits in the store, and behind others of the same process.
    waiters: usize,
    local_waiters: usize,
}

const FULL: Scale = Scale {
    rounds: 11,
    batches: 20,
    batch: 50,
    patience: Duration::from_millis(100),
    slice: Duration::from_millis(400),
    handovers: 200,
    names: 10_000,
    renewals: 4,
    ttl: Duration::from_secs(15),
    waiters: 1_000,
    local_waiters: 10_000,
};

const MINIATURE: Scale = Scale {
    rounds: 1,
    batches: 2,
    batch: 3,
    patience: Duration::from_millis(50),
    slice: Duration::from_millis(50),
    handovers: 3,
    names: 50,
    renewals: 1,
    ttl: Duration::from_secs(3),
    waiters: 10,
    local_waiters: 10,
};

/// On which of tokio's runtimes a workload runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flavour {
    CurrentThread,
    MultiThread,
}

impl Flavour {
    const BOTH: &[Flavour] = &[Flavour::CurrentThread, Flavour::MultiThread];

    fn name(self) -> &'static str {
        match self {
            Flavour::CurrentThread => "current_thread",
            Flavour::MultiThread => "multi_thread",
        }
    }

    fn runtime(self) -> std::io::Result<Runtime> {
        match self {
            Flavour::CurrentThread => Builder::new_current_thread().enable_all().build(),
            Flavour::MultiThread => {
                Builder::new_multi_thread().worker_threads(2).enable_all().build()
            }
        }
    }
}

/// One line of what can be picked.
#[derive(Debug, Clone, Copy)]
enum Workload {
    Free,
    Parallel,
    Handover(usize),
    Held,
}

/// In the order of the table, with the runtimes that make a difference.
const WORKLOADS: &[(&str, Workload, &[Flavour])] = &[
    ("free", Workload::Free, Flavour::BOTH),
    ("parallel", Workload::Parallel, Flavour::BOTH),
    ("handover 2", Workload::Handover(2), Flavour::BOTH),
    ("handover 8", Workload::Handover(8), Flavour::BOTH),
    ("handover 32", Workload::Handover(32), Flavour::BOTH),
    ("held", Workload::Held, &[Flavour::CurrentThread]),
];

struct Bench {
    store: Arc<dyn Store>,
    raw: Arc<dyn Raw>,
    scale: Scale,
    /// With the runtime that it lives on.
    server: Mutex<Option<(Runtime, Arc<Server>)>>,
}

impl Bench {
    fn measure(&self, arguments: &Arguments) -> ExitCode {
        if cfg!(debug_assertions) {
            println!("THIS IS NOT A RELEASE BUILD: its numbers mean nothing.\n");
        }
        let mut failed = false;
        let mut facts = machine::facts();
        let mut tables: Vec<(usize, Vec<Row>)> = Vec::new();
        let mut version = Err("nothing was measured".into());
        // What memory a lock takes shows only where nothing has been freed before.
        let mut order: Vec<_> = WORKLOADS.iter().enumerate().collect();
        order.sort_by_key(|(_, (_, workload, _))| !matches!(workload, Workload::Held));
        for (place, (name, workload, flavours)) in order {
            for flavour in *flavours {
                let name = format!("{name} {}", flavour.name());
                if arguments.filter.as_ref().is_some_and(|filter| !name.contains(filter)) {
                    continue;
                }
                eprintln!("measuring {name}");
                match self.run(*workload, *flavour) {
                    Ok(rows) => tables.push((place, rows)),
                    Err(why) => {
                        failed = true;
                        println!("{name} FAILED: {}", why.to_text());
                    }
                }
                version = self.version();
                // The next has another: what one has left in the server's log costs the next one time.
                drop(self.running().take());
            }
        }
        match version {
            Ok(version) => facts.insert(0, version),
            Err(why) => println!("the server did not tell its version: {}", why.to_text()),
        }
        facts.push(machine::load("load after"));
        tables.sort_by_key(|(place, _)| *place);
        let rows: Vec<Row> = tables.into_iter().flat_map(|(_, rows)| rows).collect();
        println!("{}", table::show(&facts, &rows));
        if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }

    fn test(self: Arc<Self>, mut arguments: Arguments) -> ExitCode {
        arguments.test_threads = Some(1);
        let mut trials = Vec::new();
        for (name, workload, flavours) in WORKLOADS {
            for flavour in *flavours {
                let name = format!("{}::bench::{name} {}", self.store.name(), flavour.name());
                let bench = Arc::clone(&self);
                trials.push(Trial::test(name.replace(' ', "_"), move || {
                    match bench.run(*workload, *flavour) {
                        Ok(rows) => match rows.iter().find(|row| !row.is_sound()) {
                            Some(row) => Err(format!("no measurement: {row:?}").into()),
                            None => Ok(()),
                        },
                        Err(why) => Err(why.to_text().into()),
                    }
                }));
            }
        }
        libtest_mimic::run(&arguments, trials).exit_code()
    }

    fn run(&self, workload: Workload, flavour: Flavour) -> Result<Vec<Row>, Failed> {
        let field = Field {
            store: Arc::clone(&self.store),
            raw: Arc::clone(&self.raw),
            url: self.server()?.url(),
            scale: self.scale,
            flavour,
        };
        let runtime = flavour.runtime()?;
        let rows = runtime.block_on(async {
            // In a task, so that it runs where a service's tasks do.
            let workload = async move {
                match workload {
                    Workload::Free => free::run(&field).await,
                    Workload::Parallel => parallel::run(&field).await,
                    Workload::Handover(clients) => handover::run(&field, clients).await,
                    Workload::Held => held::run(&field).await,
                }
            };
            tokio::spawn(workload).await?
        });
        runtime.shutdown_timeout(Duration::from_secs(1));
        rows
    }

    fn version(&self) -> Result<String, Failed> {
        let url = self.server()?.url();
        let version = async { self.raw.client(&url).await?.version().await };
        Flavour::CurrentThread.runtime()?.block_on(version)
    }

    fn server(&self) -> Result<Arc<Server>, Failed> {
        let mut running = self.running();
        if let Some((_, server)) = &*running {
            return Ok(Arc::clone(server));
        }
        let runtime = Flavour::CurrentThread.runtime()?;
        let server = Arc::new(runtime.block_on(self.store.start())?);
        *running = Some((runtime, Arc::clone(&server)));
        Ok(server)
    }

    fn running(&self) -> MutexGuard<'_, Option<(Runtime, Arc<Server>)>> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a workload works with.
struct Field {
    store: Arc<dyn Store>,
    raw: Arc<dyn Raw>,
    url: String,
    scale: Scale,
    flavour: Flavour,
}

impl Field {
    async fn raw(&self) -> Result<Arc<dyn Client>, Failed> {
        self.raw.client(&self.url).await
    }

    async fn coordinator(&self) -> Result<Coordinator, Failed> {
        self.coordinator_with(Environment::default()).await
    }

    /// A coordinator with a connection of its own and, but for what takes longer with thousands
    /// of names, the options that everybody has.
    async fn coordinator_with(&self, environment: Environment) -> Result<Coordinator, Failed> {
        let options = Options::new()
            .namespace("bench")
            .ttl(self.scale.ttl)
            .release_timeout(Duration::from_secs(60))
            .environment(environment);
        let backend = self.store.connect(&self.url, &options).await?;
        Ok(Coordinator::new(backend, &options)?)
    }
}
