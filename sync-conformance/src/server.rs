//! Real servers: started on free ports in folders of their own, gone when the tests are.

use std::fmt;
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::{sleep, timeout};

use self::launch::{Port, ask};
use crate::failed::Failed;
use crate::process::Process;

mod external;
mod launch;
mod programs;

pub use self::external::external;
pub use self::launch::Launch;
pub use self::programs::{consul, etcd, redis};

/// How long a server may take to serve.
const READY_WITHIN: Duration = Duration::from_secs(30);

type Url = Arc<dyn Fn(&[SocketAddr]) -> String + Send + Sync>;
type Arguments = Arc<dyn Fn(&[Place], usize) -> Vec<String> + Send + Sync>;

/// What a store listens with: one server, the members of a cluster, or nothing at all.
///
/// ```
/// use sync_conformance::server::Server;
///
/// let server = Server::external(["10.0.0.7:6379".parse()?], |at| format!("redis://{}", at[0]));
/// assert_eq!(server.url(), "redis://10.0.0.7:6379");
/// assert_eq!(server.url_through(&["127.0.0.1:9".parse()?]), "redis://127.0.0.1:9");
/// assert!(!server.is_ours());
/// # Ok::<(), std::net::AddrParseError>(())
/// ```
pub struct Server {
    url: Url,
    addresses: Vec<SocketAddr>,
    members: Vec<Member>,
}

impl Server {
    /// A store inside this process: no address, nothing to kill. `url` is what
    /// [`Store::connect`](crate::Store::connect) is given.
    pub fn in_process(url: impl Into<String>) -> Self {
        let url = url.into();
        Self { url: Arc::new(move |_| url.clone()), addresses: Vec::new(), members: Vec::new() }
    }

    /// A server that somebody else runs, and that no case may stop: the addresses of its members.
    /// `url` makes a URL with other addresses in it, for a proxy's sake.
    pub fn external(
        addresses: impl Into<Vec<SocketAddr>>,
        url: impl Fn(&[SocketAddr]) -> String + Send + Sync + 'static,
    ) -> Self {
        Self { url: Arc::new(url), addresses: addresses.into(), members: Vec::new() }
    }

    /// Where clients connect to.
    #[must_use]
    pub fn url(&self) -> String {
        (self.url)(&self.addresses)
    }

    /// The URL that leads through these addresses, one for each of [`Server::addresses`].
    #[must_use]
    pub fn url_through(&self, addresses: &[SocketAddr]) -> String {
        (self.url)(addresses)
    }

    /// The members' addresses; empty for a store inside this process.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Whether the store is inside this process, out of reach of any other.
    #[must_use]
    pub fn is_in_process(&self) -> bool {
        self.addresses.is_empty()
    }

    /// Whether it was started here, and so may be killed.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        !self.members.is_empty()
    }

    /// The processes, if they were started here.
    #[must_use]
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// Kills every member with SIGKILL.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn kill(&self) -> Result<(), Failed> {
        self.members.iter().try_for_each(Member::kill)
    }

    /// Kills every member and starts it again with its data, on its old port.
    ///
    /// # Errors
    /// When one does not serve within half a minute.
    pub async fn restart(&self) -> Result<(), Failed> {
        self.kill()?;
        for member in &self.members {
            member.start()?;
        }
        for member in &self.members {
            member.ready().await?;
        }
        Ok(())
    }

    /// What a member logged before its end, if nobody here ended it.
    pub(crate) fn crash(&self) -> Option<String> {
        self.members.iter().find_map(Member::crash)
    }

    /// Stops every member with SIGSTOP.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn stop(&self) -> Result<(), Failed> {
        self.members.iter().try_for_each(Member::stop)
    }

    /// Lets every stopped member go on.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn resume(&self) -> Result<(), Failed> {
        self.members.iter().try_for_each(Member::resume)
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

