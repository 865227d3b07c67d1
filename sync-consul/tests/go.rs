//! Go's `api.Lock` and this crate exclude each other, by layout: what that does is done here by the
//! very requests that it sends (`api/lock.go`, the same in 1.8 and today).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may")]

#[path = "common/agent.rs"]
mod agent;
mod common;
#[path = "common/front.rs"]
mod front;

use std::sync::Arc;
use std::time::{Duration, Instant};

use agent::{PATIENCE, agent, applied, coordinator, destroy, in_line, keys, only, operator};
use common::{Api, Pair};
use front::Front;
use sync_conformance::Server;
use sync_conformance::company::Counter;
use sync_conformance::driver::{TTL, eventually};
use sync_consul::{Coordinator, Elected, Hold, LockGuard, Node};
use sync_core::Kind;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

const SOON: Duration = Duration::from_secs(3);

/// `LockFlagValue`
const FLAGS: u64 = 0x2ddc_cbc0_58a5_0c18;

/// `DefaultLockSessionTTL`, of which half is the time between two renewals.
const SESSION_TTL: Duration = Duration::from_secs(15);

/// `DefaultLockWaitTime`
const WAIT: &str = "15000ms";

/// `DefaultLockRetryTime`
const RETRY: Duration = Duration::from_secs(5);

/// A session that nobody has said more of has Consul's own lock-delay.
const THEIR_DELAY: Duration = Duration::from_secs(15);

/// A `Lock` of `LockKey`, held.
struct GoLock {
    api: Api,
    key: String,
    session: String,
    renewing: AbortHandle,
}

impl Drop for GoLock {
    fn drop(&mut self) {
        self.renewing.abort();
    }
}

impl GoLock {
    /// `Lock`: waits until it holds.
    async fn lock(api: &Api, key: &str, value: &str) -> Self {
        let body = br#"{"Name":"Consul API Lock","TTL":"15s"}"#;
        let made = api.json("PUT", "/v1/session/create", body).await.unwrap();
        let session = made["ID"].as_str().unwrap().to_owned();
        let renewing = tokio::spawn({
            let (api, path) = (api.clone(), format!("/v1/session/renew/{session}"));
            async move {
                loop {
                    sleep(SESSION_TTL / 2).await;
                    if api.ask("PUT", &path, b"").await.is_err() {
                        return;
                    }
                }
            }
        });
        let lock = Self {
            api: api.clone(),
            key: key.to_owned(),
            session,
            renewing: renewing.abort_handle(),
        };
        let mut query = String::new();
        loop {
            let (pair, index) = api.poll(key, &query).await.unwrap();
            assert!(pair.as_ref().is_none_or(|pair| pair.flags == FLAGS), "ErrLockConflict");
            if pair.is_some_and(|pair| !pair.session.is_empty()) {
                query = format!("?index={index}&wait={WAIT}");
                continue;
            }
            if lock.put("acquire", value).await {
                return lock;
            }
            sleep(RETRY).await;
        }
    }

    async fn put(&self, verb: &str, value: &str) -> bool {
        let Self { key, session, .. } = self;
        let path = format!("/v1/kv/{key}?flags={FLAGS}&{verb}={session}");
        let answer = self.api.ask("PUT", &path, value.as_bytes()).await.unwrap();
        String::from_utf8(answer).unwrap().trim() == "true"
    }

    /// `monitorLock`: resolves when it is lost.
    async fn lost(&self) {
        let mut query = "?consistent".to_owned();
        loop {
            let (pair, index) = self.api.poll(&self.key, &query).await.unwrap();
            if pair.is_none_or(|pair| pair.session != self.session) {
                return;
            }
            query = format!("?consistent&index={index}");
        }
    }

    /// `Unlock`, which ends the session too, in the background.
    async fn unlock(self) {
        assert!(self.put("release", "").await);
        destroy(&self.api, &self.session).await;
    }
}

/// `Destroy`: whether it removed the key. `seen` is what its first request read.
async fn remove(api: &Api, seen: Option<Pair>) -> bool {
    let Some(pair) = seen else { return true };
    assert_eq!(pair.flags, FLAGS, "ErrLockConflict");
    if !pair.session.is_empty() {
        return false;
    }
    let path = format!("/v1/kv/{}?cas={}", pair.key, pair.modify_index);
    let answer = api.ask("DELETE", &path, b"").await.unwrap();
    String::from_utf8(answer).unwrap().trim() == "true"
}

/// What we hold.
enum Ours {
    Lock(LockGuard),
    Leader(Elected),
}

impl Ours {
    async fn take(sync: &Coordinator, kind: Kind) -> Self {
        match kind {
            Kind::Leader => Self::Leader(sync.leader("a").elect().await.unwrap()),
            _ => Self::Lock(sync.lock("a").acquire().await.unwrap()),
        }
    }

    fn hold(&self) -> &Hold {
        match self {
            Self::Lock(guard) => guard,
            Self::Leader(elected) => elected,
        }
    }

    async fn give_back(self) {
        match self {
            Self::Lock(guard) => guard.release().await.unwrap(),
            Self::Leader(elected) => elected.resign().await.unwrap(),
        }
    }
}

fn key(kind: Kind) -> &'static str {
    match kind {
        Kind::Leader => "sync/leader/a",
        _ => "sync/lock/a/.lock",
    }
}

