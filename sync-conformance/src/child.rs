//! Victims: processes of their own that hold and contend, to be killed, stopped and continued.
//!
//! The suite's test binary owns `main`, so it can start itself again: what [`Orders`] stand in its
//! environment, it carries out instead of running cases. Parent and child speak in lines over the
//! child's standard output and input.
//!
//! | role | wants | says | hears |
//! |---|---|---|---|
//! | `hold` | `name`, perhaps `register`, `queue` | `waiting`, with `queue` also `in line`, `held TOKEN DEADLINE` | `look`: `valid` or `lost CAUSE`; `wait`: `lost CAUSE` once it is; `write VALUE`: `written` or `refused`; `release`: `released` or `error KIND: …`; `leave`: ends without a word to the store |
//! | `lead` | `name`, perhaps `register`, `node` | the same | the same, with `resign`: `resigned` |
//! | `contend` | `name`, `register`, perhaps `hold_ms`, `wait_ms`, `careless` | `ready`; at the end `grants N lost N refused N` | anything: the end |

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{ExitCode, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sync_core::{Coordinator, Environment, Namespace, Options};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{ChildStdin, ChildStdout};
use tokio::time::timeout;

use crate::failed::Failed;
use crate::fault::Faults;
use crate::history::Journal;
use crate::process::Process;
use crate::roles;
use crate::store::Store;

/// Where a process of the test binary finds its [`Orders`].
pub(crate) const VARIABLE: &str = "SYNC_CONFORMANCE_CHILD";

/// How long either side waits for the other's next line.
const LINE_WITHIN: Duration = Duration::from_secs(60);

/// What a child is to do, and with what.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Orders {
    /// Which role it plays: see the [module](self).
    pub role: String,
    /// Where its store is.
    pub url: String,
    /// Its namespace.
    pub namespace: String,
    /// Its TTL in milliseconds.
    pub ttl_ms: u64,
    /// Where it appends its history to.
    pub history: PathBuf,
    /// What its role wants to know besides.
    pub more: BTreeMap<String, String>,
}

impl Orders {
    /// Orders for this role. [`Context::child`](crate::Context::child) makes them for a case.
    #[must_use]
    pub fn new(
        role: impl Into<String>,
        url: impl Into<String>,
        namespace: impl Into<String>,
        ttl: Duration,
        history: PathBuf,
    ) -> Self {
        let (role, url, namespace) = (role.into(), url.into(), namespace.into());
        Self { role, url, namespace, ttl_ms: 0, history, more: BTreeMap::new() }.ttl(ttl)
    }

    /// Adds what the role wants to know.
    #[must_use]
    pub fn with(mut self, key: impl Into<String>, value: impl std::fmt::Display) -> Self {
        self.more.insert(key.into(), format!("{value}"));
        self
    }

    /// Sets its TTL.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        self
    }

    /// Sets where its store is, such as behind a proxy.
    #[must_use]
    pub fn url(mut self, url: impl Into<String>) -> Self {
        self.url = url.into();
        self
    }

    /// Starts the child.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn start(&self) -> Result<Child, Failed> {
        let orders = serde_json::to_string(self)?;
        let program = std::env::current_exe()?;
        let program = program.to_str().ok_or("the program's path is no UTF-8")?;
        let process = Process::start(program, [""; 0], |command| {
            command.env(VARIABLE, orders).stdin(Stdio::piped()).stdout(Stdio::piped());
        })?;
        let (Some(stdin), Some(stdout)) = process.take_pipes() else {
            return Err("the child has no pipes")?;
        };
        let stdout = ChildStdout::from_std(stdout)?;
        Ok(Child {
            role: self.role.clone(),
            process,
            stdin: Some(ChildStdin::from_std(stdin)?),
            lines: BufReader::new(stdout).lines(),
        })
    }
}

