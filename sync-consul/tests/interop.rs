//! Beside the real `consul` command: on the same keys, under the same rules.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use sync_conformance::process::Process;
use sync_conformance::{Failed, Server, server};
use sync_consul::{Config, Coordinator, ErrorKind, Node, Options};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

mod common;

use common::Api;

/// Longer than anything here should take on a busy machine.
const LONG: Duration = Duration::from_secs(30);

/// Long enough to see that nothing happens.
const QUIET: Duration = Duration::from_millis(700);

struct Scene {
    server: Server,
    api: Api,
    dir: TempDir,
}

impl Scene {
    async fn new() -> Result<Self, Failed> {
        let server = server::consul(1, &[]).start().await?;
        common::registered(&server.url()).await?;
        let api = Api::new(&server.url(), None);
        Ok(Self { server, api, dir: tempfile::tempdir()? })
    }

    async fn coordinator(&self) -> Result<Coordinator, Failed> {
        let options = Options::new().ttl(Duration::from_secs(15)).node(Node::new("rust"));
        Ok(Config::new(self.server.url()).options(options).connect().await?)
    }

    /// The real command with these arguments.
    fn consul(&self, arguments: &[&str]) -> Result<Process, Failed> {
        let program = std::env::var("CONSUL").unwrap_or_else(|_| "consul".to_owned());
        let address = self.server.url();
        let arguments = arguments.iter().map(ToString::to_string).collect::<Vec<_>>();
        let log = std::fs::File::create(self.dir.path().join("log"))?;
        Ok(Process::start(&program, arguments, |command| {
            command
                .env("CONSUL_HTTP_ADDR", &address)
                .current_dir(self.dir.path())
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log);
        })?)
    }

    /// `consul lock`, whose command says that it holds by a file, and ends once another is there.
    fn lock(&self, flags: &[&str], prefix: &str, name: &str) -> Result<Locked, Failed> {
        let [held, go] = ["held", "go"].map(|what| self.dir.path().join(format!("{name}-{what}")));
        let script = format!(
            "touch {}; while [ ! -e {} ]; do sleep 0.05; done",
            held.display(),
            go.display()
        );
        let arguments = [&["lock"], flags, &[prefix, &script]].concat();
        Ok(Locked { process: self.consul(&arguments)?, held, go })
    }
}

struct Locked {
    process: Process,
    held: PathBuf,
    go: PathBuf,
}

impl Locked {
    async fn holds(&self) -> Result<(), Failed> {
        appears(&self.held).await
    }

    /// Lets it go, and waits until it has gone.
    async fn end(self) -> Result<(), Failed> {
        std::fs::write(&self.go, "")?;
        until(|| !self.process.is_running()).await
    }
}

async fn appears(file: &Path) -> Result<(), Failed> {
    until(|| file.exists()).await
}

