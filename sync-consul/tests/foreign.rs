//! What others wrote under this crate's keys. `interop` has what `consul` itself writes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may")]

#[path = "common/agent.rs"]
mod agent;
mod common;
#[path = "common/front.rs"]
mod front;

use std::time::{Duration, Instant};

use agent::{
    LOCK_FLAGS, PATIENCE, agent, client, config, coordinator, destroy, in_line, key, keys,
    open_session, operator, put, ticket,
};
use common::Api;
use front::Front;
use serde_json::json;
use sync_conformance::driver::{Driver, TTL, claim, lock, name, nonce, record};
use sync_conformance::logs;
use sync_core::backend::{Attempt, Ended};
use sync_core::{ErrorKind, Kind, LONGEST_RECORD};
use tokio::time::{sleep, timeout};
use tokio_stream::StreamExt;

const SOON: Duration = Duration::from_secs(10);

/// Locks keys, as many at once as a transaction takes.
async fn lock_all(consul: &Api, session: &str, keys: &[String]) {
    for keys in keys.chunks(64) {
        let ops: Vec<_> = keys
            .iter()
            .map(|key| json!({ "KV": { "Verb": "lock", "Key": key, "Session": session, "Flags": LOCK_FLAGS } }))
            .collect();
        consul.ask("PUT", "/v1/txn", json!(ops).to_string().as_bytes()).await.unwrap();
    }
}

/// Keys in a line by which nobody can stand there.
async fn strangers(consul: &Api, line: &str) -> Vec<String> {
    let (session, other) = (open_session(consul).await, open_session(consul).await);
    let nonce = nonce().to_hex();
    let plain = [
        format!("{line}text"),
        format!("{line}{session}-{nonce}"),
        format!("{line}deep/{session}-{nonce}"),
        format!("{line}-{nonce}"),
    ];
    for key in &plain {
        put(consul, key, "theirs").await;
    }
    let locked = [
        format!("{line}{session}"),
        format!("{line}{session}-"),
        format!("{line}{session}-{}", &nonce[1..]),
        format!("{line}{session}-{nonce}0"),
        format!("{line}{session}-{nonce}/x"),
        format!("{line}{}-{nonce}", session.to_uppercase()),
        format!("{line}{other}-{nonce}"),
        format!("{line}x{session}-{nonce}"),
    ];
    lock_all(consul, &session, &locked).await;
    let mut all: Vec<String> = plain.into_iter().chain(locked).collect();
    all.sort();
    all
}

#[tokio::test]
async fn keys_that_are_no_tickets_are_passed_over_named_and_left_alone() {
    let server = agent(&[]).await;
    let consul = operator(&server);
    let (logs, _guard) = logs::capture();
    let front = Front::of(&server).await;
    let a = client(&server).await;
    let b = Driver::on(config(front.url()).backend().await.unwrap(), TTL).await;
    for kind in [Kind::Lock, Kind::Leader] {
        let line = format!("sync/line/{kind}/a/");
        let theirs = strangers(&consul, &line).await;
        for queue in [true, false] {
            let (first, second) = (claim(kind, "a", queue), claim(kind, "a", true));
            let grant = a.held(&first).await;
            b.blocked(&second).await;
            b.blocked(&claim(kind, "a", false)).await;
            let (waits, claim) = (b.clone(), second.clone());
            let waiting = tokio::spawn(async move { waits.acquire(&claim).await });
            front.polled(&key(&first)).await;
            a.release(&first, &grant).await;
            let grant = timeout(SOON, waiting).await.expect("woken").unwrap();
            assert_eq!(b.release(&second, &grant).await, Ended::Released);
        }
        let mut left = keys(&consul, &line).await;
        left.sort();
        assert_eq!(left, theirs, "they were left alone, and nothing of ours is left");
    }
    let text = logs.of("sync_");
    let warnings: Vec<&str> = text.lines().filter(|line| line.starts_with("WARN")).collect();
    assert!((2..=4).contains(&warnings.len()), "one of each line by each of the two: {text}");
    for line in ["sync/line/lock/a", "sync/line/leader/a"] {
        assert!(warnings.iter().any(|warning| warning.contains(line)), "{text}");
    }
}

/// Of so long a line the answer to a transaction is not read to its end.
#[tokio::test]
async fn a_line_that_is_too_long_to_be_read_in_one_answer_is_a_line() {
    const MANY: usize = 3_000;
    let server = agent(&[]).await;
    let consul = operator(&server);
    let (a, b) = (client(&server).await, client(&server).await);
    let session = open_session(&consul).await;
    for kind in [Kind::Lock, Kind::Leader] {
        let tickets: Vec<String> = (0..MANY)
            .map(|_| format!("sync/line/{kind}/a/{session}-{}", nonce().to_hex()))
            .collect();
        lock_all(&consul, &session, &tickets).await;
    }
    let began = Instant::now();
    let mut waiting = Vec::new();
    for kind in [Kind::Lock, Kind::Leader] {
        let (mere, waits) = (claim(kind, "a", false), claim(kind, "a", true));
        a.blocked(&mere).await;
        let place = b.blocked(&waits).await;
        assert!(consul.pairs(&key(&waits)).await.unwrap().is_empty(), "nobody got it");
        let line = keys(&consul, &format!("sync/line/{kind}/a/")).await;
        assert_eq!(line.last(), Some(&ticket(&b.session, &waits)));
        assert_eq!(line.len(), MANY + 1, "a mere try leaves no place");
        let client = b.clone();
        waiting.push(tokio::spawn(async move {
            client.backend.wait(&client.session, &waits, &place).await;
            client.again(&waits, &place).await
        }));
    }
    sleep(Duration::from_millis(500)).await;
    assert!(waiting.iter().all(|waiting| !waiting.is_finished()));
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    destroy(&consul, &session).await;
    for waiting in waiting {
        let got = timeout(Duration::from_secs(5), waiting).await.expect("woken").unwrap();
        assert!(matches!(got, Attempt::Held(_)), "{got:?}");
    }
}

