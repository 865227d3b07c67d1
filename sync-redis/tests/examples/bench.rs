//! A server, the two examples with its address, and what is there to be seen of them.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use sync_conformance::cli::example::{self, Example};
use sync_conformance::{Failed, Server, server};

/// The TTL of most cases. Short, so that none takes long.
pub(crate) const TTL: f64 = 1.5;

/// What the examples promise once they were told to stop or have lost, and what a busy machine
/// may add to it.
pub(crate) const SOON: Duration = Duration::from_millis(2_000 + 2_000);

/// For what takes as long as it takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) type Result<T = (), E = Failed> = std::result::Result<T, E>;

/// A server, and the two examples with its address.
pub(crate) struct Bench {
    pub(crate) server: Server,
    /// Where COMMANDs leave notes.
    notes: tempfile::TempDir,
}

impl Bench {
    pub(crate) async fn new() -> Result<Self> {
        Ok(Self { server: server::redis(&[]).start().await?, notes: tempfile::tempdir()? })
    }

    pub(crate) fn lock(&self, arguments: &[&str]) -> Result<Example> {
        self.start(&programs()?.0, arguments)
    }

    pub(crate) fn elect(&self, arguments: &[&str]) -> Result<Example> {
        self.start(&programs()?.1, arguments)
    }

    /// `arguments` are the name, and what comes after the URL and the TTL.
    pub(crate) fn start(&self, program: &Path, arguments: &[&str]) -> Result<Example> {
        let (url, ttl) = (self.server.url(), TTL.to_string());
        let (name, rest) = arguments.split_first().ok_or("no name")?;
        let all = [&[*name, "--url", &url, "--ttl", &ttl], rest].concat();
        Example::start(program, &all, |_| {})
    }

    pub(crate) fn note(&self, name: &str) -> String {
        self.notes.path().join(name).display().to_string()
    }

    /// What a COMMAND has noted, as soon as it has.
    pub(crate) async fn noted(&self, name: &str) -> Result<String> {
        let until = Instant::now() + PATIENCE;
        loop {
            match std::fs::read_to_string(self.note(name)) {
                Ok(text) if text.ends_with('\n') => return Ok(text.trim().to_owned()),
                _ if Instant::now() > until => return Err(format!("no note {name:?}"))?,
                _ => pause(5).await,
            }
        }
    }

    pub(crate) async fn keys(&self) -> Result<Vec<String>> {
        let client = redis::Client::open(self.server.url())?;
        let mut connection = client.get_multiplexed_async_connection().await?;
        let keys: Vec<String> = redis::cmd("KEYS").arg("*").query_async(&mut connection).await?;
        // What the docs except: the counter, and the marks of what was given up.
        Ok(keys.into_iter().filter(|k| !k.ends_with(":token") && !k.contains(":void:")).collect())
    }

    pub(crate) async fn remove_keys(&self) -> Result {
        let client = redis::Client::open(self.server.url())?;
        let mut connection = client.get_multiplexed_async_connection().await?;
        for key in self.keys().await? {
            redis::cmd("DEL").arg(key).exec_async(&mut connection).await?;
        }
        Ok(())
    }

    pub(crate) async fn nothing_is_left(&self) -> Result {
        let keys = self.keys().await?;
        if keys.is_empty() { Ok(()) } else { Err(format!("left behind: {keys:?}"))? }
    }
}

/// A COMMAND that notes its process's id and ignores SIGTERM, of which it takes note too.
pub(crate) fn stubborn(bench: &Bench, pid: &str, term: &str) -> String {
    let (pid, term) = (bench.note(pid), bench.note(term));
    format!("trap 'echo term >> {term}' TERM; echo $$ > {pid}; while :; do sleep 0.05; done")
}

pub(crate) fn programs() -> Result<&'static (PathBuf, PathBuf)> {
    static BUILT: OnceLock<Result<(PathBuf, PathBuf)>> = OnceLock::new();
    let build = || {
        let package = env!("CARGO_PKG_NAME");
        Ok((example::build(package, "redis-lock")?, example::build(package, "redis-elect")?))
    };
    BUILT.get_or_init(build).as_ref().map_err(Clone::clone)
}

/// Whether the process is there and no zombie.
pub(crate) fn is_alive(pid: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// Waits for the end of a process that was killed a moment ago.
pub(crate) async fn ends(pid: &str) -> Result {
    let killed = Instant::now();
    while is_alive(pid) {
        if killed.elapsed() > SOON {
            Err("COMMAND still runs")?;
        }
        pause(1).await;
    }
    Ok(())
}

pub(crate) async fn pause(millis: u64) {
    tokio::time::sleep(Duration::from_millis(millis)).await;
}

/// Asserts that two values are the same, and shows what the example said if not.
#[track_caller]
#[allow(clippy::needless_pass_by_value, reason = "it is used as `assert_eq!` is")]
pub(crate) fn same<T: PartialEq + std::fmt::Debug>(left: T, right: T, example: &Example) {
    assert!(left == right, "{left:?} is not {right:?}; it said:\n{}", example.said());
}