/// A running child, killed when this is dropped.
#[derive(Debug)]
pub struct Child {
    role: String,
    process: Process,
    stdin: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Child {
    /// Its process, to be killed, stopped and continued.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// The next line that it says, within a minute.
    ///
    /// # Errors
    /// When it says nothing, or ends.
    ///
    /// # Cancel safety
    /// A line that has begun to arrive is kept.
    pub async fn line(&mut self) -> Result<String, Failed> {
        let line = timeout(LINE_WITHIN, self.lines.next_line()).await;
        let line = line.map_err(|_| format!("the child ({}) says nothing", self.role))??;
        Ok(line.ok_or_else(|| format!("the child ({}) has ended", self.role))?)
    }

    /// What follows `word` in the next line, which must begin with it.
    ///
    /// # Errors
    /// When it says something else, nothing, or ends.
    pub async fn expect(&mut self, word: &str) -> Result<String, Failed> {
        let line = self.line().await?;
        match line.strip_prefix(word) {
            Some(rest) => Ok(rest.trim_start().to_owned()),
            None => Err(format!("the child ({}) says {line:?}, not {word:?}", self.role))?,
        }
    }

    /// Says a line to it.
    ///
    /// # Errors
    /// When it has ended.
    pub async fn tell(&mut self, line: &str) -> Result<(), Failed> {
        let stdin = self.stdin.as_mut().ok_or("the child was told that there is no more")?;
        stdin.write_all(format!("{line}\n").as_bytes()).await?;
        Ok(stdin.flush().await?)
    }

    /// Waits for its end, within a minute.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn ended(&mut self) -> Result<ExitStatus, Failed> {
        self.stdin = None;
        Ok(self.process.ended(LINE_WITHIN).await?)
    }
}

/// What a role has to work with, inside the child.
pub(crate) struct Victim {
    pub(crate) orders: Orders,
    store: Arc<dyn Store>,
    /// What its coordinator has asked of its backend.
    pub(crate) calls: Faults,
    heard: Lines<BufReader<tokio::io::Stdin>>,
}

impl Victim {
    /// A coordinator as ordered, whose history goes where the parent's goes.
    pub(crate) async fn coordinator(&self) -> Result<Coordinator, Failed> {
        let Orders { url, namespace, ttl_ms, history, .. } = &self.orders;
        let journal = Journal::open(history, &Namespace::parse(namespace)?)?;
        let options = Options::new()
            .namespace(namespace)
            .ttl(Duration::from_millis(*ttl_ms))
            .environment(Environment::default().observer(Arc::new(journal)));
        let backend = self.store.connect(url, &options).await?;
        Ok(self.calls.coordinator(backend, &options)?)
    }

    /// The store that it speaks to.
    pub(crate) fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// What the orders say of `key`.
    pub(crate) fn order(&self, key: &str) -> Result<&str, Failed> {
        let value = self.orders.more.get(key);
        Ok(value.ok_or_else(|| format!("the orders do not say {key}"))?)
    }

    /// The number that the orders give for `key`, or this one.
    pub(crate) fn number(&self, key: &str, otherwise: u64) -> Result<u64, Failed> {
        Ok(self.orders.more.get(key).map_or(Ok(otherwise), |text| text.parse())?)
    }

    /// Says a line to the parent. An error means that it is gone.
    pub(crate) fn say(&self, line: impl std::fmt::Display) -> Result<(), Failed> {
        use std::io::Write;
        let mut out = std::io::stdout().lock();
        out.write_all(format!("{line}\n").as_bytes())?;
        Ok(out.flush()?)
    }

    /// The parent's next line; `None` when there will be none.
    pub(crate) async fn hear(&mut self) -> Result<Option<String>, Failed> {
        Ok(self.heard.next_line().await?)
    }
}

/// Carries out the orders in the environment, if there are any.
pub(crate) fn main(store: &Arc<dyn Store>) -> Option<ExitCode> {
    let orders = std::env::var(VARIABLE).ok()?;
    let run = async {
        let orders: Orders = serde_json::from_str(&orders)?;
        let role = orders.role.clone();
        let heard = BufReader::new(tokio::io::stdin()).lines();
        let victim = Victim { orders, store: Arc::clone(store), calls: Faults::new(), heard };
        roles::play(&role, victim).await
    };
    let runtime = match crate::suite::runtime("child") {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("the child has no runtime: {e}");
            return Some(ExitCode::FAILURE);
        }
    };
    let code = match runtime.block_on(run) {
        Ok(()) => 0,
        Err(failed) => {
            println!("failed {}", failed.to_text());
            1
        }
    };
    // A thread may still be reading standard input, for which a runtime's end would wait.
    std::process::exit(code)
}