#[tokio::test]
async fn a_holder_is_shown_whoever_it_is() {
    let server = agent(&[]).await;
    let consul = operator(&server);
    let sync = coordinator(&server.url(), TTL).await;
    let a = client(&server).await;
    let session = open_session(&consul).await;
    let huge = vec![b'x'; 500 * 1024];
    for (of, value) in
        [("text", &b"host-a"[..]), ("empty", b""), ("bytes", b"\xff\x00host"), ("huge", &huge)]
    {
        let path = format!("/v1/kv/sync/leader/{of}?acquire={session}&flags={LOCK_FLAGS}");
        consul.ask("PUT", &path, value).await.unwrap();
        let seen = a.backend.holder(Kind::Leader, &name(of)).await.unwrap().holder.unwrap();
        assert_eq!(seen.record, value[..value.len().min(LONGEST_RECORD)]);
        assert_eq!(seen.token, None, "others make no tokens");
        let leader = sync.leader(of).leader().await.unwrap().expect("somebody leads");
        assert!(leader.node.id.len() <= 4096, "{}", leader.node.id.len());
        if of != "huge" {
            assert_eq!(leader.node.id, String::from_utf8_lossy(value), "text reads as a node");
        }
        let waits = claim(Kind::Leader, of, true);
        a.blocked(&waits).await;
        a.end(&waits).await;
        let mut changes = sync.leader(of).changes().unwrap();
        assert!(changes.next().await.unwrap().is_some());
    }
}

/// Somebody's record that is nobody's of ours, though it has its form.
#[tokio::test]
async fn a_record_of_ours_under_anothers_session_is_anothers() {
    let server = agent(&[]).await;
    let consul = operator(&server);
    let a = client(&server).await;
    let mine = lock("a");
    let session = open_session(&consul).await;
    let path = format!("/v1/kv/{}?acquire={session}&flags={LOCK_FLAGS}", key(&mine));
    consul.ask("PUT", &path, &record("node", mine.nonce)).await.unwrap();
    a.blocked(&mine).await;
    assert_eq!(a.abandon(&mine).await, Ended::NotOurs);
    assert_eq!(keys(&consul, "sync/lock/").await, [key(&mine)], "it is left alone");

    // Under our session, and of no claim that is in play: nobody holds by that.
    destroy(&consul, &session).await;
    let ghost = lock("b");
    let path = format!("/v1/kv/{}?acquire={}&flags={LOCK_FLAGS}", key(&ghost), a.session.id);
    consul.ask("PUT", &path, &record("node", nonce())).await.unwrap();
    let (logs, _guard) = logs::capture();
    a.held(&ghost).await;
    assert!(logs.of("sync_").contains("WARN"), "{}", logs.of("sync_"));
}

/// Neither key nor name is worth anything to who waits when the data is not a lock's.
#[tokio::test]
async fn data_that_comes_while_one_waits_ends_the_wait_with_its_name() {
    let server = agent(&[]).await;
    let consul = operator(&server);
    let (one, two) = (coordinator(&server.url(), TTL).await, coordinator(&server.url(), TTL).await);
    let guard = one.lock("a").acquire().await.unwrap();
    let waiting = tokio::spawn({
        let lock = two.lock("a");
        async move { lock.acquire().await }
    });
    in_line(&consul, "lock/a", 1).await;
    agent::delete(&consul, "sync/lock/a/.lock").await;
    put(&consul, "sync/lock/a/.lock", "theirs").await;
    let error = match timeout(Duration::from_secs(3), waiting).await.expect("told").unwrap() {
        Err(error) => error,
        // It was quicker than the operator, who then wrote over it.
        Ok(got) => {
            let revoked = timeout(Duration::from_secs(3), got.revoked()).await.expect("told");
            assert_eq!(revoked.cause, sync_core::Cause::Key);
            got.release().await.unwrap_err();
            two.lock("a").acquire().await.unwrap_err()
        }
    };
    assert_eq!(error.kind(), ErrorKind::Foreign, "{error}");
    assert!(error.to_string().contains("sync/lock/a/.lock"), "{error}");
    assert!(guard.release().await.is_err());
    let left = consul.pairs("sync/lock/a/").await.unwrap();
    assert_eq!((left.len(), left[0].text()), (1, "theirs".to_owned()));
    assert!(keys(&consul, "sync/line/").await.is_empty(), "nobody stands in line for it");
}

/// Nobody has so many; what counts is that nothing breaks and nothing waits for ever.
#[tokio::test]
async fn a_hundred_thousand_in_line_are_survived() {
    const MANY: usize = 100_000;
    let server = agent(&[]).await;
    let consul = operator(&server);
    let session = open_session(&consul).await;
    let line = |number| format!("sync/line/lock/a/{session}-{number:032x}");
    lock_all(&consul, &session, &(0..MANY).map(line).collect::<Vec<_>>()).await;
    let sync = coordinator(&server.url(), Duration::from_secs(15)).await;
    let (lock, beside) = (sync.lock("a"), sync.lock("b"));
    let waiting = tokio::spawn(async move { lock.acquire().await });
    for _ in 0..10 {
        let guard = timeout(SOON, beside.acquire()).await.expect("it is free").unwrap();
        guard.release().await.unwrap();
        sleep(Duration::from_millis(300)).await;
    }
    destroy(&consul, &session).await;
    let guard = timeout(2 * PATIENCE, waiting).await.expect("served").unwrap().unwrap();
    guard.release().await.unwrap();
}
