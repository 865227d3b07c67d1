//! What goes wrong between a coordinator and its agents, and that it comes right by itself.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may")]

#[path = "common/agent.rs"]
mod agent;
mod common;
#[path = "common/front.rs"]
mod front;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use agent::{agent, client, config, coordinator, delete, destroy, key, keys, only, operator};
use common::Api;
use front::{Answer, Front, Verdict};
use sync_conformance::company::{Company, change_ways, told, waiting_for};
use sync_conformance::driver::{Driver, TTL, eventually, lock, renew_past_a_silence};
use sync_conformance::logs;
use sync_conformance::proxy::Proxy;
use sync_conformance::{Server, server};
use sync_consul::{Cause, Node, Options};
use sync_core::ErrorKind;
use sync_core::backend::Ended;
use tokio::time::{sleep, timeout};

const SOON: Duration = Duration::from_secs(5);

/// The holder is connected to one URL, the others to another.
async fn company(of: &str, holds: &str, looks: &str, ttl: Duration) -> Company {
    let backend = async |url: &str, options| config(url).options(options).backend().await.unwrap();
    Company::begin(of, ttl, [holds, looks], backend).await
}

/// The URL that leads to these addresses.
fn to(addresses: &[SocketAddr]) -> String {
    addresses.iter().map(|at| format!("http://{at}")).collect::<Vec<_>>().join(",")
}

async fn proxy(server: &Server) -> Proxy {
    Proxy::start(server.addresses()[0]).await.unwrap()
}

#[tokio::test]
async fn connections_that_break_are_made_again_and_what_happened_meanwhile_is_seen() {
    let server = agent(&[]).await;
    let proxy = proxy(&server).await;
    let url = to(&[proxy.address()]);
    let ttl = Duration::from_secs(3);
    company("a", &url, &url, ttl).await.reconnect(&proxy, ttl).await;
}

#[tokio::test]
async fn who_was_cut_off_looks_at_the_present() {
    for broken in [true, false] {
        let server = agent(&[]).await;
        let proxy = proxy(&server).await;
        let company = company("a", &server.url(), &to(&[proxy.address()]), TTL).await;
        company.miss(&proxy, broken, async {}).await;
    }
}

#[tokio::test]
async fn what_was_taken_away_while_the_connections_were_broken_is_told_when_they_are_back() {
    let server = agent(&[]).await;
    let consul = operator(&server);
    let proxy = proxy(&server).await;
    let sync = coordinator(&to(&[proxy.address()]), Duration::from_secs(30)).await;
    let guard = sync.lock("a").acquire().await.unwrap();
    proxy.cut();
    delete(&consul, "sync/lock/a/.lock").await;
    proxy.heal();
    // Renewals are ten seconds apart.
    let revoked = timeout(SOON, guard.revoked()).await.expect("told without a renewal");
    assert_eq!(revoked.cause, Cause::Key);

    let guard = sync.lock("a").acquire().await.unwrap();
    let found = only(&consul, "sync/lock/a/").await;
    proxy.cut();
    destroy(&consul, &found.session).await;
    proxy.heal();
    let revoked = timeout(SOON, guard.revoked()).await.expect("told without a renewal");
    assert_eq!(revoked.cause, Cause::Session);
}

/// Renewals are answered by nobody: the connection is there and hangs, or it breaks and so do its
/// successors. The other agent is found before the deadline.
#[tokio::test]
async fn an_agent_that_falls_silent_or_breaks_is_left_before_the_deadline() {
    let server = agent(&[]).await;
    let ttl = Duration::from_secs(3);
    change_ways(&server, ttl, async |of, ways| company(of, &to(&ways), &to(&ways), ttl).await)
        .await;
}

/// One that keeps what it is told, on the connections that there are: new ones go through.
#[tokio::test]
async fn a_connection_that_fell_silent_is_replaced_where_there_is_only_one_agent() {
    let server = agent(&[]).await;
    let proxy = proxy(&server).await;
    let a = Driver::on(config(to(&[proxy.address()])).backend().await.unwrap(), TTL).await;
    renew_past_a_silence(&a, &proxy).await;
}

#[tokio::test]
async fn an_agent_that_is_stopped_for_less_than_the_ttl_costs_nothing() {
    let server = agent(&[]).await;
    let url = server.url();
    let company = company("a", &url, &url, Duration::from_secs(5)).await;
    company.outlast(&server, Duration::from_millis(1500)).await;
}

