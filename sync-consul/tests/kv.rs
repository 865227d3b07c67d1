//! `consul kv` and `consul watch` read the leader; what is put under this crate's keys is left alone.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may")]

#[path = "common/agent.rs"]
mod agent;
mod common;
#[path = "common/tools.rs"]
mod tools;

use std::time::Instant;

use agent::{LOCK_FLAGS, PATIENCE, in_line, open_session};
use serde_json::Value;
use sync_conformance::cli::example::Example;
use sync_conformance::driver::eventually;
use sync_consul::{Cause, ErrorKind, Node};
use tokio_stream::StreamExt;
use tools::{Consul, SOON};

#[tokio::test(flavor = "multi_thread")]
async fn a_value_put_over_a_held_key_is_told_and_left_to_who_put_it() {
    let consul = Consul::start().await;
    let (one, two) = (consul.coordinator("one").await, consul.coordinator("two").await);
    let lock = one.lock("a");
    let key = lock.key().unwrap();
    let guard = lock.acquire().await.unwrap();
    let lock_of_two = two.lock("a");
    let waiting = tokio::spawn(async move { lock_of_two.acquire().await });
    in_line(&consul.api, "lock/a", 1).await;

    let put = Instant::now();
    consul.run(&["kv", "put", &key, "theirs"]).await;
    assert_eq!(guard.revoked().await.cause, Cause::Key);
    assert!(put.elapsed() < SOON, "{:?}", put.elapsed());
    assert!(guard.release().await.is_err());
    let error = waiting.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Foreign, "{error}");
    for lock in [&lock, &two.lock("a")] {
        let error = lock.try_acquire().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Foreign, "{error}");
    }
    one.shutdown().await.unwrap();
    let left = consul.at(&key).await.expect("left alone");
    assert_eq!((left.text(), left.session), ("theirs".to_owned(), String::new()));
    assert_eq!(consul.run(&["kv", "get", &key]).await, "theirs");

    consul.run(&["kv", "delete", &key]).await;
    two.lock("a").acquire().await.unwrap().release().await.unwrap();
    consul.nothing_is_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_on_a_free_key_is_reported_and_neither_overwritten_nor_deleted() {
    let consul = Consul::start().await;
    let sync = consul.coordinator("us").await;
    let (lock, leader) = (sync.lock("a"), sync.leader("x"));
    for key in [lock.key().unwrap(), leader.key().unwrap()] {
        consul.run(&["kv", "put", &key, "theirs"]).await;
        let before = consul.at(&key).await.unwrap();
        for _ in 0..2 {
            let error = match key.contains("leader") {
                true => leader.elect().await.map(drop).unwrap_err(),
                false => lock.acquire().await.map(drop).unwrap_err(),
            };
            assert_eq!(error.kind(), ErrorKind::Foreign, "{error}");
            assert!(error.to_string().contains(&key), "{error}");
            let error = match key.contains("leader") {
                true => leader.try_elect().await.map(drop).unwrap_err(),
                false => lock.try_acquire().await.map(drop).unwrap_err(),
            };
            assert_eq!(error.kind(), ErrorKind::Foreign, "{error}");
        }
        let after = consul.at(&key).await.expect("it is left alone");
        assert_eq!((after.text(), after.modify_index), ("theirs".into(), before.modify_index));
    }
    assert!(lock.holder().await.unwrap().is_none(), "nobody holds by a value alone");
    assert!(leader.leader().await.unwrap().is_none());
    let left: Vec<String> = agent::keys(&consul.api, "sync/").await;
    assert_eq!(left, ["sync/lock/a/.lock", "sync/leader/x"], "and nothing of ours is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_left_without_session_is_taken_over_if_it_is_a_locks() {
    let consul = Consul::start().await;
    let sync = consul.coordinator("us").await;
    let flags = format!("-flags={LOCK_FLAGS}");
    for (number, key) in ["sync/lock/a/.lock", "sync/leader/a"].into_iter().enumerate() {
        // As `consul kv` and a process that was killed leave it.
        let session = open_session(&consul.api).await;
        let held = format!("-session={session}");
        consul.run(&["kv", "put", "-acquire", &held, &flags, key, "theirs"]).await;
        let before = consul.at(key).await.unwrap();
        assert_eq!(before.session, session);
        consul.run(&["kv", "put", "-release", &held, &flags, key, "theirs"]).await;
        assert_eq!(consul.at(key).await.unwrap().session, "");
        let token = if number == 0 {
            let guard = sync.lock("a").acquire().await.unwrap();
            let token = guard.token();
            guard.release().await.unwrap();
            token
        } else {
            let elected = sync.leader("a").elect().await.unwrap();
            let token = elected.token();
            elected.resign().await.unwrap();
            token
        };
        assert!(token.get() > before.create_index, "it is made anew: {token}");

        // A try without queueing takes it as well.
        consul.run(&["kv", "put", &flags, key, "theirs"]).await;
        if number == 0 {
            sync.lock("a")
                .try_acquire()
                .await
                .unwrap()
                .expect("taken over")
                .release()
                .await
                .unwrap();
        } else {
            sync.leader("a")
                .try_elect()
                .await
                .unwrap()
                .expect("taken over")
                .resign()
                .await
                .unwrap();
        }
    }
    consul.nothing_is_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn our_leader_is_read_by_consuls_own_tools() {
    let consul = Consul::start().await;
    let sync = consul.coordinator("us").await;
    let node = |address: &str| Node::new("web-1").address(address).metadata("zone", "b");
    let leader = sync.leader("scheduler").node(node("h:1"));
    let key = leader.key().unwrap();
    assert_eq!(key, "sync/leader/scheduler");
    let elected = leader.elect().await.unwrap();
    let watch = consul.ctl(&["watch", "-type=key", &format!("-key={key}"), "cat; echo"]);
    for address in ["h:1", "h:2"] {
        let read: Value = serde_json::from_str(&consul.run(&["kv", "get", &key]).await).unwrap();
        assert_eq!((&read["id"], &read["metadata"]["zone"]), (&"web-1".into(), &"b".into()));
        assert_eq!(read["address"], address);
        let standing = consul.at(&key).await.unwrap();
        assert_eq!(standing.create_index, elected.token().get(), "an update moves no token");
        eventually(PATIENCE, async || match watched(&watch).contains(&standing.modify_index) {
            true => Ok(()),
            false => Err(watch.printed()),
        })
        .await;
        elected.update(node("h:2")).await.unwrap();
    }
    elected.resign().await.unwrap();
    assert!(consul.at(&key).await.is_none());
}

/// The states that a `consul watch` has shown, by their indexes.
fn watched(watch: &Example) -> Vec<u64> {
    let printed = watch.printed();
    let values = printed.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    values.filter_map(|value| value["ModifyIndex"].as_u64()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_of_consul_kv_reads_as_a_node_and_is_followed() {
    let consul = Consul::start().await;
    let sync = consul.coordinator("us").await;
    let leader = sync.leader("scheduler");
    let key = leader.key().unwrap();
    let mut changes = leader.changes().unwrap();
    assert_eq!(changes.next().await, Some(None));

    let flags = format!("-flags={LOCK_FLAGS}");
    let session = format!("-session={}", open_session(&consul.api).await);
    consul.run(&["kv", "put", "-acquire", &session, &flags, &key, "web 1"]).await;
    let held = consul.at(&key).await.unwrap();
    let seen = changes.next().await.unwrap().expect("a leader");
    assert_eq!((seen.node, seen.since, seen.token), (Node::new("web 1"), None, None));
    let read = leader.leader().await.unwrap().expect("a leader");
    assert_eq!((read.node, read.since, read.token), (Node::new("web 1"), None, None));
    assert!(leader.try_elect().await.unwrap().is_none());

    let campaign = tokio::spawn({
        let leader = leader.clone();
        async move { leader.elect().await.unwrap() }
    });
    in_line(&consul.api, "leader/scheduler", 1).await;
    assert!(!campaign.is_finished());
    let resigned = Instant::now();
    consul.run(&["kv", "put", "-release", &session, &flags, &key, "web 1"]).await;
    let elected = campaign.await.unwrap();
    assert!(resigned.elapsed() < SOON, "{:?}", resigned.elapsed());
    assert!(elected.token().get() > held.create_index);
    elected.resign().await.unwrap();
    consul.nothing_is_left().await;
}
