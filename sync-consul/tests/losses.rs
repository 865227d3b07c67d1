//! What is taken from us from outside is told at once, with its own cause.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may")]

#[path = "common/agent.rs"]
mod agent;
mod common;
#[path = "common/front.rs"]
mod front;

use std::time::{Duration, Instant};

use agent::{
    agent, client, config, coordinator, delete, destroy, in_line, key, only, operator, put,
};
use common::Api;
use front::Front;
use sync_conformance::Server;
use sync_conformance::driver::{Driver, TTL, bounded, claim, eventually, lock, renamed};
use sync_consul::{Behavior, Cause, Config, Coordinator, Options};
use sync_core::backend::{Loss, Updated};
use sync_core::{ErrorKind, Kind};
use tokio::time::{sleep, timeout};
use tokio_stream::StreamExt;

const SOON: Duration = Duration::from_secs(5);

#[tokio::test]
async fn what_happens_to_a_claim_from_outside_is_told_at_once() {
    let server = agent(&[]).await;
    let (consul, front) = (operator(&server), Front::of(&server).await);
    let a = Driver::on(config(front.url()).backend().await.unwrap(), TTL).await;
    let mut losses = a.backend.losses(&a.session);
    let (kept, deleted, put_over) = (lock("kept"), lock("deleted"), lock("put"));
    let updated = claim(Kind::Leader, "l", true);
    a.held(&kept).await;
    a.held(&deleted).await;
    a.held(&put_over).await;
    let grant = a.held(&updated).await;
    let done = a.update(&renamed(&updated, "renamed"), &grant).await;
    assert!(matches!(done, Updated::Done(_)));
    let released = lock("released");
    let grant = a.held(&released).await;
    front.polled(&key(&released)).await;
    a.release(&released, &grant).await;
    let nothing = timeout(Duration::from_millis(500), losses.next()).await;
    assert!(nothing.is_err(), "what we do ourselves is no loss: {nothing:?}");
    delete(&consul, &key(&deleted)).await;
    let loss = bounded(losses.next()).await.expect("told at once");
    assert_eq!(loss, Some(Loss::Claim(deleted.nonce)));
    put(&consul, &key(&put_over), "theirs").await;
    let loss = bounded(losses.next()).await.expect("told at once");
    assert_eq!(loss, Some(Loss::Claim(put_over.nonce)));
    destroy(&consul, &a.session.id).await;
    let told = async { while losses.next().await != Some(Loss::Session) {} };
    bounded(told).await.expect("told at once");
}

/// What ends a session, other than its holder. Who waits is not served before that is told.
async fn session_is_lost(server: &Server, config: Config, end: impl AsyncFnOnce(&Api)) {
    let consul = operator(server);
    let sync = config.options(Options::new().ttl(Duration::from_secs(30))).connect().await.unwrap();
    let guard = sync.lock("a").acquire().await.unwrap();
    let elected = sync.leader("a").elect().await.unwrap();
    let began = Instant::now();
    end(&consul).await;
    let soon = Duration::from_secs(1);
    assert_eq!(timeout(soon, guard.revoked()).await.expect("told at once").cause, Cause::Session);
    assert_eq!(timeout(soon, elected.revoked()).await.expect("told at once").cause, Cause::Session);
    assert!(began.elapsed() < soon, "before the lock-delay is over");
}

