//! What stands in a real agent after each step, seen over its own API.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may")]

#[path = "common/agent.rs"]
mod agent;
mod common;
#[path = "common/front.rs"]
mod front;

use std::time::{Duration, Instant};

use agent::{
    LOCK_FLAGS, agent, applied, client, config, delete, key, keys, only, operator, ticket, void,
};
use common::Api;
use front::{Answer, Asked, Front, creating};
use sync_conformance::driver::{Driver, TTL, bounded, claim, lock, name, record};
use sync_conformance::logs;
use sync_conformance::proxy::Proxy;
use sync_core::Kind;
use sync_core::backend::{Attempt, Claim, Ended, Grant, Ticket, Updated};
use tokio::time::{sleep, timeout};

/// Takes a turn that has come.
async fn entered(client: &Driver, claim: &Claim, place: &Ticket) -> Grant {
    match client.again(claim, place).await {
        Attempt::Held(grant) => grant,
        other => panic!("not held: {other:?}"),
    }
}

async fn still_waits(client: &Driver, claim: &Claim, place: &Ticket) -> Ticket {
    match client.again(claim, place).await {
        Attempt::Blocked(place) => place,
        other => panic!("not blocked: {other:?}"),
    }
}

#[tokio::test]
async fn a_claim_is_one_key_locked_by_the_session_and_its_token_is_its_index() {
    let server = agent(&[]).await;
    let consul = operator(&server);
    let (a, b) = (client(&server).await, client(&server).await);
    let (first, second) = (lock("a/b"), lock("a/b"));
    assert_eq!(a.backend.key(Kind::Lock, &name("a/b")), "sync/lock/a=2Fb/.lock");
    assert_eq!(a.backend.key(Kind::Leader, &name("a/b")), "sync/leader/a=2Fb");
    let grant = a.held(&first).await;
    let found = only(&consul, "sync/").await;
    assert_eq!(found.key, key(&first));
    assert_eq!(found.text().as_bytes(), &*first.record);
    assert_eq!((&*found.session, found.flags), (&*a.session.id, LOCK_FLAGS));
    assert_eq!(found.create_index, grant.token.get());
    assert_eq!(grant.ttl, None);

    // Asked again it finds what it did, and changes nothing.
    assert_eq!(a.held(&first).await.token, grant.token);
    assert_eq!(only(&consul, "sync/").await.modify_index, found.modify_index);

    // Who waits stands in the line, by a key of its own.
    let place = b.blocked(&second).await;
    let standing = only(&consul, "sync/line/").await;
    assert_eq!(standing.key, ticket(&b.session, &second));
    assert_eq!((&*standing.session, standing.text()), (&*b.session.id, String::new()));
    still_waits(&b, &second, &place).await;
    b.blocked(&second).await;
    assert_eq!(keys(&consul, "sync/").await, [key(&first), standing.key.clone()]);
    assert_eq!(a.release(&first, &grant).await, Ended::Released);
    assert_eq!(keys(&consul, "sync/").await, [standing.key]);
    let next = entered(&b, &second, &place).await;
    assert!(next.token > grant.token);
    assert_eq!(keys(&consul, "sync/").await, [key(&second)], "its place is given back with it");
    assert_eq!(a.release(&first, &grant).await, Ended::NotOurs);
    assert_eq!(b.release(&second, &next).await, Ended::Released);
    assert!(keys(&consul, "").await.is_empty(), "nothing is left");
}

#[tokio::test]
async fn an_election_takes_a_place_first_and_enters_in_the_same_call() {
    let server = agent(&[]).await;
    let consul = operator(&server);
    let (a, b) = (client(&server).await, client(&server).await);
    let (first, second) = (claim(Kind::Leader, "a", true), claim(Kind::Leader, "a", true));
    let grant = a.held(&first).await;
    assert_eq!(only(&consul, "sync/").await.key, "sync/leader/a");
    let place = b.blocked(&second).await;
    assert_eq!(keys(&consul, "sync/").await, [key(&first), ticket(&b.session, &second)]);
    b.blocked(&claim(Kind::Leader, "a", false)).await;
    assert_eq!(keys(&consul, "sync/").await.len(), 2, "a mere try leaves nothing");
    // While the line has somebody in it nobody else is shown as the leader, not for a moment.
    assert_eq!(a.release(&first, &grant).await, Ended::Released);
    let before = applied(&consul).await;
    a.blocked(&claim(Kind::Leader, "a", false)).await;
    a.blocked(&claim(Kind::Leader, "a", true)).await;
    assert!(applied(&consul).await > before);
    assert!(consul.pairs("sync/leader/").await.unwrap().is_empty());
    let next = entered(&b, &second, &place).await;
    b.release(&second, &next).await;
}

