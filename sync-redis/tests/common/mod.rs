//! A real server of one's own, and a coordinator's backend on it without the core in between.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use redis::{Connection, FromRedisValue};
use sync_conformance::driver::{Driver, TTL};
use sync_redis::{Config, Options, Redis};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, watch};

/// `redis-server`, or what `REDIS_SERVER` names (`valkey-server`).
pub(crate) fn server_program() -> String {
    std::env::var("REDIS_SERVER").unwrap_or_else(|_| "redis-server".to_owned())
}

/// A server with a directory of its own; it ends with the value.
pub(crate) struct Server {
    pub(crate) port: u16,
    pub(crate) dir: TempDir,
    arguments: Vec<String>,
    child: Option<Child>,
}

impl Server {
    pub(crate) fn start() -> Self {
        Self::start_with(&["--save", "", "--appendonly", "no"])
    }

    /// Loses nothing when it is killed.
    pub(crate) fn durable() -> Self {
        Self::start_with(&["--save", "", "--appendonly", "yes", "--appendfsync", "always"])
    }

    pub(crate) fn start_with(arguments: &[&str]) -> Self {
        let port = free_port();
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let dir = TempDir::new().unwrap();
        let mut server = Self { port, dir, arguments, child: None };
        server.restart();
        server
    }

    pub(crate) fn restart(&mut self) {
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

    pub(crate) fn add_argument(&mut self, argument: &str) {
        self.arguments.push(argument.to_owned());
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.child.as_ref().unwrap().id().to_string();
        let sent = Command::new("kill").args([signal, &pid]).status().unwrap();
        assert!(sent.success());
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(crate) fn raw(&self) -> Connection {
        let until = Instant::now() + Duration::from_secs(5);
        loop {
            match redis::Client::open(self.url()).unwrap().get_connection() {
                Ok(connection) => return connection,
                Err(error) => assert!(Instant::now() < until, "{error}"),
            }
        }
    }

    /// Runs a command as an operator would.
    pub(crate) fn run<T: FromRedisValue>(&self, command: &str) -> T {
        let mut words = command.split(' ');
        let mut cmd = redis::cmd(words.next().unwrap());
        for word in words {
            cmd.arg(word);
        }
        cmd.query(&mut self.raw()).unwrap()
    }

    pub(crate) async fn backend(&self) -> Redis {
        Config::new(self.url()).backend().await.unwrap()
    }

    pub(crate) async fn client(&self) -> Driver {
        self.client_with(TTL).await
    }

    pub(crate) async fn client_with(&self, ttl: Duration) -> Driver {
        Driver::on(self.backend().await, ttl).await
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Below the ports that the system hands out to clients, and different in each test binary.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let number = std::process::id() * 37 + NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 12_000 + u16::try_from(number % 20_000).unwrap();
        // Not by listening there: a program that another test starts just then would go on listening
        // until it has begun, and take for itself what is meant for the server.
        if std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            return port;
        }
    }
}

/// What stands between a client and its server.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    mode: Arc<Mutex<Mode>>,
    cut: watch::Sender<()>,
    open: Arc<AtomicU32>,
}

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Pass,
    /// Connections of an earlier number hear nothing more.
    SilentBefore(usize),
    /// Each answer comes after the one before it has come once more.
    Double,
    /// Connections that are made now hear nothing, also later.
    Hole,
}

impl Proxy {
    pub(crate) async fn to(server: &Server) -> Self {
        Self::slow(server, Duration::ZERO).await
    }

    /// One that keeps everything back for `delay`, each way.
    pub(crate) async fn slow(server: &Server, delay: Duration) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (mode, to) = (Arc::new(Mutex::new(Mode::Pass)), server.port);
        let (cut, open) = (watch::Sender::new(()), Arc::new(AtomicU32::new(0)));
        let (modes, cuts, count) = (Arc::clone(&mode), cut.subscribe(), Arc::clone(&open));
        tokio::spawn(async move {
            let mut number = 0;
            while let Ok((client, _)) = listener.accept().await {
                number += 1;
                let (mode, mut cut, count) = (Arc::clone(&modes), cuts.clone(), Arc::clone(&count));
                cut.mark_unchanged();
                tokio::spawn(async move {
                    count.fetch_add(1, Ordering::SeqCst);
                    tokio::select! {
                        () = carry(number, client, to, mode, delay) => {}
                        _ = cut.changed() => {}
                    }
                    count.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self { port, mode, cut, open }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// How many connections there are.
    pub(crate) fn open(&self) -> u32 {
        self.open.load(Ordering::SeqCst)
    }

    /// All connections but those yet to come fall silent.
    pub(crate) fn silence_first(&self, number: usize) {
        *self.mode.lock().unwrap() = Mode::SilentBefore(number + 1);
    }

    pub(crate) fn double_answers(&self) {
        *self.mode.lock().unwrap() = Mode::Double;
    }

    /// Ends all connections.
    pub(crate) fn cut(&self) {
        self.cut.send_replace(());
    }

    /// Ends all connections; new ones are made and never heard.
    pub(crate) fn swallow(&self) {
        *self.mode.lock().unwrap() = Mode::Hole;
        self.cut();
    }

    pub(crate) fn pass(&self) {
        *self.mode.lock().unwrap() = Mode::Pass;
    }
}

/// Until either side ends the connection.
async fn carry(number: usize, client: TcpStream, to: u16, mode: Arc<Mutex<Mode>>, delay: Duration) {
    client.set_nodelay(true).unwrap();
    let (from_client, to_client) = client.into_split();
    if *mode.lock().unwrap() == Mode::Hole {
        return pipe(from_client, None, delay, |_| {}).await;
    }
    let server = TcpStream::connect(("127.0.0.1", to)).await.unwrap();
    server.set_nodelay(true).unwrap();
    let (from_server, to_server) = server.into_split();
    let mut before = Vec::new();
    let answers = pipe(from_server, Some(to_client), delay, |bytes| {
        let mode = *mode.lock().unwrap();
        let answer = bytes.clone();
        match mode {
            Mode::Double => *bytes = [&before[..], &answer].concat(),
            Mode::SilentBefore(first) if number < first => bytes.clear(),
            _ => {}
        }
        before = answer;
    });
    tokio::select! {
        () = pipe(from_client, Some(to_server), delay, |_| {}) => {}
        () = answers => {}
    }
}

async fn pipe(
    mut from: OwnedReadHalf,
    to: Option<OwnedWriteHalf>,
    delay: Duration,
    mut change: impl FnMut(&mut Vec<u8>),
) {
    let (sender, mut kept) = mpsc::unbounded_channel::<(tokio::time::Instant, Vec<u8>)>();
    let read = async move {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            let mut bytes = buffer[..length].to_vec();
            change(&mut bytes);
            let _ = sender.send((tokio::time::Instant::now() + delay, bytes));
        }
    };
    let Some(mut to) = to else { return read.await };
    let write = async move {
        while let Some((at, bytes)) = kept.recv().await {
            if !delay.is_zero() {
                tokio::time::sleep_until(at).await;
            }
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(read, write);
}

/// Where a test's own files are, under its server's directory.
pub(crate) fn path(server: &Server, file: &str) -> PathBuf {
    server.dir.path().join(file)
}

pub(crate) fn options(namespace: &str) -> Options {
    Options::new().namespace(namespace)
}