#[tokio::test]
async fn an_operator_who_destroys_the_session_is_told_before_anybody_else_is_granted_the_name() {
    let server = agent(&[]).await;
    let consul = operator(&server);
    let (one, two) = (coordinator(&server.url(), TTL).await, coordinator(&server.url(), TTL).await);
    let (lock, other) = (one.lock("a"), two.lock("a"));
    let (guard, elected) = (lock.acquire().await.unwrap(), one.leader("a").elect().await.unwrap());
    let waiting = tokio::spawn(async move { other.acquire().await });
    in_line(&consul, "lock/a", 1).await;
    let session = only(&consul, "sync/lock/a/").await.session;
    let destroyed = Instant::now();
    destroy(&consul, &session).await;
    for told in [guard.revoked(), elected.revoked()] {
        let told = timeout(SOON, told).await.expect("told at once");
        assert_eq!(told.cause, Cause::Session);
    }
    assert!(!waiting.is_finished(), "the lock-delay is over already");
    let next = timeout(SOON, waiting).await.expect("served").unwrap().unwrap();
    assert!(destroyed.elapsed() >= Duration::from_millis(900), "{:?}", destroyed.elapsed());
    assert!(next.token() > guard.token());
    next.release().await.unwrap();
    // The one who lost it goes on with another session.
    timeout(SOON, lock.acquire()).await.expect("free").unwrap().release().await.unwrap();
}

