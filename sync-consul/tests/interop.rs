//! `consul lock` takes part in the same locks as this crate, in both directions.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may")]

#[path = "common/agent.rs"]
mod agent;
mod common;
#[path = "common/tools.rs"]
mod tools;

use std::time::{Duration, Instant};

use agent::{LOCK_FLAGS, PATIENCE, applied, coordinator, destroy, in_line, sessions};
use sync_conformance::cli::example::{self, Example};
use sync_conformance::company::{lose_no_update, waiting_for};
use sync_conformance::driver::eventually;
use sync_consul::{Cause, ErrorKind, Lock, LockGuard, Node};
use tokio::time::{sleep, timeout};
use tools::{Consul, RETRY, SOON, THEIR_DELAY, TTL, holds, interrupt};

#[tokio::test(flavor = "multi_thread")]
async fn we_wait_for_consul_lock_and_follow_it() {
    let consul = Consul::start().await;
    let sync = consul.coordinator("us").await;
    let lock = sync.lock("nightly/report");
    let key = lock.key().unwrap();
    assert_eq!(key, "sync/lock/nightly=2Freport/.lock", "as the documentation says");
    let (ctl, held) = consul.lock_holds(&key).await;
    assert_eq!(held.flags, LOCK_FLAGS);

    assert!(lock.try_acquire().await.unwrap().is_none());
    assert!(consul.api.pairs("sync/line/").await.unwrap().is_empty(), "a try leaves nothing");
    let holder = lock.holder().await.unwrap().expect("a foreign holder");
    assert_eq!((holder.node, holder.token, holder.since), (Node::new(""), None, None));

    let waiting = waiting_for(lock.clone());
    in_line(&consul.api, "lock/nightly=2Freport", 1).await;
    sleep(TTL + Duration::from_millis(500)).await;
    assert!(!waiting.is_finished());

    let released = Instant::now();
    interrupt(&ctl).await;
    let guard = waiting.await.unwrap().unwrap();
    assert!(released.elapsed() < SOON, "{:?}", released.elapsed());
    assert!(guard.token().get() > held.create_index);
    assert_eq!(lock.holder().await.unwrap().unwrap().node.id, "us");
    guard.release().await.unwrap();
    consul.nothing_is_left().await;
}

/// We hold, and a `consul lock` of the same key waits for us.
async fn hold_while_it_waits(consul: &Consul, lock: &Lock) -> (LockGuard, Example, String) {
    let key = lock.key().unwrap();
    let guard = lock.acquire().await.unwrap();
    let ctl = consul.lock(&key, &[]);
    consul.until_sessions(2).await;
    (guard, ctl, key)
}

