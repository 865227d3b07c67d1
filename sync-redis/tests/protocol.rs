//! What the scripts do on a real server, request by request.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may")]

mod common;

use std::time::{Duration, Instant};

use common::Server;
use sync_conformance::driver::{
    Driver, TTL, change_record, claim, follow, lock, name, nonce, record, renamed,
};
use sync_conformance::logs;
use sync_core::backend::{Attempt, Claim, Ended, Grant, Held, Renewal, Renewed, Updated};
use sync_core::{ErrorKind, Kind};

#[tokio::test]
async fn one_holds_until_it_gives_back() {
    let server = Server::start();
    let (a, b) = (server.client().await, server.client().await);
    let (first, second) = (lock("a/b"), lock("a/b"));
    let grant = a.held(&first).await;
    assert_eq!(grant.ttl, Some(TTL));
    assert_eq!(a.backend.key(Kind::Lock, &name("a/b")), "sync:lock:{a=2Fb}");
    assert_eq!(server.run::<String>("GET sync:lock:{a=2Fb}"), first.nonce.to_hex());
    b.blocked(&second).await;
    assert_eq!(b.end(&first).await, Ended::Released, "the nonce counts, whoever sends it");
    assert_eq!(a.end(&first).await, Ended::NotOurs);
    assert!(b.held(&second).await.token > grant.token);
    assert_eq!(a.end(&first).await, Ended::NotOurs);
    assert_eq!(server.run::<String>("GET sync:lock:{a=2Fb}"), second.nonce.to_hex());
}

#[tokio::test]
async fn a_lock_and_an_election_of_one_name_are_two_things() {
    let server = Server::start();
    let a = server.client().await;
    a.held(&lock("a")).await;
    a.held(&claim(Kind::Leader, "a", true)).await;
}

#[tokio::test]
async fn nothing_but_the_counter_is_left_behind() {
    let server = Server::start();
    let (a, b) = (server.client().await, server.client().await);
    let (first, second, try_only) = (lock("a"), lock("a"), claim(Kind::Lock, "a", false));
    a.held(&first).await;
    b.blocked(&second).await;
    b.blocked(&try_only).await;
    assert_eq!(server.run::<i64>("ZCARD sync:lock:{a}:line"), 1, "a mere try leaves no place");
    assert_eq!(b.end(&second).await, Ended::Released);
    assert_eq!(b.end(&try_only).await, Ended::NotOurs);
    a.end(&first).await;
    assert_eq!(server.run::<Vec<String>>("KEYS *"), ["sync:lock:{a}:token"]);
    let week = 7 * 24 * 3600;
    assert!((week - 60..=week).contains(&server.run::<i64>("TTL sync:lock:{a}:token")));
}

#[tokio::test]
async fn the_record_goes_with_its_claim_also_where_that_was_taken_away() {
    let server = Server::start();
    let a = server.client().await;
    let (first, second) = (lock("a"), lock("a"));
    a.held(&first).await;
    let () = server.run("SET sync:lock:{a} other");
    assert_eq!(a.end(&second).await, Ended::NotOurs);
    assert_eq!(server.run::<i64>("EXISTS sync:lock:{a}:holder"), 1, "it is another's record");
    assert_eq!(a.end(&first).await, Ended::NotOurs);
    assert_eq!(server.run::<i64>("EXISTS sync:lock:{a}:holder"), 0);
    assert_eq!(server.run::<String>("GET sync:lock:{a}"), "other");
}

#[tokio::test]
async fn tokens_grow_also_within_100_us_and_after_flushall() {
    let server = Server::start();
    let a = server.client().await;
    let mut tokens = Vec::new();
    for _ in 0..50 {
        let claim = lock("a");
        tokens.push(a.held(&claim).await.token);
        a.end(&claim).await;
    }
    let () = server.run("SET sync:lock:{b}:token 9007199254740000");
    for expected in 9007199254740001_u64..9007199254740004 {
        let claim = lock("b");
        assert_eq!(a.held(&claim).await.token.get(), expected, "every digit counts");
        a.end(&claim).await;
    }
    let () = server.run("FLUSHALL");
    tokens.push(a.held(&lock("a")).await.token);
    assert!(tokens.is_sorted_by(|a, b| a < b), "{tokens:?}");
}

