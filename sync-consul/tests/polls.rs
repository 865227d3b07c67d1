//! Long polls: how many there are, and what they make of the indexes that they are told.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may")]

#[path = "common/agent.rs"]
mod agent;
mod common;
#[path = "common/front.rs"]
mod front;

use std::time::Duration;

use agent::{agent, client, config, coordinator, operator};
use front::{Answer, Asked, Front, Verdict};
use sync_conformance::driver::{
    Driver, TTL, bounded, claim, eventually, follow, lock, name, not_told, renamed,
};
use sync_core::Kind;
use sync_core::backend::Attempt;
use tokio::time::{sleep, timeout};
use tokio_stream::StreamExt;

const SOON: Duration = Duration::from_secs(3);

/// How long a poll goes on where nothing changes, at most.
const POLL: Duration = Duration::from_secs(11);

#[tokio::test]
async fn a_follower_is_told_of_each_change_at_once_and_of_nothing_else() {
    let server = agent(&[]).await;
    let (a, b) = (client(&server).await, client(&server).await);
    let seen = follow(&a, &b, "a", Duration::from_millis(300)).await;
    // One who stands in line changes nothing about the leader.
    let candidate = claim(Kind::Leader, "a", true);
    not_told(&b, "a", &seen, a.blocked(&candidate)).await;
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

/// Waits until so many long polls are under way, and gives what they are of. They are to stay so few.
/// One that nobody wants any more is left to its end.
async fn settled(front: &Front, count: usize) -> Vec<String> {
    let polls = || -> Vec<String> {
        let open = front.open_polls().into_iter();
        open.map(|path| path.split('?').next().unwrap_or_default().to_owned()).collect()
    };
    eventually(POLL + SOON, async || if polls().len() == count { Ok(()) } else { Err(polls()) })
        .await;
    sleep(Duration::from_millis(500)).await;
    let open = polls();
    assert_eq!(open.len(), count, "{open:?}");
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
    let open = settled(&front, 3).await;
    let of = |path: &str| open.iter().filter(|open| open.starts_with(path)).count();
    assert_eq!(of("/v1/kv/sync/lock/a/.lock"), 1, "{open:?}");
    assert_eq!(of("/v1/kv/sync/leader/x"), 1, "{open:?}");
    assert_eq!(of("/v1/session/info/"), 1, "{open:?}");

    a.release(&held, &grant).await;
    a.release(&leads, &leading).await;
    for changes in &mut following {
        assert_eq!(timeout(Duration::from_secs(3), changes.next()).await.unwrap(), Some(None));
    }
    for waiter in waiting {
        timeout(Duration::from_secs(10), waiter).await.unwrap().unwrap().unwrap();
    }
    drop(following);
    let open = settled(&front, 1).await;
    assert!(
        open[0].starts_with("/v1/session/info/"),
        "nobody wants to know anything else: {open:?}"
    );
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
    front.polled("separator").await;
    let (grant, last) = held.last().unwrap();
    let renamed = renamed(last, "renamed");
    // Twice in a row: the second is not read at once.
    for number in 0..3 {
        agent::put(&consul, "sync/beside", &number.to_string()).await;
        sleep(Duration::from_millis(400)).await;
    }
    x.update(&renamed, grant).await;
    sleep(Duration::from_millis(400)).await;
    let watch = x.backend.watch(Kind::Leader, &last.name, &grant.version);
    let seen = timeout(SOON, watch).await.expect("told at once").unwrap();
    assert_eq!(seen.holder.unwrap().record, *renamed.record);
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
        // The leader would write to its log first, and any server may know little.
        let modes = ["consistent", "stale"];
        assert!(!modes.iter().any(|mode| asked.path.contains(mode)), "{}", asked.path);
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
    front.polled("sync/lock/a/.lock").await;
    front.decide(|asked| if asked.is_poll() { Verdict::Silence } else { Verdict::Pass });
    sleep(Duration::from_secs(11)).await; // those under way are over, the next are silent
    a.release(&held, &grant).await;
    assert!(guard.is_valid());
    let got = timeout(Duration::from_secs(16), waiting).await.expect("in the end");
    let _got = got.unwrap().unwrap();
    assert!(guard.is_valid());
}
