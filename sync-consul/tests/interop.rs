//! `consul lock` takes part in the same locks as this crate, in both directions; `consul kv` and
//! `consul watch` read the leader; and what others put under this crate's keys is left alone.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may")]

#[path = "common/agent.rs"]
mod agent;
mod common;

use std::path::Path;
use std::time::{Duration, Instant};

use agent::{LOCK_FLAGS, applied, config, destroy, open_session, operator, sessions};
use common::{Api, Pair};
use rustix::process::Signal;
use serde_json::Value;
use sync_conformance::Server;
use sync_conformance::cli::example::{self, Example};
use sync_consul::{Cause, Coordinator, ErrorKind, LockGuard, Node, Options};
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_stream::StreamExt;

const TTL: Duration = Duration::from_secs(2);

/// A handover by a blocking query; machines are busy.
const SOON: Duration = Duration::from_millis(1_500);

/// By then `consul lock` has tried again after a lock-delay.
const RETRY: Duration = Duration::from_secs(5);

/// The lock-delay of `consul lock`'s own sessions.
const THEIR_DELAY: Duration = Duration::from_secs(15);

/// For what takes as long as it takes.
const PATIENCE: Duration = Duration::from_secs(60);

struct Consul {
    server: Server,
    api: Api,
}

impl Consul {
    async fn start() -> Self {
        let server = agent::agent(&[]).await;
        let api = operator(&server);
        Self { server, api }
    }

    async fn coordinator(&self, id: &str) -> Coordinator {
        let options = Options::new().ttl(TTL).node(Node::new(id));
        config(self.server.url()).options(options).connect().await.unwrap()
    }

    /// Runs `consul`, or what `CONSUL` names.
    fn ctl(&self, arguments: &[&str]) -> Example {
        let program = std::env::var("CONSUL").unwrap_or_else(|_| "consul".to_owned());
        Example::start(Path::new(&program), arguments, |command| {
            command.env("CONSUL_HTTP_ADDR", self.server.url());
        })
        .unwrap()
    }

    /// Runs it to its end and gives what it printed.
    async fn run(&self, arguments: &[&str]) -> String {
        let ctl = self.ctl(arguments);
        assert_eq!(ctl.exit(PATIENCE).await.unwrap(), 0, "{arguments:?}: {}", ctl.said());
        ctl.printed().trim_end().to_owned()
    }

    /// A `consul lock` on a name's key. It says `held` when it holds.
    fn lock(&self, key: &str, more: &[&str]) -> Example {
        let prefix = key.strip_suffix("/.lock").unwrap();
        let script = "echo held; exec sleep 600";
        self.ctl(&[&["lock", "-verbose"], more, &[prefix, script]].concat())
    }

    async fn lock_holds(&self, key: &str) -> (Example, Pair) {
        let ctl = self.lock(key, &[]);
        ctl.print("held").await.unwrap();
        let pair = self.at(key).await.expect("it holds");
        (ctl, pair)
    }

    /// What stands at a key.
    async fn at(&self, key: &str) -> Option<Pair> {
        self.api.pairs(key).await.unwrap().into_iter().find(|pair| pair.key == key)
    }

    /// Waits until so many sessions are open, and a moment longer: for who waits with one.
    async fn until_sessions(&self, count: usize) {
        let until = Instant::now() + PATIENCE;
        while sessions(&self.api).await.unwrap().len() < count {
            assert!(Instant::now() < until, "{count} sessions have not been opened");
            sleep(Duration::from_millis(10)).await;
        }
        sleep(Duration::from_millis(300)).await;
    }

    /// Waits until somebody stands in the line of the lock `name`.
    async fn until_in_line(&self, name: &str) {
        let until = Instant::now() + PATIENCE;
        while self.api.pairs(&format!("sync/line/lock/{name}/")).await.unwrap().is_empty() {
            assert!(Instant::now() < until, "nobody stands in line");
            sleep(Duration::from_millis(10)).await;
        }
        sleep(Duration::from_millis(300)).await;
    }