#[tokio::test]
async fn a_counter_that_is_none_is_refused() {
    let server = Server::start();
    let a = server.client().await;
    for nonsense in ["text", "nan", "-1", "9007199254740991", "1e300", "inf"] {
        let () = server.run(&format!("SET sync:lock:{{a}}:token {nonsense}"));
        let refused = a.backend.try_claim(&a.session, &lock("a"), None, false).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Foreign, "{nonsense}");
        assert!(refused.settled());
        assert_eq!(server.run::<i64>("EXISTS sync:lock:{a}"), 0);
    }
}

#[tokio::test]
async fn a_repeated_attempt_finds_its_own_success() {
    let server = Server::start();
    let a = server.client_with(Duration::from_secs(5)).await;
    let claim = lock("a");
    let grant = a.held(&claim).await;
    let () = server.run("PEXPIRE sync:lock:{a} 1000");
    assert_eq!(a.held(&claim).await.token, grant.token);
    assert!(server.run::<i64>("PTTL sync:lock:{a}") > 4000, "it extends");
    assert!(server.run::<i64>("PTTL sync:lock:{a}:holder") > 4000);
}

#[tokio::test]
async fn a_repeated_attempt_does_not_undo_a_changed_record() {
    let server = Server::start();
    let a = server.client().await;
    let old = claim(Kind::Leader, "a", true);
    let grant = a.held(&old).await;
    let new = renamed(&old, "renamed");
    assert!(matches!(a.update(&new, &grant).await, Updated::Done(_)));
    let read_back = a.held(&old).await;
    assert_eq!(read_back.version.as_bytes(), &*new.record);
    let seen = a.backend.holder(Kind::Leader, &name("a")).await.unwrap().holder.unwrap();
    assert_eq!(seen.record, &*new.record);
}

#[tokio::test]
async fn where_the_counter_is_gone_the_nonce_ends_and_no_token_is_made_up() {
    let server = Server::start();
    let a = server.client().await;
    let first = lock("a");
    a.held(&first).await;
    let () = server.run("DEL sync:lock:{a}:token");
    assert!(matches!(a.attempt(&first).await, Attempt::Anew));
    assert_eq!(server.run::<i64>("EXISTS sync:lock:{a}"), 0, "it is free again");
    assert!(matches!(a.attempt(&first).await, Attempt::Anew), "for good");
    a.held(&lock("a")).await;
}

#[tokio::test]
async fn what_was_abandoned_comes_too_late() {
    let server = Server::start();
    let (a, b) = (server.client().await, server.client().await);
    let (never, waits) = (lock("a"), lock("a"));
    // The attempts arrive after their abandon.
    assert_eq!(a.abandon(&never).await, Ended::NotOurs);
    assert!(matches!(a.attempt(&never).await, Attempt::Anew));
    assert_eq!(server.run::<i64>("EXISTS sync:lock:{a}"), 0);
    let holder = lock("a");
    b.held(&holder).await;
    assert_eq!(a.abandon(&waits).await, Ended::NotOurs);
    assert!(matches!(a.attempt(&waits).await, Attempt::Anew));
    assert_eq!(server.run::<i64>("EXISTS sync:lock:{a}:line"), 0, "no ghost stands in line");
    // Held and abandoned: it is free, and stays so.
    let held = lock("b");
    a.held(&held).await;
    assert_eq!(a.abandon(&held).await, Ended::Released);
    assert!(matches!(a.attempt(&held).await, Attempt::Anew));
    let marker = format!("PTTL sync:lock:{{b}}:void:{}", held.nonce.to_hex());
    assert!((50_000..=60_000).contains(&server.run::<i64>(&marker)));
}

#[tokio::test]
async fn service_is_in_the_order_of_arrival_and_nobody_slips_in() {
    let server = Server::start();
    let a = server.client().await;
    let holder = lock("a");
    a.held(&holder).await;
    let mut line = Vec::new();
    for _ in 0..5 {
        let (client, claim) = (server.client().await, lock("a"));
        client.blocked(&claim).await;
        line.push((client, claim));
    }
    a.end(&holder).await;
    let stranger = server.client().await;
    stranger.blocked(&claim(Kind::Lock, "a", false)).await;
    for (number, (client, claim)) in line.iter().enumerate() {
        for (later, claim) in &line[number + 1..] {
            later.blocked(claim).await;
        }
        client.held(claim).await;
        client.end(claim).await;
    }
    assert_eq!(server.run::<i64>("EXISTS sync:lock:{a}:line sync:lock:{a}:beat"), 0);
}

