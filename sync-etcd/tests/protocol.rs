//! What stands in a real server after each step, seen with etcd's own client.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may")]

mod common;

use std::time::{Duration, Instant};

use common::{Operator, client, client_with, key, lease, received, server, void};
use etcd_client::PutOptions;
use sync_conformance::driver::{
    Driver, TTL, abandon_what_is_kept, bounded, change_record, claim, eventually, follow, lock,
    name, not_told, renamed,
};
use sync_conformance::proxy::Proxy;
use sync_core::backend::{Attempt, Claim, Ended, Grant, Held, Renewal, Ticket, Updated};
use sync_core::{ErrorKind, Kind};
use sync_etcd::Config;
use tokio_stream::StreamExt;

const SOON: Duration = Duration::from_secs(5);

#[tokio::test]
async fn a_claim_is_one_key_bound_to_the_lease_and_its_token_is_its_revision() {
    let server = server().await;
    let mut etcd = Operator::of(&server).await;
    let (a, b) = (client(&server).await, client(&server).await);
    let (first, second) = (lock("a/b"), lock("a/b"));
    assert_eq!(a.backend.key(Kind::Lock, &name("a/b")), "sync/lock/a=2Fb");
    let grant = a.held(&first).await;
    let found = etcd.only("sync/").await;
    assert_eq!(found.key_str().unwrap(), key(&a.session, &first));
    assert!(found.key_str().unwrap().starts_with("sync/lock/a=2Fb/"));
    assert_eq!(found.value(), &*first.record);
    assert_eq!(found.lease(), lease(&a.session));
    assert_eq!(found.create_revision().unsigned_abs(), grant.token.get());
    assert_eq!(grant.ttl, None);

    // Asked again it finds what it did, and changes nothing.
    assert_eq!(a.held(&first).await.token, grant.token);
    assert_eq!(etcd.only("sync/").await.mod_revision(), found.mod_revision());

    // Who waits stands behind it, by a key of its own.
    b.blocked(&second).await;
    b.blocked(&second).await;
    let place = key(&b.session, &second);
    assert_eq!(etcd.keys("sync/").await, [key(&a.session, &first), place.clone()]);
    assert_eq!(a.end(&first).await, Ended::Released);
    assert_eq!(etcd.keys("sync/").await, [place]);
    assert!(b.held(&second).await.token > grant.token);
    assert_eq!(a.end(&first).await, Ended::NotOurs);
    assert_eq!(b.end(&second).await, Ended::Released);
    assert!(etcd.keys("").await.is_empty(), "nothing is left");
}

#[tokio::test]
async fn a_try_without_queue_leaves_nothing() {
    let server = server().await;
    let mut etcd = Operator::of(&server).await;
    let (a, b) = (client(&server).await, client(&server).await);
    let (first, mere) = (lock("a"), claim(Kind::Lock, "a", false));
    a.held(&first).await;
    b.blocked(&mere).await;
    assert_eq!(etcd.keys("sync/").await, [key(&a.session, &first)]);
    a.end(&first).await;
    b.held(&mere).await;
    assert_eq!(etcd.keys("sync/").await, [key(&b.session, &mere)]);
    b.held(&mere).await;
    // One that waits is before it, also while nobody holds.
    a.blocked(&first).await;
    b.end(&mere).await;
    let another = claim(Kind::Lock, "a", false);
    b.blocked(&another).await;
    assert_eq!(etcd.keys("sync/").await, [key(&a.session, &first)]);
    a.held(&first).await;
}

#[tokio::test]
async fn a_lock_and_an_election_of_one_name_are_two_things_and_so_are_names_that_nest() {
    let server = server().await;
    let a = client(&server).await;
    for claim in [lock("a"), claim(Kind::Leader, "a", true), lock("a/b"), lock("a/lock/a")] {
        a.held(&claim).await;
    }
}

#[tokio::test]
async fn two_claims_of_one_session_exclude_each_other() {
    let server = server().await;
    let a = client(&server).await;
    let (first, second) = (lock("a"), lock("a"));
    a.held(&first).await;
    a.blocked(&second).await;
    assert_eq!(a.end(&second).await, Ended::Released, "its place only");
    a.held(&first).await;
}

