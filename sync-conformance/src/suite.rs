//! The registry of cases, and how they are run.
//!
//! A case is a plain async function. It runs on a runtime of its own, in a namespace of its own,
//! and its history is judged by the [checker](crate::checker) when it is over. A panic of any of
//! its tasks fails it.

use std::any::type_name;
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::panic::PanicHookInfo;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Once, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use libtest_mimic::{Arguments, Completion, Trial};
use sync_core::{BootClock, Clock};
use tokio::runtime::Runtime;
use tokio::time::timeout;

use crate::cases;
use crate::child;
use crate::context::Context;
use crate::failed::Failed;
use crate::server::Server;
use crate::soak;
use crate::store::{Store, Tamper};

/// How long a case may take unless it says otherwise: far more than it needs.
const LIMIT: Duration = Duration::from_secs(120);

/// How many cases run side by side unless `--test-threads` says otherwise. They mostly sleep.
const SIDE_BY_SIDE: usize = 8;

/// What a case needs of the store beyond being connected to. Where it is not there the case is
/// listed as not applicable, with the reason, and counted. Safety is never a need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Need {
    /// That a second process can reach the store.
    SecondProcess,
    /// That there is a connection into which a proxy can be put.
    Proxy,
    /// A server of the case's own, to be killed, stopped and restarted.
    KillServer,
    /// That the server has three members or more, and so goes on without one of them.
    Cluster,
    /// That this tampering is known.
    Tamper(Tamper),
    /// That waiters are served in the order in which they came.
    Fair,
}

type Run =
    Arc<dyn Fn(Context) -> Pin<Box<dyn Future<Output = Result<(), Failed>> + Send>> + Send + Sync>;

/// A named case.
///
/// ```
/// use sync_conformance::{Case, Context, Failed, Need};
///
/// mod exclusion {
///     # use super::*;
///     pub async fn a_killed_holder_is_followed(ctx: Context) -> Result<(), Failed> {
///         # let _ = ctx;
///         Ok(())
///     }
/// }
/// # fn main() {
/// let case = Case::new(exclusion::a_killed_holder_is_followed).needs(&[Need::SecondProcess]);
/// assert_eq!(case.name(), "exclusion::a_killed_holder_is_followed");
/// # }
/// ```
#[derive(Clone)]
pub struct Case {
    name: String,
    run: Run,
    needs: &'static [Need],
    limit: Duration,
    alone: bool,
}

impl Case {
    /// The case that this function is. Its name is the function's, after its module's.
    pub fn new<F, Fut>(run: F) -> Self
    where
        F: Fn(Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), Failed>> + Send + 'static,
    {
        let path: Vec<&str> = type_name::<F>().split("::").collect();
        let name = path[path.len().saturating_sub(2)..].join("::");
        let run: Run = Arc::new(move |ctx| Box::pin(run(ctx)));
        Self { name, run, needs: &[], limit: LIMIT, alone: false }
    }

    /// What it needs of the store.
    #[must_use]
    pub fn needs(mut self, needs: &'static [Need]) -> Self {
        self.needs = needs;
        self
    }

    /// How long it may take, default two minutes.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// That no other case may run beside it.
    #[must_use]
    pub fn alone(mut self) -> Self {
        self.alone = true;
        self
    }

