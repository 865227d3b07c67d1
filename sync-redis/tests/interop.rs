//! redis-py's `Lock` and this crate exclude each other on the same name, in both directions.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may")]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use common::Server;
use sync_redis::{Config, Coordinator, Options};

/// A process with a `redis.lock.Lock` of its own.
struct Python {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Python {
    /// `python3`, or what `PYTHON` names.
    fn start(server: &Server) -> Self {
        let program = std::env::var("PYTHON").unwrap_or_else(|_| "python3".to_owned());
        let mut child = Command::new(&program)
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop.py"))
            .arg(server.port.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{program} cannot be run: {error}"));
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut python = Self { child, stdin, stdout };
        let version = python.line();
        assert!(!version.is_empty(), "redis-py is missing: {program} -m pip install redis");
        python
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    fn say(&mut self, command: &str) {
        writeln!(self.stdin, "{command}").unwrap();
    }

    fn ask(&mut self, command: &str) -> String {
        self.say(command);
        self.line()
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn coordinator(server: &Server) -> Coordinator {
    let options = Options::new().ttl(Duration::from_secs(2));
    Config::new(server.url()).options(options).connect().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_py_is_kept_out_while_we_hold_and_let_in_after() {
    let server = Server::start();
    let mut python = Python::start(&server);
    let sync = coordinator(&server).await;
    let lock = sync.lock("nightly/report");
    let key = lock.key().unwrap();
    let guard = lock.acquire().await.unwrap();
    assert_eq!(python.ask(&format!("acquire {key} 5 0")), "no");
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(python.ask(&format!("acquire {key} 5 0")), "no", "held past its TTL by renewal");
    assert!(guard.is_valid());
    python.say(&format!("acquire {key} 5 3"));
    guard.release().await.unwrap();
    assert_eq!(python.line(), "yes");
    assert_eq!(python.ask("release"), "yes");
}

#[tokio::test(flavor = "multi_thread")]
async fn we_are_kept_out_while_redis_py_holds_and_let_in_after() {
    let server = Server::start();
    let mut python = Python::start(&server);
    let sync = coordinator(&server).await;
    let lock = sync.lock("a");
    let key = lock.key().unwrap();
    for ttl in ["-", "30"] {
        assert_eq!(python.ask(&format!("acquire {key} {ttl} 0")), "yes");
        assert!(lock.try_acquire().await.unwrap().is_none());
        let holder = lock.holder().await.unwrap().unwrap();
        assert_eq!(holder.node.id, server.run::<String>(&format!("GET {key}")), "a foreign holder");
        assert_eq!((holder.token, holder.since), (None, None));
        let waiting = tokio::spawn({
            let lock = lock.clone();
            async move { lock.acquire().await.unwrap() }
        });
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!waiting.is_finished());
        assert_eq!(python.ask("release"), "yes");
        let released = Instant::now();
        let guard = waiting.await.unwrap();
        assert!(released.elapsed() < Duration::from_millis(1500), "{:?}", released.elapsed());
        guard.release().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_redis_py_lost_it_cannot_take_back() {
    let server = Server::start();
    let mut python = Python::start(&server);
    let sync = coordinator(&server).await;
    let lock = sync.lock("a");
    assert_eq!(python.ask(&format!("acquire {} 0.3 0", lock.key().unwrap())), "yes");
    let guard = lock.acquire().await.unwrap();
    assert_eq!(python.ask("extend 60"), "LockNotOwnedError");
    assert_eq!(python.ask("release"), "LockNotOwnedError");
    assert!(guard.is_valid());
    guard.release().await.expect("it was still ours");
}

#[tokio::test(flavor = "multi_thread")]
async fn together_they_lose_no_update() {
    const TIMES: i64 = 100;
    let server = Server::start();
    let mut pythons = [Python::start(&server), Python::start(&server)];
    let sync = coordinator(&server).await;
    let lock = sync.lock("a");
    for python in &mut pythons {
        python.say(&format!("count {} counter {TIMES}", lock.key().unwrap()));
    }
    let mut raw = server.raw();
    for _ in 0..TIMES {
        let guard = lock.acquire().await.unwrap();
        let count: Option<i64> = redis::cmd("GET").arg("counter").query(&mut raw).unwrap();
        tokio::task::yield_now().await;
        let () =
            redis::cmd("SET").arg("counter").arg(count.unwrap_or(0) + 1).query(&mut raw).unwrap();
        guard.release().await.unwrap();
    }
    for python in &mut pythons {
        assert_eq!(python.line(), "done");
    }
    assert_eq!(server.run::<i64>("GET counter"), 3 * TIMES);
}
