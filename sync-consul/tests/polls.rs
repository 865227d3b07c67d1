//! What a real agent is asked, and how often: writes, renewals, long polls.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may")]

#[path = "common/agent.rs"]
mod agent;
mod common;
#[path = "common/front.rs"]
mod front;

use std::time::{Duration, Instant};

use agent::{agent, applied, client, config, coordinator, delete, destroy, operator};
use front::{Answer, Asked, Front, Verdict, creating};
use sync_conformance::driver::{Driver, TTL, bounded, claim, eventually, lock, name, record};
use sync_consul::Cause;
use sync_core::Kind;
use sync_core::backend::{Attempt, Claim};
use tokio::time::{sleep, timeout};
use tokio_stream::StreamExt;

const SOON: Duration = Duration::from_secs(3);

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
        while consul.pairs("sync/line/").await.unwrap().len() <= number {
            sleep(Duration::from_millis(5)).await;
        }
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

#[tokio::test]
async fn a_follower_is_told_of_each_change_at_once() {
    let server = agent(&[]).await;
    let (a, b) = (client(&server).await, client(&server).await);
    let leader = claim(Kind::Leader, "a", true);
    let mut seen = b.backend.holder(Kind::Leader, &name("a")).await.unwrap();
    assert!(seen.holder.is_none());
    let mut grant = None;
    for step in 0..4 {
        let of = name("a");
        let watch = b.backend.watch(Kind::Leader, &of, &seen.version);
        let change = async {
            sleep(Duration::from_millis(250)).await;
            match step {
                0 => grant = Some(a.held(&leader).await),
                1 => {
                    let new = record("new", leader.nonce).into();
                    let new = Claim::new(Kind::Leader, name("a"), leader.nonce, new, true);
                    a.backend.update(&a.session, &new, grant.as_ref().unwrap()).await.unwrap();
                }
                2 => drop(a.release(&leader, grant.as_ref().unwrap()).await),
                _ => drop(a.held(&claim(Kind::Leader, "a", true)).await),
            }
            Instant::now()
        };
        let (sighting, changed) = tokio::join!(watch, change);
        assert!(changed.elapsed() < Duration::from_millis(300), "step {step}");
        let sighting = sighting.unwrap();
        assert_eq!(sighting.holder.is_none(), step == 2, "step {step}");
        assert_ne!(sighting.version, seen.version);
        seen = sighting;
    }
    // One who stands in line changes nothing about the leader.
    let of = name("a");
    let mut watch = Box::pin(b.backend.watch(Kind::Leader, &of, &seen.version));
    let waits = async {
        sleep(Duration::from_millis(100)).await;
        a.blocked(&claim(Kind::Leader, "a", true)).await;
        sleep(Duration::from_millis(200)).await;
    };
    tokio::select! {
        biased;
        sighting = &mut watch => panic!("the leader is the same: {sighting:?}"),
        () = waits => {}
    }
}