    /// Its name, without the store's.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Case").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Runs the whole suite against `store`, as the `main` of a test with `harness = false`.
///
/// Understands what a test binary understands: a filter, `--list`, `--exact`, `--skip`,
/// `--test-threads` and so on. The last line is `STORE: N passed, N failed, N skipped`; before it
/// stands a line `skipped NAME: REASON` for each case that does not apply.
///
/// With `soak` as its first argument it runs no case: many processes contend for one lock instead,
/// for as many seconds as the next argument says (60), while they are killed and stopped and
/// their connections cut. `soak --help` tells of the rest.
///
/// The same binary plays the processes that cases start and kill; nothing may be done before this.
#[must_use]
pub fn main(store: impl Store) -> ExitCode {
    main_with(store, Vec::new())
}

/// [`main`], with cases of the store's own besides.
#[must_use]
pub fn main_with(store: impl Store, more: Vec<Case>) -> ExitCode {
    let store: Arc<dyn Store> = Arc::new(store);
    if let Some(code) = child::main(&store) {
        return code;
    }
    if let Some(code) = soak::main(&store) {
        return code;
    }
    let mut arguments = Arguments::from_args();
    arguments.test_threads = arguments.test_threads.or(Some(SIDE_BY_SIDE));
    let suite = match Suite::new(store) {
        Ok(suite) => Arc::new(suite),
        Err(e) => {
            eprintln!("there is no runtime: {e}");
            return ExitCode::FAILURE;
        }
    };
    let mut cases = cases::all();
    cases.extend(more);
    // Those that run alone come last: before, each would make all others wait.
    cases.sort_by_key(|case| case.alone);
    let trials = cases.into_iter().map(|case| suite.trial(case)).collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    if !arguments.list {
        for (name, reason) in suite.skipped().iter() {
            println!("skipped {name}: {reason}");
        }
        let libtest_mimic::Conclusion { num_passed, num_failed, num_ignored, .. } = conclusion;
        let name = suite.store.name();
        println!("{name}: {num_passed} passed, {num_failed} failed, {num_ignored} skipped");
    }
    conclusion.exit_code()
}

/// Runs the cases whose names `wanted` picks, one after the other, and says what came of each: to
/// prove that the suite finds what is wrong with a store. Cases that start processes of the
/// caller's program cannot be among them, unless its `main` is [`main`].
///
/// # Errors
/// When there is no runtime.
pub fn outcomes(
    store: impl Store,
    wanted: impl Fn(&str) -> bool,
) -> std::io::Result<Vec<(String, Result<(), Failed>)>> {
    let suite = Suite::new(Arc::new(store))?;
    let cases = cases::all().into_iter().filter(|case| wanted(&case.name));
    Ok(cases.map(|case| (case.name.clone(), suite.run(&case))).collect())
}

/// What all cases of a run share.
struct Suite {
    store: Arc<dyn Store>,
    /// For the shared server, which outlives each case's own runtime.
    runtime: Runtime,
    shared: OnceLock<Result<Arc<Server>, Failed>>,
    turns: RwLock<()>,
    skipped: Mutex<BTreeMap<String, String>>,
}

impl Suite {
    fn new(store: Arc<dyn Store>) -> std::io::Result<Self> {
        note_panics();
        Ok(Self {
            store,
            runtime: runtime("suite")?,
            shared: OnceLock::new(),
            turns: RwLock::new(()),
            skipped: Mutex::default(),
        })
    }

    fn trial(self: &Arc<Self>, case: Case) -> Trial {
        let suite = Arc::clone(self);
        let name = format!("{}::{}", self.store.name(), case.name);
        Trial::ignorable_test(name.clone(), move || match suite.run(&case) {
            Ok(()) => Ok(Completion::Completed),
            Err(failed) if failed.is_skipped() => {
                suite.skipped().insert(name, failed.reason().to_owned());
                Ok(Completion::ignored_with(failed.reason()))
            }
            Err(failed) => Err(failed.to_text().into()),
        })
    }

    fn run(&self, case: &Case) -> Result<(), Failed> {
        let alone = case.alone.then(|| self.turns.write().unwrap_or_else(PoisonError::into_inner));
        let beside =
            (!case.alone).then(|| self.turns.read().unwrap_or_else(PoisonError::into_inner));
        let number = next();
        let thread = format!("case-{number}");
        let runtime = runtime(&thread)?;
        let shared = self.shared()?;
        runtime.block_on(self.meets(case, &shared))?;

        let dir = tempfile::Builder::new().prefix("sync-case-").tempdir()?;
        let outcome = runtime.block_on(async {
            let server = match case.needs.contains(&Need::KillServer) {
                true => Arc::new(self.store.start().await?),
                false => shared,
            };
            let ctx = Context::new(Arc::clone(&self.store), server, namespace(number), dir.path());
            // In a task of its own, so that its panic is an outcome like any other.
            let task = tokio::spawn((case.run)(ctx.clone()));
            let abort = task.abort_handle();
            let outcome = match timeout(case.limit, task).await {
                Ok(Ok(outcome)) => outcome,
                Ok(Err(panic)) => Err(format!("the case {panic}").into()),
                Err(_) => {
                    abort.abort();
                    Err(format!("not done within {:?}", case.limit).into())
                }
            };
            let verdict = verdict(&ctx, outcome, &panics_of(&thread));
            verdict.map_err(|failed| match ctx.server().crash() {
                Some(crash) => failed.and(crash),
                None => failed,
            })
        });
        runtime.shutdown_timeout(Duration::from_secs(5));
        drop((alone, beside));
        match outcome {
            Err(failed) if !failed.is_skipped() && dir.path().join("history").exists() => {
                let kept = dir.keep();
                Err(failed.and(format_args!("its history is in {}", kept.display())))
            }
            outcome => outcome,
        }
    }