#[tokio::test]
async fn what_was_abandoned_comes_too_late() {
    let server = server().await;
    let mut etcd = Operator::of(&server).await;
    let (a, b) = (client(&server).await, client(&server).await);
    // The attempts arrive after their abandon.
    let (never, waits, mere) = (lock("a"), lock("b"), claim(Kind::Lock, "a", false));
    assert_eq!(a.abandon(&never).await, Ended::NotOurs);
    assert_eq!(a.abandon(&mere).await, Ended::NotOurs);
    b.held(&lock("b")).await;
    assert_eq!(a.abandon(&waits).await, Ended::NotOurs);
    for late in [&never, &mere, &waits] {
        assert!(matches!(a.attempt(late).await, Attempt::Anew));
        let marker = etcd.only(&void(&a.session, late)).await;
        assert_eq!(marker.lease(), lease(&a.session), "it goes with the session");
    }
    assert!(etcd.keys("sync/lock/a/").await.is_empty());
    assert_eq!(etcd.keys("sync/lock/b/").await.len(), 1, "no ghost stands in line");

    // Held and abandoned: it is free, and stays so.
    let held = lock("c");
    a.held(&held).await;
    assert_eq!(a.abandon(&held).await, Ended::Released);
    assert!(matches!(a.attempt(&held).await, Attempt::Anew));
    b.held(&lock("c")).await;

    a.backend.close(&a.session).await.unwrap();
    assert!(etcd.keys("sync/void/").await.is_empty());
    for late in [&never, &held] {
        assert!(matches!(a.attempt(late).await, Attempt::SessionEnded));
    }
    let ended = a.backend.end(&a.session, &never, None, true).await.unwrap();
    assert_eq!(ended, Ended::NotOurs, "its end is the end of everything");
    assert!(etcd.keys("sync/lock/a/").await.is_empty() && etcd.keys("sync/void/").await.is_empty());
}

#[tokio::test]
async fn an_attempt_that_the_network_keeps_until_after_its_abandon_does_nothing() {
    let server = server().await;
    let proxy = Proxy::start(server.addresses()[0]).await.unwrap();
    let mut etcd = Operator::of(&server).await;
    let backend = Config::new(format!("http://{}", proxy.address())).backend().await.unwrap();
    let a = Driver::on(backend, TTL).await;
    let late = abandon_what_is_kept(&a, &proxy, "a").await;
    proxy.let_through();
    eventually(SOON, async || if proxy.held() == 0 { Ok(()) } else { Err(proxy.held()) }).await;
    // Whether the server does anything for who has gone is not to be seen. Nothing may come of it.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(etcd.keys("sync/lock/a/").await.is_empty());
    assert_eq!(etcd.keys("sync/void/").await, [void(&a.session, &late)]);
    a.held(&lock("a")).await;
}

#[tokio::test]
async fn the_same_nonce_does_not_hold_two_names() {
    let server = server().await;
    let mut etcd = Operator::of(&server).await;
    let a = client(&server).await;
    let one = lock("a");
    let record = one.record.clone();
    let other = Claim::new(Kind::Lock, name("b"), one.nonce, record, true);
    let grant = a.held(&one).await;
    assert_eq!(a.end(&other).await, Ended::NotOurs);
    assert_eq!(a.held(&one).await.token, grant.token);
    assert_eq!(etcd.only("sync/").await.key_str().unwrap(), key(&a.session, &one));
}

#[tokio::test]
async fn an_end_with_a_grant_ends_that_acquisition_and_no_other() {
    let server = server().await;
    let mut etcd = Operator::of(&server).await;
    let a = client(&server).await;
    let first = lock("a");
    let old = a.held(&first).await;
    etcd.0.delete(key(&a.session, &first), None).await.unwrap();
    let new = a.held(&first).await;
    assert!(new.token > old.token);
    let ended = a.backend.end(&a.session, &first, Some(&old), false).await.unwrap();
    assert_eq!(ended, Ended::NotOurs);
    let ended = a.backend.end(&a.session, &first, Some(&new), false).await.unwrap();
    assert_eq!(ended, Ended::Released);
}

