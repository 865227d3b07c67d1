//! What goes wrong between a coordinator and its servers, and that it comes right by itself.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may")]

mod common;

use std::time::{Duration, Instant};

use common::{Operator, coordinator, proxy, server, servers, to};
use etcd_client::{AlarmAction, AlarmType};
use sync_conformance::company::{Company, change_ways};
use sync_conformance::driver::{
    Driver, TTL, bounded, claim, eventually, name, renew_past_a_silence,
};
use sync_core::backend::Attempt;
use sync_core::{Cause, ErrorKind, Kind};
use sync_etcd::{Config, Options};
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(5);

/// The holder is connected to one URL, the others to another.
async fn company(of: &str, holds: &str, looks: &str, ttl: Duration) -> Company {
    let backend =
        async |url: &str, options| Config::new(url).options(options).backend().await.unwrap();
    Company::begin(of, ttl, [holds, looks], backend).await
}

#[tokio::test]
async fn a_compaction_is_survived_while_holding_waiting_and_following() {
    let server = server().await;
    let mut etcd = Operator::of(&server).await;
    let url = server.url();
    let company = company("a", &url, &url, TTL).await;
    for _ in 0..2 {
        for number in 0..20 {
            etcd.put(&format!("other/{number}"), "x").await;
        }
        etcd.compact().await;
    }
    company.go_on().await;
}

/// What was missed can no longer be asked for.
#[tokio::test]
async fn who_was_cut_off_while_the_past_was_compacted_looks_at_the_present() {
    for broken in [true, false] {
        let server = server().await;
        let mut etcd = Operator::of(&server).await;
        let proxy = proxy(&server).await;
        let company = company("a", &server.url(), &to(&[proxy.address()]), TTL).await;
        let compacts = async {
            for number in 0..20 {
                etcd.put(&format!("other/{number}"), "x").await;
            }
            etcd.compact().await;
        };
        company.miss(&proxy, broken, compacts).await;
    }
}

#[tokio::test]
async fn streams_that_break_are_made_again_and_what_happened_meanwhile_is_seen() {
    let server = server().await;
    let proxy = proxy(&server).await;
    let url = to(&[proxy.address()]);
    let ttl = Duration::from_secs(3);
    company("a", &url, &url, ttl).await.reconnect(&proxy, ttl).await;
}

#[tokio::test]
async fn what_was_taken_away_while_the_streams_were_broken_is_told_when_they_are_back() {
    let server = server().await;
    let mut etcd = Operator::of(&server).await;
    let proxy = proxy(&server).await;
    let sync = coordinator(&to(&[proxy.address()]), Duration::from_secs(30)).await;
    let guard = sync.lock("a").acquire().await.unwrap();
    let found = etcd.only("sync/lock/a/").await;
    proxy.cut();
    etcd.0.delete(found.key(), None).await.unwrap();
    proxy.heal();
    // Renewals are ten seconds apart.
    let revoked = timeout(SOON, guard.revoked()).await.expect("told without a renewal");
    assert_eq!(revoked.cause, Cause::Key);

    let guard = sync.lock("a").acquire().await.unwrap();
    let found = etcd.only("sync/lock/a/").await;
    proxy.cut();
    etcd.0.lease_revoke(found.lease()).await.unwrap();
    proxy.heal();
    let revoked = timeout(SOON, guard.revoked()).await.expect("told without a renewal");
    assert_eq!(revoked.cause, Cause::Session);
}

/// Renewals are answered by nobody: the stream is there and hangs, or it breaks and so do its
/// successors. The other endpoint is found before the deadline.
#[tokio::test]
async fn an_endpoint_that_falls_silent_or_breaks_is_left_before_the_deadline() {
    let server = server().await;
    let ttl = Duration::from_secs(3);
    change_ways(&server, ttl, async |of, ways| company(of, &to(&ways), &to(&ways), ttl).await)
        .await;
}

/// One that keeps what it is told, on the connections that there are: new ones go through.
#[tokio::test]
async fn a_connection_that_fell_silent_is_replaced_where_there_is_only_one_endpoint() {
    let server = server().await;
    let proxy = proxy(&server).await;
    let backend = Config::new(to(&[proxy.address()])).backend().await.unwrap();
    renew_past_a_silence(&Driver::on(backend, TTL).await, &proxy).await;
}