#[tokio::test]
async fn a_try_without_queue_leaves_nothing() {
    let server = agent(&[]).await;
    let consul = operator(&server);
    let (a, b) = (client(&server).await, client(&server).await);
    let (first, mere) = (lock("a"), claim(Kind::Lock, "a", false));
    let held = a.held(&first).await;
    b.blocked(&mere).await;
    assert_eq!(keys(&consul, "sync/").await, [key(&first)]);
    a.release(&first, &held).await;
    let mine = b.held(&mere).await;
    assert_eq!(only(&consul, "sync/").await.session, *b.session.id);
    assert_eq!(b.held(&mere).await.token, mine.token);
    // One that waits is before it, also while nobody holds.
    let waits = lock("a");
    let place = a.blocked(&waits).await;
    b.release(&mere, &mine).await;
    b.blocked(&claim(Kind::Lock, "a", false)).await;
    assert_eq!(keys(&consul, "sync/").await, [ticket(&a.session, &waits)]);
    entered(&a, &waits, &place).await;
}

#[tokio::test]
async fn a_newcomer_that_finds_a_free_name_and_a_line_joins_it() {
    let server = agent(&[]).await;
    let consul = operator(&server);
    let (a, b, c) = (client(&server).await, client(&server).await, client(&server).await);
    let (first, second, third) = (lock("a"), lock("a"), lock("a"));
    let held = a.held(&first).await;
    let place = b.blocked(&second).await;
    a.release(&first, &held).await;
    let behind = c.blocked(&third).await;
    let line = [ticket(&b.session, &second), ticket(&c.session, &third)];
    assert_eq!(keys(&consul, "sync/").await, line, "what it got is given back");
    still_waits(&c, &third, &behind).await;
    let next = entered(&b, &second, &place).await;
    b.release(&second, &next).await;
    entered(&c, &third, &behind).await;
}

#[tokio::test]
async fn a_lock_and_an_election_of_one_name_are_two_things_and_so_are_names_that_nest() {
    let server = agent(&[]).await;
    let a = client(&server).await;
    for claim in
        [lock("a"), claim(Kind::Leader, "a", true), lock("a/b"), lock("a/.lock"), lock("a/lock/a")]
    {
        a.held(&claim).await;
    }
}

#[tokio::test]
async fn two_claims_of_one_session_exclude_each_other() {
    let server = agent(&[]).await;
    let a = client(&server).await;
    let (first, second) = (lock("a"), lock("a"));
    let grant = a.held(&first).await;
    let soon = a.blocked(&second).await;
    assert!(soon.not_before > Duration::ZERO, "the core has one at a time: this one is ending");
    a.end(&second).await;
    assert_eq!(a.held(&first).await.token, grant.token);
    a.release(&first, &grant).await;
    a.held(&second).await;
}

async fn repeat(consul: &Api, asked: &Asked) -> u16 {
    consul.answer(&asked.method, &asked.path, &asked.body).await.unwrap().0
}

