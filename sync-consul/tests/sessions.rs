//! Sessions on a real agent: what they are like, and what they leave behind.

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
use front::{Answer, Front, Verdict};
use serde_json::{Value, json};
use sync_conformance::driver::{Driver, TTL, claim, lock, name};
use sync_consul::{Behavior, Config, Options};
use sync_core::backend::{Attempt, Claim, Held, Renewal};
use sync_core::{ErrorKind, Kind};
use tokio::time::timeout;

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
    let front = Front::of(&server).await;
    let keeping = config(server.url()).behavior(Behavior::Release).backend().await.unwrap();
    let (a, b) = (client(&server).await, Driver::on(keeping, TTL).await);
    let c = Driver::on(config(front.url()).backend().await.unwrap(), TTL).await;
    let (first, second, third) = (lock("a"), lock("a"), lock("a"));
    let grant = a.held(&first).await;
    b.blocked(&second).await;
    let place = c.blocked(&third).await;
    let waiting = tokio::spawn(async move {
        c.backend.wait(&c.session, &third, &place).await;
        c.again(&third, &place).await
    });
    front.polled(&ticket(&b.session, &second)).await;
    destroy(&consul, &b.session.id).await;
    front.polled(&key(&first)).await;
    assert_eq!(keys(&consul, "sync/line/").await[0], ticket(&b.session, &second), "it stays");
    a.release(&first, &grant).await;
    let got = timeout(Duration::from_secs(2), waiting).await.expect("woken").unwrap();
    assert!(matches!(got, Attempt::Held(_)), "{got:?}");
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

#[tokio::test]
async fn a_strict_lock_delay_lasts_for_the_ttl() {
    let server = agent(&[]).await;
    let consul = operator(&server);
    let ttl = Duration::from_secs(4);
    let strict = config(server.url()).strict_lock_delay().options(Options::new().ttl(ttl));
    let (a, b) = (strict.connect().await.unwrap(), coordinator(&server.url(), ttl).await);
    let guard = a.lock("a").acquire().await.unwrap();
    let session = only(&consul, "sync/lock/a/").await.session;
    let destroyed = Instant::now();
    destroy(&consul, &session).await;
    timeout(SOON, guard.revoked()).await.expect("told at once");
    let next = timeout(ttl + SOON, b.lock("a").acquire()).await.expect("it is over").unwrap();
    assert!(destroyed.elapsed() >= ttl - Duration::from_millis(100), "{:?}", destroyed.elapsed());
    next.release().await.unwrap();
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
        let (mere, waits) = (claim(kind, "a", false), claim(kind, "a", true));
        b.blocked(&mere).await;
        let place = b.blocked(&waits).await;
        assert!(place.not_before > Duration::ZERO, "nobody tells when it is over");
        // By the ticket that the mere try would have had.
        assert_eq!(keys(&consul, "sync/").await, [key(&held), ticket(&b.session, &mere)]);
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

/// What connecting has asked for is over when it returns, and needs nobody who lives on.
#[test]
fn a_program_that_ends_as_soon_as_it_is_connected_leaves_no_session() {
    let here = tokio::runtime::Runtime::new().unwrap();
    let server = here.block_on(agent(&[]));
    let program = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let sync = program.block_on(config(server.url()).connect()).unwrap();
    program.shutdown_background();
    drop(sync);
    assert!(here.block_on(agent::sessions(&operator(&server))).unwrap().is_empty());
}
