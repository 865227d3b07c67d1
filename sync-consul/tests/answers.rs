//! Answers that an agent may give, and that nobody should rely on: behind a go-between that changes
//! them on the way.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may")]

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::Api;
use sync_conformance::{Failed, Server, server};
use sync_consul::{Cause, Config, Coordinator, Options};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

const LONG: Duration = Duration::from_secs(30);

/// What becomes of an answer: given the request's first line with its body, and the answer.
type Change = Arc<dyn Fn(&str, String) -> String + Send + Sync>;

struct Scene {
    server: Server,
    api: Api,
    change: Arc<Mutex<Option<Change>>>,
    requests: Arc<AtomicUsize>,
    url: String,
}

impl Scene {
    async fn new() -> Result<Self, Failed> {
        let server = server::consul(1, &[]).start().await?;
        common::registered(&server.url()).await?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let scene = Self {
            api: Api::new(&server.url(), None),
            server,
            change: Arc::default(),
            requests: Arc::default(),
            url: format!("http://{}", listener.local_addr()?),
        };
        let (change, requests) = (Arc::clone(&scene.change), Arc::clone(&scene.requests));
        let agent = scene.api.address.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (change, requests) = (Arc::clone(&change), Arc::clone(&requests));
                tokio::spawn(between(client, agent.clone(), change, requests));
            }
        });
        Ok(scene)
    }

    /// One whose answers are changed.
    async fn coordinator(&self) -> Result<Coordinator, Failed> {
        let options = Options::new().ttl(Duration::from_secs(15));
        Ok(Config::new(&self.url).options(options).connect().await?)
    }

    async fn other(&self) -> Result<Coordinator, Failed> {
        Ok(Config::new(self.server.url()).connect().await?)
    }

    fn change(&self, change: impl Fn(&str, String) -> String + Send + Sync + 'static) {
        *self.change.lock().unwrap() = Some(Arc::new(change));
    }

    fn pass(&self) {
        *self.change.lock().unwrap() = None;
    }

    async fn keys(&self, prefix: &str) -> Result<Vec<String>, Failed> {
        Ok(self.api.pairs(prefix).await?.into_iter().map(|pair| pair.key).collect())
    }
}

/// Hands each request of a client on, and its answer back, changed.
async fn between(
    mut client: TcpStream,
    agent: String,
    change: Arc<Mutex<Option<Change>>>,
    requests: Arc<AtomicUsize>,
) -> std::io::Result<()> {
    let mut read = Vec::new();
    loop {
        let (head, length) = loop {
            if let Some(end) = read.windows(4).position(|end| end == b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&read[..end]).to_lowercase();
                let length = head.split("content-length: ").nth(1);
                let length = length.and_then(|rest| rest.split("\r\n").next()?.parse().ok());
                let length: usize = length.unwrap_or(0);
                if read.len() >= end + 4 + length {
                    break (end + 4, length);
                }
            }
            if client.read_buf(&mut read).await? == 0 {
                return Ok(());
            }
        };
        let request: Vec<u8> = read.drain(..head + length).collect();
        requests.fetch_add(1, Ordering::Relaxed);
        let text = String::from_utf8_lossy(&request).into_owned();
        let mut stream = TcpStream::connect(&agent).await?;
        // The older protocol ends an answer by closing.
        stream.write_all(text.replacen("HTTP/1.1", "HTTP/1.0", 1).as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let answer = answer.replacen("HTTP/1.0", "HTTP/1.1", 1);
        let made = change.lock().unwrap().clone();
        let answer = match made {
            Some(change) => change(&text, answer),
            None => answer,
        };
        client.write_all(answer.as_bytes()).await?;
    }
}

const BROKEN: &str = "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 41\r\n\r\n\
                      leadership lost while committing log 0123";

fn without_index(answer: &str) -> String {
    let lines = answer.split("\r\n").filter(|line| !line.starts_with("X-Consul-Index"));
    lines.collect::<Vec<_>>().join("\r\n")
}

