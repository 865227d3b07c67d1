//! What others wrote under this crate's keys.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may")]

mod common;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::{Operator, client, client_with, key, lease, server, servers};
use etcd_client::{PutOptions, Txn, TxnOp};
use sync_conformance::driver::{bounded, claim, lock, name, nonce, renamed};
use sync_conformance::logs;
use sync_core::backend::{Attempt, Ended, Updated};
use sync_core::{Cause, ErrorKind, Kind, LONGEST_RECORD};
use tokio_stream::StreamExt;

fn leased(lease: i64) -> Option<PutOptions> {
    Some(PutOptions::new().with_lease(lease))
}

/// Keys by which nobody can hold, under the prefix of one name.
async fn strangers(etcd: &mut Operator, prefix: &str) -> Vec<String> {
    let lease = etcd.lease(600).await;
    let other = etcd.lease(600).await;
    let nonce = nonce().to_hex();
    let shapes = [
        (String::new(), lease),
        ("text".into(), lease),
        (format!("{lease:x}"), 0),
        (format!("{lease:x}"), other),
        (format!("{lease:x}-{nonce}"), 0),
        (format!("{lease:x}-{nonce}"), other),
        (format!("{lease:x}-"), lease),
        (format!("{lease:x}-{}", &nonce[1..]), lease),
        (format!("{lease:x}-{nonce}0"), lease),
        (format!("{lease:x}-{nonce}-0"), lease),
        (format!("{lease:X}Z"), lease),
        (format!("0x{lease:x}"), lease),
        (format!("{lease:x}/{nonce}"), lease),
        (format!("b/{lease:x}"), lease),
        (format!(" {lease:x}"), lease),
    ];
    let mut keys = Vec::new();
    for (shape, lease) in shapes {
        let key = format!("{prefix}/{shape}");
        let options = (lease != 0).then(|| leased(lease)).flatten();
        etcd.0.put(key.clone(), "stranger", options).await.unwrap();
        keys.push(key);
    }
    let mut bytes = format!("{prefix}/").into_bytes();
    bytes.extend([0xff, 0xfe]);
    etcd.0.put(bytes, "stranger", leased(lease)).await.unwrap();
    keys.sort();
    keys.dedup();
    keys
}

#[tokio::test]
async fn keys_that_are_no_claims_are_skipped_warned_of_once_and_left_alone() {
    let server = server().await;
    let mut etcd = Operator::of(&server).await;
    let (logs, _guard) = logs::capture();
    let (a, b) = (client(&server).await, client(&server).await);
    let mut all_keys = Vec::new();
    for of in ["sync/lock/a", "sync/leader/a"] {
        let theirs = strangers(&mut etcd, of).await;
        all_keys.extend(theirs.clone());
        let kind = if of.contains("leader") { Kind::Leader } else { Kind::Lock };
        let all = etcd.under(of).await.len();
        let nobody = b.backend.holder(kind, &name("a")).await.unwrap();
        assert!(nobody.holder.is_none(), "nobody holds by such a key");
        for queue in [true, false] {
            let (first, second) = (claim(kind, "a", queue), claim(kind, "a", true));
            a.held(&first).await;
            let seen = b.backend.holder(kind, &name("a")).await.unwrap();
            assert_eq!(seen.holder.unwrap().record, &*first.record);
            let place = b.blocked(&second).await;
            b.blocked(&claim(kind, "a", false)).await;
            a.end(&first).await;
            bounded(b.backend.wait(&b.session, &second, &place)).await.expect("woken");
            b.held(&second).await;
            a.blocked(&claim(kind, "a", false)).await;
            b.end(&second).await;
        }
        let left = etcd.under(of).await;
        assert_eq!(left.len(), all, "they were left alone, and nothing of ours is left");
        assert!(theirs.iter().all(|key| left.iter().any(|left| left.key() == key.as_bytes())));
    }
    let text = logs.of("sync_");
    let warnings: Vec<&str> = text.lines().filter(|line| line.starts_with("WARN")).collect();
    // One of each key by each of the two clients, at most.
    assert!((all_keys.len()..=2 * (all_keys.len() + 2)).contains(&warnings.len()), "{text}");
    for key in ["sync/lock/a/", "sync/lock/a/text", "sync/leader/a/text"] {
        let named = format!("key=\"{key}\"");
        let of_it = warnings.iter().filter(|line| line.ends_with(&named)).count();
        assert!((1..=2).contains(&of_it), "{key}: {text}");
    }
    // Whoever knows a lease can end it.
    assert!(text.contains('…'), "{text}");
    for key in all_keys {
        let segment = key.split('/').nth(3).unwrap();
        let lease = segment.split('-').next().unwrap();
        let is_lease = lease.len() > 6 && i64::from_str_radix(lease, 16).is_ok();
        assert!(!is_lease || !text.contains(&format!("/a/{segment}")), "{key}: {text}");
    }
}