/// A server walks over every key that ever stood under a prefix.
#[tokio::test]
async fn a_session_takes_a_name_again_by_the_same_key_unless_something_of_it_may_come_late() {
    let server = server().await;
    let mut etcd = Operator::of(&server).await;
    let (a, b) = (client(&server).await, client(&server).await);
    let release = async |claim: &Claim, grant: &Grant| {
        a.backend.end(&a.session, claim, Some(grant), false).await.unwrap()
    };
    let (first, second, third, fourth) = (lock("a"), lock("a"), lock("a"), lock("a"));
    let old = a.held(&first).await;
    assert_eq!(release(&first, &old).await, Ended::Released);
    let new = a.held(&second).await;
    assert!(new.token > old.token);
    let found = etcd.only("sync/").await;
    assert_eq!(found.key_str().unwrap(), key(&a.session, &first));
    assert_eq!(found.value(), &*second.record, "whose it is stands in the record");
    // Whatever comes once more of the first is of no effect.
    assert_eq!(release(&first, &old).await, Ended::NotOurs);
    assert_eq!(a.end(&first).await, Ended::NotOurs);
    assert_eq!(a.abandon(&first).await, Ended::NotOurs);
    let late = a.update(&first, &old).await;
    assert!(matches!(late, Updated::NotOurs), "{late:?}");
    assert_eq!(etcd.only("sync/").await.mod_revision(), found.mod_revision());

    // Of an abandoned one something may be under way.
    assert_eq!(a.abandon(&second).await, Ended::Released);
    let grant = a.held(&third).await;
    assert_eq!(etcd.only("sync/lock/").await.key_str().unwrap(), key(&a.session, &third));
    release(&third, &grant).await;

    // Who stands in line does not change his place for a key that became free.
    let holder = lock("a");
    b.held(&holder).await;
    a.blocked(&fourth).await;
    a.blocked(&claim(Kind::Lock, "a", false)).await;
    a.blocked(&fourth).await;
    assert_eq!(etcd.keys("sync/lock/").await.len(), 2);
    b.end(&holder).await;
    a.held(&fourth).await;
}

#[tokio::test]
async fn a_record_changes_only_from_the_version_that_is_known_and_keeps_the_lease() {
    let server = server().await;
    let mut etcd = Operator::of(&server).await;
    let a = client(&server).await;
    let (late, grant) = change_record(&a, "a", async |claim, grant| {
        let found = etcd.only("sync/").await;
        assert_eq!((found.value(), found.lease()), (&*claim.record, lease(&a.session)));
        assert_eq!(found.create_revision().unsigned_abs(), grant.token.get());
    })
    .await;
    a.held(&claim(Kind::Leader, "a", true)).await;
    assert!(matches!(a.update(&late, &grant).await, Updated::NotOurs), "another's claim");
    assert_eq!(etcd.keys("sync/").await.len(), 1);
}

#[tokio::test]
async fn service_is_in_the_order_of_arrival_and_nobody_slips_in() {
    let server = server().await;
    let a = client(&server).await;
    let holder = lock("a");
    a.held(&holder).await;
    let mut line = Vec::new();
    for _ in 0..5 {
        let (waits, claim) = (client(&server).await, lock("a"));
        waits.blocked(&claim).await;
        line.push((waits, claim));
    }
    a.end(&holder).await;
    a.blocked(&claim(Kind::Lock, "a", false)).await;
    for (number, (waits, claim)) in line.iter().enumerate() {
        for (later, claim) in &line[number + 1..] {
            later.blocked(claim).await;
        }
        waits.held(claim).await;
        waits.end(claim).await;
    }
}

#[tokio::test]
async fn a_release_wakes_the_next_and_one_that_gives_up_its_place_nobody_too_early() {
    let server = server().await;
    let a = client(&server).await;
    let (b, c) = (client(&server).await, client(&server).await);
    let (first, second, third) = (lock("a"), lock("a"), lock("a"));
    a.held(&first).await;
    let (place, behind) = (b.blocked(&second).await, c.blocked(&third).await);
    let early = Duration::from_millis(300);
    let waits = async |client: &Driver, claim: &Claim, place: &Ticket| {
        tokio::time::timeout(early, client.backend.wait(&client.session, claim, place)).await
    };
    assert!(waits(&c, &third, &behind).await.is_err());
    // The one between goes: the holder is before the third now.
    assert_eq!(b.end(&second).await, Ended::Released);
    waits(&c, &third, &behind).await.expect("its predecessor has gone, also before the wait began");
    let again = c.backend.try_claim(&c.session, &third, Some(&behind), false).await.unwrap();
    let Attempt::Blocked(behind) = again else { panic!("{again:?}") };
    assert!(waits(&c, &third, &behind).await.is_err(), "nothing to be had yet");
    let releasing = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        a.end(&first).await;
        Instant::now()
    };
    let (woken, released) = tokio::join!(waits(&c, &third, &behind), releasing);
    woken.unwrap();
    assert!(released.elapsed() < Duration::from_millis(100), "{:?}", released.elapsed());
    c.held(&third).await;
    waits(&b, &second, &place).await.expect("its own key has gone");
}