#[tokio::test]
async fn a_server_that_is_stopped_for_less_than_the_ttl_costs_nothing() {
    let server = server().await;
    let url = server.url();
    let company = company("a", &url, &url, Duration::from_secs(5)).await;
    company.outlast(&server, Duration::from_millis(1500)).await;
}

#[tokio::test]
async fn a_server_that_is_stopped_for_longer_revokes_in_time_and_serves_the_next_afterwards() {
    let server = server().await;
    let url = server.url();
    let ttl = Duration::from_secs(3);
    company("a", &url, &url, ttl).await.lose(&server, ttl, ttl * 3).await;
}

#[tokio::test]
async fn a_member_without_leader_is_noticed_and_recovered_from() {
    let cluster = servers(3, &["--heartbeat-interval=50", "--election-timeout=500"]).await;
    let third = to(&cluster.addresses()[2..]);
    let ttl = Duration::from_secs(3);
    let backend = Config::new(&third).backend().await.unwrap();
    let driver = Driver::on(backend, Duration::from_secs(60)).await;
    let company = company("a", &third, &third, ttl).await;
    let (holder, waits) = (claim(Kind::Leader, "y", true), claim(Kind::Leader, "y", true));
    driver.held(&holder).await;
    let place = driver.blocked(&waits).await;
    let seen = driver.backend.holder(Kind::Leader, &name("y")).await.unwrap();

    let of = name("y");
    let watch = driver.backend.watch(Kind::Leader, &of, &seen.version);
    let wait = driver.backend.wait(&driver.session, &waits, &place);
    let killing = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        cluster.members()[0].kill().unwrap();
        cluster.members()[1].kill().unwrap();
        Instant::now()
    };
    // A stream that asks for a leader is ended by the server where there is none.
    let noticed = async { tokio::join!(watch, wait, killing) };
    let (watched, (), killed) = timeout(SOON, noticed).await.expect("noticed");
    let watched = watched.expect_err("nothing can have changed");
    assert!(watched.is_transient(), "{watched}");
    for _ in 0..3 {
        let attempt = driver.backend.try_claim(&driver.session, &waits, Some(&place), false);
        if let Some(attempt) = bounded(attempt).await {
            let refused = attempt.expect_err("nobody can grant");
            assert!(refused.is_transient(), "{refused}");
        }
    }
    // If this member led, it renews until it notices that nobody follows it.
    let noticing = Duration::from_millis(1500);
    let left = (killed + ttl + noticing).saturating_duration_since(Instant::now());
    let revoked = timeout(left, company.guard.revoked()).await.expect("by its deadline");
    assert_eq!(revoked.cause, Cause::Deadline);
    assert!(!company.waiting.is_finished(), "who waits goes on waiting");
    let refused = Config::new(&third)
        .options(Options::new().connect_timeout(Duration::from_secs(1)))
        .connect()
        .await
        .unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unreachable, "{refused}");
    assert!(refused.to_string().contains("leader"), "{refused}");

    for member in &cluster.members()[..2] {
        member.restart().await.unwrap_or_else(|failed| panic!("{}", failed.to_text()));
    }
    // The leases begin anew with the new leader.
    company.recover(ttl * 3).await;
    eventually(SOON, async || driver.backend.end(&driver.session, &holder, None, true).await).await;
    eventually(SOON, async || {
        match driver.backend.try_claim(&driver.session, &waits, Some(&place), true).await {
            Ok(Attempt::Held(_)) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

#[tokio::test]
async fn a_server_without_space_refuses_and_lets_go() {
    let server = server().await;
    let mut etcd = Operator::of(&server).await;
    let sync = coordinator(&server.url(), Duration::from_secs(2)).await;
    let guard = sync.lock("a").acquire().await.unwrap();
    let set = async |etcd: &mut Operator, action| {
        etcd.0.alarm(action, AlarmType::Nospace, None).await.unwrap();
    };
    set(&mut etcd, AlarmAction::Activate).await;
    let refused = sync.lock("b").wait(Duration::ZERO).acquire().await.unwrap_err();
    assert!(refused.to_string().contains("space"), "{refused}");
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(guard.is_valid(), "renewals need none: {:?}", guard.revocation());
    guard.release().await.expect("what is held can still be given back");
    assert!(etcd.keys("sync/lock/a/").await.is_empty());
    set(&mut etcd, AlarmAction::Deactivate).await;
    let again = sync.lock("b").wait(SOON).acquire().await.unwrap();
    again.release().await.unwrap();
}
