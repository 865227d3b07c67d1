//! What a real agent is asked, and how often: requests, writes, renewals, connections.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may")]

#[path = "common/agent.rs"]
mod agent;
mod common;
#[path = "common/front.rs"]
mod front;

use std::time::{Duration, Instant};

use agent::{agent, applied, client, config, coordinator, delete, destroy, in_line, operator};
use front::{Asked, Front, creating};
use sync_conformance::driver::{Driver, TTL, lock};
use sync_consul::{Cause, ErrorKind};
use sync_core::backend::Attempt;
use tokio::time::{sleep, timeout};

#[tokio::test]
async fn a_free_name_costs_two_requests_and_two_writes() {
    let server = agent(&[]).await;
    let (consul, front) = (operator(&server), Front::of(&server).await);
    let sync = config(front.url()).connect().await.unwrap();
    sync.lock("warm").acquire().await.unwrap().release().await.unwrap();
    sleep(Duration::from_millis(1500)).await; // what has ended was looked at again
    front.forget();
    let before = applied(&consul).await;
    for number in 0..10 {
        sync.lock(format!("n{number}")).acquire().await.unwrap().release().await.unwrap();
    }
    let writes = applied(&consul).await - before;
    let asked = front.asked();
    let asked = asked.iter().filter(|asked| !asked.path.contains("/v1/session/")).count();
    assert_eq!((asked, writes), (20, 20), "two each");

    front.forget();
    let before = applied(&consul).await;
    for number in 0..10 {
        sync.leader(format!("n{number}")).elect().await.unwrap().resign().await.unwrap();
    }
    let writes = applied(&consul).await - before;
    let asked = creating(front.asked()).len();
    assert_eq!((asked, writes), (20, 30), "a place, the key, the end");
}

