//! Sessions on a real agent: what they are like, and who ends them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may")]

#[path = "common/agent.rs"]
mod agent;
mod common;
#[path = "common/front.rs"]
mod front;

use std::time::{Duration, Instant};

use agent::{
    LOCK_FLAGS, agent, applied, client, client_with, config, coordinator, delete, destroy, key,
    keys, only, operator, put, ticket,
};
use common::Api;
use front::{Answer, Front, Verdict, creating};
use serde_json::{Value, json};
use sync_conformance::driver::{Driver, TTL, bounded, claim, eventually, lock, name, record};
use sync_consul::{Behavior, Cause, Config, Coordinator, Options};
use sync_core::backend::{Attempt, Claim, Ended, Held, Loss, Renewal, Updated};
use sync_core::{ErrorKind, Kind};
use tokio::time::{sleep, timeout};
use tokio_stream::StreamExt;

const SOON: Duration = Duration::from_secs(3);

async fn info(consul: &Api, session: &str) -> Value {
    consul.json("GET", &format!("/v1/session/info/{session}"), b"").await.unwrap()[0].clone()
}

#[tokio::test]
async fn a_session_is_as_it_was_asked_for() {
    let server = agent(&[]).await;
    let consul = operator(&server);
    let a = client_with(&server, Duration::from_millis(2500)).await;
    assert_eq!(a.session.ttl, Duration::from_millis(2500));
    let seen = info(&consul, &a.session.id).await;
    assert_eq!((&seen["TTL"], &seen["Behavior"]), (&"2500ms".into(), &"delete".into()));
    assert_eq!(seen["LockDelay"], 1_000_000_000_u64);
    assert_eq!(seen["NodeChecks"], json!([]), "not the agent's health either");
    assert!(seen["ServiceChecks"].is_null());

    let open = async |config: Config| {
        let driver = Driver::on(config.backend().await.unwrap(), Duration::from_secs(12)).await;
        info(&consul, &driver.session.id).await
    };
    let config = || config(server.url());
    let seen = open(config().lock_delay(Duration::from_millis(2500))).await;
    assert_eq!(seen["LockDelay"], 2_500_000_000_u64);
    let seen = open(config().lock_delay(Duration::from_millis(1))).await;
    assert_eq!(seen["LockDelay"], 1_000_000_u64, "not a second, as bare numbers are read");
    let seen = open(config().lock_delay(Duration::ZERO)).await;
    assert_eq!(seen["LockDelay"], 0);
    let seen = open(config().strict_lock_delay()).await;
    assert_eq!(seen["LockDelay"], 12_000_000_000_u64);
    let seen = open(config().strict_lock_delay().lock_delay(Duration::from_secs(30))).await;
    assert_eq!(seen["LockDelay"], 30_000_000_000_u64);
    let seen = open(config().behavior(Behavior::Release)).await;
    assert_eq!(seen["Behavior"], "release");
    let seen = open(config().node_checks(["serfHealth"])).await;
    assert_eq!(seen["NodeChecks"], json!(["serfHealth"]));

    let other = a.backend.open(Duration::from_secs(5)).await.unwrap();
    assert_ne!(other.id, a.session.id);
    let alive = a.backend.renew(&a.session, &[]).await.unwrap();
    assert!(matches!(alive, Renewal::Alive { ttl, .. } if ttl == Duration::from_millis(2500)));
    a.backend.close(&a.session).await.unwrap();
    a.backend.close(&a.session).await.expect("closed already is a success");
    assert!(matches!(a.backend.renew(&a.session, &[]).await.unwrap(), Renewal::Ended));
    assert!(matches!(a.attempt(&lock("a")).await, Attempt::SessionEnded));
    assert!(matches!(a.attempt(&claim(Kind::Leader, "a", true)).await, Attempt::SessionEnded));
    assert!(keys(&consul, "").await.is_empty());
}