#[tokio::test]
async fn a_stranger_between_two_who_wait_holds_nobody_up() {
    let server = server().await;
    let mut etcd = Operator::of(&server).await;
    let (a, b) = (client(&server).await, client(&server).await);
    let (first, second) = (lock("a"), lock("a"));
    a.held(&first).await;
    etcd.put("sync/lock/a/between", "stranger").await;
    let place = b.blocked(&second).await;
    let waiting = async {
        b.backend.wait(&b.session, &second, &place).await;
        b.held(&second).await;
    };
    let releasing = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        a.end(&first).await;
    };
    let both = async { tokio::join!(waiting, releasing) };
    tokio::time::timeout(Duration::from_secs(2), both)
        .await
        .expect("woken by the holder's release");
}

#[tokio::test]
async fn more_strangers_than_are_read_end_in_an_error_and_not_in_a_wait() {
    let server = servers(1, &["--max-txn-ops=10000"]).await;
    let mut etcd = Operator::of(&server).await;
    let a = client(&server).await;
    let junk = (0..5_000).map(|n| TxnOp::put(format!("sync/lock/a/junk-{n}"), "x", None));
    etcd.0.txn(Txn::new().and_then(junk.collect::<Vec<_>>())).await.unwrap();
    for queue in [true, false] {
        let claim = claim(Kind::Lock, "a", queue);
        match a.backend.try_claim(&a.session, &claim, None, false).await {
            Ok(Attempt::Held(_)) => {}
            Ok(other) => panic!("it would wait for ever: {other:?}"),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Foreign, "{error}");
                assert!(error.to_string().contains("sync/lock/a"), "{error}");
            }
        }
        a.end(&claim).await;
    }
    let sync = common::coordinator(&server.url(), Duration::from_secs(10)).await;
    let refused = sync.lock("a").acquire().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Foreign, "{refused}");
    sync.shutdown().await.unwrap();
    assert_eq!(etcd.keys("sync/lock/a/").await.len(), 5_000, "nothing of ours is left");
}

