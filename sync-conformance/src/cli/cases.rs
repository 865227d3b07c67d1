//! What the examples promise, as cases for every store: their programs run as users run them,
//! against servers that are stopped and killed.
//!
//! A store's `tests/examples.rs` (`harness = false`) says how its server is started and what stands
//! in it; the rest is here.
//!
//! ```no_run
//! use std::process::ExitCode;
//! use async_trait::async_trait;
//! use sync_conformance::cli::cases::{self, Examples};
//! use sync_conformance::{Failed, Server, server};
//!
//! struct Redis;
//!
//! #[async_trait]
//! impl Examples for Redis {
//!     fn name(&self) -> &str { "redis" }
//!     fn package(&self) -> &str { env!("CARGO_PKG_NAME") }
//!     async fn start(&self) -> Result<Server, Failed> { server::redis(&[]).start().await }
//!
//!     async fn leftovers(&self, url: &str) -> Result<Vec<String>, Failed> {
//!         // `KEYS *`, without the counters
//!         # let _ = url;
//!         # Ok(Vec::new())
//!     }
//!
//!     async fn remove_keys(&self, url: &str) -> Result<(), Failed> {
//!         // `DEL` each of them
//!         # let _ = url;
//!         # Ok(())
//!     }
//! }
//!
//! fn main() -> ExitCode {
//!     cases::main(Redis, Vec::new())
//! }
//! ```

mod bench;
mod elections;
mod losses;
mod signals;
mod statuses;

use std::any::type_name;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use libtest_mimic::{Arguments, Trial};

use crate::failed::Failed;
use crate::server::Server;

pub use bench::Bench;

/// How long a case may take: far more than it needs.
const LIMIT: Duration = Duration::from_secs(300);

/// A store and its two examples, as the cases drive them.
///
/// The [module](self) has an example.
#[async_trait]
pub trait Examples: Send + Sync + 'static {
    /// [`About::name`](super::About::name): the examples are `NAME-lock` and `NAME-elect`.
    fn name(&self) -> &str;

    /// The package that they belong to.
    fn package(&self) -> &str;

    /// Starts a server that nobody else uses. Its URL is what the examples get as `--url`.
    async fn start(&self) -> Result<Server, Failed>;

    /// Everything that stands in the store now, in words for a person: claims, places in a line,
    /// sessions. What the docs except (counters, markers) is left out.
    async fn leftovers(&self, url: &str) -> Result<Vec<String>, Failed>;

    /// Removes every key of a claim, as an operator would. Sessions stay.
    async fn remove_keys(&self, url: &str) -> Result<(), Failed>;

    /// The URL with a password in it.
    fn with_password(&self, url: &str, password: &str) -> String {
        url.replacen("://", &format!("://user:{password}@"), 1)
    }

    /// The TTL of most cases in seconds: short, so that none takes long. It is kept by the store as
    /// it stands here, or nearly so.
    fn ttl(&self) -> f64 {
        1.5
    }
}

type Outcome<T = (), E = Failed> = Result<T, E>;
type Run = Box<dyn FnOnce(Bench) -> Pin<Box<dyn Future<Output = Outcome> + Send>> + Send>;

/// A named case.
///
/// ```
/// use sync_conformance::Failed;
/// use sync_conformance::cli::cases::{Bench, Case};
///
/// async fn it_prints_nothing(bench: Bench) -> Result<(), Failed> {
///     let run = bench.lock(&["a", "--", "true"])?;
///     assert_eq!(run.printed(), "");
///     Ok(())
/// }
/// let case = Case::new(it_prints_nothing);
/// ```
pub struct Case {
    name: String,
    run: Run,
}

impl Case {
    /// The case that this function is. Its name is the function's, after its module's.
    pub fn new<F, Fut>(run: F) -> Self
    where
        F: FnOnce(Bench) -> Fut + Send + 'static,
        Fut: Future<Output = Result<(), Failed>> + Send + 'static,
    {
        let path: Vec<&str> = type_name::<F>().split("::").collect();
        let name = path[path.len().saturating_sub(2)..].join("::");
        Self { name, run: Box::new(move |bench| Box::pin(run(bench))) }
    }
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Case").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Runs every case, and those of the store's own besides, as the `main` of a test with
/// `harness = false`. Understands what a test binary understands.
#[must_use]
pub fn main(examples: impl Examples, more: Vec<Case>) -> ExitCode {
    let programs = Arc::new(bench::Programs::of(examples));
    let mut cases = statuses::cases();
    cases.extend(signals::cases());
    cases.extend(losses::cases());
    cases.extend(elections::cases());
    cases.extend(more);
    let trial = |Case { name, run }| {
        let programs = Arc::clone(&programs);
        let name = format!("{}::{name}", programs.name());
        Trial::test(name, move || {
            let runtime = crate::suite::runtime("case")?;
            let outcome = runtime.block_on(async {
                let case = run(Bench::new(programs).await?);
                match tokio::time::timeout(LIMIT, case).await {
                    Ok(outcome) => outcome,
                    Err(_) => Err(format!("not done within {LIMIT:?}").into()),
                }
            });
            outcome.map_err(|failed| failed.to_text().into())
        })
    };
    libtest_mimic::run(&Arguments::from_args(), cases.into_iter().map(trial).collect()).exit_code()
}