    async fn nothing_is_left(&self) {
        let left = self.api.pairs("sync/").await.unwrap();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// Ends a `consul lock` as a terminal would: it gives back what it has.
async fn interrupt(ctl: &Example) {
    ctl.process().signal(Signal::INT).unwrap();
    ctl.exit(PATIENCE).await.unwrap();
}

fn holds(ctl: &Example) -> bool {
    ctl.printed().lines().any(|line| line == "held")
}

fn acquire(sync: &Coordinator, name: &str) -> JoinHandle<LockGuard> {
    let lock = sync.lock(name);
    tokio::spawn(async move { lock.acquire().await.unwrap() })
}

#[tokio::test(flavor = "multi_thread")]
async fn we_wait_for_consul_lock_and_follow_it() {
    let consul = Consul::start().await;
    let sync = consul.coordinator("us").await;
    let lock = sync.lock("nightly/report");
    let key = lock.key().unwrap();
    assert_eq!(key, "sync/lock/nightly=2Freport/.lock", "as the documentation says");
    let (ctl, held) = consul.lock_holds(&key).await;
    assert_eq!(held.flags, LOCK_FLAGS);

    assert!(lock.try_acquire().await.unwrap().is_none());
    assert!(consul.api.pairs("sync/line/").await.unwrap().is_empty(), "a try leaves nothing");
    let holder = lock.holder().await.unwrap().expect("a foreign holder");
    assert_eq!((holder.node, holder.token, holder.since), (Node::new(""), None, None));

    let waiting = acquire(&sync, "nightly/report");
    consul.until_in_line("nightly=2Freport").await;
    sleep(TTL + Duration::from_millis(500)).await;
    assert!(!waiting.is_finished());

    let released = Instant::now();
    interrupt(&ctl).await;
    let guard = waiting.await.unwrap();
    assert!(released.elapsed() < SOON, "{:?}", released.elapsed());
    assert!(guard.token().get() > held.create_index);
    assert_eq!(lock.holder().await.unwrap().unwrap().node.id, "us");
    guard.release().await.unwrap();
    consul.nothing_is_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn consul_lock_waits_for_us_and_follows_us() {
    let consul = Consul::start().await;
    let sync = consul.coordinator("us").await;
    let lock = sync.lock("a");
    let key = lock.key().unwrap();
    let guard = lock.acquire().await.unwrap();
    let ctl = consul.lock(&key, &[]);
    consul.until_sessions(2).await;
    sleep(2 * TTL + Duration::from_millis(500)).await;
    assert!(guard.is_valid());
    assert!(!holds(&ctl), "held past its TTL by renewal: {}", ctl.printed());

    let (token, released) = (guard.token(), Instant::now());
    guard.release().await.unwrap();
    ctl.print("held").await.unwrap();
    assert!(released.elapsed() < SOON, "{:?}", released.elapsed());
    let standing = consul.at(&key).await.expect("it holds");
    assert!(standing.create_index > token.get(), "{standing:?} after {token}");
    interrupt(&ctl).await;
    lock.acquire().await.unwrap().release().await.unwrap();
    consul.nothing_is_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn consul_lock_follows_a_crash_of_ours_after_its_ttl() {
    let consul = Consul::start().await;
    let key = consul.coordinator("us").await.lock("a").key().unwrap();
    let program = example::build(env!("CARGO_PKG_NAME"), "consul-lock").unwrap();
    let (url, ttl) = (consul.server.url(), TTL.as_secs().to_string());
    let line = ["a", "--url", &url, "--ttl", &ttl, "--", "sleep", "5"];
    let victim = Example::start(&program, &line, |_| {}).unwrap();
    victim.event("held token=").await.unwrap();
    let ctl = consul.lock(&key, &[]);
    consul.until_sessions(2).await;

    let killed = Instant::now();
    victim.process().kill().unwrap();
    ctl.print("held").await.unwrap();
    let after = killed.elapsed();
    // Its last renewal was at most a third of the TTL ago; a session lives up to twice its TTL.
    assert!(after >= TTL / 2 && after <= 2 * TTL + RETRY + 2 * SOON, "{after:?}");
    interrupt(&ctl).await;
}

/// While it is delayed nobody tells when the delay is over.
#[tokio::test(flavor = "multi_thread")]
async fn the_lock_delay_of_consul_lock_is_waited_out_without_asking_all_the_time() {
    let consul = Consul::start().await;
    let sync = consul.coordinator("us").await;
    let key = sync.lock("a").key().unwrap();
    let (ctl, held) = consul.lock_holds(&key).await;
    let waiting = acquire(&sync, "a");
    consul.until_in_line("a").await;
    let (writes, destroyed) = (applied(&consul.api).await, Instant::now());
    destroy(&consul.api, &held.session).await;
    sleep(THEIR_DELAY - Duration::from_secs(1)).await;
    assert!(!waiting.is_finished(), "after {:?}", destroyed.elapsed());
    // Renewals make no entry, tries do.
    let writes = applied(&consul.api).await - writes;
    assert!(writes <= 60, "{writes} writes while nothing was to be had");
    let guard = waiting.await.unwrap();
    let after = destroyed.elapsed();
    assert!(after >= THEIR_DELAY && after <= THEIR_DELAY + 2 * SOON, "{after:?}");
    assert!(guard.token().get() > held.create_index);
    ctl.exit(PATIENCE).await.unwrap();
    assert!(ctl.printed().contains("Lock lost"), "{}", ctl.printed());
    guard.release().await.unwrap();
    consul.nothing_is_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn our_session_that_an_operator_destroys_is_followed_by_consul_lock() {
    let consul = Consul::start().await;
    let sync = consul.coordinator("us").await;
    let lock = sync.lock("a");
    let key = lock.key().unwrap();
    let guard = lock.acquire().await.unwrap();
    let ctl = consul.lock(&key, &[]);
    consul.until_sessions(2).await;
    let session = consul.at(&key).await.unwrap().session;
    let destroyed = Instant::now();
    destroy(&consul.api, &session).await;
    assert_eq!(guard.revoked().await.cause, Cause::Session);
    let told = destroyed.elapsed();
    assert!(told < Duration::from_secs(1), "told within the lock-delay: {told:?}");
    ctl.print("held").await.unwrap();
    let after = destroyed.elapsed();
    assert!(after >= Duration::from_secs(1) && after < RETRY + 2 * SOON, "{after:?}");
    assert!(guard.release().await.is_err(), "it is no longer ours");
    interrupt(&ctl).await;
    lock.acquire().await.unwrap().release().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn together_they_lose_no_update() {
    const TIMES: u64 = 20;
    let consul = Consul::start().await;
    let sync = consul.coordinator("us").await;
    let lock = sync.lock("a");
    let key = lock.key().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let counter = dir.path().join("counter");
    std::fs::write(&counter, "0\n").unwrap();
    let count = |counter: &Path| -> u64 {
        std::fs::read_to_string(counter).unwrap().trim().parse().unwrap()
    };

    let theirs = async {
        let at = counter.display();
        let script = format!("read n <{at}; sleep 0.01; echo $((n + 1)) >{at}");
        let prefix = key.strip_suffix("/.lock").unwrap();
        let command = ["lock", "-child-exit-code", prefix, &script];
        for _ in 0..TIMES / 2 {
            for ctl in [consul.ctl(&command), consul.ctl(&command)] {
                assert_eq!(ctl.exit(PATIENCE).await.unwrap(), 0, "{}", ctl.said());
            }
        }
    };
    let ours = async {
        for _ in 0..2 * TIMES {
            let guard = lock.acquire().await.unwrap();
            let before = count(&counter);
            sleep(Duration::from_millis(10)).await;
            std::fs::write(&counter, format!("{}\n", before + 1)).unwrap();
            guard.release().await.unwrap();
            sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::join!(theirs, ours);
    assert_eq!(count(&counter), 3 * TIMES);
}

/// `consul lock -n` keeps a list of holders at our key, without a session.
#[tokio::test(flavor = "multi_thread")]
async fn a_semaphore_under_our_key_is_reported_and_left_alone() {
    let consul = Consul::start().await;
    let sync = consul.coordinator("us").await;
    let lock = sync.lock("a");
    let key = lock.key().unwrap();
    let ctl = consul.lock(&key, &["-n=2"]);
    ctl.print("held").await.unwrap();
    let before = consul.at(&key).await.unwrap();
    for outcome in [lock.acquire().await.map(Some), lock.try_acquire().await] {
        let error = outcome.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Foreign, "{error}");
        assert!(error.to_string().contains(&key), "{error}");
    }
    assert_eq!(lock.holder().await.unwrap().map(|holder| holder.node), None);
    let after = consul.at(&key).await.unwrap();
    assert_eq!(
        (after.modify_index, after.text(), after.flags),
        (before.modify_index, before.text(), before.flags)
    );
    assert!(consul.api.pairs("sync/line/").await.unwrap().is_empty(), "nobody stands in line");
    assert!(!ctl.printed().contains("lost"), "{}", ctl.printed());

    interrupt(&ctl).await;
    lock.acquire().await.unwrap().release().await.unwrap();
    consul.nothing_is_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_semaphore_that_comes_later_finds_a_conflict_and_takes_nothing() {
    let consul = Consul::start().await;
    let sync = consul.coordinator("us").await;
    let lock = sync.lock("a");
    let key = lock.key().unwrap();
    let guard = lock.acquire().await.unwrap();
    let before = consul.at(&key).await.unwrap();
    let ctl = consul.lock(&key, &["-n=2"]);
    assert_ne!(ctl.exit(PATIENCE).await.unwrap(), 0);
    assert!(ctl.said().contains("does not match semaphore use"), "{}", ctl.said());
    assert!(!holds(&ctl));
    let after = consul.at(&key).await.unwrap();
    assert_eq!(after.modify_index, before.modify_index);
    // What it left beside the key is in nobody's way.
    let other = consul.coordinator("other").await;
    let waiting = acquire(&other, "a");
    consul.until_in_line("a").await;
    assert!(guard.is_valid());
    guard.release().await.unwrap();
    waiting.await.unwrap().release().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_put_over_a_held_key_is_told_and_left_to_who_put_it() {
    let consul = Consul::start().await;
    let (one, two) = (consul.coordinator("one").await, consul.coordinator("two").await);
    let lock = one.lock("a");
    let key = lock.key().unwrap();
    let guard = lock.acquire().await.unwrap();
    let lock_of_two = two.lock("a");
    let waiting = tokio::spawn(async move { lock_of_two.acquire().await });
    consul.until_in_line("a").await;

    let put = Instant::now();
    consul.run(&["kv", "put", &key, "theirs"]).await;
    assert_eq!(guard.revoked().await.cause, Cause::Key);
    assert!(put.elapsed() < SOON, "{:?}", put.elapsed());
    assert!(guard.release().await.is_err());
    let error = waiting.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Foreign, "{error}");
    for lock in [&lock, &two.lock("a")] {
        let error = lock.try_acquire().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Foreign, "{error}");
    }
    one.shutdown().await.unwrap();
    let left = consul.at(&key).await.expect("left alone");
    assert_eq!((left.text(), left.session), ("theirs".to_owned(), String::new()));
    assert_eq!(consul.run(&["kv", "get", &key]).await, "theirs");

    consul.run(&["kv", "delete", &key]).await;
    two.lock("a").acquire().await.unwrap().release().await.unwrap();
    consul.nothing_is_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_on_a_free_key_is_reported_and_neither_overwritten_nor_deleted() {
    let consul = Consul::start().await;
    let sync = consul.coordinator("us").await;
    let (lock, leader) = (sync.lock("a"), sync.leader("x"));
    for key in [lock.key().unwrap(), leader.key().unwrap()] {
        consul.run(&["kv", "put", &key, "theirs"]).await;
        let before = consul.at(&key).await.unwrap();
        for _ in 0..2 {
            let error = match key.contains("leader") {
                true => leader.elect().await.map(drop).unwrap_err(),
                false => lock.acquire().await.map(drop).unwrap_err(),
            };
            assert_eq!(error.kind(), ErrorKind::Foreign, "{error}");
            assert!(error.to_string().contains(&key), "{error}");
            let error = match key.contains("leader") {
                true => leader.try_elect().await.map(drop).unwrap_err(),
                false => lock.try_acquire().await.map(drop).unwrap_err(),
            };
            assert_eq!(error.kind(), ErrorKind::Foreign, "{error}");
        }
        let after = consul.at(&key).await.expect("it is left alone");
        assert_eq!((after.text(), after.modify_index), ("theirs".into(), before.modify_index));
    }
    assert!(lock.holder().await.unwrap().is_none(), "nobody holds by a value alone");
    assert!(leader.leader().await.unwrap().is_none());
    let left: Vec<String> = agent::keys(&consul.api, "sync/").await;
    assert_eq!(left, ["sync/lock/a/.lock", "sync/leader/x"], "and nothing of ours is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_left_without_session_is_taken_over_if_it_is_a_locks() {
    let consul = Consul::start().await;
    let sync = consul.coordinator("us").await;
    let flags = format!("-flags={LOCK_FLAGS}");
    for (number, key) in ["sync/lock/a/.lock", "sync/leader/a"].into_iter().enumerate() {
        // As `consul kv` and a process that was killed leave it.
        let session = open_session(&consul.api).await;
        let held = format!("-session={session}");
        consul.run(&["kv", "put", "-acquire", &held, &flags, key, "theirs"]).await;
        let before = consul.at(key).await.unwrap();
        assert_eq!(before.session, session);
        consul.run(&["kv", "put", "-release", &held, &flags, key, "theirs"]).await;
        assert_eq!(consul.at(key).await.unwrap().session, "");
        let token = if number == 0 {
            let guard = sync.lock("a").acquire().await.unwrap();
            let token = guard.token();
            guard.release().await.unwrap();
            token
        } else {
            let elected = sync.leader("a").elect().await.unwrap();
            let token = elected.token();
            elected.resign().await.unwrap();
            token
        };
        assert!(token.get() > before.create_index, "it is made anew: {token}");

        // A try without queueing takes it as well.
        consul.run(&["kv", "put", &flags, key, "theirs"]).await;
        if number == 0 {
            sync.lock("a")
                .try_acquire()
                .await
                .unwrap()
                .expect("taken over")
                .release()
                .await
                .unwrap();
        } else {
            sync.leader("a")
                .try_elect()
                .await
                .unwrap()
                .expect("taken over")
                .resign()
                .await
                .unwrap();
        }
    }
    consul.nothing_is_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn our_leader_is_read_by_consuls_own_tools() {
    let consul = Consul::start().await;
    let sync = consul.coordinator("us").await;
    let node = |address: &str| Node::new("web-1").address(address).metadata("zone", "b");
    let leader = sync.leader("scheduler").node(node("h:1"));
    let key = leader.key().unwrap();
    assert_eq!(key, "sync/leader/scheduler");
    let elected = leader.elect().await.unwrap();
    let watch = consul.ctl(&["watch", "-type=key", &format!("-key={key}"), "cat; echo"]);
    for address in ["h:1", "h:2"] {
        let read: Value = serde_json::from_str(&consul.run(&["kv", "get", &key]).await).unwrap();
        assert_eq!((&read["id"], &read["metadata"]["zone"]), (&"web-1".into(), &"b".into()));
        assert_eq!(read["address"], address);
        let standing = consul.at(&key).await.unwrap();
        assert_eq!(standing.create_index, elected.token().get(), "an update moves no token");
        let until = Instant::now() + PATIENCE;
        while !watched(&watch).contains(&standing.modify_index) {
            assert!(Instant::now() < until, "{}", watch.printed());
            sleep(Duration::from_millis(10)).await;
        }
        elected.update(node("h:2")).await.unwrap();
    }
    elected.resign().await.unwrap();
    assert!(consul.at(&key).await.is_none());
}

/// The states that a `consul watch` has shown, by their indexes.
fn watched(watch: &Example) -> Vec<u64> {
    let printed = watch.printed();
    let values = printed.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    values.filter_map(|value| value["ModifyIndex"].as_u64()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_of_consul_kv_reads_as_a_node_and_is_followed() {
    let consul = Consul::start().await;
    let sync = consul.coordinator("us").await;
    let leader = sync.leader("scheduler");
    let key = leader.key().unwrap();
    let mut changes = leader.changes().unwrap();
    assert_eq!(changes.next().await, Some(None));

    let flags = format!("-flags={LOCK_FLAGS}");
    let session = format!("-session={}", open_session(&consul.api).await);
    consul.run(&["kv", "put", "-acquire", &session, &flags, &key, "web 1"]).await;
    let held = consul.at(&key).await.unwrap();
    let seen = changes.next().await.unwrap().expect("a leader");
    assert_eq!((seen.node, seen.since, seen.token), (Node::new("web 1"), None, None));
    let read = leader.leader().await.unwrap().expect("a leader");
    assert_eq!((read.node, read.since, read.token), (Node::new("web 1"), None, None));
    assert!(leader.try_elect().await.unwrap().is_none());

    let campaign = tokio::spawn({
        let leader = leader.clone();
        async move { leader.elect().await.unwrap() }
    });
    sleep(Duration::from_millis(500)).await;
    assert!(!campaign.is_finished());
    let resigned = Instant::now();
    consul.run(&["kv", "put", "-release", &session, &flags, &key, "web 1"]).await;
    let elected = campaign.await.unwrap();
    assert!(resigned.elapsed() < SOON, "{:?}", resigned.elapsed());
    assert!(elected.token().get() > held.create_index);
    elected.resign().await.unwrap();
    consul.nothing_is_left().await;
}
