//! A server, the two examples with its address, and what is there to be seen of them.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::{Examples, Outcome};
use crate::cli::example::{self, Example};
use crate::failed::Failed;
use crate::server::Server;

/// What the examples promise once they were told to stop or have lost, and what a busy machine
/// may add to it.
pub(super) const SOON: Duration = Duration::from_millis(2_000 + 2_000);

/// For what takes as long as it takes.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// The two programs, built when the first case asks for them.
pub(super) struct Programs {
    examples: Box<dyn Examples>,
    built: OnceLock<Outcome<(PathBuf, PathBuf)>>,
}

impl Programs {
    pub(super) fn of(examples: impl Examples) -> Self {
        Self { examples: Box::new(examples), built: OnceLock::new() }
    }

    pub(super) fn name(&self) -> &str {
        self.examples.name()
    }

    fn built(&self) -> Outcome<&(PathBuf, PathBuf)> {
        let build = || {
            let (name, package) = (self.name(), self.examples.package());
            let program = |what| example::build(package, &format!("{name}-{what}"));
            Ok((program("lock")?, program("elect")?))
        };
        self.built.get_or_init(build).as_ref().map_err(Clone::clone)
    }
}

/// A server of a case's own, and the two examples with its address.
///
/// [`Case`](super::Case) has an example.
pub struct Bench {
    programs: Arc<Programs>,
    server: Server,
    /// Where COMMANDs leave notes.
    notes: TempDir,
}

impl Bench {
    pub(super) async fn new(programs: Arc<Programs>) -> Outcome<Self> {
        let server = programs.examples.start().await?;
        Ok(Self { programs, server, notes: tempfile::tempdir()? })
    }

    /// The same with another server.
    pub(super) async fn another(&self) -> Outcome<Self> {
        Self::new(Arc::clone(&self.programs)).await
    }

    /// The server.
    #[must_use]
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// Runs `NAME-lock`. `arguments` are the name, and what comes after the URL and the TTL.
    ///
    /// # Errors
    /// When it cannot be built or started.
    pub fn lock(&self, arguments: &[&str]) -> Result<Example, Failed> {
        self.start(true, arguments)
    }

    /// Runs `NAME-elect`, like [`lock`](Bench::lock).
    ///
    /// # Errors
    /// When it cannot be built or started.
    pub fn elect(&self, arguments: &[&str]) -> Result<Example, Failed> {
        self.start(false, arguments)
    }

    fn start(&self, lock: bool, arguments: &[&str]) -> Outcome<Example> {
        let (url, ttl) = (self.server.url(), self.programs.examples.ttl().to_string());
        let (name, rest) = arguments.split_first().ok_or("no name")?;
        let all = [&[*name, "--url", &url, "--ttl", &ttl], rest].concat();
        let (locks, elects) = self.programs.built()?;
        Example::start(if lock { locks } else { elects }, &all, |_| {})
    }

    /// The programs of `NAME-lock` and `NAME-elect`, for a case that says everything itself.
    ///
    /// # Errors
    /// When they cannot be built.
    pub fn programs(&self) -> Result<&(PathBuf, PathBuf), Failed> {
        self.programs.built()
    }

    /// What the line begins with in which `NAME-lock` says what is wrong.
    pub(super) fn complaint(&self) -> String {
        format!("{}-lock: ", self.programs.name())
    }

    /// Its URL with a password in it.
    pub(super) fn url_with(&self, password: &str) -> String {
        self.programs.examples.with_password(&self.server.url(), password)
    }

    pub(super) fn ttl(&self) -> Duration {
        Duration::from_secs_f64(self.programs.examples.ttl())
    }

    pub(super) fn note(&self, name: &str) -> String {
        self.notes.path().join(name).display().to_string()
    }

    /// What a COMMAND has noted, as soon as it has.
    pub(super) async fn noted(&self, name: &str) -> Outcome<String> {
        let until = Instant::now() + PATIENCE;
        loop {
            match std::fs::read_to_string(self.note(name)) {
                Ok(text) if text.ends_with('\n') => return Ok(text.trim().to_owned()),
                _ if Instant::now() > until => return Err(format!("no note {name:?}"))?,
                _ => pause(5).await,
            }
        }
    }

    /// A COMMAND that notes its process's id and ignores SIGTERM, of which it takes note too.
    pub(super) fn stubborn(&self, pid: &str, term: &str) -> String {
        let (pid, term) = (self.note(pid), self.note(term));
        format!("trap 'echo term >> {term}' TERM; echo $$ > {pid}; while :; do sleep 0.05; done")
    }

    /// What stands in the store, sorted.
    pub(super) async fn leftovers(&self) -> Outcome<Vec<String>> {
        let mut all = self.programs.examples.leftovers(&self.server.url()).await?;
        all.sort_unstable();
        Ok(all)
    }

    pub(super) async fn remove_keys(&self) -> Outcome {
        self.programs.examples.remove_keys(&self.server.url()).await
    }

    pub(super) async fn nothing_is_left(&self) -> Outcome {
        let all = self.leftovers().await?;
        if all.is_empty() { Ok(()) } else { Err(format!("left behind: {all:?}"))? }
    }
}

impl fmt::Debug for Bench {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bench").field("server", &self.server).finish_non_exhaustive()
    }
}

/// Whether the process is there and no zombie.
pub(super) fn is_alive(pid: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// Waits for the end of a process that was killed a moment ago.
pub(super) async fn ends(pid: &str) -> Outcome {
    let killed = Instant::now();
    while is_alive(pid) {
        if killed.elapsed() > SOON {
            Err("COMMAND still runs")?;
        }
        pause(1).await;
    }
    Ok(())
}

pub(super) async fn pause(millis: u64) {
    tokio::time::sleep(Duration::from_millis(millis)).await;
}

/// Asserts that two values are the same, and shows what the example said if not.
#[track_caller]
#[allow(clippy::needless_pass_by_value, reason = "it is used as `assert_eq!` is")]
pub(super) fn same<T: PartialEq + fmt::Debug>(left: T, right: T, example: &Example) {
    assert!(left == right, "{left:?} is not {right:?}; it said:\n{}", example.said());
}
