//! Real servers: started on free ports in folders of their own, gone when the tests are.

use std::fmt;
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::failed::Failed;
use crate::process::Process;

/// How long a server may take to serve.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// How often other ports are tried when a server does not start on its own.
const TRIES: usize = 5;

type Url = Arc<dyn Fn(&[SocketAddr]) -> String + Send + Sync>;
type Arguments = Arc<dyn Fn(&[Place], usize) -> Vec<String> + Send + Sync>;

/// What a store listens with: one server, the members of a cluster, or nothing at all.
///
/// ```
/// use sync_conformance::server::Server;
///
/// let server = Server::external("10.0.0.7:6379".parse()?, |at| format!("redis://{}", at[0]));
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

    /// A server that somebody else runs, and that no case may stop. `url` makes a URL with
    /// another address in it, for a proxy's sake.
    pub fn external(
        address: SocketAddr,
        url: impl Fn(&[SocketAddr]) -> String + Send + Sync + 'static,
    ) -> Self {
        Self { url: Arc::new(url), addresses: vec![address], members: Vec::new() }
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
        let log = std::fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().rev().take(10).collect();
        let lines: Vec<&str> = lines.into_iter().rev().collect();
        Err(format!("{} does not serve:\n{}", self.launch.program(), lines.join("\n")))?
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

/// How a kind of server is started: its program, its arguments, and how it shows that it serves.
///
/// ```no_run
/// # async fn example() -> Result<(), sync_conformance::Failed> {
/// use sync_conformance::server::Launch;
///
/// let server = Launch::new("etcd", "ETCD", "apt-get install etcd-server")
///     .members(3)
///     .ports(2)
///     .arguments(|places, me| vec![format!("--name=m{me}"), format!("--data-dir={}", places[me].dir().display())])
///     .probe("GET /health HTTP/1.0\r\n\r\n", "\"health\":\"true\"")
///     .url(|at| format!("http://{}", at[0]))
///     .start()
///     .await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Launch {
    name: String,
    variable: String,
    install: String,
    members: usize,
    ports: usize,
    arguments: Arguments,
    probe: (String, String),
    url: Url,
}

impl Launch {
    /// The program `name`, or the one that the environment's `variable` names; `install` is the
    /// command that installs it, for who does not have it.
    pub fn new(
        name: impl Into<String>,
        variable: impl Into<String>,
        install: impl Into<String>,
    ) -> Self {
        Self {
            name: name.into(),
            variable: variable.into(),
            install: install.into(),
            members: 1,
            ports: 1,
            arguments: Arc::new(|_, _| Vec::new()),
            probe: (String::new(), String::new()),
            url: Arc::new(|at| at.first().map(ToString::to_string).unwrap_or_default()),
        }
    }

    /// How many processes make one server, default 1.
    #[must_use]
    pub fn members(mut self, members: usize) -> Self {
        self.members = members;
        self
    }

    /// How many ports each of them needs, default 1.
    #[must_use]
    pub fn ports(mut self, ports: usize) -> Self {
        self.ports = ports;
        self
    }

    /// The arguments of the member with this index, given where all of them live.
    #[must_use]
    pub fn arguments(
        mut self,
        arguments: impl Fn(&[Place], usize) -> Vec<String> + Send + Sync + 'static,
    ) -> Self {
        self.arguments = Arc::new(arguments);
        self
    }

    /// What to send to the first port, and what the answer holds once the member serves.
    #[must_use]
    pub fn probe(mut self, question: impl Into<String>, answer: impl Into<String>) -> Self {
        self.probe = (question.into(), answer.into());
        self
    }

    /// The URL for these addresses.
    #[must_use]
    pub fn url(mut self, url: impl Fn(&[SocketAddr]) -> String + Send + Sync + 'static) -> Self {
        self.url = Arc::new(url);
        self
    }