#[tokio::test]
async fn an_expiry_is_told_too() {
    let server = agent(&[]).await;
    let consul = operator(&server);
    let b = client(&server).await;
    let made = consul
        .json("PUT", "/v1/session/create", br#"{"TTL":"1s","NodeChecks":[],"Behavior":"delete"}"#)
        .await
        .unwrap();
    let path = format!("/v1/kv/sync/leader/a?acquire={}", made["ID"].as_str().unwrap());
    consul.ask("PUT", &path, b"text").await.unwrap();
    let seen = b.backend.holder(Kind::Leader, &name("a")).await.unwrap();
    assert_eq!(seen.holder.unwrap().record, b"text");
    let of = name("a");
    let gone = b.backend.watch(Kind::Leader, &of, &seen.version);
    let gone = timeout(Duration::from_secs(6), gone).await.unwrap().unwrap();
    assert!(gone.holder.is_none());
}

/// Waits until so many long polls have been under way, none of them for long enough to be repeated.
async fn settled(front: &Front) -> Vec<String> {
    sleep(Duration::from_secs(1)).await;
    let mut open = front.open_polls();
    for path in &mut open {
        path.truncate(path.find('?').unwrap());
    }
    open.sort_unstable();
    open
}

#[tokio::test]
async fn a_name_has_one_long_poll_however_many_tasks_wait_or_follow() {
    let server = agent(&[]).await;
    let front = Front::of(&server).await;
    let (a, sync) = (client(&server).await, coordinator(&front.url(), TTL).await);
    let (held, leads) = (lock("a"), claim(Kind::Leader, "x", true));
    let (grant, leading) = (a.held(&held).await, a.held(&leads).await);
    let (mut waiting, mut following) = (Vec::new(), Vec::new());
    for _ in 0..50 {
        let lock = sync.lock("a");
        waiting.push(tokio::spawn(async move { lock.acquire().await.unwrap().release().await }));
        let mut changes = sync.leader("x").changes().unwrap();
        assert!(changes.next().await.unwrap().is_some());
        following.push(changes);
    }
    let open = settled(&front).await;
    let of = |path: &str| open.iter().filter(|open| open.starts_with(path)).count();
    assert_eq!(of("/v1/kv/sync/lock/a/.lock"), 1, "{open:?}");
    assert_eq!(of("/v1/kv/sync/leader/x"), 1, "{open:?}");
    assert_eq!(of("/v1/session/info/"), 1, "{open:?}");
    assert_eq!(open.len(), 3, "{open:?}");

    a.release(&held, &grant).await;
    a.release(&leads, &leading).await;
    for changes in &mut following {
        assert_eq!(timeout(Duration::from_secs(3), changes.next()).await.unwrap(), Some(None));
    }
    for waiter in waiting {
        timeout(Duration::from_secs(10), waiter).await.unwrap().unwrap().unwrap();
    }
    drop(following);
    sleep(Duration::from_secs(3)).await;
    let open = settled(&front).await;
    assert_eq!(open.len(), 1, "nobody wants to know any more but of the session: {open:?}");
}

#[tokio::test]
async fn a_hundred_elections_are_followed_over_64_long_polls() {
    const MANY: usize = 100;
    let server = agent(&[]).await;
    let front = Front::of(&server).await;
    let (other, sync) =
        (coordinator(&server.url(), TTL).await, coordinator(&front.url(), TTL).await);
    let mut followed = Vec::new();
    for number in 0..MANY {
        let mut changes = sync.leader(format!("n{number}")).changes().unwrap();
        assert_eq!(changes.next().await.unwrap(), None);
        followed.push(changes);
    }
    for round in 0..2 {
        let mut elected = Vec::new();
        for number in 0..MANY {
            elected.push(other.leader(format!("n{number}")).elect().await.unwrap());
        }
        for (number, changes) in followed.iter_mut().enumerate() {
            let told = timeout(Duration::from_secs(3), changes.next()).await;
            let told = told.unwrap_or_else(|_| panic!("{round}: {number} is not told")).unwrap();
            assert_eq!(told.unwrap().token, Some(elected[number].token()), "{round}: {number}");
        }
        for elected in elected {
            elected.resign().await.unwrap();
        }
        for (number, changes) in followed.iter_mut().enumerate() {
            let told = timeout(Duration::from_secs(3), changes.next()).await;
            let told = told.unwrap_or_else(|_| panic!("{round}: {number} is not told"));
            assert_eq!(told.unwrap(), None, "{round}: {number}");
        }
    }
    assert!(front.most_open_polls() <= 64, "{}", front.most_open_polls());
}

/// What is held is read less often than what somebody waits for: who asks is told what was so
/// meanwhile.
#[tokio::test]
async fn who_follows_what_we_hold_ourselves_is_told_of_what_was_not_read_yet() {
    let server = agent(&[]).await;
    let (consul, front) = (operator(&server), Front::of(&server).await);
    let x = Driver::on(config(front.url()).backend().await.unwrap(), TTL).await;
    let _losses = x.backend.losses(&x.session);
    let mut held = Vec::new();
    for number in 0..20 {
        let claim = claim(Kind::Leader, &format!("n{number}"), true);
        held.push((x.held(&claim).await, claim));
    }
    let shared = |front: &Front| front.open_polls().iter().any(|path| path.contains("separator"));
    eventually(SOON, async || if shared(&front) { Ok(()) } else { Err("no shared poll") }).await;
    let (grant, last) = held.last().unwrap();
    let renamed = record("renamed", last.nonce).into();
    let renamed = Claim::new(Kind::Leader, last.name.clone(), last.nonce, renamed, true);
    // Twice in a row: the second is not read at once.
    for number in 0..3 {
        agent::put(&consul, "sync/beside", &number.to_string()).await;
        sleep(Duration::from_millis(400)).await;
    }
    x.backend.update(&x.session, &renamed, grant).await.unwrap();
    sleep(Duration::from_millis(400)).await;
    let watch = x.backend.watch(Kind::Leader, &last.name, &grant.version);
    let seen = timeout(SOON, watch).await.expect("told at once").unwrap();
    assert_eq!(seen.holder.unwrap().record, *renamed.record);
}

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
    let until = Instant::now() + Duration::from_secs(60);
    while consul.pairs("sync/line/").await.unwrap().len() < WAITED {
        assert!(Instant::now() < until, "not all of them stand in line");
        sleep(Duration::from_millis(100)).await;
    }
    sleep(Duration::from_secs(5)).await;
    let open = all_of_them.open_polls();
    assert!(all_of_them.most_open_polls() <= 64, "{}", all_of_them.most_open_polls());
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
    assert!(all_of_them.most_open_polls() <= 64, "{}", all_of_them.most_open_polls());
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

/// What a proxy makes of an index.
fn spoiled(index: Option<&'static str>) -> impl Fn(&Asked, &mut Answer) + Send + Sync {
    move |_, answer| {
        if answer.header("x-consul-index").is_some() {
            answer.set("x-consul-index", index);
        }
    }
}

/// What was asked for while somebody waits for a name for three seconds, which is then released.
async fn asked_while_waiting(front: &Front, a: &Driver, of: &str) -> Vec<Asked> {
    let held = lock(of);
    let grant = a.held(&held).await;
    let x = Driver::on(config(front.url()).backend().await.unwrap(), TTL).await;
    let waits = lock(of);
    let place = x.blocked(&waits).await;
    front.forget();
    let wait = x.backend.wait(&x.session, &waits, &place);
    tokio::pin!(wait);
    let early = timeout(Duration::from_secs(3), &mut wait).await;
    let asked = front.asked();
    assert!(early.is_err(), "{of}: {asked:?}");
    a.release(&held, &grant).await;
    timeout(Duration::from_secs(3), wait).await.expect("noticed all the same");
    assert!(matches!(x.again(&waits, &place).await, Attempt::Held(_)));
    asked
}

#[tokio::test]
async fn an_index_that_is_missing_or_malformed_makes_no_hot_loop_and_loses_no_wake() {
    let server = agent(&[]).await;
    let front = Front::of(&server).await;
    let bad = [
        None,
        Some(""),
        Some("x"),
        Some("-1"),
        Some("0"),
        Some("1e3"),
        Some("18446744073709551616"),
    ];
    for (number, index) in bad.into_iter().enumerate() {
        front.change(spoiled(index));
        let a = client(&server).await;
        let asked = asked_while_waiting(&front, &a, &format!("n{number}")).await;
        assert!((2..=6).contains(&asked.len()), "{index:?}: {asked:?}");
        assert!(asked.iter().all(|asked| !asked.is_poll()), "{index:?}: {asked:?}");
    }
}

#[tokio::test]
async fn an_index_that_goes_backwards_begins_anew_and_zero_is_never_sent() {
    let server = agent(&[]).await;
    let (a, front) = (client(&server).await, Front::of(&server).await);
    // Every other answer comes from a server that was restored from something old.
    let turn = std::sync::atomic::AtomicU64::new(1_000_000);
    front.change(move |_, answer| {
        if answer.header("x-consul-index").is_some() {
            let index = turn.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
            answer.set("x-consul-index", Some(&index.to_string()));
        }
    });
    // Such an agent answers at once: what it is asked to wait for lies behind it.
    front.decide(|asked| match asked.is_poll() {
        true => Verdict::Ask(asked.without("index")),
        false => Verdict::Pass,
    });
    let asked = asked_while_waiting(&front, &a, "a").await;
    let (polls, reads): (Vec<&Asked>, Vec<&Asked>) =
        asked.iter().filter(|asked| asked.method == "GET").partition(|asked| asked.is_poll());
    assert!(!polls.is_empty() && !reads.is_empty(), "{asked:?}");
    assert!(asked.len() < 100, "{} requests in three seconds", asked.len());
    for asked in &asked {
        assert_ne!(asked.query("index"), Some("0"), "{asked:?}");
    }
    let mut of_key = asked.iter().filter(|asked| asked.path.contains("/.lock"));
    let mut before = of_key.next().unwrap();
    for next in of_key {
        assert!(!(before.is_poll() && next.is_poll()), "{before:?}, then {next:?}");
        before = next;
    }
}

#[tokio::test]
async fn polls_wait_for_times_of_their_own_and_for_no_longer_than_was_asked_for() {
    let server = agent(&[]).await;
    let (a, front) = (client(&server).await, Front::of(&server).await);
    a.held(&lock("a")).await;
    let mut waits = std::collections::BTreeSet::new();
    for _ in 0..4 {
        let x = Driver::on(config(front.url()).backend().await.unwrap(), TTL).await;
        let claim = lock("a");
        let place = x.blocked(&claim).await;
        assert!(bounded(x.backend.wait(&x.session, &claim, &place)).await.is_none());
    }
    for asked in front.asked().iter().filter(|asked| asked.is_poll()) {
        let wait = asked.query("wait").unwrap();
        let millis: u64 = wait.strip_suffix("ms").unwrap().parse().unwrap();
        assert!((1_000..=10_000).contains(&millis), "{wait}");
        assert!(asked.path.contains("consistent"), "{}", asked.path);
        waits.insert(millis);
    }
    assert!(waits.len() >= 3, "with jitter: {waits:?}");
}

/// An agent that says nothing to a poll is not waited for without end.
#[tokio::test]
async fn a_poll_that_is_never_answered_is_given_up_and_the_renewals_go_on() {
    let server = agent(&[]).await;
    let (a, front) = (client(&server).await, Front::of(&server).await);
    let sync = coordinator(&front.url(), Duration::from_secs(3)).await;
    let guard = sync.lock("mine").acquire().await.unwrap();
    let held = lock("a");
    let grant = a.held(&held).await;
    let waiting = tokio::spawn({
        let lock = sync.lock("a");
        async move { lock.acquire().await }
    });
    sleep(Duration::from_millis(500)).await;
    front.decide(|asked| if asked.is_poll() { Verdict::Silence } else { Verdict::Pass });
    sleep(Duration::from_secs(11)).await; // those under way are over, the next are silent
    a.release(&held, &grant).await;
    assert!(guard.is_valid());
    let got = timeout(Duration::from_secs(16), waiting).await.expect("in the end");
    let _got = got.unwrap().unwrap();
    assert!(guard.is_valid());
}