#[tokio::test]
async fn an_agent_that_is_stopped_for_longer_revokes_in_time_and_serves_the_next_afterwards() {
    let server = agent(&[]).await;
    let url = server.url();
    let ttl = Duration::from_secs(3);
    company("a", &url, &url, ttl).await.lose(&server, ttl, ttl * 4).await;
}

/// Sessions outlive a restart; what was not renewed meanwhile gets its whole time again.
#[tokio::test]
async fn an_agent_that_is_killed_and_comes_back_with_its_data_goes_on_with_those_who_held() {
    let server = agent(&[]).await;
    let url = server.url();
    let mut company = company("a", &url, &url, Duration::from_secs(20)).await;
    server.restart().await.unwrap();
    company.elected.update(Node::new("two")).await.unwrap();
    told(&mut company.changes, "two").await;
    assert!(company.guard.is_valid(), "{:?}", company.guard.revocation());
    company.guard.release().await.unwrap();
    let next = timeout(3 * SOON, company.waiting).await.expect("woken").unwrap().unwrap();
    next.release().await.unwrap();
    company.elected.resign().await.unwrap();
}

/// The agent that is talked to has lost its servers: it answers, though with errors.
#[tokio::test]
async fn an_agent_without_a_leader_is_an_unreachable_store_and_recovers() {
    let cluster = server::consul(3, &[]).start().await.unwrap();
    let third = to(&cluster.addresses()[2..]);
    let consul = Api::new(&third, None);
    agent::ready(&consul).await;
    let ttl = Duration::from_secs(4);
    let company = company("a", &third, &third, ttl).await;
    let killed = Instant::now();
    cluster.members()[0].kill().unwrap();
    cluster.members()[1].kill().unwrap();
    let left = (ttl + Duration::from_secs(2)).saturating_sub(killed.elapsed());
    let revoked = timeout(left, company.guard.revoked()).await.expect("by its deadline");
    assert_eq!(revoked.cause, Cause::Deadline);
    assert!(!company.waiting.is_finished(), "who waits goes on waiting");
    let within = Options::new().connect_timeout(Duration::from_secs(1));
    let refused = config(&third).options(within).connect().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unreachable, "{refused}");

    for member in &cluster.members()[..2] {
        member.restart().await.unwrap_or_else(|failed| panic!("{}", failed.to_text()));
    }
    // The sessions' times begin anew with the new leader.
    company.recover(ttl * 6).await;
}

/// A reset at the limit of connections says nothing of the others.
#[tokio::test]
async fn at_the_agents_limit_of_connections_what_is_held_stays_held() {
    let server = agent(&["limits { http_max_conns_per_client = 12 }"]).await;
    let proxy = proxy(&server).await;
    let sync = coordinator(&to(&[proxy.address()]), Duration::from_secs(3)).await;
    let guard = sync.lock("a").acquire().await.unwrap();
    // One for the long poll, one for the rest.
    let connected = async || if proxy.accepted() >= 2 { Ok(()) } else { Err(proxy.accepted()) };
    eventually(SOON, connected).await;
    // Others of this host take all the rest.
    let mut hogs = Vec::new();
    for _ in 0..30 {
        hogs.push(tokio::net::TcpStream::connect(server.addresses()[0]).await.unwrap());
    }
    sleep(Duration::from_secs(7)).await;
    assert!(guard.is_valid(), "renewed on the connection that it has: {:?}", guard.revocation());
    drop(hogs);
    guard.release().await.unwrap();
    sync.lock("b").acquire().await.unwrap().release().await.unwrap();
}

/// An agent that limits the rate of requests, or a proxy that has none to ask.
#[tokio::test]
async fn refusals_of_an_intermediary_are_waited_out() {
    let server = agent(&[]).await;
    let front = Front::of(&server).await;
    let sync = coordinator(&front.url(), TTL).await;
    let guard = sync.lock("held").acquire().await.unwrap();
    for status in [429, 500, 502, 503, 504] {
        front.decide(move |_| Verdict::Answer(Answer::new(status, "no")));
        let acquiring = waiting_for(sync.lock(format!("n{status}")));
        sleep(Duration::from_millis(600)).await;
        let asked = front.asked().len();
        assert!(asked < 60, "{status}: {asked} requests in less than a second");
        assert!(!acquiring.is_finished(), "{status}");
        front.decide(|_| Verdict::Pass);
        let got = timeout(SOON, acquiring).await.expect("it goes on").unwrap().unwrap();
        got.release().await.unwrap();
        front.forget();
    }
    assert!(guard.is_valid());
    guard.release().await.unwrap();
}

