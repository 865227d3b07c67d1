//! Connections: those that are of no use, slow, or no longer needed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may")]

mod common;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use common::{Operator, client, coordinator, key, metric, proxy, server, servers, to};
use sync_conformance::driver::{Driver, TTL, bounded, claim, eventually, hold_many, lock, name};
use sync_conformance::proxy::{Flow, Toward};
use sync_core::backend::Attempt;
use sync_core::{ErrorKind, Kind};
use sync_etcd::{Config, Options};
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_stream::StreamExt;

const SOON: Duration = Duration::from_secs(5);

/// Endpoints at which nobody serves, each in its own way.
async fn useless() -> Vec<(&'static str, SocketAddr)> {
    let mut found = Vec::new();
    let refusing = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    found.push(("refuses", refusing));
    for (what, says) in [
        ("is silent", None),
        ("closes", Some(&b""[..])),
        ("speaks HTTP/1.1", Some(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")),
        ("speaks no HTTP", Some(b"\x00\x00\x00garbage\xff\xff\xff\xff\xff\xff\xff\xff\r\n\r\n")),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        found.push((what, listener.local_addr().unwrap()));
        tokio::spawn(async move {
            let mut kept = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                match says {
                    None => kept.push(stream),
                    Some(says) => {
                        let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, says).await;
                    }
                }
            }
        });
    }
    found
}

#[tokio::test]
async fn an_endpoint_of_no_use_does_not_keep_from_the_others() {
    let server = server().await;
    let good = server.addresses()[0];
    let within = Duration::from_secs(3);
    let connect = async |url: String| {
        let options = Options::new().connect_timeout(within);
        Config::new(url).options(options).connect().await
    };
    let useless = useless().await;
    for (what, bad) in &useless {
        for order in [[*bad, good], [good, *bad]] {
            let began = Instant::now();
            // Which is first is left to chance, too.
            for _ in 0..2 {
                let sync = connect(to(&order)).await.unwrap_or_else(|e| panic!("{what}: {e}"));
                sync.lock("a").acquire().await.unwrap().release().await.unwrap();
            }
            assert!(began.elapsed() < within, "{what}: {:?}", began.elapsed());
        }
        let began = Instant::now();
        let url = format!("http://user:sesame@{bad}");
        let refused = connect(url).await.unwrap_err();
        assert!(began.elapsed() < within + Duration::from_secs(1), "{what}: {:?}", began.elapsed());
        assert_eq!(refused.kind(), ErrorKind::Unreachable, "{what}: {refused}");
        let text = format!("{refused} {refused:?}");
        assert!(text.contains(&bad.to_string()) && !text.contains("sesame"), "{what}: {text}");
    }
    // All of them at once, and the good one last.
    let mut all: Vec<SocketAddr> = useless.iter().map(|(_, bad)| *bad).collect();
    all.push(good);
    connect(to(&all)).await.unwrap();
}

/// Two clusters that are taken for one would both grant.
#[tokio::test]
async fn an_endpoint_of_another_cluster_grants_nothing() {
    let (one, other) = (server().await, server().await);
    let url = format!("{},{}", one.url(), other.url());
    let options = Options::new().connect_timeout(Duration::from_secs(2));
    // Told at once, or when it is asked instead of the first.
    let Ok(backend) = Config::new(url).options(options).backend().await else { return };
    let a = Driver::on(backend, TTL).await;
    a.held(&lock("a")).await;
    let (mut on_one, mut on_other) = (Operator::of(&one).await, Operator::of(&other).await);
    let first_is_one = !on_one.keys("sync/").await.is_empty();
    let (first, second) = if first_is_one { (&one, &mut on_other) } else { (&other, &mut on_one) };
    first.kill().unwrap();
    for _ in 0..6 {
        if let Some(Ok(attempt)) =
            bounded(a.backend.try_claim(&a.session, &lock("a"), None, false)).await
        {
            panic!("by the other cluster: {attempt:?}");
        }
        if let Some(Ok(session)) = bounded(a.backend.open(TTL)).await {
            panic!("by the other cluster: {session:?}");
        }
    }
    assert!(second.keys("sync/").await.is_empty());
}