#[tokio::test]
async fn an_agent_that_is_deregistered_is_told_to_the_holder_and_to_who_comes_then() {
    let server = agent(&[]).await;
    session_is_lost(&server, config(server.url()), async |consul: &Api| {
        consul.ask("PUT", "/v1/catalog/deregister", br#"{"Node":"m0"}"#).await.unwrap();
    })
    .await;
    // It registers itself again after a while, and makes no session until then.
    let consul = operator(&server);
    consul.ask("PUT", "/v1/catalog/deregister", br#"{"Node":"m0"}"#).await.unwrap();
    let until = Instant::now() + Duration::from_secs(120);
    let mut refused = 0;
    while let Err(error) = config(server.url()).connect().await {
        assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
        assert!(error.to_string().contains("registered"), "{error}");
        assert!(Instant::now() < until, "{error}");
        refused += 1;
        sleep(Duration::from_millis(100)).await;
        if refused == 1 {
            // Not to wait for its own look around.
            let body = br#"{"Node":"m0","Address":"127.0.0.1"}"#;
            consul.ask("PUT", "/v1/catalog/register", body).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_check_that_the_session_is_tied_to_ends_it() {
    let server = agent(&[]).await;
    let consul = operator(&server);
    let missing = config(server.url()).node_checks(["mine"]).connect().await.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::Unreachable, "{missing}");
    let text = missing.to_string();
    assert!(text.contains("'mine'") && text.contains("Config::node_checks"), "{text}");
    assert!(text.contains("/v1/agent/checks"), "{text}");

    let check = br#"{"ID":"mine","Name":"mine","TTL":"600s","Status":"passing"}"#;
    consul.ask("PUT", "/v1/agent/check/register", check).await.unwrap();
    let service = br#"{"ID":"web","Name":"web","Check":{"CheckID":"web-up","TTL":"600s","Status":"passing"}}"#;
    consul.ask("PUT", "/v1/agent/service/register", service).await.unwrap();
    let node = config(server.url()).node_checks(["mine"]);
    // The servers learn of a check a moment later.
    eventually(SOON, async || node.clone().connect().await.map(drop)).await;
    session_is_lost(&server, node, async |consul: &Api| {
        consul.ask("PUT", "/v1/agent/check/fail/mine", b"").await.unwrap();
    })
    .await;
    let failing = config(server.url()).node_checks(["mine"]).connect().await.unwrap_err();
    assert_eq!(failing.kind(), ErrorKind::Unreachable, "{failing}");
    let text = failing.to_string();
    assert!(text.contains("'mine' is in critical state (a session can be made once"), "{text}");
    consul.ask("PUT", "/v1/agent/check/pass/mine", b"").await.unwrap();
    let of_service = config(server.url()).service_checks(["web-up"]);
    eventually(SOON, async || of_service.clone().connect().await.map(drop)).await;
    session_is_lost(&server, of_service, async |consul: &Api| {
        consul.ask("PUT", "/v1/agent/check/fail/web-up", b"").await.unwrap();
    })
    .await;
    let sync = coordinator(&server.url(), TTL).await;
    sync.lock("a").acquire().await.unwrap().release().await.unwrap();
}

/// Its place is gone with it, and nobody else tells: renewals are ten seconds apart.
#[tokio::test]
async fn who_waits_and_loses_his_session_stands_in_line_again_at_once() {
    let server = agent(&[]).await;
    let consul = operator(&server);
    let ttl = Duration::from_secs(30);
    let a = client(&server).await;
    for kind in [Kind::Lock, Kind::Leader] {
        let (one, two) =
            (coordinator(&server.url(), ttl).await, coordinator(&server.url(), ttl).await);
        let held = claim(kind, "a", true);
        let grant = a.held(&held).await;
        let wait = |sync: &Coordinator| {
            let (lock, leader) = (sync.lock("a"), sync.leader("a"));
            tokio::spawn(async move {
                match kind {
                    Kind::Lock => lock.acquire().await.unwrap().release().await.unwrap(),
                    _ => leader.elect().await.unwrap().resign().await.unwrap(),
                }
            })
        };
        let line = format!("{kind}/a");
        let first = wait(&one);
        in_line(&consul, &line, 1).await;
        let second = wait(&two);
        let before = in_line(&consul, &line, 2).await;
        destroy(&consul, &before[0].session).await;
        let after = eventually(SOON, async || {
            let after = in_line(&consul, &line, 2).await;
            if after[0].key == before[1].key { Ok(after) } else { Err(after) }
        })
        .await;
        assert_ne!(after[1].session, before[0].session, "with a session that lives");
        a.release(&held, &grant).await;
        for waiting in [second, first] {
            timeout(Duration::from_secs(3), waiting).await.expect("served").unwrap();
        }
    }
}

/// More sessions than are watched by a poll of their own: their keys tell.
#[tokio::test]
async fn the_end_of_each_of_many_sessions_is_told() {
    const MANY: usize = 40;
    let server = agent(&[]).await;
    let (consul, front) = (operator(&server), Front::of(&server).await);
    for behavior in [Behavior::Delete, Behavior::Release] {
        front.forget();
        let options = Options::new().ttl(Duration::from_secs(60));
        let config = config(front.url()).behavior(behavior).options(options);
        let sync = config.connect().await.unwrap();
        let mut guards = Vec::new();
        for number in 0..MANY {
            let lock = sync.lock(format!("{behavior:?}{number}")).dedicated_session();
            guards.push(lock.acquire().await.unwrap());
        }
        front.polled("separator").await;
        assert!(front.most_open_polls() <= 64, "{}", front.most_open_polls());
        for number in [0, MANY / 2, MANY - 1] {
            let path = format!("sync/lock/{behavior:?}{number}/.lock");
            destroy(&consul, &only(&consul, &path).await.session).await;
            let revoked = timeout(Duration::from_secs(4), guards[number].revoked()).await;
            let cause = revoked.unwrap_or_else(|_| panic!("{number} is not told")).cause;
            assert_eq!(cause, Cause::Session, "{behavior:?}: {number}");
        }
        assert_eq!(guards.iter().filter(|guard| guard.is_valid()).count(), MANY - 3);
    }
}

#[tokio::test]
async fn with_release_the_record_of_a_dead_holder_can_still_be_read() {
    let server = agent(&[]).await;
    let consul = operator(&server);
    let keeping = config(server.url()).behavior(Behavior::Release);
    let sync = keeping.connect().await.unwrap();
    let leader = sync.leader("a");
    let elected = leader.elect().await.unwrap();
    let session = only(&consul, "sync/leader/a").await.session;
    destroy(&consul, &session).await;
    timeout(SOON, elected.revoked()).await.expect("told at once");
    let left = only(&consul, "sync/leader/a").await;
    assert!(left.session.is_empty() && left.text().contains("\"id\""), "{left:?}");
    assert!(leader.leader().await.unwrap().is_none());
    let next = timeout(SOON, leader.elect()).await.expect("it is free").unwrap();
    assert!(next.token() > elected.token());
    next.resign().await.unwrap();
}