#[tokio::test(flavor = "multi_thread")]
async fn consul_lock_waits_for_us_and_follows_us() {
    let consul = Consul::start().await;
    let sync = consul.coordinator("us").await;
    let lock = sync.lock("a");
    let (guard, ctl, key) = hold_while_it_waits(&consul, &lock).await;
    sleep(2 * TTL + Duration::from_millis(500)).await;
    assert!(guard.is_valid());
    assert!(!holds(&ctl), "held past its TTL by renewal: {}", ctl.printed());

    let (token, released) = (guard.token(), Instant::now());
    guard.release().await.unwrap();
    ctl.print("held").await.unwrap();
    assert!(released.elapsed() < SOON, "{:?}", released.elapsed());
    let standing = consul.at(&key).await.expect("it holds");
    assert!(standing.create_index > token.get(), "{standing:?} after {token}");
    interrupt(&ctl).await;
    lock.acquire().await.unwrap().release().await.unwrap();
    consul.nothing_is_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn consul_lock_follows_a_crash_of_ours_after_its_ttl() {
    let consul = Consul::start().await;
    let key = consul.coordinator("us").await.lock("a").key().unwrap();
    let (package, url) = (env!("CARGO_PKG_NAME"), consul.server.url());
    let victim = example::holder(package, "consul-lock", &url, TTL).await.unwrap();
    let ctl = consul.lock(&key, &[]);
    consul.until_sessions(2).await;

    let killed = Instant::now();
    victim.process().kill().unwrap();
    ctl.print("held").await.unwrap();
    let after = killed.elapsed();
    // Its last renewal was at most a third of the TTL ago; a session lives up to twice its TTL.
    assert!(after >= TTL / 2 && after <= 2 * TTL + RETRY + 2 * SOON, "{after:?}");
    interrupt(&ctl).await;
}

/// While it is delayed nobody tells when the delay is over.
#[tokio::test(flavor = "multi_thread")]
async fn the_lock_delay_of_consul_lock_is_waited_out_without_asking_all_the_time() {
    let consul = Consul::start().await;
    let sync = consul.coordinator("us").await;
    let key = sync.lock("a").key().unwrap();
    let (ctl, held) = consul.lock_holds(&key).await;
    let waiting = waiting_for(sync.lock("a"));
    in_line(&consul.api, "lock/a", 1).await;
    let (writes, destroyed) = (applied(&consul.api).await, Instant::now());
    destroy(&consul.api, &held.session).await;
    sleep(THEIR_DELAY - Duration::from_secs(1)).await;
    assert!(!waiting.is_finished(), "after {:?}", destroyed.elapsed());
    // Renewals make no entry, tries do.
    let writes = applied(&consul.api).await - writes;
    assert!(writes <= 60, "{writes} writes while nothing was to be had");
    let guard = waiting.await.unwrap().unwrap();
    let after = destroyed.elapsed();
    assert!(after >= THEIR_DELAY && after <= THEIR_DELAY + 2 * SOON, "{after:?}");
    assert!(guard.token().get() > held.create_index);
    ctl.exit(PATIENCE).await.unwrap();
    assert!(ctl.printed().contains("Lock lost"), "{}", ctl.printed());
    guard.release().await.unwrap();
    consul.nothing_is_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn our_session_that_an_operator_destroys_is_followed_by_consul_lock() {
    let consul = Consul::start().await;
    let sync = consul.coordinator("us").await;
    let lock = sync.lock("a");
    let (guard, ctl, key) = hold_while_it_waits(&consul, &lock).await;
    let session = consul.at(&key).await.unwrap().session;
    let destroyed = Instant::now();
    destroy(&consul.api, &session).await;
    assert_eq!(guard.revoked().await.cause, Cause::Session);
    let told = destroyed.elapsed();
    assert!(told < Duration::from_secs(1), "told within the lock-delay: {told:?}");
    ctl.print("held").await.unwrap();
    let after = destroyed.elapsed();
    assert!(after >= Duration::from_secs(1) && after < RETRY + 2 * SOON, "{after:?}");
    assert!(guard.release().await.is_err(), "it is no longer ours");
    interrupt(&ctl).await;
    lock.acquire().await.unwrap().release().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn together_they_lose_no_update() {
    let consul = Consul::start().await;
    let lock = consul.coordinator("us").await.lock("a");
    let key = lock.key().unwrap();
    let prefix = key.strip_suffix("/.lock").unwrap();
    let start = |script: &str| consul.ctl(&["lock", "-child-exit-code", prefix, script]);
    lose_no_update(&lock, [40, 20], Duration::from_millis(5), start).await;
}

/// `consul lock -n` keeps a list of holders at our key, without a session.
#[tokio::test(flavor = "multi_thread")]
async fn a_semaphore_under_our_key_is_reported_and_left_alone() {
    let consul = Consul::start().await;
    let sync = consul.coordinator("us").await;
    let lock = sync.lock("a");
    let key = lock.key().unwrap();
    let ctl = consul.lock(&key, &["-n=2"]);
    ctl.print("held").await.unwrap();
    let before = consul.at(&key).await.unwrap();
    for outcome in [lock.acquire().await.map(Some), lock.try_acquire().await] {
        let error = outcome.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Foreign, "{error}");
        assert!(error.to_string().contains(&key), "{error}");
    }
    assert_eq!(lock.holder().await.unwrap().map(|holder| holder.node), None);
    let after = consul.at(&key).await.unwrap();
    assert_eq!(
        (after.modify_index, after.text(), after.flags),
        (before.modify_index, before.text(), before.flags)
    );
    assert!(consul.api.pairs("sync/line/").await.unwrap().is_empty(), "nobody stands in line");
    assert!(!ctl.printed().contains("lost"), "{}", ctl.printed());

    interrupt(&ctl).await;
    lock.acquire().await.unwrap().release().await.unwrap();
    consul.nothing_is_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_semaphore_that_comes_later_finds_a_conflict_and_takes_nothing() {
    let consul = Consul::start().await;
    let sync = consul.coordinator("us").await;
    let lock = sync.lock("a");
    let key = lock.key().unwrap();
    let guard = lock.acquire().await.unwrap();
    let before = consul.at(&key).await.unwrap();
    let ctl = consul.lock(&key, &["-n=2"]);
    assert_ne!(ctl.exit(PATIENCE).await.unwrap(), 0);
    assert!(ctl.said().contains("does not match semaphore use"), "{}", ctl.said());
    assert!(!holds(&ctl));
    let after = consul.at(&key).await.unwrap();
    assert_eq!(after.modify_index, before.modify_index);
    // What it left beside the key is in nobody's way.
    let other = consul.coordinator("other").await;
    let waiting = waiting_for(other.lock("a"));
    in_line(&consul.api, "lock/a", 1).await;
    assert!(guard.is_valid());
    guard.release().await.unwrap();
    waiting.await.unwrap().unwrap().release().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn on_three_servers_they_follow_each_other_and_go_on_without_the_one_that_led() {
    let (consul, leader) = Consul::cluster().await;
    let (ttl, url) = (Duration::from_secs(8), consul.server.url());
    let (one, two) = (coordinator(&url, ttl).await, coordinator(&url, ttl).await);
    let (lock, other) = (one.lock("a"), one.lock("b"));
    let (key, other_key) = (lock.key().unwrap(), other.key().unwrap());
    // We hold one and wait for the other, and so does `consul lock`.
    let ours = other.acquire().await.unwrap();
    let ctl = consul.lock(&key, &["-monitor-retry=30"]);
    ctl.print("held").await.unwrap();
    let theirs = consul.at(&key).await.expect("it holds");
    let waiting = waiting_for(two.lock("a"));
    in_line(&consul.api, "lock/a", 1).await;

    consul.server.members()[leader].kill().unwrap();
    let (token, until) = (ours.token(), ours.deadline());
    let renewed =
        async || if ours.deadline() > until + ttl { Ok(()) } else { Err(ours.deadline()) };
    eventually(PATIENCE, renewed).await;
    assert!(ours.is_valid() && !waiting.is_finished(), "they do without it");
    assert!(!ctl.printed().contains("Lock lost"), "{}", ctl.printed());

    // Each is followed by the other, as on one agent.
    interrupt(&ctl).await;
    let guard = timeout(PATIENCE, waiting).await.expect("it follows").unwrap().unwrap();
    assert!(guard.token().get() > theirs.create_index);
    guard.release().await.unwrap();
    let before = sessions(&consul.api).await.unwrap().len();
    let ctl = consul.lock(&other_key, &[]);
    consul.until_sessions(before + 1).await;
    sleep(Duration::from_millis(500)).await;
    assert!(!holds(&ctl) && ours.is_valid());
    ours.release().await.unwrap();
    ctl.print("held").await.unwrap();
    assert!(consul.at(&other_key).await.unwrap().create_index > token.get());
    interrupt(&ctl).await;
    other.acquire().await.unwrap().release().await.unwrap();
}