#[tokio::test]
async fn whatever_an_abandoned_claim_has_asked_for_comes_too_late() {
    let server = agent(&[]).await;
    let (consul, front) = (operator(&server), Front::of(&server).await);
    let (a, b) = (client(&server).await, client(&server).await);
    let x = Driver::on(config(front.url()).backend().await.unwrap(), TTL).await;
    for kind in [Kind::Lock, Kind::Leader] {
        front.forget();
        // Held at once.
        let held = claim(kind, "a", true);
        x.held(&held).await;
        assert_eq!(x.abandon(&held).await, Ended::Released);
        // A mere try, refused; then one that waits, and enters.
        let (theirs, mere, waits) =
            (claim(kind, "b", true), claim(kind, "b", false), claim(kind, "b", true));
        let grant = a.held(&theirs).await;
        x.blocked(&mere).await;
        x.abandon(&mere).await;
        let place = x.blocked(&waits).await;
        a.release(&theirs, &grant).await;
        entered(&x, &waits, &place).await;
        assert_eq!(x.abandon(&waits).await, Ended::Released);
        // Given back, to those who stood in line before.
        let (theirs, next, late) =
            (claim(kind, "c", true), claim(kind, "c", true), claim(kind, "c", true));
        let grant = a.held(&theirs).await;
        b.blocked(&next).await;
        a.release(&theirs, &grant).await;
        x.blocked(&late).await;
        assert_eq!(x.abandon(&late).await, Ended::NotOurs);

        let standing = async || -> Vec<(String, u64)> {
            let pairs = consul.pairs("sync/").await.unwrap().into_iter();
            pairs.map(|pair| (pair.key, pair.modify_index)).collect()
        };
        let mut before = standing().await;
        let of_x: Vec<&String> =
            before.iter().map(|(key, _)| key).filter(|key| key.contains(&*x.session.id)).collect();
        assert!(of_x.iter().all(|key| key.starts_with("sync/void/")), "{of_x:?}");
        for claim in [&held, &mere, &waits, &late] {
            assert!(of_x.contains(&&void(&x.session, claim)), "a marker for each");
        }
        // The markers' own requests may be repeated: they do nothing but mark.
        before.retain(|(key, _)| !key.starts_with("sync/void/"));
        let asked = creating(front.asked());
        assert!(asked.len() >= 10, "{}", asked.len());
        for late in asked.iter().chain(asked.iter().rev()) {
            repeat(&consul, late).await;
            let mut after = standing().await;
            after.retain(|(key, _)| !key.starts_with("sync/void/"));
            assert_eq!(after, before, "{}", String::from_utf8_lossy(&late.body));
        }
        b.abandon(&next).await;
    }
    x.backend.close(&x.session).await.unwrap();
    let left = keys(&consul, "sync/void/").await;
    assert!(left.iter().all(|key| !key.contains(&*x.session.id)), "they go with it: {left:?}");
}

/// Each was answered, so there is no marker: what a proxy sends once more, later, is undone.
#[tokio::test]
async fn a_request_that_is_repeated_after_the_claims_end_is_undone() {
    let server = agent(&[]).await;
    let (consul, front) = (operator(&server), Front::of(&server).await);
    let (logs, _guard) = logs::capture();
    let x = Driver::on(config(front.url()).backend().await.unwrap(), TTL).await;
    let a = client(&server).await;
    let (mine, theirs, waits) = (lock("a"), lock("b"), lock("b"));
    let grant = x.held(&mine).await;
    let held = a.held(&theirs).await;
    x.blocked(&waits).await;
    let asked = creating(front.asked());
    x.release(&mine, &grant).await;
    assert_eq!(x.end(&waits).await, Ended::Released);
    for late in asked {
        repeat(&consul, &late).await;
    }
    let mut ghosts = keys(&consul, "sync/").await;
    ghosts.retain(|key| *key != agent::key(&theirs));
    assert_eq!(ghosts, [key(&mine), ticket(&x.session, &waits)], "they came");
    let until = Instant::now() + Duration::from_secs(5);
    while keys(&consul, "sync/").await != [key(&theirs)] {
        assert!(Instant::now() < until, "{:?}", keys(&consul, "sync/").await);
        sleep(Duration::from_millis(50)).await;
    }
    assert!(logs.of("sync_").contains("twice"), "{}", logs.of("sync_"));
    a.release(&theirs, &held).await;
}

#[tokio::test]
async fn an_attempt_that_the_network_keeps_until_after_its_abandon_does_nothing() {
    let server = agent(&[]).await;
    let consul = operator(&server);
    let proxy = Proxy::start(server.addresses()[0]).await.unwrap();
    let backend = config(format!("http://{}", proxy.address())).backend().await.unwrap();
    let a = Driver::on(backend, TTL).await;
    a.end(&lock("warm")).await;
    let late = lock("a");
    proxy.hold();
    assert!(bounded(a.attempt(&late)).await.is_none(), "it is kept");
    assert!(proxy.held() > 0);
    // On another connection, since this one has answered nothing.
    assert_eq!(a.abandon(&late).await, Ended::NotOurs);
    proxy.let_through();
    sleep(Duration::from_millis(300)).await;
    assert_eq!(proxy.held(), 0);
    assert!(keys(&consul, "sync/lock/a/").await.is_empty());
    assert_eq!(keys(&consul, "sync/void/").await, [void(&a.session, &late)]);
    a.held(&lock("a")).await;
}

