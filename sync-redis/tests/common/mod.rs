//! A real server of one's own, and a coordinator's backend on it without the core in between.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use redis::{Connection, FromRedisValue};
use sync_core::backend::{Attempt, Backend, Claim, Grant, Nonce, Session, Ticket};
use sync_core::{Kind, Name, OsRng, Rng};
use sync_redis::{Config, Options, Redis};
use tempfile::TempDir;

/// `redis-server`, or what `SYNC_TEST_REDIS_SERVER` names (`valkey-server`).
pub fn server_program() -> String {
    std::env::var("SYNC_TEST_REDIS_SERVER").unwrap_or_else(|_| "redis-server".to_owned())
}

/// A server with a directory of its own; it ends with the value.
pub struct Server {
    pub port: u16,
    pub dir: TempDir,
    arguments: Vec<String>,
    child: Option<Child>,
}

impl Server {
    pub fn start() -> Self {
        Self::start_with(&["--save", "", "--appendonly", "no"])
    }

    /// Loses nothing when it is killed.
    pub fn durable() -> Self {
        Self::start_with(&["--save", "", "--appendonly", "yes", "--appendfsync", "always"])
    }

    pub fn start_with(arguments: &[&str]) -> Self {
        let port = free_port();
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let dir = TempDir::new().unwrap();
        let mut server = Self { port, dir, arguments, child: None };
        server.restart();
        server
    }

    pub fn restart(&mut self) {
        self.kill();
        let log = self.dir.path().join("log");
        let program = server_program();
        let child = Command::new(&program)
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1"])
            .arg("--dir")
            .arg(self.dir.path())
            .arg("--logfile")
            .arg(&log)
            .args(&self.arguments)
            .stdout(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| {
                panic!("{program} cannot be run ({error}): apt-get install redis-server")
            });
        self.child = Some(child);
        let until = Instant::now() + Duration::from_secs(20);
        while std::net::TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            let log = std::fs::read_to_string(&log).unwrap_or_default();
            assert!(Instant::now() < until, "{program} did not start: {log}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub fn signal(&self, signal: &str) {
        let pid = self.child.as_ref().unwrap().id().to_string();
        let sent = Command::new("kill").args([signal, &pid]).status().unwrap();
        assert!(sent.success());
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn raw(&self) -> Connection {
        let until = Instant::now() + Duration::from_secs(5);
        loop {
            match redis::Client::open(self.url()).unwrap().get_connection() {
                Ok(connection) => return connection,
                Err(error) => assert!(Instant::now() < until, "{error}"),
            }
        }
    }

    /// Runs a command as an operator would.
    pub fn run<T: FromRedisValue>(&self, command: &str) -> T {
        let mut words = command.split(' ');
        let mut cmd = redis::cmd(words.next().unwrap());
        for word in words {
            cmd.arg(word);
        }
        cmd.query(&mut self.raw()).unwrap()
    }

    pub async fn backend(&self) -> Redis {
        Config::new(self.url()).backend().await.unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

pub fn nonce() -> Nonce {
    let mut bytes = [0; 16];
    OsRng::new().fill(&mut bytes).unwrap();
    Nonce::from_bytes(bytes)
}

pub fn name(name: &str) -> Name {
    Name::parse(name).unwrap()
}

/// The record that a claim has here, as the core would write it.
pub fn record(id: &str, nonce: Nonce) -> Vec<u8> {
    format!(r#"{{"id":"{id}","nonce":"{}"}}"#, nonce.to_hex()).into_bytes()
}

pub fn claim(kind: Kind, of: &str, queue: bool) -> Claim {
    let nonce = nonce();
    Claim::new(kind, name(of), nonce, record("node", nonce).into(), queue)
}

pub fn lock(of: &str) -> Claim {
    claim(Kind::Lock, of, true)
}

pub const TTL: Duration = Duration::from_secs(10);

/// One session on a backend, as the core would drive it.
pub struct Client {
    pub redis: Arc<Redis>,
    pub session: Session,
}

impl Client {
    pub async fn new(server: &Server) -> Self {
        Self::with_ttl(server, TTL).await
    }

    pub async fn with_ttl(server: &Server, ttl: Duration) -> Self {
        Self::on(server.backend().await, ttl).await
    }

    pub async fn on(redis: Redis, ttl: Duration) -> Self {
        let session = redis.open(ttl).await.unwrap();
        Self { redis: Arc::new(redis), session }
    }

    pub async fn attempt(&self, claim: &Claim) -> Attempt {
        self.redis.try_claim(&self.session, claim, None, false).await.unwrap()
    }

    pub async fn held(&self, claim: &Claim) -> Grant {
        match self.attempt(claim).await {
            Attempt::Held(grant) => grant,
            other => panic!("not held: {other:?}"),
        }
    }

    pub async fn blocked(&self, claim: &Claim) -> Ticket {
        match self.attempt(claim).await {
            Attempt::Blocked(ticket) => ticket,
            other => panic!("not blocked: {other:?}"),
        }
    }

    pub async fn end(&self, claim: &Claim) -> sync_core::backend::Ended {
        self.redis.end(&self.session, claim, None, false).await.unwrap()
    }

    pub async fn abandon(&self, claim: &Claim) -> sync_core::backend::Ended {
        self.redis.end(&self.session, claim, None, true).await.unwrap()
    }

    /// Tries as the core does until the claim is held.
    pub async fn acquire(&self, claim: &Claim) -> Grant {
        let mut ticket = None;
        loop {
            match self.redis.try_claim(&self.session, claim, ticket.as_ref(), false).await {
                Ok(Attempt::Held(grant)) => return grant,
                Ok(Attempt::Blocked(place)) => {
                    let look = place.look_after.unwrap();
                    let wait = self.redis.wait(&self.session, claim, &place);
                    let _ = tokio::time::timeout(look, wait).await;
                    ticket = Some(place);
                }
                Ok(other) => panic!("{other:?}"),
                Err(error) => assert!(error.is_transient(), "{error}"),
            }
        }
    }
}

/// Runs `work` as the core does: bounded, and dropped when the time is over.
pub async fn bounded<T>(work: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(Duration::from_millis(500), work).await.ok()
}

/// Repeats `work` as the core does until it succeeds.
pub async fn eventually<T, E>(
    limit: Duration,
    mut work: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let until = Instant::now() + limit;
    loop {
        if let Some(Ok(done)) = bounded(work()).await {
            return done;
        }
        assert!(Instant::now() < until, "it did not come about within {limit:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Everything that is logged by this thread, as text.
pub fn capture_logs() -> (Log, tracing::subscriber::DefaultGuard) {
    let log = Log::default();
    let guard = tracing::subscriber::set_default(log.clone());
    (log, guard)
}

#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<String>>);

impl Log {
    pub fn text(&self) -> String {
        self.0.lock().unwrap().clone()
    }
}

impl tracing::Subscriber for Log {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, span: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        self.0.lock().unwrap().push_str(&format!("span {:?}\n", span.values()));
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, values: &tracing::span::Record<'_>) {
        self.0.lock().unwrap().push_str(&format!("{values:?}\n"));
    }

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        self.0.lock().unwrap().push_str(&format!("{} {event:?}\n", event.metadata().level()));
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

/// Where a test's own files are, under its server's directory.
pub fn path(server: &Server, file: &str) -> PathBuf {
    server.dir.path().join(file)
}

pub fn options(namespace: &str) -> Options {
    Options::new().namespace(namespace)
}
