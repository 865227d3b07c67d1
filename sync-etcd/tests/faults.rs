//! What goes wrong between a coordinator and its servers, and that it comes right by itself.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may")]

mod common;

use std::time::{Duration, Instant};

use common::{Operator, coordinator, counted, proxy, server, servers, to};
use etcd_client::{AlarmAction, AlarmType};
use sync_conformance::driver::{Driver, TTL, bounded, claim, eventually, lock, name};
use sync_conformance::fault::Verb;
use sync_conformance::proxy::{Flow, Toward};
use sync_core::backend::{Attempt, Ended, Held, Renewal};
use sync_core::{Cause, ErrorKind, Kind};
use sync_etcd::{Changes, Config, Coordinator, Elected, Lock, LockGuard, Node, Options};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_stream::StreamExt;

const SOON: Duration = Duration::from_secs(5);

/// Somebody who holds a lock and leads, somebody who waits for that lock, and somebody who follows.
struct Roles {
    guard: LockGuard,
    elected: Elected,
    waiting: JoinHandle<Result<LockGuard, sync_etcd::Error>>,
    changes: Changes,
    /// So that nobody's session is closed.
    coordinators: [Coordinator; 3],
}

impl Roles {
    /// The holder is connected to one URL, the others to another.
    async fn begin(holds: &str, looks: &str, ttl: Duration) -> Self {
        Self::begin_on("a", holds, looks, ttl).await
    }

    /// The same with a name of its own.
    async fn begin_on(of: &str, holds: &str, looks: &str, ttl: Duration) -> Self {
        let holder = coordinator(holds, ttl).await;
        let (waiter, calls) = counted(Config::new(looks), Options::new().ttl(ttl)).await;
        let follower = coordinator(looks, ttl).await;
        let guard = holder.lock(of).acquire().await.unwrap();
        let elected = holder.leader(of).node(Node::new("one")).elect().await.unwrap();
        let waiting = waiting_for(waiter.lock(of));
        let mut changes = follower.leader(of).changes().unwrap();
        told(&mut changes, "one").await;
        timeout(SOON, calls.called(Verb::Wait, 1)).await.expect("it stands in line");
        Self { guard, elected, waiting, changes, coordinators: [holder, waiter, follower] }
    }

    /// All goes on as if nothing had been, and at once.
    async fn go_on(mut self) {
        assert!(self.guard.is_valid(), "{:?}", self.guard.revocation());
        assert!(self.elected.is_valid(), "{:?}", self.elected.revocation());
        self.elected.update(Node::new("two")).await.unwrap();
        told(&mut self.changes, "two").await;
        self.guard.release().await.unwrap();
        let next = timeout(Duration::from_secs(1), self.waiting).await.expect("woken");
        next.unwrap().unwrap().release().await.unwrap();
        self.elected.resign().await.unwrap();
    }
}

fn waiting_for(lock: Lock) -> JoinHandle<Result<LockGuard, sync_etcd::Error>> {
    tokio::spawn(async move { lock.acquire().await })
}

/// Until the follower has seen this leader.
async fn told(changes: &mut Changes, id: &str) {
    let wanted = format!("\"{id}\"");
    let look = async {
        loop {
            let seen = format!("{:?}", changes.next().await.unwrap());
            if seen.contains(&wanted) {
                return;
            }
        }
    };
    timeout(SOON, look).await.unwrap_or_else(|_| panic!("never told of {id}"));
}

#[tokio::test]
async fn a_compaction_is_survived_while_holding_waiting_and_following() {
    let server = server().await;
    let mut etcd = Operator::of(&server).await;
    let url = server.url();
    let roles = Roles::begin(&url, &url, TTL).await;
    for _ in 0..2 {
        for number in 0..20 {
            etcd.put(&format!("other/{number}"), "x").await;
        }
        etcd.compact().await;
    }
    roles.go_on().await;
}

/// What was missed can no longer be asked for.
#[tokio::test]
async fn who_was_cut_off_while_the_past_was_compacted_looks_at_the_present() {
    for broken in [true, false] {
        let server = server().await;
        let mut etcd = Operator::of(&server).await;
        let proxy = proxy(&server).await;
        let mut roles = Roles::begin(&server.url(), &to(&[proxy.address()]), TTL).await;
        if broken {
            proxy.cut();
        } else {
            proxy.set(Toward::Client, Flow::Hold);
        }
        roles.elected.update(Node::new("missed")).await.unwrap();
        roles.elected.update(Node::new("last")).await.unwrap();
        roles.guard.release().await.unwrap();
        for number in 0..20 {
            etcd.put(&format!("other/{number}"), "x").await;
        }
        etcd.compact().await;
        tokio::time::sleep(Duration::from_millis(700)).await;
        assert!(!roles.waiting.is_finished(), "it has heard nothing");
        let healed = Instant::now();
        if broken {
            proxy.heal();
        } else {
            proxy.let_through();
        }
        told(&mut roles.changes, "last").await;
        let next = timeout(SOON, roles.waiting).await.expect("woken").unwrap().unwrap();
        assert!(healed.elapsed() < Duration::from_secs(3), "{:?}", healed.elapsed());
        next.release().await.unwrap();
    }
}