/// As a Consul that loses its leadership answers, though what was asked is in the log.
#[tokio::test]
async fn a_500_says_nothing_of_what_was_done() {
    let server = agent(&[]).await;
    let (consul, front) = (operator(&server), Front::of(&server).await);
    let fails = |front: &Front| {
        front.change(|asked, answer| {
            if asked.path.starts_with("/v1/txn") {
                *answer = Answer::new(500, "leadership lost while committing log");
            }
        });
    };
    let x = Driver::on(config(front.url()).backend().await.unwrap(), TTL).await;
    let held = lock("a");
    fails(&front);
    let error = x.backend.try_claim(&x.session, &held, None, false).await.unwrap_err();
    assert!(!error.settled() && error.is_transient(), "{error}");
    assert_eq!(keys(&consul, "sync/").await, [key(&held)], "it was done");
    let error = x.backend.end(&x.session, &held, None, true).await.unwrap_err();
    assert!(!error.settled(), "{error}");
    front.change(|_, _| {});
    assert_eq!(x.abandon(&held).await, Ended::Released);
    assert_eq!(keys(&consul, "sync/").await, [void(&x.session, &held)]);

    // Whoever still wants it is given what came of it.
    let sync = config(front.url()).connect().await.unwrap();
    sync.lock("warm").acquire().await.unwrap().release().await.unwrap();
    fails(&front);
    let acquiring = tokio::spawn({
        let lock = sync.lock("b");
        async move { lock.acquire().await }
    });
    sleep(Duration::from_millis(300)).await;
    assert_eq!(keys(&consul, "sync/lock/b/").await.len(), 1);
    front.change(|_, _| {});
    let guard = timeout(Duration::from_secs(5), acquiring).await.unwrap().unwrap().unwrap();
    guard.release().await.unwrap();
    assert!(keys(&consul, "sync/lock/").await.is_empty());
}

#[tokio::test]
async fn an_end_with_a_grant_ends_that_acquisition_and_no_other() {
    let server = agent(&[]).await;
    let consul = operator(&server);
    let a = client(&server).await;
    let first = lock("a");
    let old = a.held(&first).await;
    delete(&consul, &key(&first)).await;
    let new = a.held(&first).await;
    assert!(new.token > old.token);
    assert_eq!(a.release(&first, &old).await, Ended::NotOurs);
    assert_eq!(keys(&consul, "sync/").await, [key(&first)]);
    assert_eq!(a.release(&first, &new).await, Ended::Released);
    // Of the next claim of the same session as well.
    let next = lock("a");
    a.held(&next).await;
    assert_eq!(a.release(&first, &new).await, Ended::NotOurs);
    assert_eq!(a.end(&first).await, Ended::NotOurs);
    assert_eq!(keys(&consul, "sync/").await, [key(&next)]);
}

#[tokio::test]
async fn a_record_changes_only_from_the_version_that_is_known_and_keeps_session_and_token() {
    let server = agent(&[]).await;
    let consul = operator(&server);
    let a = client(&server).await;
    let first = claim(Kind::Leader, "a", true);
    let grant = a.held(&first).await;
    let with = |id: &str| {
        Claim::new(Kind::Leader, name("a"), first.nonce, record(id, first.nonce).into(), true)
    };
    let update = async |claim: &Claim, grant: &Grant| {
        a.backend.update(&a.session, claim, grant).await.unwrap()
    };
    let (second, third) = (with("second"), with("third"));
    let Updated::Done(version) = update(&second, &grant).await else { panic!("not updated") };
    let again = update(&second, &grant).await;
    assert!(
        matches!(again, Updated::Done(now) if now == version),
        "repeated, it finds itself done"
    );
    let late = update(&third, &grant).await;
    assert!(matches!(&late, Updated::Stale(now) if *now == version), "a late one undoes nothing");
    let found = only(&consul, "sync/").await;
    assert_eq!(found.text().as_bytes(), &*second.record);
    assert_eq!((&*found.session, found.flags), (&*a.session.id, LOCK_FLAGS));
    assert_eq!(found.create_index, grant.token.get());
    let seen = a.backend.holder(Kind::Leader, &name("a")).await.unwrap();
    assert_eq!(seen.version, version, "the version that an observer is told");

    let grant = Grant { version, ..grant };
    assert!(matches!(update(&third, &grant).await, Updated::Done(_)));
    // A repeated attempt does not undo it, and the version before is enough for a release.
    let again = a.backend.try_claim(&a.session, &first, None, true).await.unwrap();
    assert!(matches!(again, Attempt::Held(now) if now.token == grant.token));
    assert_eq!(only(&consul, "sync/leader/").await.text().as_bytes(), &*third.record);
    assert_eq!(a.release(&first, &grant).await, Ended::Released);
    assert!(matches!(update(&second, &grant).await, Updated::NotOurs));
    a.held(&claim(Kind::Leader, "a", true)).await;
    assert!(matches!(update(&second, &grant).await, Updated::NotOurs), "another's claim");
    assert_eq!(keys(&consul, "sync/leader/").await.len(), 1);
}