#[tokio::test]
async fn what_cannot_be_kept_is_refused_before_anything_is_sent() {
    let server = agent(&[]).await;
    let front = Front::of(&server).await;
    let minute = Duration::from_secs(61);
    for (config, options, word) in [
        (Config::new(front.url()), Options::new().ttl(Duration::from_secs(9)), "10s"),
        (config(front.url()).lock_delay(minute), Options::new(), "lock-delay"),
        (config(front.url()).strict_lock_delay(), Options::new().ttl(minute), "60s"),
        (config(front.url()), Options::new().ttl(Duration::from_secs(25 * 3600)), "longest"),
    ] {
        let error = config.options(options).connect().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        assert!(error.to_string().contains(word), "{error}");
    }
    assert!(front.asked().is_empty());
    let sync = config(front.url()).connect().await.unwrap();
    let short = sync.lock("a").ttl(Duration::from_millis(200)).acquire().await.unwrap_err();
    assert_eq!(short.kind(), ErrorKind::Invalid, "{short}");
    // Whose agent keeps no such TTL is told when it connects.
    let strict = agent(&["session_ttl_min = \"10s\""]).await;
    let error = config(strict.url()).connect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    assert!(error.to_string().contains("session_ttl_min"), "{error}");
    Config::new(strict.url()).connect().await.unwrap();
}

#[tokio::test]
async fn closing_a_session_leaves_no_lock_delay_behind() {
    let server = agent(&[]).await;
    let consul = operator(&server);
    let (a, b) = (client(&server).await, client(&server).await);
    let all: Vec<Claim> = (0..70).map(|number| lock(&format!("n{number}"))).collect();
    for claim in &all {
        a.held(claim).await;
    }
    let waits = lock("n0");
    let place = b.blocked(&waits).await;
    a.backend.close(&a.session).await.unwrap();
    assert_eq!(keys(&consul, "sync/").await, [ticket(&b.session, &waits)]);
    assert!(matches!(b.again(&waits, &place).await, Attempt::Held(_)));
    for number in 1..70 {
        b.held(&lock(&format!("n{number}"))).await;
    }
}

/// Places and markers of a session that ends with its keys kept are in nobody's way.
#[tokio::test]
async fn what_a_session_leaves_that_keeps_its_keys_is_passed_over() {
    let server = agent(&[]).await;
    let consul = operator(&server);
    let keeping = async || {
        let config = config(server.url()).behavior(Behavior::Release).lock_delay(Duration::ZERO);
        Driver::on(config.backend().await.unwrap(), TTL).await
    };
    let c = client(&server).await;
    for kind in [Kind::Lock, Kind::Leader] {
        let (a, b) = (keeping().await, keeping().await);
        let (held, waits) = (claim(kind, "a", true), claim(kind, "a", true));
        let old = a.held(&held).await;
        b.blocked(&waits).await;
        destroy(&consul, &b.session.id).await;
        destroy(&consul, &a.session.id).await;
        let left = keys(&consul, "sync/").await;
        assert_eq!(left, [key(&held), ticket(&b.session, &waits)]);
        assert!(c.backend.holder(kind, &name("a")).await.unwrap().holder.is_none());
        let next = claim(kind, "a", true);
        let grant = c.held(&next).await;
        assert!(grant.token > old.token);
        c.release(&next, &grant).await;
        assert_eq!(keys(&consul, "sync/").await, [ticket(&b.session, &waits)], "left alone");
        delete(&consul, "sync/?recurse").await;
    }
}

#[tokio::test]
async fn who_stands_behind_a_place_that_outlives_its_session_is_served() {
    let server = agent(&[]).await;
    let consul = operator(&server);
    let keeping = config(server.url()).behavior(Behavior::Release).backend().await.unwrap();
    let (a, b, c) = (client(&server).await, Driver::on(keeping, TTL).await, client(&server).await);
    let (first, second, third) = (lock("a"), lock("a"), lock("a"));
    let grant = a.held(&first).await;
    b.blocked(&second).await;
    let place = c.blocked(&third).await;
    let waiting = tokio::spawn(async move {
        c.backend.wait(&c.session, &third, &place).await;
        c.again(&third, &place).await
    });
    sleep(Duration::from_millis(300)).await;
    destroy(&consul, &b.session.id).await;
    sleep(Duration::from_millis(300)).await;
    assert_eq!(keys(&consul, "sync/line/").await[0], ticket(&b.session, &second), "it stays");
    a.release(&first, &grant).await;
    let got = timeout(Duration::from_secs(2), waiting).await.expect("woken").unwrap();
    assert!(matches!(got, Attempt::Held(_)), "{got:?}");
}