/// On HTTP/2 such bytes break the frames. Whatever comes through is true.
#[tokio::test]
async fn answers_that_come_twice_grant_nothing_that_is_not_so() {
    let server = server().await;
    let mut etcd = Operator::of(&server).await;
    let proxy = proxy(&server).await;
    let backend = Config::new(to(&[proxy.address()])).backend().await.unwrap();
    let a = Driver::on(backend, TTL).await;
    proxy.set(Toward::Client, Flow::Double);
    for number in 0..20 {
        let claim = lock(&format!("n{}", number % 4));
        let attempt = bounded(a.backend.try_claim(&a.session, &claim, None, false)).await;
        if let Some(Ok(Attempt::Held(grant))) = attempt {
            let found = etcd.only(&key(&a.session, &claim)).await;
            assert_eq!(found.create_revision().unsigned_abs(), grant.token.get());
        }
        let _ = bounded(a.backend.end(&a.session, &claim, None, true)).await;
    }
    proxy.heal();
    let after = lock("after");
    let grant = eventually(SOON, async || {
        match a.backend.try_claim(&a.session, &after, None, true).await {
            Ok(Attempt::Held(grant)) => Ok(grant),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let found = etcd.only("sync/lock/after/").await;
    assert_eq!(found.create_revision().unsigned_abs(), grant.token.get());
}

#[tokio::test]
async fn a_follower_that_is_dropped_costs_no_connection_and_leaves_no_watch() {
    let server = server().await;
    let proxy = proxy(&server).await;
    let backend = Config::new(to(&[proxy.address()])).backend().await.unwrap();
    let a = Driver::on(backend, TTL).await;
    let b = client(&server).await;
    let first = claim(Kind::Leader, "a", true);
    b.held(&first).await;
    let seen = a.backend.holder(Kind::Leader, &name("a")).await.unwrap();
    let waits = claim(Kind::Leader, "a", true);
    let place = a.blocked(&waits).await;
    let before = proxy.accepted();
    let of = name("a");
    for _ in 0..5 {
        let watch = a.backend.watch(Kind::Leader, &of, &seen.version);
        assert!(timeout(Duration::from_millis(50), watch).await.is_err());
        let wait = a.backend.wait(&a.session, &waits, &place);
        assert!(timeout(Duration::from_millis(50), wait).await.is_err());
    }
    b.end(&first).await;
    a.held(&waits).await;
    assert_eq!(proxy.accepted(), before, "the same connections as before");
    a.end(&waits).await;
    let watchers = async || match metric(&server, "etcd_debugging_mvcc_watcher_total").await {
        0 => Ok(()),
        left => Err(left),
    };
    eventually(SOON, watchers).await;
}

/// Who only follows asks for nothing, so that nothing stays unanswered: pings find out.
#[tokio::test]
async fn who_only_follows_leaves_an_endpoint_that_fell_silent() {
    let server = servers(1, &["--grpc-keepalive-min-time=1s"]).await;
    let proxies = [proxy(&server).await, proxy(&server).await];
    let url = to(&[proxies[0].address(), proxies[1].address()]);
    let second = Duration::from_secs(1);
    let follower = Config::new(url).keep_alive(second, second).connect().await.unwrap();
    let leader = coordinator(&server.url(), TTL).await;
    let mut changes = follower.leader("x").changes().unwrap();
    assert!(changes.next().await.unwrap().is_none());
    tokio::time::sleep(Duration::from_millis(300)).await;
    // Whichever of them is in use.
    for proxy in &proxies {
        proxy.set(Toward::Client, Flow::Swallow);
        let elected = leader.leader("x").elect().await.unwrap();
        let seen = timeout(second * 4, changes.next()).await.expect("told of it").unwrap();
        assert!(seen.is_some());
        elected.resign().await.unwrap();
        let seen = timeout(second * 4, changes.next()).await.expect("told of it").unwrap();
        assert!(seen.is_none());
        proxy.heal();
    }
}

/// The server ends the connections of who does that.
#[tokio::test]
async fn pings_that_no_server_could_like_are_refused() {
    for (each, within) in [(0, 5000), (10_000, 0), (499, 5000)] {
        let (each, within) = (Duration::from_millis(each), Duration::from_millis(within));
        let config = Config::new("http://127.0.0.1:1").keep_alive(each, within);
        let refused = config.connect().await.unwrap_err();
        assert_eq!(refused.kind(), sync_etcd::ErrorKind::Invalid, "{refused}");
    }
}

#[tokio::test]
async fn pings_that_the_server_does_not_like_cost_nothing_that_is_held() {
    let server = server().await;
    let half = Duration::from_millis(500);
    let proxy = proxy(&server).await;
    let options = Options::new().ttl(Duration::from_secs(9));
    let config = Config::new(to(&[proxy.address()])).options(options).keep_alive(half, half);
    let sync = config.connect().await.unwrap();
    let guard = sync.lock("a").acquire().await.unwrap();
    let mut changes = sync.leader("x").changes().unwrap();
    assert!(changes.next().await.unwrap().is_none());
    let before = proxy.accepted();
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert!(proxy.accepted() > before, "connections were ended");
    assert!(guard.is_valid(), "{:?}", guard.revocation());
    let other = coordinator(&server.url(), TTL).await;
    let elected = other.leader("x").elect().await.unwrap();
    assert!(timeout(SOON, changes.next()).await.expect("told of it").unwrap().is_some());
    elected.resign().await.unwrap();
    guard.release().await.unwrap();
}

#[tokio::test]
async fn a_slow_network_costs_nothing_that_is_held() {
    let server = server().await;
    let proxy = proxy(&server).await;
    let sync = coordinator(&to(&[proxy.address()]), Duration::from_secs(3)).await;
    let guard = sync.lock("a").acquire().await.unwrap();
    // A renewal has 500 ms, and on a new connection it takes several round trips.
    let slow = Flow::Delay(Duration::from_millis(40));
    proxy.set(Toward::Server, slow);
    proxy.set(Toward::Client, slow);
    for _ in 0..3 {
        proxy.reset();
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(guard.is_valid(), "{:?}", guard.revocation());
    }
    guard.release().await.unwrap();
}

/// What the server would go on serving: streams, and leases that nobody renews.
#[tokio::test]
async fn nothing_outlives_the_coordinator() {
    let server = server().await;
    let mut etcd = Operator::of(&server).await;
    let sync = coordinator(&server.url(), TTL).await;
    let guard = sync.lock("a").acquire().await.unwrap();
    let mut changes = sync.leader("x").changes().unwrap();
    changes.next().await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let streams = async || {
        let mut open = 0;
        for method in ["Watch", "LeaseKeepAlive"] {
            let of = format!("grpc_method=\"{method}\"");
            open += common::metrics(&server, "grpc_server_started_total{", &of).await;
            open -= common::metrics(&server, "grpc_server_handled_total{", &of).await;
        }
        open
    };
    assert!(streams().await > 0, "the test knows how to see them");
    drop((guard, changes, sync));
    eventually(SOON, async || match streams().await {
        0 => Ok(()),
        open => Err(open),
    })
    .await;
    assert!(etcd.0.leases().await.unwrap().leases().is_empty());
    assert!(etcd.keys("sync/").await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_claims_live_as_long_as_their_one_session() {
    let server = server().await;
    let sync = coordinator(&server.url(), Duration::from_secs(3)).await;
    let guards = hold_many(&sync, 2000).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    let valid = guards.iter().filter(|guard| guard.is_valid()).count();
    assert_eq!(valid, guards.len());
    let shutting_down = Instant::now();
    drop(guards);
    sync.shutdown().await.unwrap();
    assert!(shutting_down.elapsed() < SOON, "{:?}", shutting_down.elapsed());
}
