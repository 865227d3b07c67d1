//! Many watches that are opened at once, while large values are told on the same stream.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may")]

use std::sync::Arc;
use std::time::Duration;

use sync_core::backend::{Attempt, Backend, Claim, Nonce, Version};
use sync_core::{Kind, Name};
use sync_etcd::Config;
use tokio::time::{Instant, sleep, timeout};

const TTL: Duration = Duration::from_secs(120);
const MANY: u32 = 1500;

fn claim(number: u32, side: u8) -> Claim {
    let mut bytes = [side; 16];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    let name = Name::parse(&format!("n{number}")).unwrap();
    Claim::new(Kind::Lock, name, Nonce::from_bytes(bytes), (*b"{}").into(), true)
}

/// A server that nobody listens to stops listening, too: then no watch would be told anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_of_watches_amid_large_values_does_not_silence_the_stream() {
    let server = sync_conformance::server::etcd(1, &[]).start().await.unwrap();
    let a = Arc::new(Config::new(server.url()).backend().await.unwrap());
    let b = Config::new(server.url()).backend().await.unwrap();
    let (waits, holds) = (a.open(TTL).await.unwrap(), b.open(TTL).await.unwrap());
    let mut tickets = Vec::new();
    for number in 0..MANY {
        b.try_claim(&holds, &claim(number, 1), None, false).await.unwrap();
        let attempt = a.try_claim(&waits, &claim(number, 2), None, false).await.unwrap();
        let Attempt::Blocked(ticket) = attempt else { panic!("it is held") };
        tickets.push(ticket);
    }
    for follower in 0..8 {
        let (a, seen) = (Arc::clone(&a), Version::new([follower; 8]));
        tokio::spawn(async move {
            loop {
                drop(a.watch(Kind::Leader, &Name::parse("big").unwrap(), &seen).await);
                sleep(Duration::from_millis(1)).await;
            }
        });
    }
    let mut etcd = etcd_client::Client::connect([server.url()], None).await.unwrap();
    let until = Instant::now() + Duration::from_secs(2);
    let writing = tokio::spawn(async move {
        while Instant::now() < until {
            etcd.put("sync/leader/big/x", vec![b'x'; 1_000_000], None).await.unwrap();
        }
    });
    sleep(Duration::from_millis(300)).await;
    let mut waiting = Vec::new();
    for (number, ticket) in (0..).zip(tickets) {
        let (a, waits) = (Arc::clone(&a), waits.clone());
        let wait = async move { a.wait(&waits, &claim(number, 2), &ticket).await };
        waiting.push(tokio::spawn(wait));
    }
    writing.await.unwrap();
    sleep(Duration::from_secs(3)).await;
    for (number, wait) in (0..20).zip(waiting) {
        b.end(&holds, &claim(number, 1), None, false).await.unwrap();
        let told = timeout(Duration::from_secs(10), wait).await;
        assert!(told.is_ok(), "who waits for {number} is told nothing");
    }
}