/// Answers that belong to something else: what they say of a name is not believed.
#[tokio::test]
async fn an_answer_to_something_else_grants_nothing() {
    let server = agent(&[]).await;
    let (consul, front) = (operator(&server), Front::of(&server).await);
    let (a, x) = (
        client(&server).await,
        Driver::on(config(front.url()).backend().await.unwrap(), TTL).await,
    );
    // Another's grant, as it was answered to him.
    let theirs = lock("a");
    a.held(&theirs).await;
    let found = only(&consul, "sync/lock/a/").await;
    let entry = format!(
        r#"{{"KV":{{"LockIndex":1,"Key":"{}","Flags":{},"Value":"{}","Session":"{}","CreateIndex":{},"ModifyIndex":{}}}}}"#,
        found.key,
        found.flags,
        found.value.unwrap(),
        found.session,
        found.create_index,
        found.modify_index
    );
    let bare = entry.replace(&format!("\"Value\":\"{}\"", "x"), "\"Value\":null");
    let granted = format!(r#"{{"Results":[{bare},{entry}],"Errors":null}}"#);
    for (status, body) in [
        (200, granted.clone()),
        (200, r#"{"Results":[],"Errors":null}"#.to_owned()),
        (200, r#"{"Results":null,"Errors":null}"#.to_owned()),
        (200, "true".to_owned()),
        (200, String::new()),
        (200, granted[..granted.len() / 2].to_owned()),
        (200, "[".repeat(100_000)),
        (200, "{\"a\":".repeat(100_000)),
        (200, format!("[\"{}", "x".repeat(3 << 20))),
        (
            409,
            r#"{"Results":null,"Errors":[{"OpIndex":1,"What":"key \"other\" exists"}]}"#.to_owned(),
        ),
        (409, "nonsense".to_owned()),
    ] {
        let text: String = body.chars().take(100).collect();
        let answer = Answer::new(status, &body);
        front.decide(move |asked| match asked.path.starts_with("/v1/txn") {
            true => Verdict::Answer(answer.clone()),
            false => Verdict::Pass,
        });
        let mine = lock("b");
        let error = x.backend.try_claim(&x.session, &mine, None, false).await.unwrap_err();
        assert!(!error.settled(), "{text}: {error}");
        front.decide(|_| Verdict::Pass);
        assert_eq!(x.abandon(&mine).await, Ended::NotOurs, "{text}");
    }
    assert_eq!(keys(&consul, "sync/lock/").await, [key(&theirs)]);
}

#[tokio::test]
async fn a_body_that_never_ends_is_given_up() {
    let address = endless().await;
    let began = Instant::now();
    let within = Options::new().connect_timeout(Duration::from_secs(2));
    let error = config(to(&[address])).options(within).connect().await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Unreachable | ErrorKind::Unknown), "{error}");
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
}

/// A server that answers everything with 200 and more and more of `x`.
async fn endless() -> SocketAddr {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut piece = [0; 4096];
                let _ = stream.read(&mut piece).await;
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
                while stream.write_all(&[b'x'; 4096]).await.is_ok() {}
            });
        }
    });
    address
}

#[tokio::test]
async fn what_goes_wrong_is_logged_in_words_and_not_a_thousand_times() {
    let server = agent(&[]).await;
    let (logs, _guard) = logs::capture();
    let sync = coordinator(&server.url(), Duration::from_secs(6)).await;
    let guard = sync.lock("a").acquire().await.unwrap();
    server.stop().unwrap();
    sleep(Duration::from_secs(4)).await;
    let before = guard.deadline();
    server.resume().unwrap();
    let renewed =
        async || if guard.deadline() > before { Ok(()) } else { Err("it is not renewed") };
    eventually(SOON, renewed).await;
    let text = logs.of("sync_");
    let warnings = text.lines().filter(|line| line.starts_with("WARN")).count();
    assert!((1..=10).contains(&warnings), "{warnings}: {text}");
    guard.release().await.unwrap();
}
