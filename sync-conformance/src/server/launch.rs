//! How real servers are started, and on which ports.

use std::fmt;
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{Arguments, Member, Place, Server, Url};
use crate::failed::Failed;

/// How often other ports are tried when a server does not start on its own.
const TRIES: usize = 5;

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
    pub(super) arguments: Arguments,
    pub(super) probe: (String, String),
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

    pub(super) fn program(&self) -> String {
        std::env::var(&self.variable).unwrap_or_else(|_| self.name.clone())
    }

    pub(super) fn missing(&self, program: &str) -> String {
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
    let start = url.find("://").map_or(0, |at| at + 3);
    let end = url[start..].find(['/', '?', '#']).map_or(url.len(), |at| start + at);
    let start = url[start..end].rfind('@').map_or(start, |at| start + at + 1);
    let address = std::net::ToSocketAddrs::to_socket_addrs(&url[start..end])
        .ok()
        .and_then(|mut found| found.next())
        .ok_or("the URL has no host and port that can be found")?;
    let (url, before, after) = (url.to_owned(), url[..start].to_owned(), url[end..].to_owned());
    Ok(Server::external(address, move |at| match at {
        // As it was given: a certificate may be for a name.
        [at] if *at == address => url.clone(),
        [at, ..] => format!("{before}{at}{after}"),
        [] => String::new(),
    }))
}

/// Sends `question` and reads what comes until there is an end or a pause.
pub(super) async fn ask(address: SocketAddr, question: &str) -> io::Result<String> {
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
pub(super) struct Port {
    pub(super) number: u16,
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
        let named = from_url("rediss://u:p@localhost:7?x=1").unwrap();
        assert_eq!(named.url(), "rediss://u:p@localhost:7?x=1");
        assert_eq!(named.url_through(&proxy), "rediss://u:p@127.0.0.1:9?x=1");
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
