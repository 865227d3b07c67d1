//! Requests whose answers never came, or came to nothing: whatever becomes of them, and however late.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may")]

#[path = "common/agent.rs"]
mod agent;
mod common;
#[path = "common/front.rs"]
mod front;

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use agent::{agent, applied, client, config, key, keys, only, operator, ticket, void};
use common::Api;
use front::{Answer, Asked, Front, creating};
use serde_json::{Value, json};
use sync_conformance::driver::{Driver, TTL, abandon_what_is_kept, claim, eventually, lock};
use sync_conformance::logs;
use sync_conformance::proxy::Proxy;
use sync_core::Kind;
use sync_core::backend::{Attempt, Ended, Loss};
use tokio::time::timeout;
use tokio_stream::StreamExt;

const SOON: Duration = Duration::from_secs(5);

async fn repeat(consul: &Api, asked: &Asked) -> u16 {
    consul.answer(&asked.method, &asked.path, &asked.body).await.unwrap().0
}

#[tokio::test]
async fn whatever_an_abandoned_claim_has_asked_for_comes_too_late() {
    let server = agent(&[]).await;
    let (consul, front) = (operator(&server), Front::of(&server).await);
    let (a, b) = (client(&server).await, client(&server).await);
    let x = Driver::on(config(front.url()).backend().await.unwrap(), TTL).await;
    for kind in [Kind::Lock, Kind::Leader] {
        front.forget();
        // Held at once.
        let held = claim(kind, "a", true);
        x.held(&held).await;
        assert_eq!(x.abandon(&held).await, Ended::Released);
        // A mere try, refused; then one that waits, and enters.
        let (theirs, mere, waits) =
            (claim(kind, "b", true), claim(kind, "b", false), claim(kind, "b", true));
        let grant = a.held(&theirs).await;
        x.blocked(&mere).await;
        x.abandon(&mere).await;
        let place = x.blocked(&waits).await;
        a.release(&theirs, &grant).await;
        assert!(matches!(x.again(&waits, &place).await, Attempt::Held(_)));
        assert_eq!(x.abandon(&waits).await, Ended::Released);
        // Given back, to those who stood in line before.
        let (theirs, next, late) =
            (claim(kind, "c", true), claim(kind, "c", true), claim(kind, "c", true));
        let grant = a.held(&theirs).await;
        b.blocked(&next).await;
        a.release(&theirs, &grant).await;
        x.blocked(&late).await;
        assert_eq!(x.abandon(&late).await, Ended::NotOurs);

        let standing = async || -> Vec<(String, u64)> {
            let pairs = consul.pairs("sync/").await.unwrap().into_iter();
            pairs.map(|pair| (pair.key, pair.modify_index)).collect()
        };
        let mut before = standing().await;
        let of_x: Vec<&String> =
            before.iter().map(|(key, _)| key).filter(|key| key.contains(&*x.session.id)).collect();
        assert!(of_x.iter().all(|key| key.starts_with("sync/void/")), "{of_x:?}");
        for claim in [&held, &mere, &waits, &late] {
            assert!(of_x.contains(&&void(&x.session, claim)), "a marker for each");
        }
        // The markers' own requests may be repeated: they do nothing but mark.
        before.retain(|(key, _)| !key.starts_with("sync/void/"));
        let asked = creating(front.asked());
        assert!(asked.len() >= 10, "{}", asked.len());
        for late in asked.iter().chain(asked.iter().rev()) {
            repeat(&consul, late).await;
            let mut after = standing().await;
            after.retain(|(key, _)| !key.starts_with("sync/void/"));
            assert_eq!(after, before, "{}", String::from_utf8_lossy(&late.body));
        }
        b.abandon(&next).await;
    }
    x.backend.close(&x.session).await.unwrap();
    let left = keys(&consul, "sync/void/").await;
    assert!(left.iter().all(|key| !key.contains(&*x.session.id)), "they go with it: {left:?}");
}

/// Each was answered, so there is no marker: what a proxy sends once more, later, is undone.
#[tokio::test]
async fn a_request_that_is_repeated_after_the_claims_end_is_undone() {
    let server = agent(&[]).await;
    let (consul, front) = (operator(&server), Front::of(&server).await);
    let (logs, _guard) = logs::capture();
    let x = Driver::on(config(front.url()).backend().await.unwrap(), TTL).await;
    let a = client(&server).await;
    let (mine, theirs, waits) = (lock("a"), lock("b"), lock("b"));
    let grant = x.held(&mine).await;
    let held = a.held(&theirs).await;
    x.blocked(&waits).await;
    let asked = creating(front.asked());
    x.release(&mine, &grant).await;
    assert_eq!(x.end(&waits).await, Ended::Released);
    for late in asked {
        repeat(&consul, &late).await;
    }
    let mut ghosts = keys(&consul, "sync/").await;
    ghosts.retain(|key| *key != agent::key(&theirs));
    assert_eq!(ghosts, [key(&mine), ticket(&x.session, &waits)], "they came");
    eventually(SOON, async || {
        let left = keys(&consul, "sync/").await;
        if left == [key(&theirs)] { Ok(()) } else { Err(left) }
    })
    .await;
    assert!(logs.of("sync_").contains("twice"), "{}", logs.of("sync_"));
    a.release(&theirs, &held).await;
}

