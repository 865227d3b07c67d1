//! What goes wrong between a coordinator and its server, and that it comes right by itself.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may")]

mod common;

use std::time::{Duration, Instant};

use common::{Proxy, Server};
use sync_conformance::driver::{Driver, TTL, bounded, claim, eventually, lock, name};
use sync_core::backend::{Attempt, Claim, Ended, Held, Renewal, Renewed};
use sync_core::{ErrorKind, Kind};
use sync_redis::{Config, Options};

const SOON: Duration = Duration::from_secs(5);

async fn is_held(client: &Driver, held: &[Held]) -> Result<(), ()> {
    match client.backend.renew(&client.session, held).await {
        Ok(Renewal::Alive { claims, .. })
            if claims.iter().all(|(_, renewed)| matches!(renewed, Renewed::Extended(_))) =>
        {
            Ok(())
        }
        Ok(other) => panic!("{other:?}"),
        Err(error) => {
            assert!(error.is_transient(), "{error}");
            Err(())
        }
    }
}

async fn hold(client: &Driver, claim: Claim) -> [Held; 1] {
    [Held { grant: client.held(&claim).await, claim: claim.into() }]
}

#[tokio::test]
async fn a_restart_of_the_server_is_survived() {
    let mut server = Server::durable();
    let a = server.client().await;
    let held = hold(&a, lock("a")).await;
    server.kill();
    let failed = a.backend.try_claim(&a.session, &lock("b"), None, false).await.unwrap_err();
    assert!(failed.is_transient(), "{failed}");
    let refused = a.backend.try_claim(&a.session, &lock("b"), None, false).await.unwrap_err();
    assert_eq!((refused.kind(), refused.settled()), (ErrorKind::Unreachable, true), "{refused}");
    server.restart();
    eventually(SOON, async || is_held(&a, &held).await).await;
    assert_eq!(a.end(&held[0].claim).await, Ended::Released);
}

