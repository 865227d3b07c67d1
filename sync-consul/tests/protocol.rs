//! What stands in a real agent after each step, seen over its own API.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may")]

#[path = "common/agent.rs"]
mod agent;
mod common;
#[path = "common/front.rs"]
mod front;

use std::time::{Duration, Instant};

use agent::{
    LOCK_FLAGS, agent, applied, client, config, delete, key, keys, only, operator, ticket,
};
use front::Front;
use sync_conformance::driver::{Driver, TTL, change_record, claim, lock, name};
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

/// The agent walks over all keys that ever stood in the line, until it reaps what it keeps of them.
#[tokio::test]
async fn a_session_stands_in_line_by_the_same_ticket_again_and_misleads_nobody() {
    let server = agent(&[]).await;
    let consul = operator(&server);
    let (a, b, c) = (client(&server).await, client(&server).await, client(&server).await);
    let [first, second, third, again] = [(); 4].map(|()| lock("a"));
    let held = a.held(&first).await;
    let (turn, behind) = (b.blocked(&second).await, c.blocked(&third).await);
    let was = consul.pairs(&ticket(&b.session, &second)).await.unwrap().remove(0);
    a.release(&first, &held).await;
    let held = entered(&b, &second, &turn).await;
    b.release(&second, &held).await;
    let last = b.blocked(&again).await;
    let is = consul.pairs(&was.key).await.unwrap().remove(0);
    assert_eq!(is.key, was.key, "by the same ticket");
    assert!(is.create_index > was.create_index, "at the end of the line");

    // Who stood behind the former is before this one, though it finds a ticket of that name.
    let turn = c.backend.wait(&c.session, &third, &behind);
    timeout(Duration::from_secs(5), turn).await.expect("its turn has come");
    still_waits(&b, &again, &last).await;
    let held = entered(&c, &third, &behind).await;
    // A late end of the claim that had it before leaves the ticket alone.
    assert_eq!(b.backend.end(&b.session, &second, None, false).await.unwrap(), Ended::NotOurs);
    assert_eq!(keys(&consul, "sync/line/").await, [was.key]);
    c.release(&third, &held).await;
    entered(&b, &again, &last).await;
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
    // By the ticket that the first would have had.
    assert_eq!(keys(&consul, "sync/").await, [ticket(&a.session, &first)]);
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
    assert_eq!(a.end(&next).await, Ended::Released, "by its nonce, where no grant is known");
    assert!(keys(&consul, "sync/").await.is_empty());
}

#[tokio::test]
async fn a_record_changes_only_from_the_version_that_is_known_and_keeps_session_and_token() {
    let server = agent(&[]).await;
    let consul = operator(&server);
    let a = client(&server).await;
    let (late, grant) = change_record(&a, "a", async |claim, grant| {
        let found = only(&consul, "sync/leader/").await;
        assert_eq!(found.text().as_bytes(), &*claim.record);
        assert_eq!((&*found.session, found.flags), (&*a.session.id, LOCK_FLAGS));
        assert_eq!(found.create_index, grant.token.get());
    })
    .await;
    a.held(&claim(Kind::Leader, "a", true)).await;
    assert!(matches!(a.update(&late, &grant).await, Updated::NotOurs), "another's claim");
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
    let (consul, front) = (operator(&server), Front::of(&server).await);
    let (a, b) = (client(&server).await, client(&server).await);
    let c = Driver::on(config(front.url()).backend().await.unwrap(), TTL).await;
    let (first, second, third) = (lock("a"), lock("a"), lock("a"));
    let held = a.held(&first).await;
    b.blocked(&second).await;
    let place = c.blocked(&third).await;
    let waiting = tokio::spawn({
        let (c, third, place) = (c.clone(), third.clone(), place.clone());
        async move { c.backend.wait(&c.session, &third, &place).await }
    });
    front.polled(&ticket(&b.session, &second)).await;
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