#[tokio::test]
async fn a_write_answered_with_a_500_is_neither_believed_nor_forgotten() -> Result<(), Failed> {
    let scene = Scene::new().await?;
    let (sync, other) = (scene.coordinator().await?, scene.other().await?);
    sync.lock("warm").acquire().await?.release().await?;
    for name in ["once", "always"] {
        // It is done all the same.
        let left = AtomicUsize::new(if name == "once" { 1 } else { 3 });
        scene.change(move |request, answer| {
            let takes = request.contains("\"Verb\":\"lock\"") && answer.starts_with("HTTP/1.1 200");
            let more = |left: usize| left.checked_sub(1);
            let hit =
                takes && left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok();
            if hit { BROKEN.to_owned() } else { answer }
        });
        let lock = sync.lock(name);
        let guard = timeout(LONG, lock.acquire()).await??;
        let pairs = scene.api.pairs(&lock.key()?).await?;
        assert_eq!(pairs[0].create_index, guard.token().get(), "held by what stands there");
        assert!(other.lock(name).try_acquire().await?.is_none());
        scene.pass();
        guard.release().await?;
        assert!(scene.keys(&format!("sync/lock/{name}")).await?.is_empty());
        let markers = scene.api.pairs("sync/void/").await?;
        assert!(!markers.is_empty() && markers.iter().all(|marker| !marker.session.is_empty()));
        other.lock(name).acquire().await?.release().await?;
    }
    sync.shutdown().await?;
    assert!(scene.keys("sync/").await?.is_empty(), "markers go with their session");
    Ok(())
}

#[tokio::test]
async fn a_release_answered_with_a_500_is_a_release() -> Result<(), Failed> {
    let scene = Scene::new().await?;
    let sync = scene.coordinator().await?;
    let guard = sync.lock("x").acquire().await?;
    let left = AtomicUsize::new(1);
    scene.change(move |request, answer| {
        let gives = request.contains("\"Verb\":\"delete\"");
        let more = |left: usize| left.checked_sub(1);
        let hit = gives && left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok();
        if hit { BROKEN.to_owned() } else { answer }
    });
    guard.release().await?;
    assert!(scene.keys("sync/lock").await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn without_an_index_nothing_is_missed_and_nothing_is_asked_all_the_time() -> Result<(), Failed>
{
    let scene = Scene::new().await?;
    let (sync, other) = (scene.coordinator().await?, scene.other().await?);
    for broken in
        ["", "X-Consul-Index: 0\r\n", "X-Consul-Index: many\r\n", "X-Consul-Index: -7\r\n"]
    {
        scene.change(move |_, answer| {
            without_index(&answer).replacen("\r\n", &format!("\r\n{broken}"), 1)
        });
        let held = other.lock("x").acquire().await?;
        let waiting = tokio::spawn({
            let lock = sync.lock("x");
            async move { lock.acquire().await }
        });
        sleep(Duration::from_millis(500)).await;
        let before = scene.requests.load(Ordering::Relaxed);
        sleep(Duration::from_secs(3)).await;
        let asked = scene.requests.load(Ordering::Relaxed) - before;
        assert!(asked < 30, "{asked} requests in 3 s with {broken:?}");
        held.release().await?;
        timeout(LONG, waiting).await???.release().await?;
    }
    Ok(())
}

#[tokio::test]
async fn an_index_that_goes_backwards_begins_anew() -> Result<(), Failed> {
    let scene = Scene::new().await?;
    let (sync, other) = (scene.coordinator().await?, scene.other().await?);
    // Each answer's is smaller than the one before, as after restores.
    let next = AtomicUsize::new(1_000_000);
    let asked = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&asked);
    scene.change(move |request, answer| {
        heard.lock().unwrap().push(request.split(' ').nth(1).unwrap_or_default().to_owned());
        let index = next.fetch_sub(1, Ordering::Relaxed);
        without_index(&answer).replacen("\r\n", &format!("\r\nX-Consul-Index: {index}\r\n"), 1)
    });
    let lock = sync.lock("x");
    let guard = lock.acquire().await?;
    sleep(Duration::from_secs(1)).await;
    scene.api.ask("DELETE", &format!("/v1/kv/{}", lock.key()?), b"").await?;
    // A poll with an index that is never reached is over after 10 s.
    assert_eq!(timeout(LONG, guard.revoked()).await?.cause, Cause::Key);
    let held = other.lock("y").acquire().await?;
    let waiting = tokio::spawn({
        let lock = sync.lock("y");
        async move { lock.acquire().await }
    });
    sleep(Duration::from_secs(1)).await;
    held.release().await?;
    timeout(LONG, waiting).await???.release().await?;
    let asked = asked.lock().unwrap();
    assert!(asked.iter().any(|path| path.contains("index=")));
    assert!(!asked.iter().any(|path| path.contains("index=0")));
    Ok(())
}
