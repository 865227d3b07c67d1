//! Built examples, run as the processes that their users run.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

use crate::failed::Failed;
use crate::process::Process;

/// How long to wait for a line that has to come.
const LINE_WITHIN: Duration = Duration::from_secs(60);

/// Builds an example of `package` and tells where its program is. Quick where it is fresh.
///
/// `cargo test` builds a package's examples only when it tests all of it.
///
/// ```no_run
/// use sync_conformance::cli::example::{Example, build};
///
/// # async fn example() -> Result<(), sync_conformance::Failed> {
/// let program = build("sync-redis", "redis-lock")?;
/// let example = Example::start(&program, &["a", "--", "true"], |_| {})?;
/// let token: u64 = example.event("held token=").await?.parse()?;
/// # Ok(()) }
/// ```
///
/// # Errors
/// When it cannot be built: what the compiler said.
pub fn build(package: &str, example: &str) -> Result<PathBuf, Failed> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--message-format", "json"]);
    command.args(["--package", package, "--example", example]);
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    let built = command.output()?;
    if !built.status.success() {
        let text = String::from_utf8_lossy(&built.stderr).into_owned();
        return Err(format!("cannot build {example}: {text}").into());
    }
    let artifacts = String::from_utf8_lossy(&built.stdout).into_owned();
    let program = artifacts.lines().find_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        let is_it = message.pointer("/target/name")?.as_str()? == example;
        message.get("executable")?.as_str().filter(|_| is_it).map(PathBuf::from)
    });
    Ok(program.ok_or_else(|| format!("cargo names no program for {example}"))?)
}

/// A running example of `package` that holds the lock `a` of the store at `url`, with this TTL: long
/// enough to be killed.
///
/// ```no_run
/// use std::time::Duration;
///
/// # async fn example() -> Result<(), sync_conformance::Failed> {
/// let url = "redis://localhost";
/// let ttl = Duration::from_secs(2);
/// let victim =
///     sync_conformance::cli::example::holder("sync-redis", "redis-lock", url, ttl).await?;
/// victim.process().kill()?;
/// # Ok(()) }
/// ```
///
/// # Errors
/// When it cannot be built, or does not come to hold.
///
/// # Cancel safety
/// Dropping the future kills what was started.
pub async fn holder(
    package: &str,
    example: &str,
    url: &str,
    ttl: Duration,
) -> Result<Example, Failed> {
    let ttl = ttl.as_secs().to_string();
    let arguments = ["a", "--url", url, "--ttl", &ttl, "--", "sleep", "5"];
    let holder = Example::start(&build(package, example)?, &arguments, |_| {})?;
    holder.event("held token=").await?;
    Ok(holder)
}

/// A running example, killed when this is dropped.
///
/// ```
/// use std::path::Path;
/// use std::time::Duration;
/// use sync_conformance::cli::example::Example;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), sync_conformance::Failed> {
/// let example = Example::start(Path::new("sh"), &["-c", "echo held token=3 >&2; exit 125"], |_| {})?;
/// assert_eq!(example.event("held token=").await?, "3");
/// assert_eq!(example.exit(Duration::from_secs(10)).await?, 125);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Example {
    process: Process,
    output: TempDir,
}

impl Example {
    /// Starts `program`. `prepare` sets what else is to be set, such as another standard output.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn start(
        program: &Path,
        arguments: &[&str],
        prepare: impl FnOnce(&mut Command),
    ) -> Result<Self, Failed> {
        let output = tempfile::tempdir()?;
        let (out, err) =
            (File::create(output.path().join("out"))?, File::create(output.path().join("err"))?);
        let program = program.to_str().ok_or("the program's path is no UTF-8")?;
        let process = Process::start(program, arguments, |command| {
            command.stdin(Stdio::null()).stdout(out).stderr(err);
            prepare(command);
        })?;
        Ok(Self { process, output })
    }

    /// Its process, to be killed, stopped and continued.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// All that stands on its standard error by now, COMMAND's included.
    #[must_use]
    pub fn said(&self) -> String {
        self.read("err")
    }

    /// All that stands on its standard output by now, COMMAND's included.
    #[must_use]
    pub fn printed(&self) -> String {
        self.read("out")
    }

    /// Waits for an event: the rest of the first line on standard error that begins with `start`.
    ///
    /// # Errors
    /// When it does not come within a minute.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn event(&self, start: &str) -> Result<String, Failed> {
        self.line("err", start).await
    }

    /// Waits for a line on standard output that begins with `start`, and gives its rest.
    ///
    /// # Errors
    /// When it does not come within a minute.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn print(&self, start: &str) -> Result<String, Failed> {
        self.line("out", start).await
    }

    /// Waits for its end within `limit` and gives its exit status.
    ///
    /// # Errors
    /// When it still runs after that, or was killed by a signal.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn exit(&self, limit: Duration) -> Result<i32, Failed> {
        let status = match self.process.ended(limit).await {
            Ok(status) => status,
            Err(error) => return Err(format!("{error}; it said:\n{}", self.said()))?,
        };
        Ok(status.code().ok_or_else(|| format!("{status}; it said:\n{}", self.said()))?)
    }

    async fn line(&self, stream: &str, start: &str) -> Result<String, Failed> {
        let look = async {
            loop {
                let text = self.read(stream);
                // A line that has no end yet is still being written.
                let mut lines =
                    text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
                if let Some(rest) = lines.find_map(|line| line.strip_prefix(start)) {
                    return rest.to_owned();
                }
                sleep(Duration::from_millis(5)).await;
            }
        };
        match timeout(LINE_WITHIN, look).await {
            Ok(rest) => Ok(rest),
            Err(_) => Err(format!("no line begins with {start:?} in:\n{}", self.read(stream)))?,
        }
    }

    fn read(&self, stream: &str) -> String {
        let bytes = std::fs::read(self.output.path().join(stream)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}