#[tokio::test]
async fn what_happens_to_a_claim_from_outside_is_told_at_once() {
    let server = agent(&[]).await;
    let consul = operator(&server);
    let a = client(&server).await;
    let mut losses = a.backend.losses(&a.session);
    let (kept, deleted, put_over) = (lock("kept"), lock("deleted"), lock("put"));
    let updated = claim(Kind::Leader, "l", true);
    a.held(&kept).await;
    a.held(&deleted).await;
    a.held(&put_over).await;
    let grant = a.held(&updated).await;
    let renamed = record("renamed", updated.nonce).into();
    let renamed = Claim::new(Kind::Leader, name("l"), updated.nonce, renamed, true);
    let done = a.backend.update(&a.session, &renamed, &grant).await.unwrap();
    assert!(matches!(done, Updated::Done(_)));
    let released = lock("released");
    let grant = a.held(&released).await;
    sleep(Duration::from_millis(200)).await;
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

/// What ends a session, other than its holder.
async fn session_is_lost(
    server: &sync_conformance::Server,
    config: Config,
    end: impl AsyncFnOnce(&Api),
) {
    let consul = operator(server);
    let sync = config.options(Options::new().ttl(Duration::from_secs(30))).connect().await.unwrap();
    let guard = sync.lock("a").acquire().await.unwrap();
    let elected = sync.leader("a").elect().await.unwrap();
    sleep(Duration::from_millis(300)).await;
    let began = Instant::now();
    end(&consul).await;
    let soon = Duration::from_secs(1);
    assert_eq!(timeout(soon, guard.revoked()).await.expect("told at once").cause, Cause::Session);
    assert_eq!(timeout(soon, elected.revoked()).await.expect("told at once").cause, Cause::Session);
    assert!(began.elapsed() < soon, "before the lock-delay is over");
}

#[tokio::test]
async fn an_operator_who_destroys_the_session_is_told_to_the_holder() {
    let server = agent(&[]).await;
    session_is_lost(&server, config(server.url()), async |consul: &Api| {
        let session = only(consul, "sync/lock/a/").await.session;
        destroy(consul, &session).await;
    })
    .await;
    let sync = coordinator(&server.url(), TTL).await;
    sync.lock("a").acquire().await.unwrap().release().await.unwrap();
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
    assert!(missing.to_string().contains("mine"), "{missing}");

    let check = br#"{"ID":"mine","Name":"mine","TTL":"600s","Status":"passing"}"#;
    consul.ask("PUT", "/v1/agent/check/register", check).await.unwrap();
    let service = br#"{"ID":"web","Name":"web","Check":{"CheckID":"web-up","TTL":"600s","Status":"passing"}}"#;
    consul.ask("PUT", "/v1/agent/service/register", service).await.unwrap();
    sleep(Duration::from_secs(1)).await; // the servers are told
    let node = config(server.url()).node_checks(["mine"]);
    session_is_lost(&server, node, async |consul: &Api| {
        consul.ask("PUT", "/v1/agent/check/fail/mine", b"").await.unwrap();
    })
    .await;
    let failing = config(server.url()).node_checks(["mine"]).connect().await.unwrap_err();
    assert_eq!(failing.kind(), ErrorKind::Unreachable, "{failing}");
    assert!(failing.to_string().contains("must be there and pass"), "{failing}");
    consul.ask("PUT", "/v1/agent/check/pass/mine", b"").await.unwrap();
    sleep(Duration::from_secs(1)).await;
    let of_service = config(server.url()).service_checks(["web-up"]);
    session_is_lost(&server, of_service, async |consul: &Api| {
        consul.ask("PUT", "/v1/agent/check/fail/web-up", b"").await.unwrap();
    })
    .await;
    let sync = coordinator(&server.url(), TTL).await;
    sync.lock("a").acquire().await.unwrap().release().await.unwrap();
}

#[tokio::test]
async fn lock_delay_is_waited_out_without_asking_all_the_time() {
    let server = agent(&[]).await;
    let consul = operator(&server);
    let a = client(&server).await;
    a.held(&lock("a")).await;
    let sync = coordinator(&server.url(), TTL).await;
    sync.lock("warm").acquire().await.unwrap().release().await.unwrap();
    destroy(&consul, &a.session.id).await;
    let (before, began) = (applied(&consul).await, Instant::now());
    let guard = sync.lock("a").acquire().await.unwrap();
    let (took, writes) = (began.elapsed(), applied(&consul).await - before);
    assert!((Duration::from_millis(900)..Duration::from_millis(2500)).contains(&took), "{took:?}");
    assert!(writes <= 14, "{writes} writes");
    guard.release().await.unwrap();
    assert!(keys(&consul, "sync/").await.is_empty());
}

/// As where sessions keep their keys: the key stands there, and cannot be had for a while.
#[tokio::test]
async fn the_lock_delay_of_a_key_that_stays_is_waited_out_too() {
    let server = agent(&[]).await;
    let consul = operator(&server);
    let b = client(&server).await;
    for kind in [Kind::Lock, Kind::Leader] {
        let keeping = config(server.url()).behavior(Behavior::Release).backend().await.unwrap();
        let a = Driver::on(keeping, TTL).await;
        let held = claim(kind, "a", true);
        let old = a.held(&held).await;
        destroy(&consul, &a.session.id).await;
        b.blocked(&claim(kind, "a", false)).await;
        let waits = claim(kind, "a", true);
        let place = b.blocked(&waits).await;
        assert!(place.not_before > Duration::ZERO, "nobody tells when it is over");
        assert_eq!(keys(&consul, "sync/").await, [key(&held), ticket(&b.session, &waits)]);
        let before = applied(&consul).await;
        let grant = b.acquire(&waits).await;
        assert!(grant.token > old.token);
        let writes = applied(&consul).await - before;
        assert!(writes <= 28, "{writes} writes");
        b.release(&waits, &grant).await;
        // A session that has ended is told apart from that.
        let ended = client(&server).await;
        put_left(&consul, &key(&held)).await;
        destroy(&consul, &ended.session.id).await;
        assert!(matches!(ended.attempt(&claim(kind, "a", true)).await, Attempt::SessionEnded));
        delete(&consul, "sync/?recurse").await;
    }
}

/// A lock's key without a session.
async fn put_left(consul: &Api, key: &str) {
    put(consul, &format!("{key}?flags={LOCK_FLAGS}"), "theirs").await;
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
    eventually(SOON, async || {
        front.open_polls().iter().find(|p| p.contains("/.lock")).map(drop).ok_or("not watched")
    })
    .await;
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

#[tokio::test]
async fn a_call_to_a_dead_session_says_so_and_one_of_another_answer_does_not() {
    let server = agent(&[]).await;
    let front = Front::of(&server).await;
    let x = Driver::on(config(front.url()).backend().await.unwrap(), TTL).await;
    front.decide(|asked| match asked.path.contains("/session/renew/") {
        true => {
            Verdict::Answer(Answer::new(200, r#"[{"ID":"0947cabe-552d-1df2-fbd7-a55a46299340"}]"#))
        }
        false => Verdict::Pass,
    });
    let error = x.backend.renew(&x.session, &[]).await.unwrap_err();
    assert!(!error.settled(), "another session's answer: {error}");
    front.decide(|_| Verdict::Pass);
    assert!(matches!(x.backend.renew(&x.session, &[]).await.unwrap(), Renewal::Alive { .. }));
    let held = [Held { grant: x.held(&lock("a")).await, claim: lock("a").into() }];
    destroy(&operator(&server), &x.session.id).await;
    assert!(matches!(x.backend.renew(&x.session, &held).await.unwrap(), Renewal::Ended));
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
        let line = format!("sync/line/{kind}/a/");
        let standing = async |count: usize| {
            let until = Instant::now() + Duration::from_secs(3);
            loop {
                let mut pairs = consul.pairs(&line).await.unwrap();
                pairs.sort_by_key(|pair| pair.create_index);
                if pairs.len() == count {
                    return pairs;
                }
                assert!(Instant::now() < until, "{count} do not stand in line: {pairs:?}");
                sleep(Duration::from_millis(10)).await;
            }
        };
        let first = wait(&one);
        standing(1).await;
        let second = wait(&two);
        let before = standing(2).await;
        sleep(Duration::from_millis(300)).await;
        destroy(&consul, &before[0].session).await;
        sleep(Duration::from_millis(300)).await;
        let after = standing(2).await;
        assert_eq!(after[0].key, before[1].key, "who has lost nothing is the first now");
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
        sleep(Duration::from_secs(1)).await;
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