#[tokio::test]
async fn service_is_in_the_order_of_arrival_and_nobody_slips_in() {
    let server = agent(&[]).await;
    let a = client(&server).await;
    let holder = lock("a");
    let mut held = a.held(&holder).await;
    let mut line = Vec::new();
    for _ in 0..5 {
        let (waits, claim) = (client(&server).await, lock("a"));
        let place = waits.blocked(&claim).await;
        line.push((waits, claim, place));
    }
    a.release(&holder, &held).await;
    a.blocked(&claim(Kind::Lock, "a", false)).await;
    for (number, (waits, claim, place)) in line.iter().enumerate() {
        for (later, claim, place) in &line[number + 1..] {
            still_waits(later, claim, place).await;
        }
        let grant = entered(waits, claim, place).await;
        assert!(grant.token > held.token);
        waits.release(claim, &grant).await;
        held = grant;
    }
}

#[tokio::test]
async fn a_release_wakes_the_next_and_one_that_gives_up_its_place_nobody_too_early() {
    let server = agent(&[]).await;
    let a = client(&server).await;
    let (b, c) = (client(&server).await, client(&server).await);
    let (first, second, third) = (lock("a"), lock("a"), lock("a"));
    let held = a.held(&first).await;
    let (place, behind) = (b.blocked(&second).await, c.blocked(&third).await);
    let early = Duration::from_millis(300);
    let waits = async |client: &Driver, claim: &Claim, place: &Ticket| {
        timeout(early, client.backend.wait(&client.session, claim, place)).await
    };
    assert!(waits(&c, &third, &behind).await.is_err());
    // The one between goes: the holder is before the third now.
    assert_eq!(b.end(&second).await, Ended::Released);
    assert!(waits(&c, &third, &behind).await.is_err(), "nothing to be had yet");
    still_waits(&c, &third, &behind).await;
    let releasing = async {
        sleep(Duration::from_millis(100)).await;
        a.release(&first, &held).await;
        Instant::now()
    };
    let (woken, released) = tokio::join!(waits(&c, &third, &behind), releasing);
    woken.unwrap();
    assert!(released.elapsed() < Duration::from_millis(100), "{:?}", released.elapsed());
    entered(&c, &third, &behind).await;
    waits(&b, &second, &place).await.expect("its own key has gone");
}

/// A place that an operator removed is taken anew, at the end of the line.
#[tokio::test]
async fn a_place_that_is_removed_is_taken_anew() {
    let server = agent(&[]).await;
    let consul = operator(&server);
    let (a, b, c) = (client(&server).await, client(&server).await, client(&server).await);
    let (first, second, third) = (lock("a"), lock("a"), lock("a"));
    let held = a.held(&first).await;
    b.blocked(&second).await;
    let place = c.blocked(&third).await;
    let waiting = tokio::spawn({
        let (c, third, place) = (c.clone(), third.clone(), place.clone());
        async move { c.backend.wait(&c.session, &third, &place).await }
    });
    sleep(Duration::from_millis(300)).await;
    delete(&consul, &ticket(&c.session, &third)).await;
    delete(&consul, &ticket(&b.session, &second)).await;
    timeout(Duration::from_secs(3), waiting).await.expect("told of it").unwrap();
    let place = still_waits(&c, &third, &place).await;
    assert_eq!(keys(&consul, "sync/line/").await, [ticket(&c.session, &third)]);
    a.release(&first, &held).await;
    let grant = entered(&c, &third, &place).await;
    c.release(&third, &grant).await;
    assert_eq!(b.end(&second).await, Ended::NotOurs);
    assert!(keys(&consul, "").await.is_empty());
}