/// An agent whose health is known: sessions that nobody has said more of hang on it.
async fn healthy() -> (Server, Api) {
    let server = agent(&[]).await;
    let api = operator(&server);
    let made = eventually(PATIENCE, async || api.json("PUT", "/v1/session/create", b"{}").await);
    let session = made.await["ID"].as_str().unwrap().to_owned();
    destroy(&api, &session).await;
    (server, api)
}

#[tokio::test]
async fn it_waits_for_us_and_follows_us() {
    let (server, api) = healthy().await;
    let (sync, front) = (coordinator(&server.url(), TTL).await, Front::of(&server).await);
    for kind in [Kind::Lock, Kind::Leader] {
        let ours = Ours::take(&sync, kind).await;
        let before = only(&api, key(kind)).await;
        let waiting = tokio::spawn({
            let api = Api::new(&front.url(), None);
            async move { GoLock::lock(&api, key(kind), "them").await }
        });
        front.polled(key(kind)).await;
        assert!(!waiting.is_finished());
        ours.give_back().await;
        let theirs = timeout(SOON, waiting).await.expect("woken by our release").unwrap();
        let standing = only(&api, key(kind)).await;
        assert_eq!((&standing.session, standing.flags), (&theirs.session, FLAGS));
        assert!(standing.create_index > before.create_index);
        if kind == Kind::Leader {
            let seen = sync.leader("a").leader().await.unwrap().expect("somebody leads");
            assert_eq!((seen.node, seen.token), (Node::new("them"), None));
        }
        assert!(timeout(Duration::from_millis(300), theirs.lost()).await.is_err());
        theirs.unlock().await;
        assert!(remove(&api, Some(only(&api, key(kind)).await)).await);
    }
}

#[tokio::test]
async fn we_wait_for_it_and_take_over_what_it_leaves() {
    let (server, api) = healthy().await;
    let sync = coordinator(&server.url(), TTL).await;
    for (kind, line) in [(Kind::Lock, "lock/a"), (Kind::Leader, "leader/a")] {
        let theirs = GoLock::lock(&api, key(kind), "them").await;
        let held = only(&api, key(kind)).await;
        match kind {
            Kind::Leader => assert!(sync.leader("a").try_elect().await.unwrap().is_none()),
            _ => assert!(sync.lock("a").try_acquire().await.unwrap().is_none()),
        }
        let waiting = tokio::spawn({
            let sync = sync.clone();
            async move { Ours::take(&sync, kind).await }
        });
        in_line(&api, line, 1).await;
        theirs.unlock().await;
        let ours = timeout(SOON, waiting).await.expect("woken").unwrap();
        assert!(ours.hold().token().get() > held.create_index);
        // Its `Destroy`, which had read the key before it was taken over, and one that reads it now.
        let left = Pair { session: String::new(), ..held };
        assert!(!remove(&api, Some(left)).await, "what is ours now is not removed");
        assert!(!remove(&api, Some(only(&api, key(kind)).await)).await, "ErrLockInUse");
        assert!(ours.hold().is_valid());
        ours.give_back().await;
    }
    assert!(keys(&api, "sync/").await.is_empty());
}

/// Its sessions leave their keys, which cannot be had for fifteen seconds. Nobody tells when they are
/// over.
#[tokio::test]
async fn one_that_dies_is_followed_after_its_lock_delay_without_asking_all_the_time() {
    let (server, api) = healthy().await;
    let sync = coordinator(&server.url(), TTL).await;
    let lock = sync.lock("a");
    let key = lock.key().unwrap();
    let theirs = GoLock::lock(&api, &key, "them").await;
    let held = only(&api, &key).await;
    let waiting = tokio::spawn({
        let lock = lock.clone();
        async move { lock.acquire().await.unwrap() }
    });
    in_line(&api, "lock/a", 1).await;
    let (writes, destroyed) = (applied(&api).await, Instant::now());
    destroy(&api, &theirs.session).await;
    timeout(SOON, theirs.lost()).await.expect("told");
    assert_eq!(only(&api, &key).await.session, "", "it stays");
    assert!(lock.try_acquire().await.unwrap().is_none());
    let guard = timeout(THEIR_DELAY + RETRY, waiting).await.expect("it is over").unwrap();
    let after = destroyed.elapsed();
    assert!(after >= THEIR_DELAY && after <= THEIR_DELAY + SOON, "{after:?}");
    // Two for each try, the second with what the first has found.
    let writes = applied(&api).await - writes;
    assert!(writes <= 90, "{writes} writes");
    assert!(guard.token().get() > held.create_index);
    guard.release().await.unwrap();
    assert!(keys(&api, "sync/").await.is_empty());
}

#[tokio::test]
async fn together_they_lose_no_update() {
    const EACH: u64 = 6;
    let (server, api) = healthy().await;
    let lock = coordinator(&server.url(), TTL).await.lock("a");
    let counter = Arc::new(Counter::new());
    let theirs = tokio::spawn({
        let counter = Arc::clone(&counter);
        async move {
            for _ in 0..EACH {
                let held = GoLock::lock(&api, key(Kind::Lock), "").await;
                counter.add_one().await;
                held.unlock().await;
            }
        }
    });
    let mut ours = 0;
    while !theirs.is_finished() {
        let turn = counter.count_up(&lock, 1, Duration::from_millis(50));
        timeout(PATIENCE, turn).await.expect("its turn");
        ours += 1;
    }
    theirs.await.unwrap();
    assert_eq!(counter.value(), EACH + ours);
    assert!(ours > EACH, "{ours}");
}