#[tokio::test]
async fn a_release_wakes_the_head_and_nobody_else() {
    let server = Server::start();
    let a = server.client().await;
    let holder = lock("a");
    a.held(&holder).await;
    let (b, c) = (server.client().await, server.client().await);
    let (second, third) = (lock("a"), lock("a"));
    let (place, behind) = (b.blocked(&second).await, c.blocked(&third).await);
    a.end(&holder).await;
    // The message came before the wait.
    let woken = |client: &Driver, claim: &Claim, place| {
        let (backend, session) = (client.backend.clone(), client.session.clone());
        let (claim, place) = (claim.clone(), place);
        async move {
            let wait = backend.wait(&session, &claim, &place);
            tokio::time::timeout(Duration::from_millis(300), wait).await.is_ok()
        }
    };
    assert!(woken(&b, &second, place).await);
    assert!(!woken(&c, &third, behind.clone()).await);
    // The head leaves while the key is free: the next is woken.
    b.end(&second).await;
    assert!(woken(&c, &third, behind).await);
    c.held(&third).await;
}

#[tokio::test]
async fn whoever_died_in_line_is_passed_over() {
    let server = Server::start();
    let (a, dead, c) = (server.client().await, server.client().await, server.client().await);
    let (holder, ghost, third) = (lock("a"), lock("a"), lock("a"));
    a.held(&holder).await;
    dead.blocked(&ghost).await;
    drop(dead);
    c.blocked(&third).await;
    a.end(&holder).await;
    let began = Instant::now();
    c.acquire(&third).await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert!(began.elapsed() > Duration::from_secs(1), "it could have come back");
}

