//! What others put where our keys belong: neither believed, nor deleted, nor waited for without end.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may")]

mod common;

use std::time::Duration;

use common::Api;
use serde_json::json;
use sync_conformance::{Failed, Server, server};
use sync_consul::{Config, Coordinator, Options};
use tokio::time::{sleep, timeout};

const LONG: Duration = Duration::from_secs(60);

struct Scene {
    server: Server,
    api: Api,
}

impl Scene {
    async fn new() -> Result<Self, Failed> {
        let server = server::consul(1, &[]).start().await?;
        common::registered(&server.url()).await?;
        let api = Api::new(&server.url(), None);
        Ok(Self { server, api })
    }

    async fn coordinator(&self) -> Result<Coordinator, Failed> {
        Ok(Config::new(self.server.url()).options(Options::new()).connect().await?)
    }

    async fn session(&self) -> Result<String, Failed> {
        let session = json!({ "Behavior": "delete", "LockDelay": "0s" }).to_string();
        let session = self.api.json("PUT", "/v1/session/create", session.as_bytes()).await?;
        Ok(session["ID"].as_str().ok_or("no session")?.to_owned())
    }

    /// As many tickets of this session in the line of a lock.
    async fn stand_in_line(&self, session: &str, name: &str, many: usize) -> Result<(), Failed> {
        let ticket = |number: usize| {
            let key = format!("sync/line/lock/{name}/{session}-{number:032x}");
            json!({ "KV": { "Verb": "lock", "Key": key, "Session": session } })
        };
        let all: Vec<usize> = (0..many).collect();
        for numbers in all.chunks(64) {
            let ops: Vec<_> = numbers.iter().map(|number| ticket(*number)).collect();
            let ops = serde_json::Value::from(ops).to_string();
            self.api.ask("PUT", "/v1/txn", ops.as_bytes()).await?;
        }
        Ok(())
    }
}

#[tokio::test]
async fn what_is_no_ticket_blocks_nobody() -> Result<(), Failed> {
    let scene = Scene::new().await?;
    let session = scene.session().await?;
    let hex = "ab".repeat(16);
    let theirs = "00000000-0000-4000-8000-000000000009";
    let strange = [
        "note".to_owned(),
        format!("{theirs}-{hex}"),
        format!("{theirs}-{hex}/below"),
        format!("{session}-{}", hex.to_uppercase()),
    ];
    let sync = scene.coordinator().await?;
    for kind in ["lock", "leader"] {
        for (number, key) in strange.iter().enumerate() {
            let path = format!("/v1/kv/sync/line/{kind}/x/{key}");
            // Some are locked, by a session that their names do not tell.
            let path = if number > 1 { format!("{path}?acquire={session}") } else { path };
            scene.api.ask("PUT", &path, b"theirs").await?;
        }
    }
    let (first, second) = (sync.lock("x"), scene.coordinator().await?.lock("x"));
    let guard = timeout(LONG, first.acquire()).await??;
    let waiting = tokio::spawn(async move { second.acquire().await });
    sleep(Duration::from_millis(300)).await;
    guard.release().await?;
    timeout(LONG, waiting).await???.release().await?;
    timeout(LONG, sync.leader("x").elect()).await??.resign().await?;
    assert_eq!(scene.api.pairs("sync/line/").await?.len(), 2 * strange.len(), "left alone");
    Ok(())
}

#[tokio::test]
async fn a_holder_with_a_large_value_is_waited_for_and_shown_in_part() -> Result<(), Failed> {
    let scene = Scene::new().await?;
    let session = scene.session().await?;
    let sync = scene.coordinator().await?;
    let lock = sync.lock("x");
    let path = format!("/v1/kv/{}?acquire={session}&flags=3304740253564472344", lock.key()?);
    scene.api.ask("PUT", &path, &[b'x'; 500_000]).await?;
    let holder = lock.holder().await?.unwrap();
    assert!(holder.node.id.len() <= 64 * 1024 && holder.node.id.starts_with("xxx"));
    assert!(lock.try_acquire().await?.is_none());
    let waiting = tokio::spawn({
        let lock = lock.clone();
        async move { lock.acquire().await }
    });
    sleep(Duration::from_millis(300)).await;
    scene.api.ask("PUT", &format!("/v1/session/destroy/{session}"), b"").await?;
    timeout(LONG, waiting).await???.release().await?;
    Ok(())
}

#[tokio::test]
async fn a_line_too_long_for_an_answer_is_stood_in_all_the_same() -> Result<(), Failed> {
    let scene = Scene::new().await?;
    let (session, sync) = (scene.session().await?, scene.coordinator().await?);
    scene.stand_in_line(&session, "x", 5_000).await?;
    let lock = sync.lock("x");
    assert!(lock.try_acquire().await?.is_none(), "others stand in line");
    assert!(lock.holder().await?.is_none(), "and it was given back");
    let waiting = tokio::spawn({
        let lock = lock.clone();
        async move { lock.acquire().await }
    });
    sleep(Duration::from_secs(2)).await;
    assert!(!waiting.is_finished(), "it passed those who stand in line");
    scene.api.ask("PUT", &format!("/v1/session/destroy/{session}"), b"").await?;
    timeout(LONG, waiting).await???.release().await?;
    Ok(())
}

/// Nobody has so many; what counts is that nothing breaks and nothing waits for ever.
#[tokio::test]
async fn a_hundred_thousand_in_line_are_survived() -> Result<(), Failed> {
    let scene = Scene::new().await?;
    let (session, sync) = (scene.session().await?, scene.coordinator().await?);
    scene.stand_in_line(&session, "x", 100_000).await?;
    let (lock, beside) = (sync.lock("x"), sync.lock("y"));
    let waiting = tokio::spawn(async move { lock.acquire().await });
    for _ in 0..10 {
        timeout(LONG, beside.acquire()).await??.release().await?;
        sleep(Duration::from_millis(300)).await;
    }
    scene.api.ask("PUT", &format!("/v1/session/destroy/{session}"), b"").await?;
    timeout(LONG * 2, waiting).await???.release().await?;
    Ok(())
}
