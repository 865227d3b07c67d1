//! Agents of a test's own, and what is to be seen on them.
#![allow(dead_code, reason = "each test uses its part")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may")]

use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;
use sync_conformance::driver::{Driver, TTL, eventually};
use sync_conformance::{Failed, Server, server};
use sync_consul::{Config, Coordinator, Options};
use sync_core::Name;
use sync_core::backend::{Claim, Session};
use tokio::process::Command;
use tokio::time::sleep;

use crate::common::{Api, Pair};

/// By these flags other programs know a key as a lock.
pub(crate) const LOCK_FLAGS: u64 = 3_304_740_253_564_472_344;

/// For what takes as long as it takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// An agent that nobody else uses.
pub(crate) async fn agent(more: &[&str]) -> Server {
    let server = server::consul(1, more).start().await.unwrap();
    ready(&operator(&server)).await;
    server
}

/// Waits until the agent has registered itself: before, it makes no session.
pub(crate) async fn ready(api: &Api) {
    let until = Instant::now() + PATIENCE;
    let made = loop {
        match api.json("PUT", "/v1/session/create", br#"{"NodeChecks":[]}"#).await {
            Ok(made) => break made,
            Err(error) => assert!(Instant::now() < until, "{error:?}"),
        }
        sleep(Duration::from_millis(50)).await;
    };
    destroy(api, made["ID"].as_str().unwrap()).await;
}

pub(crate) fn config(url: impl AsRef<str>) -> Config {
    Config::new(url).least_ttl(Duration::from_secs(1))
}

pub(crate) async fn client(server: &Server) -> Driver {
    client_with(server, TTL).await
}

pub(crate) async fn client_with(server: &Server, ttl: Duration) -> Driver {
    Driver::on(config(server.url()).backend().await.unwrap(), ttl).await
}

pub(crate) async fn coordinator(url: &str, ttl: Duration) -> Coordinator {
    config(url).options(Options::new().ttl(ttl)).connect().await.unwrap()
}

/// Somebody who looks, and does what an operator does.
pub(crate) fn operator(server: &Server) -> Api {
    Api::new(&server.url(), None)
}

/// The ids of all sessions.
pub(crate) async fn sessions(api: &Api) -> Result<Vec<String>, Failed> {
    let list = api.json("GET", "/v1/session/list?consistent", b"").await?;
    let list = list.as_array().ok_or("no list of sessions")?;
    Ok(list.iter().filter_map(|one| one["ID"].as_str().map(ToOwned::to_owned)).collect())
}

/// The names of all keys under a prefix, in the order of their making.
pub(crate) async fn keys(api: &Api, prefix: &str) -> Vec<String> {
    let mut pairs = api.pairs(prefix).await.unwrap();
    pairs.sort_by_key(|pair| pair.create_index);
    pairs.into_iter().map(|pair| pair.key).collect()
}

/// The one key under a prefix.
pub(crate) async fn only(api: &Api, prefix: &str) -> Pair {
    let mut pairs = api.pairs(prefix).await.unwrap();
    assert_eq!(pairs.len(), 1, "{pairs:?}");
    pairs.remove(0)
}

/// Waits until so many stand in the line (`lock/a`), or in all lines of a kind (`lock`). In their
/// order.
pub(crate) async fn in_line(api: &Api, line: &str, count: usize) -> Vec<Pair> {
    eventually(PATIENCE, async || {
        let mut pairs = api.pairs(&format!("sync/line/{line}/")).await?;
        pairs.sort_by_key(|pair| pair.create_index);
        if pairs.len() == count { Ok(pairs) } else { Err(Failed::from("not so many stand there")) }
    })
    .await
}

pub(crate) async fn put(api: &Api, key: &str, value: &str) {
    api.ask("PUT", &format!("/v1/kv/{key}"), value.as_bytes()).await.unwrap();
}

pub(crate) async fn delete(api: &Api, key: &str) {
    api.ask("DELETE", &format!("/v1/kv/{key}"), b"").await.unwrap();
}

pub(crate) async fn destroy(api: &Api, session: &str) {
    api.ask("PUT", &format!("/v1/session/destroy/{session}"), b"").await.unwrap();
}

/// A session of somebody else, which lives until it is destroyed.
pub(crate) async fn open_session(api: &Api) -> String {
    let made = api.json("PUT", "/v1/session/create", br#"{"NodeChecks":[]}"#).await.unwrap();
    made["ID"].as_str().unwrap().to_owned()
}

/// The keys of a claim, as other programs and other versions know them.
pub(crate) fn key(claim: &Claim) -> String {
    let name = Name::encoded(&claim.name);
    match claim.kind {
        sync_core::Kind::Lock => format!("sync/lock/{name}/.lock"),
        _ => format!("sync/leader/{name}"),
    }
}

pub(crate) fn ticket(session: &Session, claim: &Claim) -> String {
    let Claim { kind, name, nonce, .. } = claim;
    format!("sync/line/{kind}/{}/{}-{}", Name::encoded(name), session.id, nonce.to_hex())
}

pub(crate) fn void(session: &Session, claim: &Claim) -> String {
    format!("sync/void/{}-{}", session.id, claim.nonce.to_hex())
}

/// What the agent has counted so far: `Count` of a counter or of a sample.
pub(crate) async fn counted(api: &Api, name: &str) -> u64 {
    let metrics = api.json("GET", "/v1/agent/metrics", b"").await.unwrap();
    let of = |kind: &str| -> u64 {
        let all = metrics[kind].as_array().cloned().unwrap_or_default();
        let named = all.iter().filter(|one| one["Name"].as_str() == Some(name));
        named.filter_map(|one| one["Count"].as_u64()).sum()
    };
    of("Counters") + of("Samples")
}

/// How far the log has come: each write moves it by one, and so does a session's end.
pub(crate) async fn applied(api: &Api) -> u64 {
    let own: Value = api.json("GET", "/v1/agent/self", b"").await.unwrap();
    let text = own["Stats"]["raft"]["last_log_index"].as_str().unwrap().to_owned();
    text.parse().unwrap()
}

/// Runs one test of this program alone, with these variables in its environment, and gives what it
/// printed.
pub(crate) async fn again(test: &str, variables: &[(&str, &str)]) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).envs(variables.iter().copied());
    let ran = command.stdin(Stdio::null()).output().await.unwrap();
    let text = String::from_utf8_lossy(&[ran.stdout, ran.stderr].concat()).into_owned();
    assert!(ran.status.success() && text.contains("1 passed"), "{text}");
    text
}
