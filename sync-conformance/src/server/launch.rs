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

/// Sends `question` and reads what comes until there is an end or a pause.
pub(super) async fn ask(address: SocketAddr, question: &str) -> io::Result<String> {
    let mut text = Vec::new();
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(question.as_bytes()).await?;
        let mut piece = [0; 1024];
        let mut pause = Duration::from_secs(1);
        while let Ok(read) = timeout(pause, stream.read(&mut piece)).await {
            match read? {
                0 => break,
                read => text.extend_from_slice(&piece[..read]),
            }
            pause = Duration::from_millis(100);
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
    async fn a_server_that_ends_by_itself_shows_its_log() {
        let server = crate::server::redis(&[]).start().await.unwrap();
        assert_eq!(server.crash(), None);
        let process = server.members[0].process().unwrap();
        process.signal(rustix::process::Signal::TERM).unwrap();
        while process.is_running() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let text = server.crash().unwrap();
        assert!(text.contains("ended by itself") && text.contains("bye bye"), "{text}");
        server.kill().unwrap();
        assert_eq!(server.crash(), None);
    }
}