#[tokio::test]
async fn client_kill_is_survived_and_a_lost_wake_up_made_good() {
    let server = Server::start();
    let (a, b) = (server.client().await, server.client().await);
    let (first, second) = (lock("a"), lock("a"));
    a.held(&first).await;
    let waiting = tokio::spawn(async move {
        b.acquire(&second).await;
        Instant::now()
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    // Its connection goes, and with it the message of a release that comes right after.
    let killed = server.run::<i64>("CLIENT KILL TYPE pubsub");
    assert_eq!(killed, 2, "the subscription is on the one connection that there is");
    eventually(SOON, async || a.backend.end(&a.session, &first, None, true).await).await;
    let released = Instant::now();
    let granted = tokio::time::timeout(SOON, waiting).await.unwrap().unwrap();
    assert!(granted - released < Duration::from_millis(1500), "{:?}", granted - released);
}

#[tokio::test]
async fn a_killed_connection_is_noticed_without_a_request() {
    let server = Server::start();
    let (a, b) = (server.client().await, server.client().await);
    a.held(&lock("a")).await;
    let second = lock("a");
    let place = b.blocked(&second).await;
    let _ = server.run::<i64>("CLIENT KILL TYPE pubsub");
    let wait = b.backend.wait(&b.session, &second, &place);
    tokio::time::timeout(Duration::from_millis(300), wait).await.expect("it looks again at once");
    b.blocked(&second).await;
}

#[tokio::test]
async fn script_flush_is_survived() {
    let server = Server::start();
    let a = server.client().await;
    let flush = || server.run::<String>("SCRIPT FLUSH");
    flush();
    let held = hold(&a, lock("a")).await;
    flush();
    is_held(&a, &held).await.unwrap();
    flush();
    let seen = a.backend.holder(Kind::Lock, &name("a")).await.unwrap();
    flush();
    let nothing = sync_core::backend::Version::default();
    let watched = a.backend.watch(Kind::Lock, &name("a"), &nothing).await.unwrap();
    assert_eq!(seen.version, watched.version);
    flush();
    assert_eq!(a.end(&held[0].claim).await, Ended::Released);
}

#[tokio::test]
async fn a_master_that_became_a_replica_is_left() {
    let server = Server::start();
    let a = server.client().await;
    let held = hold(&a, lock("a")).await;
    let connections = || {
        let stats: String = server.run("INFO stats");
        let line = stats.lines().find(|line| line.starts_with("total_connections_received:"));
        line.unwrap().rsplit(':').next().unwrap().trim().parse::<i64>().unwrap()
    };
    let () = server.run(&format!("REPLICAOF 127.0.0.1 {}", common::free_port()));
    let refused = a.backend.try_claim(&a.session, &lock("b"), None, false).await.unwrap_err();
    assert_eq!((refused.kind(), refused.settled()), (ErrorKind::Unreachable, true), "{refused}");
    assert!(refused.to_string().contains("READONLY"), "{refused}");
    let renewal = a.backend.renew(&a.session, &held).await.unwrap_err();
    assert!(renewal.is_transient(), "{renewal}");
    let ended = a.backend.end(&a.session, &held[0].claim, None, true).await.unwrap_err();
    assert!(ended.settled() && ended.is_transient(), "{ended}");
    // It may know less than its master, so it cannot say that something is not ours.
    let unknown = lock("c");
    let ended = a.backend.end(&a.session, &unknown, None, false).await.unwrap_err();
    assert!(ended.to_string().contains("READONLY"), "{ended}");
    let elsewhere = Held { claim: unknown.into(), grant: held[0].grant.clone() };
    let renewal = a.backend.renew(&a.session, &[elsewhere]).await.unwrap_err();
    assert!(renewal.to_string().contains("READONLY"), "{renewal}");
    // Nor that a name is taken, also to one that does not queue.
    for queue in [false, true] {
        let claim = claim(Kind::Lock, "a", queue);
        let refused = a.backend.try_claim(&a.session, &claim, None, false).await.unwrap_err();
        assert!(refused.settled() && refused.to_string().contains("READONLY"), "{refused}");
    }
    let update = a.backend.update(&a.session, &lock("c"), &held[0].grant).await.unwrap_err();
    assert!(update.to_string().contains("READONLY"), "{update}");
    let before = connections();
    let _ = a.backend.try_claim(&a.session, &lock("b"), None, false).await;
    assert!(connections() >= before + 2, "each refusal made it look for another server");
    let () = server.run("REPLICAOF NO ONE");
    eventually(SOON, async || is_held(&a, &held).await).await;
}

#[tokio::test]
async fn a_server_that_stops_and_goes_on_applies_what_came_late() {
    let server = Server::start();
    let a = server.client().await;
    let late = lock("a");
    server.signal("-STOP");
    let call = a.backend.try_claim(&a.session, &late, None, false);
    assert!(bounded(call).await.is_none());
    let abandon = a.backend.end(&a.session, &late, None, true);
    assert!(bounded(abandon).await.is_none());
    server.signal("-CONT");
    // Whichever of them the server reads first, in the end nothing is held.
    eventually(SOON, async || a.backend.end(&a.session, &late, None, true).await).await;
    assert_eq!(server.run::<i64>("EXISTS sync:lock:{a}"), 0);
    assert!(matches!(a.attempt(&late).await, Attempt::Anew));
    a.held(&lock("a")).await;
}

#[tokio::test]
async fn a_connection_that_fell_silent_is_replaced() {
    let server = Server::start();
    let proxy = Proxy::to(&server).await;
    let a = Driver::on(Config::new(proxy.url()).backend().await.unwrap(), TTL).await;
    let held = hold(&a, lock("a")).await;
    proxy.silence_first(1);
    assert!(bounded(a.backend.renew(&a.session, &held)).await.is_none());
    bounded(is_held(&a, &held)).await.expect("the second try is on another").unwrap();
}

#[tokio::test]
async fn who_waits_on_a_silent_connection_moves_to_another_and_looks_again() {
    let server = Server::start();
    let proxy = Proxy::to(&server).await;
    let a = server.client().await;
    let b = Driver::on(Config::new(proxy.url()).backend().await.unwrap(), TTL).await;
    let (first, second) = (lock("a"), lock("a"));
    a.held(&first).await;
    let place = b.blocked(&second).await;
    proxy.silence_first(1);
    a.end(&first).await;
    let wait = b.backend.wait(&b.session, &second, &place);
    assert!(bounded(wait).await.is_none(), "the message was swallowed");
    assert!(bounded(b.backend.holder(Kind::Lock, &name("a"))).await.is_none());
    b.backend.holder(Kind::Lock, &name("a")).await.unwrap();
    let wait = b.backend.wait(&b.session, &second, &place);
    bounded(wait).await.expect("woken when the new connection had come up");
    b.held(&second).await;
}

#[tokio::test]
async fn a_follower_that_is_dropped_does_not_cost_the_connection() {
    let server = Server::start();
    let a = server.client().await;
    let connections = || server.run::<String>("CLIENT LIST TYPE pubsub");
    let before = connections();
    let id = before.split(' ').next().unwrap().to_owned();
    let seen = a.backend.holder(Kind::Leader, &name("a")).await.unwrap();
    server.signal("-STOP");
    let of = name("a");
    for _ in 0..3 {
        let watch = a.backend.watch(Kind::Leader, &of, &seen.version);
        assert!(tokio::time::timeout(Duration::from_millis(50), watch).await.is_err());
    }
    server.signal("-CONT");
    a.held(&claim(Kind::Leader, "a", true)).await;
    assert!(connections().starts_with(&id), "the same connection as before");
}

#[tokio::test]
async fn an_answer_to_somebody_else_grants_nothing() {
    let server = Server::start();
    let proxy = Proxy::to(&server).await;
    let a = Driver::on(Config::new(proxy.url()).backend().await.unwrap(), TTL).await;
    a.held(&lock("a")).await;
    proxy.double_answers();
    let second = lock("b");
    let confused = a.backend.try_claim(&a.session, &second, None, false).await.unwrap_err();
    assert!(!confused.settled(), "{confused}");
    proxy.pass();
    let grant = a.held(&second).await;
    assert_eq!(server.run::<u64>("GET sync:lock:{b}:token"), grant.token.get());
}

#[tokio::test]
async fn where_there_is_no_server_connecting_says_so_in_time() {
    let began = Instant::now();
    let url = format!("redis://user:sesame@127.0.0.1:{}", common::free_port());
    let refused = Config::new(&url).connect().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unreachable);
    // Somebody who accepts and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("redis://user:sesame@{}", silent.local_addr().unwrap());
    let options = Options::new().connect_timeout(Duration::from_millis(300));
    let silence = Config::new(&url).options(options).connect().await.unwrap_err();
    assert_eq!(silence.kind(), ErrorKind::Unreachable);
    assert!(began.elapsed() < Duration::from_secs(3));
    for error in [refused, silence] {
        let text = format!("{error} {error:?}");
        assert!(text.contains("127.0.0.1") && !text.contains("sesame"), "{text}");
    }
}

#[tokio::test]
async fn a_server_without_memory_refuses_and_lets_go() {
    let server = Server::start();
    let a = server.client().await;
    let claim = lock("a");
    a.held(&claim).await;
    let () = server.run("CONFIG SET maxmemory 1mb");
    let refused = a.backend.try_claim(&a.session, &lock("b"), None, false).await.unwrap_err();
    assert_eq!((refused.kind(), refused.settled()), (ErrorKind::Unreachable, true), "{refused}");
    assert_eq!(a.abandon(&claim).await, Ended::Released, "what is held can still be given back");
}