#[tokio::test]
async fn large_values_of_strangers_do_not_get_in_the_way() {
    let server = server().await;
    let mut etcd = Operator::of(&server).await;
    let (a, b) = (client(&server).await, client(&server).await);
    for number in 0..8 {
        etcd.put(&format!("sync/lock/a/{number}"), vec![b'x'; 1 << 20]).await;
    }
    let (first, second) = (lock("a"), lock("a"));
    let began = Instant::now();
    a.held(&first).await;
    b.blocked(&second).await;
    b.blocked(&claim(Kind::Lock, "a", false)).await;
    let seen = b.backend.holder(Kind::Lock, &name("a")).await.unwrap();
    assert_eq!(seen.holder.unwrap().record, &*first.record);
    a.end(&first).await;
    b.acquire(&second).await;
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_holder_is_shown_whoever_it_is() {
    let server = server().await;
    let mut etcd = Operator::of(&server).await;
    let sync = sync_etcd::connect(server.url()).await.unwrap();
    let a = client(&server).await;
    for (of, value) in [("text", &b"host-a"[..]), ("empty", b""), ("bytes", b"\xff\x00host")] {
        let lease = etcd.lease(60).await;
        let key = format!("sync/leader/{of}/{lease:x}");
        let put = etcd.0.put(key, value, leased(lease)).await.unwrap();
        let seen = a.backend.holder(Kind::Leader, &name(of)).await.unwrap().holder.unwrap();
        assert_eq!(seen.record, value);
        let token = put.header().unwrap().revision().unsigned_abs();
        assert_eq!(seen.token.map(sync_etcd::FencingToken::get), Some(token));
        let leader = sync.leader(of).leader().await.unwrap().expect("somebody leads");
        assert_eq!(leader.node.id, String::from_utf8_lossy(value), "text reads as a node");
        a.blocked(&claim(Kind::Leader, of, true)).await;
    }

    let lease = etcd.lease(60).await;
    let huge = vec![b'x'; 1 << 20];
    etcd.0.put(format!("sync/leader/huge/{lease:x}"), huge, leased(lease)).await.unwrap();
    let seen = a.backend.holder(Kind::Leader, &name("huge")).await.unwrap();
    assert_eq!(seen.holder.unwrap().record.len(), LONGEST_RECORD);
    let leader = sync.leader("huge").leader().await.unwrap().unwrap();
    assert!(leader.node.id.len() <= 4096, "{}", leader.node.id.len());
    let mut changes = sync.leader("huge").changes().unwrap();
    let first = changes.next().await.unwrap();
    assert!(format!("{first:?}").len() < 10_000, "as much as is shown of it");
    a.blocked(&claim(Kind::Leader, "huge", false)).await;
}

#[tokio::test]
async fn a_value_from_outside_over_our_key_revokes_it() {
    let server = server().await;
    let mut etcd = Operator::of(&server).await;
    let url = server.url();
    for with_lease in [false, true] {
        let sync = common::coordinator(&url, Duration::from_secs(10)).await;
        let guard = sync.lock("a").acquire().await.unwrap();
        let found = etcd.only("sync/lock/a/").await;
        let options = with_lease.then(|| leased(found.lease())).flatten();
        etcd.0.put(found.key(), "somebody else", options).await.unwrap();
        let revoked = bounded(guard.revoked()).await.expect("told at once");
        assert_eq!(revoked.cause, Cause::Key);
        assert!(!guard.is_valid());
        let refused = guard.release().await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Lost, "{refused}");
        // Also the one that is attached to no lease any more, or it would stand there for good.
        let other = common::coordinator(&url, Duration::from_secs(10)).await;
        let again = other.lock("a").wait(Duration::from_secs(5)).acquire().await.unwrap();
        again.release().await.unwrap();
        assert!(etcd.keys("sync/lock/a/").await.is_empty());
        sync.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn a_line_that_an_operator_cleared_is_formed_again() {
    let server = server().await;
    let mut etcd = Operator::of(&server).await;
    let url = server.url();
    let ttl = Duration::from_secs(10);
    let holder = common::coordinator(&url, ttl).await;
    let guard = holder.lock("a").acquire().await.unwrap();
    let (held, mut waiting) = (std::sync::Arc::new(AtomicU64::new(0)), Vec::new());
    for _ in 0..3 {
        let (sync, held) = (common::coordinator(&url, ttl).await, held.clone());
        waiting.push(tokio::spawn(async move {
            let guard = sync.lock("a").acquire().await.unwrap();
            assert_eq!(held.fetch_add(1, Ordering::SeqCst), 0, "one at a time");
            tokio::time::sleep(Duration::from_millis(100)).await;
            held.fetch_sub(1, Ordering::SeqCst);
            let token = guard.token();
            guard.release().await.unwrap();
            token
        }));
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(etcd.keys("sync/lock/a/").await.len(), 4);
    let everything = etcd_client::DeleteOptions::new().with_prefix();
    etcd.0.delete("sync/lock/a/", Some(everything)).await.unwrap();
    let revoked = bounded(guard.revoked()).await.expect("told at once");
    assert_eq!(revoked.cause, Cause::Key);
    for waiter in waiting {
        let token = tokio::time::timeout(Duration::from_secs(5), waiter).await.expect("served");
        assert!(token.unwrap() > guard.token());
    }
    assert!(etcd.keys("sync/lock/a/").await.is_empty());
}

#[tokio::test]
async fn a_value_from_outside_is_removed_by_the_release_of_its_key() {
    let server = server().await;
    let mut etcd = Operator::of(&server).await;
    let a = client(&server).await;
    let first = claim(Kind::Leader, "a", true);
    let grant = a.held(&first).await;
    etcd.put(&key(&a.session, &first), "somebody else").await;
    assert_eq!(etcd.only("sync/leader/a/").await.lease(), 0, "it is detached");
    let late = a.update(&renamed(&first, "new"), &grant).await;
    assert!(!matches!(late, Updated::Done(_)), "{late:?}");
    assert_eq!(etcd.only("sync/leader/a/").await.value(), b"somebody else");
    let ended = a.backend.end(&a.session, &first, Some(&grant), false).await.unwrap();
    assert_eq!(ended, Ended::Released);
    assert!(etcd.keys("sync/").await.is_empty());
}

#[tokio::test]
async fn a_waiter_whose_place_was_removed_stands_in_line_again() {
    let server = server().await;
    let mut etcd = Operator::of(&server).await;
    let (a, b) = (client(&server).await, client(&server).await);
    let (first, second) = (lock("a"), lock("a"));
    a.held(&first).await;
    let place = b.blocked(&second).await;
    let removing = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        etcd.0.delete(key(&b.session, &second), None).await.unwrap();
    };
    let wait = b.backend.wait(&b.session, &second, &place);
    let both = async { tokio::join!(wait, removing) };
    bounded(both).await.expect("its own key is watched too");
    let again = b.backend.try_claim(&b.session, &second, Some(&place), false).await.unwrap();
    assert!(matches!(again, Attempt::Blocked(_)), "{again:?}");
    assert_eq!(etcd.keys("sync/lock/a/").await.len(), 2);
    a.end(&first).await;
    b.held(&second).await;
}

/// One line of a hundred thousand, each by a lease that lives.
#[tokio::test]
async fn a_long_line_is_joined_waited_in_and_left_in_good_time() {
    const LINE: usize = 100_000;
    const BATCH: usize = 5_000;
    let server = servers(1, &["--max-txn-ops=5000", "--max-request-bytes=10000000"]).await;
    let mut etcd = Operator::of(&server).await;
    let ttl = Duration::from_secs(60);
    let (a, b) = (client_with(&server, ttl).await, client_with(&server, ttl).await);
    let holder = lock("a");
    a.held(&holder).await;
    let lease = etcd.lease(600).await;
    for batch in 0..LINE / BATCH {
        let places = (0..BATCH).map(|place| {
            let nonce = format!("{:032x}", batch * BATCH + place);
            let record = format!(r#"{{"id":"n","nonce":"{nonce}"}}"#);
            TxnOp::put(format!("sync/lock/a/{lease:x}-{nonce}"), record, leased(lease))
        });
        etcd.0.txn(Txn::new().and_then(places.collect::<Vec<_>>())).await.unwrap();
    }

    let last = lock("a");
    let began = Instant::now();
    let place = b.blocked(&last).await;
    b.blocked(&claim(Kind::Lock, "a", false)).await;
    let joined = began.elapsed();
    assert!(b.backend.holder(Kind::Lock, &name("a")).await.unwrap().holder.is_some());
    let seen = began.elapsed();
    let wait = b.backend.wait(&b.session, &last, &place);
    assert!(bounded(wait).await.is_none(), "it is not at the head");
    // The request timeout is 2 s; this is a busy machine.
    println!("joined {joined:?}, seen {seen:?}");
    assert!(seen < Duration::from_secs(6), "joined {joined:?}, seen {seen:?}");

    // All of them go at once.
    etcd.0.lease_revoke(lease).await.unwrap();
    a.end(&holder).await;
    let began = Instant::now();
    b.acquire(&last).await;
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
    assert_eq!(b.end(&last).await, Ended::Released);
}

#[tokio::test]
async fn a_lease_revoked_from_outside_ends_the_session_at_once() {
    let server = server().await;
    let mut etcd = Operator::of(&server).await;
    let url = server.url();
    let sync = common::coordinator(&url, Duration::from_secs(30)).await;
    let (one, other) = (sync.lock("a").acquire().await.unwrap(), sync.leader("a").elect().await);
    let other = other.unwrap();
    let lease = etcd.only("sync/lock/a/").await.lease();
    etcd.0.lease_revoke(lease).await.unwrap();
    // Far sooner than the next renewal, which is ten seconds off.
    let both = async { (one.revoked().await, other.revoked().await) };
    let (one, other) = bounded(both).await.expect("told at once");
    assert_eq!((one.cause, other.cause), (Cause::Session, Cause::Session));
    let again = sync.lock("a").acquire().await.unwrap();
    assert_ne!(etcd.only("sync/lock/a/").await.lease(), lease, "by a session of its own");
    again.release().await.unwrap();
}

#[tokio::test]
async fn a_lease_is_not_shown_to_be_another_than_its_own() {
    let server = server().await;
    let a = client_with(&server, Duration::from_secs(5)).await;
    let shown = format!("{a:?} {:?} {:?}", a.session, a.backend.profile());
    assert!(!shown.contains(&*a.session.id), "who knows it can end it: {shown}");
    assert!(lease(&a.session) > 0);
}