/// Each round everybody gets it once.
async fn writes_per_handover(clients: usize) -> f64 {
    const ROUNDS: usize = 3;
    let server = agent(&[]).await;
    let consul = operator(&server);
    let holder = coordinator(&server.url(), TTL).await;
    let first = holder.lock("a").acquire().await.unwrap();
    let mut waiting = Vec::new();
    for number in 0..clients {
        let sync = coordinator(&server.url(), TTL).await;
        waiting.push(tokio::spawn(async move {
            for _ in 0..ROUNDS {
                sync.lock("a").acquire().await.unwrap().release().await.unwrap();
            }
            sync
        }));
        in_line(&consul, "lock/a", number + 1).await;
    }
    let before = applied(&consul).await;
    first.release().await.unwrap();
    let mut all = Vec::new();
    for waiter in waiting {
        all.push(waiter.await.unwrap());
    }
    let writes = applied(&consul).await - before;
    drop(all);
    writes as f64 / (clients * ROUNDS) as f64
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handover_costs_as_many_writes_in_a_long_line_as_in_a_short_one() {
    let mut costs = Vec::new();
    for clients in [2, 8, 32] {
        costs.push(writes_per_handover(clients).await);
    }
    println!("writes through the log per handover at 2, 8, 32 waiting clients: {costs:.2?}");
    // The end, the key with the place given back; and whoever comes back takes a place.
    assert!(costs.iter().all(|each| *each <= 4.5), "{costs:?}");
    assert!(costs[2] <= costs[1] * 1.2 && costs[1] <= costs[0] * 1.5, "{costs:?}");
}

#[tokio::test]
async fn who_waits_behind_another_asks_for_its_ticket_and_then_for_the_key() {
    let server = agent(&[]).await;
    let (a, x, front) = (client(&server).await, client(&server).await, Front::of(&server).await);
    let y = Driver::on(config(front.url()).backend().await.unwrap(), TTL).await;
    let [of_a, of_x, of_y] = [lock("a"), lock("a"), lock("a")];
    let first = a.held(&of_a).await;
    let places = (x.blocked(&of_x).await, y.blocked(&of_y).await);
    front.forget();
    let turns = async {
        front.polled("/line/").await;
        a.release(&of_a, &first).await;
        let Attempt::Held(second) = x.again(&of_x, &places.0).await else { panic!("not held") };
        front.polled("/.lock").await;
        x.release(&of_x, &second).await;
    };
    let waited = async { tokio::join!(turns, y.backend.wait(&y.session, &of_y, &places.1)) };
    timeout(Duration::from_secs(5), waited).await.expect("its turn comes");
    assert!(matches!(y.again(&of_y, &places.1).await, Attempt::Held(_)));
    let asked: Vec<(&str, bool)> = front
        .asked()
        .iter()
        .map(|asked| match &*asked.path {
            path if path.contains("/line/") => ("ticket", asked.is_poll()),
            path if path.contains("/.lock") => ("key", asked.is_poll()),
            "/v1/txn" => ("transaction", false),
            path => panic!("and for {path}"),
        })
        .collect();
    let expected = [("ticket", true), ("key", false), ("key", true), ("transaction", false)];
    assert_eq!(asked, expected);
}

/// Else the next in line would have to wait until the place was written.
#[tokio::test]
async fn who_is_back_at_once_reads_the_key_before_it_takes_a_place_again() {
    let server = agent(&[]).await;
    let (a, b, front) = (client(&server).await, client(&server).await, Front::of(&server).await);
    let x = Driver::on(config(front.url()).backend().await.unwrap(), TTL).await;
    let [of_a, of_b, of_x, behind, back] = [(); 5].map(|()| lock("a"));
    let held = a.held(&of_a).await;
    let places = (b.blocked(&of_b).await, x.blocked(&of_x).await);
    a.release(&of_a, &held).await;
    let Attempt::Held(held) = b.again(&of_b, &places.0).await else { panic!("not held") };
    b.release(&of_b, &held).await;
    let Attempt::Held(held) = x.again(&of_x, &places.1).await else { panic!("not held") };
    a.blocked(&behind).await;
    x.release(&of_x, &held).await;
    front.forget();
    x.blocked(&back).await;
    let asked: Vec<String> = front.asked().iter().map(|asked| asked.path.clone()).collect();
    assert_eq!(asked, ["/v1/kv/sync/lock/a/.lock", "/v1/txn"]);
}

#[tokio::test]
async fn one_renewal_per_interval_however_much_is_held() {
    let server = agent(&[]).await;
    let (consul, front) = (operator(&server), Front::of(&server).await);
    let sync = coordinator(&front.url(), Duration::from_secs(3)).await;
    let mut guards = Vec::new();
    for number in 0..200 {
        guards.push(sync.lock(format!("n{number}")).acquire().await.unwrap());
    }
    sleep(Duration::from_secs(6)).await; // all that is to be read once was read
    front.forget();
    let before = applied(&consul).await;
    sleep(Duration::from_secs(4)).await;
    let asked = front.asked();
    let renewals = asked.iter().filter(|asked| asked.path.contains("/session/renew/")).count();
    assert!((3..=5).contains(&renewals), "each second: {renewals}");
    let others: Vec<&Asked> = asked
        .iter()
        .filter(|asked| !asked.path.contains("/session/renew/") && !asked.is_poll())
        .collect();
    // One look at those that share a poll, 64 at once, when that poll has come to its end.
    assert!(others.len() <= 3, "and hardly anything else: {others:?}");
    assert_eq!(applied(&consul).await, before, "nothing is written");
    assert!(guards.iter().all(|guard| guard.is_valid()));
}

/// How many connections an agent at this port serves: those of which it has not seen the end too.
fn served(port: u16) -> usize {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let own = format!("0100007F:{port:04X}");
    let open = |line: &&str| {
        let mut columns = line.split_whitespace().skip(1);
        let (at, state) = (columns.next(), columns.nth(1));
        at == Some(&own) && matches!(state, Some("01" | "08"))
    };
    table.lines().filter(open).count()
}

/// How many connections of this host there are to a port of it.
fn connections(port: u16) -> usize {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let to = format!("0100007F:{port:04X}");
    let established = |line: &&str| {
        let mut columns = line.split_whitespace().skip(2);
        columns.next() == Some(&to) && columns.next() == Some("01")
    };
    table.lines().filter(established).count()
}

/// Long polls of one coordinator, and the connections that it has besides.
const POLLS: usize = 64;
const OTHERS: usize = 40;

const HELD: usize = 1_000;
const WAITED: usize = 300;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_held_names_and_three_hundred_waited_for_share_64_long_polls() {
    // As many connections of one client as an agent serves by default.
    let server = agent(&["limits { http_max_conns_per_client = 200 }"]).await;
    let consul = operator(&server);
    let all_of_them = Front::of(&server).await;
    let ttl = Duration::from_secs(20);
    let (other, sync) =
        (coordinator(&server.url(), ttl).await, coordinator(&all_of_them.url(), ttl).await);
    let mut theirs = Vec::new();
    for number in 0..WAITED {
        theirs.push(other.lock(format!("t{number}")).acquire().await.unwrap());
    }
    let mut held = Vec::new();
    for number in 0..HELD {
        held.push(sync.lock(format!("h{number}")).acquire().await.unwrap());
    }
    let mut waiting = tokio::task::JoinSet::new();
    for number in 0..WAITED {
        let lock = sync.lock(format!("t{number}"));
        waiting.spawn(async move { lock.acquire().await });
    }
    for number in 0..WAITED {
        in_line(&consul, &format!("lock/t{number}"), 1).await;
    }
    // Two renewals, or nearly.
    for _ in 0..10 {
        let open = connections(all_of_them.address().port());
        assert!(open <= POLLS + OTHERS, "{open} connections");
        sleep(Duration::from_secs(1)).await;
    }
    let open = all_of_them.open_polls();
    assert!(all_of_them.most_open_polls() <= POLLS, "{}", all_of_them.most_open_polls());
    assert!(open.iter().any(|path| path.starts_with("/v1/session/info/")), "{open:?}");
    assert!(held.iter().all(|guard| guard.is_valid()));

    // What an operator removes is noticed, whether it has a poll of its own or not.
    for number in [0, 1, 500, 999] {
        delete(&consul, &format!("sync/lock/h{number}/.lock")).await;
    }
    for number in [0, 1, 500, 999] {
        let revoked = timeout(Duration::from_secs(10), held[number].revoked()).await;
        assert_eq!(revoked.unwrap_or_else(|_| panic!("{number} is not told")).cause, Cause::Key);
    }
    // All that are waited for come, and soon.
    let began = Instant::now();
    for guard in theirs {
        guard.release().await.unwrap();
    }
    let mut got = Vec::new();
    while let Some(guard) = waiting.join_next().await {
        got.push(guard.unwrap().unwrap());
        assert!(began.elapsed() < Duration::from_secs(30), "{} were granted", got.len());
    }
    println!("{WAITED} waited names were granted within {:?}", began.elapsed());
    assert!(all_of_them.most_open_polls() <= POLLS, "{}", all_of_them.most_open_polls());
    let lost = held.iter().filter(|guard| !guard.is_valid()).count();
    assert_eq!(lost, 4, "nobody else has lost anything");

    // And the end of the session is told at once to all of them.
    let session = consul.pairs("sync/lock/h7/").await.unwrap().remove(0).session;
    destroy(&consul, &session).await;
    for guard in held.iter().skip(2).chain(&got) {
        let told = timeout(Duration::from_secs(2), guard.revoked()).await.expect("told");
        assert!(matches!(told.cause, Cause::Session | Cause::Key), "{told:?}");
    }
}

/// An agent goes on with a long poll whose asker has gone, and keeps the connection for as long.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waits_that_are_given_up_take_no_more_connections() {
    const ASKING: usize = 31;
    let server = agent(&[]).await;
    let port = server.addresses()[0].port();
    let a = client(&server).await;
    for number in 0..WAITED {
        a.held(&lock(&format!("t{number}"))).await;
    }
    let before = served(port);
    let sync = coordinator(&server.url(), Duration::from_secs(20)).await;
    let end = Instant::now() + Duration::from_secs(8);
    let mut asking = tokio::task::JoinSet::new();
    for first in 0..ASKING {
        let sync = sync.clone();
        asking.spawn(async move {
            for number in (first..WAITED).step_by(ASKING).cycle() {
                let lock = sync.lock(format!("t{number}")).wait(Duration::from_millis(200));
                assert_eq!(lock.acquire().await.unwrap_err().kind(), ErrorKind::Timeout);
                if Instant::now() > end {
                    return;
                }
            }
        });
    }
    while Instant::now() < end {
        let open = served(port) - before;
        assert!(open <= POLLS + OTHERS, "{open} connections");
        sleep(Duration::from_millis(100)).await;
    }
    while let Some(asked) = asking.join_next().await {
        asked.unwrap();
    }
}