#[tokio::test]
async fn whoever_died_in_line_blocks_no_longer_than_its_ttl() {
    let server = Server::start();
    let ttl = Duration::from_millis(600);
    let (a, c) = (server.client().await, server.client_with(ttl).await);
    let (dead, slow) = (server.client_with(ttl).await, server.client().await);
    let (holder, ghost, patient, third) = (lock("a"), lock("a"), lock("a"), lock("a"));
    a.held(&holder).await;
    dead.blocked(&ghost).await;
    drop(dead);
    slow.blocked(&patient).await;
    let look = c.blocked(&third).await.look_after.unwrap();
    assert!((Duration::from_millis(100)..=ttl / 3).contains(&look), "{look:?}");
    a.end(&holder).await;
    // The one that died is passed over; the one with a longer TTL is not, though it says nothing
    // for longer than the TTL of the one that asks.
    let began = Instant::now();
    while began.elapsed() < ttl * 2 {
        c.blocked(&third).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    slow.held(&patient).await;
    assert!(began.elapsed() < Duration::from_millis(2500), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_line_of_which_nobody_lives_goes_by_itself() {
    let server = Server::start();
    let a = server.client().await;
    a.held(&lock("a")).await;
    a.blocked(&lock("a")).await;
    assert!((1..=6000).contains(&server.run::<i64>("PTTL sync:lock:{a}:line")));
    assert!((1..=6000).contains(&server.run::<i64>("PTTL sync:lock:{a}:beat")));
}

#[tokio::test]
async fn a_line_full_of_rubbish_blocks_nobody_for_long() {
    let server = Server::start();
    let (a, b) = (server.client().await, server.client().await);
    let holder = lock("a");
    a.held(&holder).await;
    let fill = "for i = 1, 100000 do redis.call('ZADD', KEYS[1], i, 'junk' .. i) \
                if i % 2 == 0 then redis.call('ZADD', KEYS[2], i, 'junk' .. i) end end return 1";
    let () = redis::cmd("EVAL")
        .arg(fill)
        .arg(2)
        .arg("sync:lock:{a}:line")
        .arg("sync:lock:{a}:beat")
        .query(&mut server.raw())
        .unwrap();
    a.end(&holder).await;
    let claim = lock("a");
    let began = Instant::now();
    b.acquire(&claim).await;
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

#[tokio::test]
async fn only_the_head_looks_at_the_expiry() {
    let server = Server::start();
    let a = server.client_with(Duration::from_millis(200)).await;
    let b = server.client().await;
    a.held(&lock("a")).await;
    let (head, behind) = (lock("a"), lock("a"));
    assert!(b.blocked(&head).await.look_after.unwrap() <= Duration::from_millis(201));
    assert!(b.blocked(&behind).await.look_after.unwrap() >= Duration::from_millis(500));
    let () = server.run("PERSIST sync:lock:{a}");
    let look = b.blocked(&head).await.look_after.unwrap();
    assert!((Duration::from_millis(500)..=Duration::from_secs(1)).contains(&look), "{look:?}");
}

#[tokio::test]
async fn a_renewal_extends_what_is_ours_and_tells_what_is_lost() {
    let server = Server::start();
    let a = server.client_with(Duration::from_secs(5)).await;
    let claims: Vec<Claim> = (0..1203).map(|n| lock(&format!("n{n}"))).collect();
    let mut held = Vec::new();
    for claim in &claims {
        let grant = a.held(claim).await;
        held.push(Held { claim: claim.clone().into(), grant });
    }
    let () = server.run("PEXPIRE sync:lock:{n0} 2000");
    let () = server.run("PEXPIRE sync:lock:{n0}:holder 2000");
    let () = server.run("DEL sync:lock:{n1}");
    let () = server.run("SET sync:lock:{n2} other");
    let () = server.run("DEL sync:lock:{n3}");
    let () = server.run("LPUSH sync:lock:{n3} x");
    let () = server.run("DEL sync:lock:{n4}:token");
    let () = server.run("SCRIPT FLUSH");
    let Renewal::Alive { ttl, claims: known } = a.backend.renew(&a.session, &held).await.unwrap()
    else {
        panic!("a session of Redis does not end")
    };
    assert_eq!((ttl, known.len()), (Duration::from_secs(5), held.len()));
    for (held, (nonce, renewed)) in held.iter().zip(&known) {
        assert_eq!(held.claim.nonce, *nonce);
        let lost = ["n1", "n2", "n3"].contains(&held.claim.name.as_str());
        assert_eq!(*renewed == Renewed::Lost, lost, "{}", held.claim.name);
    }
    assert!(server.run::<i64>("PTTL sync:lock:{n0}") > 4000);
    assert!(server.run::<i64>("PTTL sync:lock:{n0}:holder") > 4000);
    assert_eq!(server.run::<String>("GET sync:lock:{n2}"), "other");
    assert_eq!(server.run::<u64>("GET sync:lock:{n4}:token"), held[4].grant.token.get());
}

#[tokio::test]
async fn a_time_to_live_that_falls_too_fast_is_logged() {
    let server = Server::start();
    let (log, _guard) = logs::capture();
    let a = server.client_with(Duration::from_secs(5)).await;
    let claim = lock("a");
    let held = [Held { grant: a.held(&claim).await, claim: claim.into() }];
    a.backend.renew(&a.session, &held).await.unwrap();
    a.backend.renew(&a.session, &held).await.unwrap();
    assert!(!log.text().contains("fell faster"), "{}", log.text());
    let () = server.run("PEXPIRE sync:lock:{a} 3000");
    a.backend.renew(&a.session, &held).await.unwrap();
    assert!(log.text().contains("fell faster"), "{}", log.text());
}

#[tokio::test]
async fn a_record_changes_only_from_the_state_that_is_known() {
    let server = Server::start();
    let a = server.client().await;
    let stands = async |claim: &Claim, _: &Grant| {
        assert_eq!(server.run::<Vec<u8>>("GET sync:leader:{a}:holder"), *claim.record);
        assert!(server.run::<i64>("PTTL sync:leader:{a}:holder") > 0);
    };
    change_record(&a, "a", stands).await;
    assert_eq!(server.run::<i64>("EXISTS sync:leader:{a}:holder"), 0);
}

#[tokio::test]
async fn what_others_left_under_our_keys_is_foreign_and_left_alone() {
    for suffix in ["", ":token", ":holder", ":line", ":beat"] {
        let server = Server::start();
        let a = server.client().await;
        let key = format!("sync:lock:{{a}}{suffix}");
        let () = server.run(&format!("HSET {key} field value"));
        if suffix == ":beat" {
            // It matters only to those who wait.
            let () = server.run("SET sync:lock:{a} other");
        }
        let keys = server.run::<Vec<String>>("KEYS *").len();
        let refused = a.backend.try_claim(&a.session, &lock("a"), None, false).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Foreign, "{key}: {refused}");
        assert!(refused.settled(), "{key}");
        assert_eq!(server.run::<Vec<String>>("KEYS *").len(), keys, "{key}");
        assert_eq!(server.run::<String>(&format!("HGET {key} field")), "value");
        assert_eq!(a.end(&lock("a")).await, Ended::NotOurs);
        assert_eq!(a.abandon(&lock("a")).await, Ended::NotOurs);
        assert_eq!(server.run::<String>(&format!("HGET {key} field")), "value");
    }
}

#[tokio::test]
async fn a_holder_is_shown_whoever_it_is() {
    let server = Server::start();
    let a = server.client().await;
    let see = async |of: &str| a.backend.holder(Kind::Lock, &name(of)).await.unwrap();
    let nobody = see("a").await;
    assert!(nobody.holder.is_none());
    let claim = lock("a");
    let grant = a.held(&claim).await;
    let ours = see("a").await;
    assert_ne!(ours.version, nobody.version);
    let holder = ours.holder.unwrap();
    assert_eq!((holder.record.as_slice(), holder.token), (&*claim.record, Some(grant.token)));
    // Foreign: without a record, with the record of somebody before, and too long.
    let () = server.run("SET sync:lock:{a} redis-py");
    let foreign = see("a").await.holder.unwrap();
    assert_eq!((foreign.record.as_slice(), foreign.token), (&b"redis-py"[..], None));
    let () = server.run("SET sync:lock:{b} 00112233445566778899aabbccddeeff");
    assert_eq!(see("b").await.holder.unwrap().record, b"00112233445566778899aabbccddeeff");
    let () = server.run(&format!("SET sync:lock:{{c}} {}", "x".repeat(1 << 20)));
    assert_eq!(see("c").await.holder.unwrap().record.len(), sync_core::LONGEST_RECORD);
    let () = redis::cmd("SET").arg("sync:lock:{d}").arg("").query(&mut server.raw()).unwrap();
    assert!(see("d").await.holder.is_some(), "an empty value is held too");
    let () = server.run("HSET sync:lock:{e} f v");
    let refused = a.backend.holder(Kind::Lock, &name("e")).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Foreign);
}

#[tokio::test]
async fn a_follower_is_told_of_each_change_at_once_and_of_an_expiry_within_a_second() {
    let server = Server::start();
    let (a, b) = (server.client_with(Duration::from_millis(400)).await, server.client().await);
    let seen = follow(&a, &b, "a", Duration::from_millis(100)).await;
    let began = Instant::now();
    let gone = b.backend.watch(Kind::Leader, &name("a"), &seen.version).await.unwrap();
    assert!(gone.holder.is_none());
    assert!(began.elapsed() < Duration::from_millis(1600), "{:?}", began.elapsed());
}

#[tokio::test]
async fn subscriptions_end_with_their_followers() {
    let server = Server::start();
    let a = server.client().await;
    let seen = a.backend.holder(Kind::Leader, &name("a")).await.unwrap();
    for _ in 0..3 {
        let of = name("a");
        let watch = a.backend.watch(Kind::Leader, &of, &seen.version);
        assert!(tokio::time::timeout(Duration::from_millis(200), watch).await.is_err());
    }
    let channels = || server.run::<Vec<String>>("PUBSUB CHANNELS sync:leader:*").len();
    assert_eq!(channels(), 1);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(channels(), 0);
    a.backend.close(&a.session).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(server.run::<Vec<String>>("PUBSUB CHANNELS *").is_empty(), "close unsubscribes");
}

#[tokio::test]
async fn the_same_nonce_does_not_hold_two_names() {
    let server = Server::start();
    let a = server.client().await;
    let nonce = nonce();
    let claim = |of| Claim::new(Kind::Lock, name(of), nonce, record("n", nonce).into(), true);
    let one = a.held(&claim("a")).await;
    assert_eq!(a.abandon(&claim("b")).await, Ended::NotOurs);
    assert_eq!(a.held(&claim("a")).await.token, one.token, "the marker is for the other name");
}