    /// Starts it and waits until it serves.
    ///
    /// # Errors
    /// When the program is missing (with the command that installs it), or does not serve within
    /// half a minute (with the end of its log).
    ///
    /// # Cancel safety
    /// Dropping the future kills what was started.
    pub async fn start(&self) -> Result<Server, Failed> {
        let mut last = Failed::from("no try was made");
        for _ in 0..TRIES {
            // Somebody outside may have taken a port in between; other ports then.
            match self.try_start().await {
                Ok(server) => return Ok(server),
                Err(failed) => last = failed,
            }
        }
        Err(last)
    }

    async fn try_start(&self) -> Result<Server, Failed> {
        let place = || -> io::Result<Place> {
            let dir = tempfile::Builder::new().prefix("sync-server-").tempdir()?;
            let ports = (0..self.ports).map(|_| Port::free()).collect::<io::Result<_>>()?;
            Ok(Place { dir, ports })
        };
        let places: Vec<Place> = (0..self.members).map(|_| place()).collect::<io::Result<_>>()?;
        let places = Arc::new(places);
        let member = |index| Member {
            places: Arc::clone(&places),
            index,
            launch: self.clone(),
            process: Mutex::new(None),
        };
        let server = Server {
            url: Arc::clone(&self.url),
            addresses: places.iter().map(Place::address).collect(),
            members: (0..self.members).map(member).collect(),
        };
        server.restart().await?;
        Ok(server)
    }

    fn program(&self) -> String {
        std::env::var(&self.variable).unwrap_or_else(|_| self.name.clone())
    }

    fn missing(&self, program: &str) -> String {
        format!(
            "there is no {program}: install it with `{}`, or name it in {}",
            self.install, self.variable
        )
    }
}

impl fmt::Debug for Launch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Launch").field("name", &self.name).finish_non_exhaustive()
    }
}

/// One Redis or Valkey server (`REDIS_SERVER` names another program) that keeps its data over a
/// kill. What `more` says comes last, and so counts.
///
/// ```no_run
/// # async fn example() -> Result<(), sync_conformance::Failed> {
/// let server = sync_conformance::server::redis(&["--maxmemory", "100mb"]).start().await?;
/// assert!(server.url().starts_with("redis://127.0.0.1:"));
/// # Ok(()) }
/// ```
#[must_use]
pub fn redis(more: &[&str]) -> Launch {
    let more: Vec<String> = more.iter().map(ToString::to_string).collect();
    Launch::new("redis-server", "REDIS_SERVER", "apt-get install redis-server")
        .arguments(move |places, me| {
            let mut arguments: Vec<String> =
                ["--bind", "127.0.0.1", "--save", ""].map(Into::into).into();
            arguments.extend(["--port".into(), places[me].port(0).to_string()]);
            arguments.extend(["--dir".into(), places[me].dir().display().to_string()]);
            // Written before the answer is sent, so it survives a kill of the server, though not
            // one of the machine, without the cost of `fsync`.
            arguments.extend(["--appendonly", "yes", "--appendfsync", "no"].map(Into::into));
            arguments.extend(more.iter().cloned());
            arguments
        })
        .probe("PING\r\n", "+PONG")
        .url(|at| at.first().map(|at| format!("redis://{at}")).unwrap_or_default())
}

/// The server that the environment's `variable` points at, if it is set: a URL with host and
/// port. No case stops it.
///
/// # Errors
/// When it has no host and port that can be resolved.
pub fn external(variable: &str) -> Result<Option<Server>, Failed> {
    let Ok(url) = std::env::var(variable) else { return Ok(None) };
    from_url(&url).map(Some).map_err(|e| Failed::from(format!("{variable}: {}", e.reason())))
}

fn from_url(url: &str) -> Result<Server, Failed> {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
    let (user, host) =
        authority.rsplit_once('@').map_or(("", authority), |(user, host)| (user, host));
    let address = std::net::ToSocketAddrs::to_socket_addrs(host)
        .ok()
        .and_then(|mut found| found.next())
        .ok_or("the URL has no host and port that can be found")?;
    let before = if scheme.is_empty() { String::new() } else { format!("{scheme}://") };
    let before = if user.is_empty() { before } else { format!("{before}{user}@") };
    let after = path.to_owned();
    Ok(Server::external(address, move |at| {
        at.first().map(|at| format!("{before}{at}{after}")).unwrap_or_default()
    }))
}