/// What was asked of the server while `work` ran, of all that counts.
async fn cost(server: &sync_conformance::Server, work: impl Future<Output = ()>) -> [u64; 4] {
    let count = async || {
        let mut counts = [0; 4];
        for (count, method) in counts.iter_mut().zip(["Txn", "Range", "Put", "DeleteRange"]) {
            *count = received(server, method).await;
        }
        counts
    };
    let before = count().await;
    work.await;
    let mut counts = count().await;
    counts.iter_mut().zip(before).for_each(|(after, before)| *after -= before);
    counts
}

#[tokio::test]
async fn a_free_name_costs_two_requests_and_a_handover_no_more_for_a_longer_line() {
    let server = server().await;
    let sync = sync_etcd::connect(server.url()).await.unwrap();
    sync.lock("warm").acquire().await.unwrap().release().await.unwrap();
    let free = cost(&server, async {
        for number in 0..10 {
            let guard = sync.lock(format!("n{number}")).acquire().await.unwrap();
            guard.release().await.unwrap();
        }
    });
    assert_eq!(free.await.iter().sum::<u64>(), 20, "two each");

    let mut costs = Vec::new();
    for waiters in [2_u32, 12] {
        let of = format!("line{waiters}");
        let holder = sync.lock(&of).acquire().await.unwrap();
        let mut line = Vec::new();
        let before = received(&server, "Txn").await;
        for _ in 0..waiters {
            let (waits, claim) = (client(&server).await, lock(&of));
            waits.blocked(&claim).await;
            line.push(tokio::spawn(async move {
                waits.acquire(&claim).await;
                waits.end(&claim).await;
            }));
        }
        // One for a place, three that find it again, and a look after each of two watches is open.
        eventually(SOON, async || match received(&server, "Txn").await - before {
            asked if asked == 6 * u64::from(waiters) => Ok(()),
            asked => Err(asked),
        })
        .await;
        let handing_over = async {
            holder.release().await.unwrap();
            for waiter in line {
                waiter.await.unwrap();
            }
        };
        let spent: u64 = cost(&server, handing_over).await.iter().sum();
        costs.push(spent as f64 / f64::from(waiters));
    }
    assert!(costs.iter().all(|each| *each <= 6.0), "requests per handover: {costs:?}");
    assert!(costs[1] <= costs[0] * 1.5, "requests per handover: {costs:?}");
}

#[tokio::test]
async fn one_renewal_per_interval_however_much_is_held() {
    let server = server().await;
    let url = server.url();
    let sync = common::coordinator(&url, Duration::from_secs(3)).await;
    let mut guards = Vec::new();
    for number in 0..200 {
        guards.push(sync.lock(format!("n{number}")).acquire().await.unwrap());
    }
    common::watched(&server, 200).await;
    let before = received(&server, "LeaseKeepAlive").await;
    let spent = cost(&server, tokio::time::sleep(Duration::from_secs(4))).await;
    let renewals = received(&server, "LeaseKeepAlive").await - before;
    assert!((3..=5).contains(&renewals), "each second: {renewals}");
    assert_eq!(spent, [0; 4], "and nothing else");
    assert!(guards.iter().all(|guard| guard.is_valid()));
}