/// Where one member of a server lives.
#[derive(Debug)]
pub struct Place {
    dir: TempDir,
    ports: Vec<Port>,
}

impl Place {
    /// Its folder, removed with the server.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Its ports, as many as were asked for. The first is the one that clients use.
    #[must_use]
    pub fn port(&self, index: usize) -> u16 {
        self.ports.get(index).map_or(0, |port| port.number)
    }

    fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port(0)).into()
    }
}

/// One process of a server.
#[derive(Debug)]
pub struct Member {
    places: Arc<Vec<Place>>,
    index: usize,
    launch: Launch,
    process: Mutex<Option<Arc<Process>>>,
}

impl Member {
    /// Where clients connect to.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.place().address()
    }

    /// Its ports, as [`Place::port`] has them.
    #[must_use]
    pub fn port(&self, index: usize) -> u16 {
        self.place().port(index)
    }

    /// Its folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.place().dir()
    }

    /// Kills it with SIGKILL. Its data stays.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn kill(&self) -> Result<(), Failed> {
        match self.slot().take() {
            Some(process) => Ok(process.kill()?),
            None => Ok(()),
        }
    }

    /// Kills it and starts it again with its data, on its old port.
    ///
    /// # Errors
    /// When it does not serve within half a minute.
    pub async fn restart(&self) -> Result<(), Failed> {
        self.kill()?;
        self.start()?;
        self.ready().await
    }

    /// Stops it with SIGSTOP: connections stay open, nothing is answered.
    ///
    /// # Errors
    /// Those of the operating system; also when it was killed.
    pub fn stop(&self) -> Result<(), Failed> {
        Ok(self.process()?.stop()?)
    }

    /// Lets a stopped one go on (SIGCONT).
    ///
    /// # Errors
    /// Those of the operating system; also when it was killed.
    pub fn resume(&self) -> Result<(), Failed> {
        Ok(self.process()?.resume()?)
    }

    fn start(&self) -> Result<(), Failed> {
        let log = self.log();
        let out = File::options().create(true).append(true).open(&log)?;
        let err = out.try_clone()?;
        let program = self.launch.program();
        let arguments = (self.launch.arguments)(&self.places, self.index);
        let process = Process::start(&program, arguments, |command| {
            command.current_dir(self.dir()).stdin(Stdio::null()).stdout(out).stderr(err);
        });
        let process = process.map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => self.launch.missing(&program),
            _ => format!("cannot start {program}: {e}"),
        })?;
        *self.slot() = Some(Arc::new(process));
        Ok(())
    }

    /// Waits until it answers its probe as itself.
    async fn ready(&self) -> Result<(), Failed> {
        let process = self.process()?;
        let (question, answer) = &self.launch.probe;
        let probe = async {
            while process.is_running() {
                if ask(self.address(), question).await.is_ok_and(|text| text.contains(answer)) {
                    return process.is_running();
                }
                sleep(Duration::from_millis(20)).await;
            }
            false
        };
        if timeout(READY_WITHIN, probe).await.unwrap_or(false) {
            return Ok(());
        }
        Err(format!("{} does not serve:\n{}", self.launch.program(), self.last_words()))?
    }

    /// What it logged before its end, if nobody here ended it.
    fn crash(&self) -> Option<String> {
        let ended = self.slot().as_ref().is_some_and(|process| !process.is_running());
        let text =
            || format!("{} has ended by itself:\n{}", self.launch.program(), self.last_words());
        ended.then(text)
    }

    fn last_words(&self) -> String {
        let log = std::fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    fn log(&self) -> PathBuf {
        self.dir().join("log")
    }

    fn place(&self) -> &Place {
        &self.places[self.index]
    }

    fn process(&self) -> Result<Arc<Process>, Failed> {
        Ok(self.slot().clone().ok_or("the server was killed")?)
    }

    fn slot(&self) -> std::sync::MutexGuard<'_, Option<Arc<Process>>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
