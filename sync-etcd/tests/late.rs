//! Requests that arrive late, keys that are used again, and many claims at once, on a real server.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may")]

mod common;

use std::time::Duration;

use etcd_client::{Client, DeleteOptions, GetOptions, PutOptions};
use sync_conformance::Server;
use sync_conformance::proxy::{Flow, Proxy, Toward};
use sync_core::backend::{Attempt, Backend, Claim, Ended, Loss, Nonce, Session};
use sync_core::{Kind, Name, OsRng, Rng};
use sync_etcd::{Config, Etcd, Options};
use tokio::time::{sleep, timeout};
use tokio_stream::StreamExt;

const TTL: Duration = Duration::from_secs(10);

async fn server() -> (Server, Client) {
    let server = sync_conformance::server::etcd(1, &[]).start().await.unwrap();
    let client = Client::connect([server.url()], None).await.unwrap();
    (server, client)
}

async fn backend(url: &str) -> (Etcd, Session) {
    let backend = Config::new(url).backend().await.unwrap();
    let session = backend.open(TTL).await.unwrap();
    (backend, session)
}

fn lock(name: &str, queue: bool) -> Claim {
    let mut bytes = [0; 16];
    OsRng::new().fill(&mut bytes).unwrap();
    let nonce = Nonce::from_bytes(bytes);
    let record = format!(r#"{{"id":"x","nonce":"{}"}}"#, nonce.to_hex());
    Claim::new(Kind::Lock, Name::parse(name).unwrap(), nonce, record.into_bytes().into(), queue)
}

async fn keys(etcd: &mut Client, prefix: &str) -> Vec<String> {
    let found = etcd.get(prefix, Some(GetOptions::new().with_prefix())).await.unwrap();
    found.kvs().iter().map(|found| found.key_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn what_a_try_was_to_leave_by_does_not_end_what_its_repeat_was_granted() {
    let (server, mut etcd) = server().await;
    let (b, other) = backend(&server.url()).await;
    let held = lock("a", true);
    let Attempt::Held(grant) = b.try_claim(&other, &held, None, false).await.unwrap() else {
        panic!("it is free");
    };
    // Behind these it cannot be seen from the end of the line that somebody holds.
    for stranger in ["x", "y"] {
        etcd.put(format!("sync/lock/a/{stranger}"), "", None).await.unwrap();
    }

    let proxy = Proxy::start(server.addresses()[0]).await.unwrap();
    let (a, session) = backend(&format!("http://{}", proxy.address())).await;
    let only_now = lock("a", false);
    let own = format!("sync/lock/a/{}-{}", session.id, only_now.nonce.to_hex());
    let slow = Duration::from_millis(300);
    proxy.set(Toward::Server, Flow::Delay(slow));
    let withheld = async {
        while !keys(&mut etcd, &own).await.contains(&own) {
            sleep(Duration::from_millis(5)).await;
        }
        // The look at the line is on its way; after it comes the request by which it leaves.
        sleep(slow * 3 / 2).await;
        proxy.hold();
    };
    let tried = async {
        drop(timeout(slow * 10, a.try_claim(&session, &only_now, None, false)).await);
    };
    tokio::join!(withheld, tried);
    assert!(proxy.held() > 0, "the request by which it leaves is kept");
    assert_eq!(keys(&mut etcd, &own).await, std::slice::from_ref(&own), "it has not left");

    assert_eq!(b.end(&other, &held, Some(&grant), false).await.unwrap(), Ended::Released);
    let again = a.try_claim(&session, &only_now, None, true).await;
    proxy.let_through();
    sleep(slow).await;
    let stands = keys(&mut etcd, &own).await.contains(&own);
    assert!(stands || !matches!(again, Ok(Attempt::Held(_))), "{again:?}, and the key is gone");
    assert!(matches!(again, Ok(Attempt::Anew)), "{again:?}");
    assert!(!stands);
    let fresh = a.try_claim(&session, &lock("a", false), None, false).await.unwrap();
    assert!(matches!(fresh, Attempt::Held(_)), "{fresh:?}");
}

#[tokio::test]
async fn whoever_stands_behind_again_is_not_waited_for() {
    let (server, mut etcd) = server().await;
    let lease = etcd.lease_grant(60, None).await.unwrap().id();
    // As etcdctl and Go's clients do, which lock again under the same key.
    let theirs = format!("sync/lock/a/{lease:x}");
    let attached = || Some(PutOptions::new().with_lease(lease));
    etcd.put(theirs.as_str(), "", attached()).await.unwrap();
    let (a, session) = backend(&server.url()).await;
    let ours = lock("a", true);
    let Attempt::Blocked(ticket) = a.try_claim(&session, &ours, None, false).await.unwrap() else {
        panic!("it is held");
    };
    etcd.delete(theirs.as_str(), None).await.unwrap();
    etcd.put(theirs.as_str(), "", attached()).await.unwrap();
    let waited = timeout(Duration::from_secs(2), a.wait(&session, &ours, &ticket)).await;
    assert!(waited.is_ok(), "it is our turn, and they wait for us");
    let now = a.try_claim(&session, &ours, Some(&ticket), false).await.unwrap();
    assert!(matches!(now, Attempt::Held(_)), "{now:?}");
}

#[tokio::test]
async fn many_claims_do_not_besiege_a_server_that_is_away() {
    let (server, mut etcd) = server().await;
    let proxy = Proxy::start(server.addresses()[0]).await.unwrap();
    let config = Config::new(format!("http://{}", proxy.address()));
    let sync = config.options(Options::new().ttl(TTL)).connect().await.unwrap();
    let mut guards = Vec::new();
    for number in 0..200 {
        guards.push(sync.lock(format!("{number}")).acquire().await.unwrap());
    }
    common::watched(&server, 200).await;
    let before = proxy.accepted();
    proxy.cut();
    sleep(Duration::from_secs(2)).await;
    let attempts = proxy.accepted() - before;
    assert!(attempts <= 30, "{attempts} attempts to connect");

    proxy.heal();
    common::watched(&server, 200).await;
    etcd.delete("sync/lock/7/", Some(DeleteOptions::new().with_prefix())).await.unwrap();
    let told = timeout(Duration::from_millis(500), guards[7].revoked()).await;
    assert!(told.is_ok(), "all are watched again");
}

#[tokio::test]
async fn a_place_that_was_detached_before_its_session_ended_is_a_session_that_has_ended() {
    let (server, mut etcd) = server().await;
    let (a, session) = backend(&server.url()).await;
    a.try_claim(&session, &lock("a", true), None, false).await.unwrap();
    let waits = lock("a", true);
    let Attempt::Blocked(ticket) = a.try_claim(&session, &waits, None, false).await.unwrap() else {
        panic!("it is held");
    };
    let own = format!("sync/lock/a/{}-{}", session.id, waits.nonce.to_hex());
    etcd.put(own, "", None).await.unwrap();
    etcd.lease_revoke(i64::from_str_radix(&session.id, 16).unwrap()).await.unwrap();
    let now = a.try_claim(&session, &waits, Some(&ticket), false).await;
    assert!(matches!(now, Ok(Attempt::SessionEnded)), "{now:?}");
}

/// What is left of a lease is told in whole seconds.
#[tokio::test]
async fn a_key_that_is_taken_away_in_the_last_second_of_its_lease_is_not_the_end_of_that() {
    let (server, mut etcd) = server().await;
    let a = Config::new(server.url()).backend().await.unwrap();
    let session = a.open(Duration::from_secs(2)).await.unwrap();
    let mut losses = a.losses(&session);
    let held = lock("a", true);
    a.try_claim(&session, &held, None, false).await.unwrap();
    sleep(session.ttl - Duration::from_millis(700)).await;
    etcd.delete("sync/lock/a/", Some(DeleteOptions::new().with_prefix())).await.unwrap();
    let told = timeout(Duration::from_millis(500), losses.next()).await.unwrap();
    assert_eq!(told, Some(Loss::Claim(held.nonce)));
}