#[tokio::test]
async fn an_attempt_that_the_network_keeps_until_after_its_abandon_does_nothing() {
    let server = agent(&[]).await;
    let consul = operator(&server);
    let proxy = Proxy::start(server.addresses()[0]).await.unwrap();
    let backend = config(format!("http://{}", proxy.address())).backend().await.unwrap();
    let a = Driver::on(backend, TTL).await;
    let late = abandon_what_is_kept(&a, &proxy, "a").await;
    let before = applied(&consul).await;
    proxy.let_through();
    eventually(SOON, async || {
        // A refused transaction is an entry of the log as well.
        let now = applied(&consul).await;
        if now > before && proxy.held() == 0 { Ok(()) } else { Err(now) }
    })
    .await;
    assert!(keys(&consul, "sync/lock/a/").await.is_empty());
    assert_eq!(keys(&consul, "sync/void/").await, [void(&a.session, &late)]);
    a.held(&lock("a")).await;
}

/// As a Consul that loses its leadership answers, though what was asked is in the log: so many of
/// those that hold these words and were done.
fn fails(front: &Front, words: &'static str, times: u32) {
    let left = AtomicU32::new(times);
    front.change(move |asked, answer| {
        let asked = asked.path.starts_with("/v1/txn")
            && String::from_utf8_lossy(&asked.body).contains(words);
        let more = |left: u32| left.checked_sub(1);
        let done = asked && answer.status == 200;
        if done && left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok() {
            *answer = Answer::new(500, "leadership lost while committing log");
        }
    });
}

#[tokio::test]
async fn a_500_says_nothing_of_what_was_done() {
    let server = agent(&[]).await;
    let (consul, front) = (operator(&server), Front::of(&server).await);
    let x = Driver::on(config(front.url()).backend().await.unwrap(), TTL).await;
    let held = lock("a");
    fails(&front, "", u32::MAX);
    let error = x.backend.try_claim(&x.session, &held, None, false).await.unwrap_err();
    assert!(!error.settled() && error.is_transient(), "{error}");
    assert_eq!(keys(&consul, "sync/").await, [key(&held)], "it was done");
    let error = x.backend.end(&x.session, &held, None, true).await.unwrap_err();
    assert!(!error.settled(), "{error}");
    front.change(|_, _| {});
    assert_eq!(x.abandon(&held).await, Ended::Released);
    assert_eq!(keys(&consul, "sync/").await, [void(&x.session, &held)]);

    // Whoever still wants it is given what came of it, at the first try or a later one.
    let (sync, other) = (
        config(front.url()).connect().await.unwrap(),
        config(server.url()).connect().await.unwrap(),
    );
    for (name, failures) in [("once", 1), ("often", 3)] {
        fails(&front, "\"lock\"", failures);
        let lock = sync.lock(name);
        let guard = timeout(SOON, lock.acquire()).await.expect("it goes on").unwrap();
        let standing = only(&consul, &lock.key().unwrap()).await;
        assert_eq!(standing.create_index, guard.token().get(), "held by what stands there");
        assert!(other.lock(name).try_acquire().await.unwrap().is_none());
        guard.release().await.unwrap();
        assert!(keys(&consul, "sync/lock/").await.is_empty());
        other.lock(name).acquire().await.unwrap().release().await.unwrap();
    }
    let before = keys(&consul, "sync/void/").await;
    sync.shutdown().await.unwrap();
    let after = keys(&consul, "sync/").await;
    assert!(after.len() < before.len(), "its markers go with its session: {before:?}, {after:?}");
}

#[tokio::test]
async fn a_release_that_is_answered_with_a_500_is_a_release() {
    let server = agent(&[]).await;
    let (consul, front) = (operator(&server), Front::of(&server).await);
    let sync = config(front.url()).connect().await.unwrap();
    let guard = sync.lock("a").acquire().await.unwrap();
    fails(&front, "\"delete\"", 1);
    guard.release().await.unwrap();
    assert!(keys(&consul, "sync/lock/").await.is_empty());
}

/// Somebody may have held it in between, with a token that is greater.
#[tokio::test]
async fn a_key_that_was_deleted_and_made_anew_by_the_same_claim_is_lost() {
    let server = agent(&[]).await;
    let (consul, front) = (operator(&server), Front::of(&server).await);
    let x = Driver::on(config(front.url()).backend().await.unwrap(), TTL).await;
    let mut losses = x.backend.losses(&x.session);
    let held = lock("a");
    let grant = x.held(&held).await;
    let late = creating(front.asked()).remove(0);
    front.polled("/.lock").await;
    // At once, so that no poll sees it gone.
    let mut ops: Vec<Value> = serde_json::from_slice(&late.body).unwrap();
    ops.insert(0, json!({ "KV": { "Verb": "delete", "Key": key(&held) } }));
    consul.ask("PUT", "/v1/txn", json!(ops).to_string().as_bytes()).await.unwrap();
    let anew = only(&consul, "sync/lock/").await;
    assert!(anew.create_index > grant.token.get() && anew.session == *x.session.id);
    let loss = timeout(SOON, losses.next()).await.expect("told at once");
    assert_eq!(loss, Some(Loss::Claim(held.nonce)));
    assert_eq!(x.release(&held, &grant).await, Ended::NotOurs);
}
