//! What others wrote under this crate's keys while a claim is held.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may")]

mod common;

use common::Server;
use sync_conformance::driver::{claim, lock, name, record};
use sync_core::backend::{Claim, Ended, Updated};
use sync_core::{ErrorKind, Kind, LONGEST_RECORD};

#[tokio::test]
async fn a_record_longer_than_any_of_ours_is_not_read() {
    let server = Server::start();
    let a = server.client().await;
    let claim = claim(Kind::Leader, "a", true);
    let grant = a.held(&claim).await;
    let write = |length: usize| {
        let text = "x".repeat(length);
        let () = server.run(&format!("SET sync:leader:{{a}}:holder {text}"));
    };
    write(LONGEST_RECORD);
    match a.backend.update(&a.session, &claim, &grant).await.unwrap() {
        Updated::Stale(version) => assert_eq!(version.as_bytes().len(), LONGEST_RECORD),
        other => panic!("{other:?}"),
    }
    assert_eq!(a.held(&claim).await.version.as_bytes().len(), LONGEST_RECORD);
    write(LONGEST_RECORD + 1);
    assert_eq!(a.held(&claim).await.version.as_bytes(), &*claim.record);
    write(LONGEST_RECORD + 1);
    let text: std::sync::Arc<[u8]> = record("new", claim.nonce).into();
    let renamed = Claim::new(Kind::Leader, name("a"), claim.nonce, text.clone(), true);
    match a.backend.update(&a.session, &renamed, &grant).await.unwrap() {
        Updated::Done(version) => assert_eq!(version.as_bytes(), &*text),
        other => panic!("{other:?}"),
    }
    assert_eq!(server.run::<Vec<u8>>("GET sync:leader:{a}:holder"), *text);
}

#[tokio::test]
async fn a_counter_that_was_overwritten_while_held_is_refused() {
    let server = Server::start();
    let a = server.client().await;
    let claim = lock("a");
    a.held(&claim).await;
    for wrong in ["garbage", "1e3", "-1", "9007199254740992"] {
        let () = server.run(&format!("SET sync:lock:{{a}}:token {wrong}"));
        let refused = a.backend.try_claim(&a.session, &claim, None, false).await.unwrap_err();
        assert_eq!((refused.kind(), refused.settled()), (ErrorKind::Foreign, true), "{refused}");
    }
    assert_eq!(a.end(&claim).await, Ended::Released);
}

#[tokio::test]
async fn a_place_in_line_is_not_the_claim_that_was_granted() {
    let server = Server::start();
    let (a, b) = (server.client().await, server.client().await);
    let (first, second) = (lock("a"), lock("a"));
    let grant = a.held(&first).await;
    b.blocked(&second).await;
    // As if it had held, was taken over, and an attempt of its own came late.
    let ended = b.backend.end(&b.session, &second, Some(&grant), false).await.unwrap();
    assert_eq!(ended, Ended::NotOurs);
    b.blocked(&second).await;
    assert_eq!(b.end(&second).await, Ended::Released);
}