#[tokio::test]
async fn streams_that_break_are_made_again_and_what_happened_meanwhile_is_seen() {
    let server = server().await;
    let proxy = proxy(&server).await;
    let url = to(&[proxy.address()]);
    let ttl = Duration::from_secs(3);
    let roles = Roles::begin(&url, &url, ttl).await;
    for _ in 0..4 {
        proxy.reset();
        tokio::time::sleep(ttl / 3).await;
    }
    roles.go_on().await;
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
    let survives = async |silent| {
        let proxies = [proxy(&server).await, proxy(&server).await];
        let url = to(&[proxies[0].address(), proxies[1].address()]);
        let kind = if silent { "silent" } else { "broken" };
        let roles = Roles::begin_on(kind, &url, &url, ttl).await;
        for bad in &proxies {
            if silent {
                bad.set(Toward::Client, Flow::Swallow);
            } else {
                bad.cut();
            }
            tokio::time::sleep(ttl + ttl / 2).await;
            assert!(roles.guard.is_valid(), "{kind}: {:?}", roles.guard.revocation());
            bad.heal();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        roles.go_on().await;
        assert!(proxies.iter().all(|proxy| proxy.accepted() > 0));
    };
    tokio::join!(survives(true), survives(false));
}

/// One that keeps what it is told, on the connections that there are: new ones go through.
#[tokio::test]
async fn a_connection_that_fell_silent_is_replaced_where_there_is_only_one_endpoint() {
    let server = server().await;
    let proxy = proxy(&server).await;
    let backend = Config::new(to(&[proxy.address()])).backend().await.unwrap();
    let a = Driver::on(backend, TTL).await;
    let first = lock("a");
    let held = [Held { grant: a.held(&first).await, claim: first.clone().into() }];
    a.backend.renew(&a.session, &held).await.unwrap();
    proxy.hold();
    assert!(bounded(a.backend.renew(&a.session, &held)).await.is_none());
    let renewal = bounded(a.backend.renew(&a.session, &held)).await.expect("on another");
    assert!(matches!(renewal.unwrap(), Renewal::Alive { .. }));
    assert_eq!(a.end(&first).await, Ended::Released);
}

#[tokio::test]
async fn a_server_that_is_stopped_for_less_than_the_ttl_costs_nothing() {
    let server = server().await;
    let url = server.url();
    let roles = Roles::begin(&url, &url, Duration::from_secs(5)).await;
    server.stop().unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    server.resume().unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    roles.go_on().await;
}

#[tokio::test]
async fn a_server_that_is_stopped_for_longer_revokes_in_time_and_serves_the_next_afterwards() {
    let server = server().await;
    let url = server.url();
    let ttl = Duration::from_secs(3);
    let roles = Roles::begin(&url, &url, ttl).await;
    server.stop().unwrap();
    let stopped = Instant::now();
    let revoked = timeout(ttl, roles.guard.revoked()).await.expect("by its deadline");
    assert_eq!(revoked.cause, Cause::Deadline);
    assert!(stopped.elapsed() > ttl / 2, "not before it has to be: {:?}", stopped.elapsed());
    assert!(!roles.elected.is_valid());
    assert!(!roles.waiting.is_finished());
    server.resume().unwrap();
    let next = timeout(ttl * 3, roles.waiting).await.expect("it is free again").unwrap().unwrap();
    next.release().await.unwrap();
}

#[tokio::test]
async fn a_member_without_leader_is_noticed_and_recovered_from() {
    let cluster = servers(3, &["--heartbeat-interval=50", "--election-timeout=500"]).await;
    let third = to(&cluster.addresses()[2..]);
    let ttl = Duration::from_secs(3);
    let backend = Config::new(&third).backend().await.unwrap();
    let driver = Driver::on(backend, Duration::from_secs(60)).await;
    let mut roles = Roles::begin(&third, &third, ttl).await;
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
    let revoked = timeout(left, roles.guard.revoked()).await.expect("by its deadline");
    assert_eq!(revoked.cause, Cause::Deadline);
    assert!(!roles.waiting.is_finished(), "who waits goes on waiting");
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
    let next = timeout(ttl * 3, roles.waiting).await.expect("recovered").unwrap().unwrap();
    next.release().await.unwrap();
    let campaign = roles.coordinators[1].leader("a").node(Node::new("two"));
    let elected = timeout(ttl * 3, campaign.elect()).await.expect("recovered").unwrap();
    told(&mut roles.changes, "two").await;
    elected.resign().await.unwrap();
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
