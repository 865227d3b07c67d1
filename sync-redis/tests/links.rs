//! A network that is slow, or gone for a while, costs nothing that is held.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may")]

mod common;

use std::time::{Duration, Instant};

use common::{Proxy, Server};
use sync_conformance::driver::hold_many;
use sync_redis::{Config, Coordinator, Options};
use tokio_stream::StreamExt;

async fn coordinator(proxy: &Proxy, ttl: Duration) -> Coordinator {
    Config::new(proxy.url()).options(Options::new().ttl(ttl)).connect().await.unwrap()
}

#[tokio::test]
async fn an_attempt_to_connect_that_stays_dead_costs_no_claim() {
    let server = Server::start();
    let proxy = Proxy::to(&server).await;
    let ttl = Duration::from_secs(6);
    let sync = coordinator(&proxy, ttl).await;
    let guard = sync.lock("a").acquire().await.unwrap();
    // The follower notices the loss at once, and so connects during the outage.
    let mut changes = sync.leader("x").changes().unwrap();
    changes.next().await;
    let follower = tokio::spawn(async move { while changes.next().await.is_some() {} });
    tokio::time::sleep(Duration::from_millis(1900)).await;
    proxy.swallow();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(proxy.open() > 0, "an attempt that will stay dead");
    proxy.pass();
    let revoked = tokio::time::timeout(ttl * 2, guard.revoked()).await;
    assert!(revoked.is_err(), "{revoked:?}");
    assert_eq!(proxy.open(), 1, "the dead attempt was ended");
    follower.abort();
}

#[tokio::test]
async fn connecting_may_take_longer_than_a_renewal() {
    let server = Server::start();
    // Four round trips for a new connection and a renewal on it; a renewal has 200 ms.
    let proxy = Proxy::slow(&server, Duration::from_millis(35)).await;
    let sync = coordinator(&proxy, Duration::from_millis(1200)).await;
    let guard = sync.lock("a").acquire().await.unwrap();
    for _ in 0..3 {
        proxy.cut();
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(guard.is_valid(), "{:?}", guard.revocation());
    }
}

#[tokio::test]
async fn no_attempt_outlives_the_coordinator() {
    let server = Server::start();
    let proxy = Proxy::to(&server).await;
    let sync = coordinator(&proxy, Duration::from_secs(10)).await;
    proxy.swallow();
    let lock = sync.lock("a");
    let look = || tokio::time::timeout(Duration::from_millis(700), lock.holder());
    // The first may fail at once, and so notices that the connection is lost.
    drop(look().await);
    let late = look().await;
    assert!(late.is_err(), "{late:?}");
    assert!(proxy.open() > 1, "a late attempt gets another beside it");
    drop((lock, sync));
    let until = Instant::now() + Duration::from_secs(3);
    while proxy.open() > 0 {
        assert!(Instant::now() < until, "{} attempts are left", proxy.open());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_claims_are_renewed_in_the_time_of_one() {
    let server = Server::start();
    // A renewal has 500 ms, which is less than five round trips.
    let proxy = Proxy::slow(&server, Duration::from_millis(45)).await;
    let sync = coordinator(&proxy, Duration::from_secs(3)).await;
    let guards = hold_many(&sync, 4000).await;
    tokio::time::sleep(Duration::from_secs(7)).await;
    let valid = guards.iter().filter(|guard| guard.is_valid()).count();
    assert_eq!(valid, guards.len());
}