/// Sends `question` and reads what comes until there is an end or a pause.
async fn ask(address: SocketAddr, question: &str) -> io::Result<String> {
    let mut text = Vec::new();
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(question.as_bytes()).await?;
        let mut piece = [0; 1024];
        while let Ok(read) = timeout(Duration::from_millis(100), stream.read(&mut piece)).await {
            match read? {
                0 => break,
                read => text.extend_from_slice(&piece[..read]),
            }
        }
        Ok::<(), io::Error>(())
    };
    timeout(Duration::from_secs(2), exchange).await??;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// A port of this host that no other test process uses while this one lives: a locked file says so.
#[derive(Debug)]
struct Port {
    number: u16,
    _lock: File,
}

impl Port {
    fn free() -> io::Result<Self> {
        // Below the range from which the kernel takes the ports of outgoing connections.
        const FIRST: u16 = 20_000;
        const LAST: u16 = 32_000;
        let user = rustix::process::getuid().as_raw();
        let dir = std::env::temp_dir().join(format!("sync-conformance-ports-{user}"));
        std::fs::create_dir_all(&dir)?;
        let start = u16::try_from(std::process::id() % u32::from(LAST - FIRST)).unwrap_or(0);
        for step in 0..LAST - FIRST {
            let number = FIRST + (start + step) % (LAST - FIRST);
            let lock = File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .open(dir.join(number.to_string()))?;
            let exclusive = rustix::fs::FlockOperation::NonBlockingLockExclusive;
            if rustix::fs::flock(&lock, exclusive).is_ok()
                && TcpListener::bind((Ipv4Addr::LOCALHOST, number)).is_ok()
            {
                return Ok(Self { number, _lock: lock });
            }
        }
        Err(io::Error::other("there is no free port"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_ports_are_never_the_same() {
        let ports: Vec<Port> = (0..50).map(|_| Port::free().unwrap()).collect();
        let mut numbers: Vec<u16> = ports.iter().map(|port| port.number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), 50);
    }

    #[test]
    fn an_external_url_keeps_its_credentials_and_its_path() {
        let server = from_url("redis://u:p@127.0.0.1:7/3").unwrap();
        let proxy = ["127.0.0.1:9".parse().unwrap()];
        assert_eq!(server.url_through(&proxy), "redis://u:p@127.0.0.1:9/3");
        assert_eq!(from_url("127.0.0.1:7").unwrap().url(), "127.0.0.1:7");
        assert!(from_url("redis://").is_err());
    }

    #[tokio::test]
    async fn a_missing_program_names_the_command_that_installs_it() {
        let launch = Launch::new("no-such-server", "NO_SUCH_SERVER", "apt-get install nothing");
        let text = launch.start().await.unwrap_err().to_text();
        assert!(text.contains("`apt-get install nothing`"), "{text}");
    }

    #[tokio::test]
    async fn a_server_that_ends_at_once_shows_its_log() {
        let launch = Launch::new("sh", "NO_SUCH_SERVER", "-")
            .arguments(|_, _| vec!["-c".into(), "echo out of luck; exit 1".into()]);
        let text = launch.start().await.unwrap_err().to_text();
        assert!(text.contains("out of luck"), "{text}");
    }

    #[tokio::test]
    async fn a_redis_keeps_its_data_over_a_kill() {
        let server = redis(&[]).start().await.unwrap();
        let address = server.addresses()[0];
        ask(address, "SET k kept\r\n").await.unwrap();
        server.kill().unwrap();
        assert!(ask(address, "PING\r\n").await.is_err());
        server.restart().await.unwrap();
        assert!(ask(address, "GET k\r\n").await.unwrap().contains("kept"));

        server.stop().unwrap();
        assert_eq!(ask(address, "PING\r\n").await.unwrap(), "");
        server.resume().unwrap();
        assert!(ask(address, "PING\r\n").await.unwrap().contains("PONG"));
    }
}