    /// The server that cases share, started when the first of them asks.
    fn shared(&self) -> Result<Arc<Server>, Failed> {
        let start = || self.runtime.block_on(self.store.start()).map(Arc::new);
        self.shared.get_or_init(start).clone()
    }

    /// Whether the store has what the case needs; if not, the reason.
    async fn meets(&self, case: &Case, server: &Server) -> Result<(), Failed> {
        for need in case.needs {
            let missing = match need {
                Need::SecondProcess | Need::Proxy | Need::KillServer if server.is_in_process() => {
                    "the store lives in this process"
                }
                Need::KillServer if !server.is_ours() => "the server is somebody else's to stop",
                Need::Cluster if server.addresses().len() < 3 => {
                    "the store has no members that could do without one of them"
                }
                Need::Tamper(how) if !self.store.tampers().contains(how) => {
                    "nobody can do this to the store from outside"
                }
                Need::Fair => {
                    let options = sync_core::Options::new().namespace("case").ttl(self.store.ttl());
                    let backend = self.store.connect(&server.url(), &options).await?;
                    if backend.profile().fair {
                        continue;
                    }
                    "the store does not serve waiters in order"
                }
                _ => continue,
            };
            return Err(Failed::skipped(missing));
        }
        Ok(())
    }

    fn skipped(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, String>> {
        self.skipped.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a case comes to, given what it returned, its history and its tasks' panics.
fn verdict(ctx: &Context, outcome: Result<(), Failed>, panics: &[String]) -> Result<(), Failed> {
    if outcome.as_ref().is_err_and(Failed::is_skipped) {
        return outcome;
    }
    let mut wrong = Vec::new();
    if !ctx.expects_panics() {
        wrong.extend(panics.iter().map(|panic| format!("a task panicked: {panic}")));
    }
    match ctx.judge() {
        Ok(report) if report.is_clean() => {}
        Ok(report) => wrong.push(format!("its history is not sound:\n{report}")),
        Err(failed) => wrong.push(failed.to_text()),
    }
    match outcome {
        Ok(()) if wrong.is_empty() => Ok(()),
        Ok(()) => Err(wrong.join("\n").into()),
        Err(failed) => Err(wrong.iter().fold(failed, |failed, more| failed.and(more))),
    }
}

/// A runtime whose threads have this name.
pub(crate) fn runtime(thread: &str) -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name(thread)
        .enable_all()
        .build()
}

/// A number that no other case of this process has.
fn next() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A namespace that no other case, run or process has.
fn namespace(number: u64) -> String {
    static STARTED: OnceLock<u64> = OnceLock::new();
    let started = STARTED.get_or_init(|| BootClock::new().now().as_nanos());
    format!("case-{:x}-{started:x}-{number}", std::process::id())
}

/// The panics of each thread name that have not been asked for.
static PANICS: Mutex<BTreeMap<String, Vec<String>>> = Mutex::new(BTreeMap::new());

/// Keeps each panic beside the name of its thread, and prints it as before.
fn note_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let print = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info: &PanicHookInfo<'_>| {
            if let Some(name) = std::thread::current().name() {
                let mut panics = PANICS.lock().unwrap_or_else(PoisonError::into_inner);
                panics.entry(name.to_owned()).or_default().push(info.to_string());
            }
            print(info);
        }));
    });
}

fn panics_of(thread: &str) -> Vec<String> {
    PANICS.lock().unwrap_or_else(PoisonError::into_inner).remove(thread).unwrap_or_default()
}

#[cfg(test)]
mod tests;