#[tokio::test]
async fn a_session_is_a_lease_with_the_ttl_that_was_granted() {
    let server = server().await;
    let mut etcd = Operator::of(&server).await;
    let short = client_with(&server, Duration::from_secs(1)).await;
    assert_eq!(short.session.ttl, Duration::from_secs(2), "the server's least");
    let a = client_with(&server, Duration::from_secs(5)).await;
    let left = etcd.0.lease_time_to_live(lease(&a.session), None).await.unwrap();
    assert_eq!(left.granted_ttl(), 5);
    let other = a.backend.open(Duration::from_secs(5)).await.unwrap();
    assert_ne!(other.id, a.session.id);
    let Renewal::Alive { ttl, .. } = a.backend.renew(&a.session, &[]).await.unwrap() else {
        panic!("it lives")
    };
    assert_eq!(ttl, Duration::from_secs(5));
    a.backend.close(&a.session).await.unwrap();
    a.backend.close(&a.session).await.expect("closed already is a success");
    assert!(matches!(a.backend.renew(&a.session, &[]).await.unwrap(), Renewal::Ended));
    assert!(matches!(a.attempt(&lock("a")).await, Attempt::SessionEnded));
}

#[tokio::test]
async fn a_renewal_extends_the_lease_and_a_second_one_too() {
    let server = server().await;
    let mut etcd = Operator::of(&server).await;
    let a = client_with(&server, Duration::from_secs(4)).await;
    let claim = lock("a");
    let held = [Held { grant: a.held(&claim).await, claim: claim.into() }];
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_millis(1600)).await;
        a.backend.renew(&a.session, &held).await.unwrap();
        let left = etcd.0.lease_time_to_live(lease(&a.session), None).await.unwrap();
        assert!(left.ttl() >= 3, "{} s are left", left.ttl());
    }
}

#[tokio::test]
async fn what_happens_to_a_claim_from_outside_is_told_at_once() {
    use sync_core::backend::Loss;
    let server = server().await;
    let mut etcd = Operator::of(&server).await;
    let a = client(&server).await;
    let mut losses = a.backend.losses(&a.session);
    let (kept, deleted, updated) = (lock("kept"), lock("deleted"), claim(Kind::Leader, "l", true));
    a.held(&kept).await;
    a.held(&deleted).await;
    let grant = a.held(&updated).await;
    let done = a.update(&renamed(&updated, "renamed"), &grant).await;
    assert!(matches!(done, Updated::Done(_)));
    let released = lock("released");
    a.held(&released).await;
    a.end(&released).await;
    let nothing = tokio::time::timeout(Duration::from_millis(300), losses.next()).await;
    assert!(nothing.is_err(), "what we do ourselves is no loss: {nothing:?}");
    etcd.0.delete(key(&a.session, &deleted), None).await.unwrap();
    let loss = bounded(losses.next()).await.expect("told at once");
    assert_eq!(loss, Some(Loss::Claim(deleted.nonce)));
    etcd.0.lease_revoke(lease(&a.session)).await.unwrap();
    let told = async { while losses.next().await != Some(Loss::Session) {} };
    bounded(told).await.expect("told at once");
}

#[tokio::test]
async fn a_follower_is_told_of_each_change_at_once() {
    let server = server().await;
    let (a, b) = (client(&server).await, client(&server).await);
    let seen = follow(&a, &b, "a", Duration::from_millis(200)).await;
    // One who stands in line changes nothing about the leader.
    let candidate = claim(Kind::Leader, "a", true);
    not_told(&b, "a", &seen, a.blocked(&candidate)).await;
}

#[tokio::test]
async fn an_expiry_is_told_too() {
    let server = server().await;
    let mut etcd = Operator::of(&server).await;
    let b = client(&server).await;
    let lease = etcd.lease(2).await;
    let options = PutOptions::new().with_lease(lease);
    etcd.0.put(format!("sync/leader/a/{lease:x}"), "text", Some(options)).await.unwrap();
    let seen = b.backend.holder(Kind::Leader, &name("a")).await.unwrap();
    assert_eq!(seen.holder.unwrap().record, b"text");
    let of = name("a");
    let gone = b.backend.watch(Kind::Leader, &of, &seen.version);
    let gone = tokio::time::timeout(Duration::from_secs(6), gone).await.unwrap().unwrap();
    assert!(gone.holder.is_none());
}

#[tokio::test]
async fn a_ttl_that_cannot_be_kept_is_refused_before_anything_is_sent() {
    let server = server().await;
    let sync = sync_etcd::connect(server.url()).await.unwrap();
    let before = received(&server, "LeaseGrant").await;
    let short = sync.lock("a").ttl(Duration::from_millis(200)).acquire().await.unwrap_err();
    assert_eq!(short.kind(), ErrorKind::Invalid, "{short}");
    assert_eq!(received(&server, "LeaseGrant").await, before);
}