async fn until(mut so: impl FnMut() -> bool) -> Result<(), Failed> {
    let looking = async {
        while !so() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    Ok(timeout(LONG, looking).await?)
}

/// Where `consul lock` looks for the lock of this key.
fn prefix(key: &str) -> &str {
    key.trim_end_matches("/.lock")
}

#[tokio::test]
async fn consul_lock_waits_for_us() -> Result<(), Failed> {
    let scene = Scene::new().await?;
    let sync = scene.coordinator().await?;
    let lock = sync.lock("x");
    let guard = lock.acquire().await?;
    let theirs = scene.lock(&[], prefix(&lock.key()?), "a")?;
    sleep(QUIET).await;
    assert!(!theirs.held.exists(), "two hold it");
    assert!(guard.is_valid());
    guard.release().await?;
    theirs.holds().await?;
    assert!(lock.try_acquire().await?.is_none());
    theirs.end().await?;
    // Its key may stay behind without a session: ours to take, with a greater token.
    timeout(LONG, lock.acquire()).await??.release().await?;
    Ok(())
}

#[tokio::test]
async fn we_wait_for_consul_lock() -> Result<(), Failed> {
    let scene = Scene::new().await?;
    let sync = scene.coordinator().await?;
    let lock = sync.lock("x");
    let before = lock.acquire().await?;
    let earlier = before.token();
    before.release().await?;
    let theirs = scene.lock(&[], prefix(&lock.key()?), "a")?;
    theirs.holds().await?;
    let holder = lock.holder().await?.ok_or("nobody holds it")?;
    assert_eq!(holder.token, None, "what others count is no token");
    let waiting = tokio::spawn({
        let lock = lock.clone();
        async move { lock.acquire().await }
    });
    sleep(QUIET).await;
    assert!(!waiting.is_finished(), "two hold it");
    theirs.end().await?;
    let guard = timeout(LONG, waiting).await???;
    assert!(guard.token() > earlier);
    guard.release().await?;
    Ok(())
}

#[tokio::test]
async fn they_and_we_take_turns() -> Result<(), Failed> {
    let scene = Scene::new().await?;
    let sync = scene.coordinator().await?;
    let lock = sync.lock("turns");
    let counter = scene.dir.path().join("counter");
    std::fs::write(&counter, "0")?;
    let script = format!("n=$(cat {0}); sleep 0.05; echo $((n + 1)) > {0}", counter.display());
    let key = lock.key()?;
    for _ in 0..5 {
        let theirs = scene.consul(&["lock", prefix(&key), &script])?;
        let guard = timeout(LONG, lock.acquire()).await??;
        let seen: u32 = std::fs::read_to_string(&counter)?.trim().parse()?;
        sleep(Duration::from_millis(50)).await;
        std::fs::write(&counter, (seen + 1).to_string())?;
        assert!(guard.is_valid());
        guard.release().await?;
        until(|| !theirs.is_running()).await?;
    }
    assert_eq!(std::fs::read_to_string(&counter)?.trim(), "10", "an update was lost");
    Ok(())
}

#[tokio::test]
async fn a_semaphore_of_consul_lock_is_left_alone() -> Result<(), Failed> {
    let scene = Scene::new().await?;
    let sync = scene.coordinator().await?;
    let lock = sync.lock("x");
    let key = lock.key()?;
    let theirs = scene.lock(&["-n", "2"], prefix(&key), "a")?;
    theirs.holds().await?;
    let before = scene.api.pairs(&key).await?;
    let error = lock.acquire().await.expect_err("a semaphore stands there");
    assert_eq!(error.kind(), ErrorKind::Foreign, "{error}");
    let after = scene.api.pairs(&key).await?;
    assert_eq!(after[0].modify_index, before[0].modify_index);
    assert!(theirs.process.is_running());
    theirs.end().await
}

#[tokio::test]
async fn the_kv_commands_read_who_leads() -> Result<(), Failed> {
    let scene = Scene::new().await?;
    let sync = scene.coordinator().await?;
    let leader = sync.leader("scheduler");
    let elected = leader.elect().await?;
    assert_eq!(leader.key()?, "sync/leader/scheduler");
    let program = std::env::var("CONSUL").unwrap_or_else(|_| "consul".to_owned());
    let got = std::process::Command::new(program)
        .args(["kv", "get", "sync/leader/scheduler"])
        .env("CONSUL_HTTP_ADDR", scene.server.url())
        .output()?;
    let record: serde_json::Value = serde_json::from_slice(&got.stdout)?;
    assert_eq!(record["id"], "rust");
    elected.resign().await?;
    Ok(())
}

#[tokio::test]
async fn what_consul_kv_put_left_is_left_alone_and_named() -> Result<(), Failed> {
    let scene = Scene::new().await?;
    let sync = scene.coordinator().await?;
    let lock = sync.lock("x");
    let key = lock.key()?;
    until_ended(&scene.consul(&["kv", "put", &key, "somebody else"])?).await?;
    let error = lock.acquire().await.expect_err("somebody's data stands there");
    assert_eq!(error.kind(), ErrorKind::Foreign);
    assert!(error.to_string().contains(&key), "{error}");
    assert_eq!(scene.api.pairs(&key).await?[0].text(), "somebody else");
    assert!(lock.holder().await?.is_none(), "nobody holds it");
    until_ended(&scene.consul(&["kv", "delete", &key])?).await?;
    lock.acquire().await?.release().await?;
    Ok(())
}

#[tokio::test]
async fn what_is_put_over_a_held_key_is_told_and_stays() -> Result<(), Failed> {
    let scene = Scene::new().await?;
    let sync = scene.coordinator().await?;
    let lock = sync.lock("x");
    let key = lock.key()?;
    let guard = lock.acquire().await?;
    until_ended(&scene.consul(&["kv", "put", &key, "somebody else"])?).await?;
    let revocation = timeout(LONG, guard.revoked()).await?;
    assert_eq!(revocation.cause, sync_consul::Cause::Key);
    drop(guard);
    // Without our session, which would take it away at its end.
    let free = async {
        loop {
            let pairs = scene.api.pairs(&key).await?;
            if pairs[0].session.is_empty() {
                return Ok::<_, Failed>(pairs[0].text());
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    assert_eq!(timeout(LONG, free).await??, "somebody else");
    sync.shutdown().await?;
    assert_eq!(scene.api.pairs(&key).await?[0].text(), "somebody else");
    Ok(())
}

#[tokio::test]
async fn a_lock_left_without_session_is_taken_over() -> Result<(), Failed> {
    let scene = Scene::new().await?;
    let sync = scene.coordinator().await?;
    let lock = sync.lock("x");
    let key = lock.key()?;
    let session = scene.api.json("PUT", "/v1/session/create", b"{}").await?;
    let session = session["ID"].as_str().ok_or("no session")?;
    let flags = "flags=3304740253564472344";
    for verb in ["acquire", "release"] {
        let path = format!("/v1/kv/{key}?{verb}={session}&{flags}");
        assert!(scene.api.ask("PUT", &path, b"theirs").await?.starts_with(b"true"));
    }
    let guard = timeout(LONG, lock.acquire()).await??;
    assert!(guard.token().get() >= scene.api.pairs(&key).await?[0].create_index);
    guard.release().await?;
    Ok(())
}

async fn until_ended(process: &Process) -> Result<(), Failed> {
    until(|| !process.is_running()).await
}
