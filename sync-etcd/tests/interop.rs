//! `etcdctl lock` and `etcdctl elect` take part in the same locks and elections as this crate, in
//! both directions.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may")]

use std::path::Path;
use std::time::{Duration, Instant};

use etcd_client::{Client, GetOptions, SortOrder, SortTarget};
use rustix::process::Signal;
use sync_conformance::cli::example::{self, Example};
use sync_conformance::company::{lose_no_update, waiting_for};
use sync_conformance::{Server, server};
use sync_etcd::{Cause, Config, Coordinator, Node, Options};
use tokio::time::sleep;
use tokio_stream::StreamExt;

/// What a dead holder costs, and a TTL that etcd grants as it is.
const TTL: Duration = Duration::from_secs(2);

/// A handover by a watch. etcd looks for ended leases twice a second, and machines are busy.
const SOON: Duration = Duration::from_millis(1_500);

/// For what takes as long as it takes.
const PATIENCE: Duration = Duration::from_secs(60);

struct Etcd {
    server: Server,
    raw: Client,
}

/// A key under a claim's prefix.
#[derive(Debug)]
struct Standing {
    key: String,
    revision: u64,
    lease: i64,
}

impl Etcd {
    async fn start() -> Self {
        let server = server::etcd(1, &[]).start().await.unwrap();
        let raw = Client::connect([server.url()], None).await.unwrap();
        Self { server, raw }
    }

    async fn coordinator(&self, id: &str) -> Coordinator {
        let options = Options::new().ttl(TTL).node(Node::new(id));
        Config::new(self.server.url()).options(options).connect().await.unwrap()
    }

    /// Runs `etcdctl`, or what `ETCDCTL` names.
    fn ctl(&self, arguments: &[&str]) -> Example {
        let program = std::env::var("ETCDCTL").unwrap_or_else(|_| "etcdctl".to_owned());
        let url = self.server.url();
        let arguments = [&["--endpoints", &url], arguments].concat();
        Example::start(Path::new(&program), &arguments, |_| {}).unwrap_or_else(|failed| {
            let hint = "install it with `apt-get install etcd-client`, or name it in ETCDCTL";
            panic!("{program} cannot be run ({}): {hint}", failed.reason())
        })
    }

    /// An `etcdctl` that holds, and the key by which it does.
    async fn ctl_holds(&self, arguments: &[&str]) -> (Example, Standing) {
        let ctl = self.ctl(arguments);
        let own = format!("{}/", arguments[1]);
        let own = format!("{own}{}", ctl.print(&own).await.unwrap());
        let held = self.line(arguments[1]).await.into_iter().find(|claim| claim.key == own);
        (ctl, held.unwrap())
    }

    /// Who stands at this key, oldest first.
    async fn line(&self, key: &str) -> Vec<Standing> {
        let options =
            GetOptions::new().with_prefix().with_sort(SortTarget::Create, SortOrder::Ascend);
        let found = self.raw.clone().get(format!("{key}/"), Some(options)).await.unwrap();
        let standing = |kv: &etcd_client::KeyValue| Standing {
            key: kv.key_str().unwrap().to_owned(),
            revision: kv.create_revision().unsigned_abs(),
            lease: kv.lease(),
        };
        found.kvs().iter().map(standing).collect()
    }

    /// Waits until so many stand at this key.
    async fn until(&self, key: &str, count: usize) -> Vec<Standing> {
        let until = Instant::now() + PATIENCE;
        loop {
            let line = self.line(key).await;
            if line.len() == count {
                return line;
            }
            assert!(Instant::now() < until, "{count} do not stand in line: {line:?}");
            sleep(Duration::from_millis(10)).await;
        }
    }

    async fn revoke(&self, lease: i64) {
        self.raw.clone().lease_revoke(lease).await.unwrap();
    }
}

/// Ends an `etcdctl` as a terminal would: it gives back what it has.
async fn interrupt(ctl: &Example) {
    ctl.process().signal(Signal::INT).unwrap();
    assert_eq!(ctl.exit(PATIENCE).await.unwrap(), 0, "{}", ctl.said());
}

/// Whether an `etcdctl` has got what it waits for.
fn holds(ctl: &Example) -> bool {
    !ctl.printed().is_empty()
}

#[tokio::test(flavor = "multi_thread")]
async fn we_wait_for_etcdctl_and_follow_it() {
    let etcd = Etcd::start().await;
    let sync = etcd.coordinator("us").await;
    let lock = sync.lock("nightly/report");
    let key = lock.key().unwrap();
    let (ctl, held) = etcd.ctl_holds(&["lock", &key]).await;

    assert!(lock.try_acquire().await.unwrap().is_none());
    assert_eq!(etcd.line(&key).await.len(), 1, "a try leaves nothing in the line");
    let holder = lock.holder().await.unwrap().expect("a foreign holder");
    assert_eq!(holder.node, Node::new(""), "etcdctl writes no value");
    assert_eq!(holder.token.unwrap().get(), held.revision);
    assert_eq!(holder.since, None);

    let waiting = waiting_for(lock.clone());
    etcd.until(&key, 2).await;
    sleep(TTL + Duration::from_millis(500)).await;
    assert!(!waiting.is_finished());

    let released = Instant::now();
    interrupt(&ctl).await;
    let guard = waiting.await.unwrap().unwrap();
    assert!(released.elapsed() < SOON, "{:?}", released.elapsed());
    assert!(guard.token().get() > held.revision);
    assert_eq!(lock.holder().await.unwrap().unwrap().node.id, "us");
    guard.release().await.unwrap();
    assert_eq!(etcd.line(&key).await.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn etcdctl_waits_for_us_and_follows_us() {
    let etcd = Etcd::start().await;
    let sync = etcd.coordinator("us").await;
    let lock = sync.lock("a");
    let key = lock.key().unwrap();
    // In Go's package a name is blocked by those that it begins.
    let beside = sync.lock("a/b").acquire().await.unwrap();
    let guard = lock.acquire().await.unwrap();
    let ctl = etcd.ctl(&["lock", &key]);
    etcd.until(&key, 2).await;
    sleep(TTL + Duration::from_millis(500)).await;
    assert!(guard.is_valid());
    assert!(!holds(&ctl), "held past its TTL by renewal: {}", ctl.printed());

    let (token, released) = (guard.token(), Instant::now());
    guard.release().await.unwrap();
    ctl.print(&format!("{key}/")).await.unwrap();
    assert!(released.elapsed() < SOON, "{:?}", released.elapsed());
    let holder = lock.holder().await.unwrap().unwrap();
    assert!(holder.token > Some(token), "{holder:?} after {token}");
    assert!(beside.is_valid());
    interrupt(&ctl).await;
    assert!(lock.try_acquire().await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn etcdctl_follows_a_crash_of_ours_after_its_ttl() {
    let etcd = Etcd::start().await;
    let key = etcd.coordinator("us").await.lock("a").key().unwrap();
    let (package, url) = (env!("CARGO_PKG_NAME"), etcd.server.url());
    let victim = example::holder(package, "etcd-lock", &url, TTL).await.unwrap();
    let ctl = etcd.ctl(&["lock", &key]);
    etcd.until(&key, 2).await;

    let killed = Instant::now();
    victim.process().kill().unwrap();
    ctl.print(&format!("{key}/")).await.unwrap();
    let after = killed.elapsed();
    // Its last renewal was at most a third of the TTL ago.
    assert!(after >= TTL / 2 && after <= TTL + SOON, "{after:?}");
    interrupt(&ctl).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn we_follow_a_crash_of_etcdctl_after_its_ttl() {
    let etcd = Etcd::start().await;
    let sync = etcd.coordinator("us").await;
    let key = sync.lock("a").key().unwrap();
    let ttl = TTL.as_secs().to_string();
    let (ctl, held) = etcd.ctl_holds(&["lock", &key, "--ttl", &ttl]).await;
    let waiting = waiting_for(sync.lock("a"));
    etcd.until(&key, 2).await;

    let killed = Instant::now();
    ctl.process().kill().unwrap();
    let guard = waiting.await.unwrap().unwrap();
    let after = killed.elapsed();
    assert!(after >= TTL / 2 && after <= TTL + SOON, "{after:?}");
    assert!(guard.token().get() > held.revision);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_loses_his_lease_is_followed_whoever_he_is() {
    let etcd = Etcd::start().await;
    let (one, two) = (etcd.coordinator("one").await, etcd.coordinator("two").await);
    let key = one.lock("a").key().unwrap();

    // etcdctl's, while it holds.
    let (ctl, held) = etcd.ctl_holds(&["lock", &key]).await;
    let waiting = waiting_for(one.lock("a"));
    etcd.until(&key, 2).await;
    let revoked = Instant::now();
    etcd.revoke(held.lease).await;
    let guard = waiting.await.unwrap().unwrap();
    assert!(revoked.elapsed() < SOON, "{:?}", revoked.elapsed());
    assert_ne!(ctl.exit(PATIENCE).await.unwrap(), 0);
    assert!(ctl.said().contains("session expired"), "{}", ctl.said());

    // etcdctl's, while it waits before another of ours: nobody is let in by that.
    let ctl = etcd.ctl(&["lock", &key]);
    let line = etcd.until(&key, 2).await;
    let waiting = waiting_for(two.lock("a"));
    etcd.until(&key, 3).await;
    etcd.revoke(line[1].lease).await;
    sleep(Duration::from_secs(1)).await;
    assert!(!waiting.is_finished() && guard.is_valid());
    guard.release().await.unwrap();
    let guard = waiting.await.unwrap().unwrap();
    drop(ctl);

    // Ours, while we hold.
    let ctl = etcd.ctl(&["lock", &key]);
    let line = etcd.until(&key, 2).await;
    let revoked = Instant::now();
    etcd.revoke(line[0].lease).await;
    assert_eq!(guard.revoked().await.cause, Cause::Session);
    ctl.print(&format!("{key}/")).await.unwrap();
    assert!(revoked.elapsed() < SOON, "{:?}", revoked.elapsed());
    assert!(guard.release().await.is_err(), "it is no longer ours");
    interrupt(&ctl).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_of_both_is_served_in_order() {
    let etcd = Etcd::start().await;
    let (one, two) = (etcd.coordinator("one").await, etcd.coordinator("two").await);
    let three = etcd.coordinator("three").await;
    let key = one.lock("a").key().unwrap();
    let first = one.lock("a").acquire().await.unwrap();
    let second = etcd.ctl(&["lock", &key]);
    etcd.until(&key, 2).await;
    let third = waiting_for(two.lock("a"));
    etcd.until(&key, 3).await;
    let fourth = etcd.ctl(&["lock", &key]);
    etcd.until(&key, 4).await;
    let gives_up = waiting_for(three.lock("a"));
    etcd.until(&key, 5).await;
    let fifth = etcd.ctl(&["lock", &key]);
    let line = etcd.until(&key, 6).await;
    gives_up.abort();
    etcd.until(&key, 5).await;

    first.release().await.unwrap();
    let own = second.print(&format!("{key}/")).await.unwrap();
    assert_eq!(line[1].key, format!("{key}/{own}"));
    sleep(Duration::from_millis(300)).await;
    assert!(!third.is_finished() && !holds(&fourth) && !holds(&fifth));

    interrupt(&second).await;
    let third = third.await.unwrap().unwrap();
    assert_eq!(third.token().get(), line[2].revision);
    sleep(Duration::from_millis(300)).await;
    assert!(!holds(&fourth) && !holds(&fifth));

    third.release().await.unwrap();
    fourth.print(&format!("{key}/")).await.unwrap();
    sleep(Duration::from_millis(300)).await;
    assert!(!holds(&fifth));

    interrupt(&fourth).await;
    let own = fifth.print(&format!("{key}/")).await.unwrap();
    assert_eq!(line[5].key, format!("{key}/{own}"));
    interrupt(&fifth).await;
    assert_eq!(etcd.line(&key).await.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn together_they_lose_no_update() {
    let etcd = Etcd::start().await;
    let lock = etcd.coordinator("us").await.lock("a");
    let key = lock.key().unwrap();
    let start = |script: &str| etcd.ctl(&["lock", &key, "--", "sh", "-c", script]);
    lose_no_update(&lock, [40, 40], Duration::ZERO, start).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_of_etcdctls_reads_as_a_node_and_is_followed() {
    let etcd = Etcd::start().await;
    let sync = etcd.coordinator("us").await;
    let leader = sync.leader("scheduler");
    let key = leader.key().unwrap();
    let mut changes = leader.changes().unwrap();
    assert_eq!(changes.next().await, Some(None));

    let (ctl, held) = etcd.ctl_holds(&["elect", &key, "web 1"]).await;
    let seen = changes.next().await.unwrap().expect("a leader");
    assert_eq!((seen.node, seen.since), (Node::new("web 1"), None));
    assert_eq!(seen.token.unwrap().get(), held.revision);
    let read = leader.leader().await.unwrap().expect("a leader");
    assert_eq!((read.node, read.since), (Node::new("web 1"), None));
    assert!(leader.try_elect().await.unwrap().is_none());

    let campaign = tokio::spawn({
        let leader = leader.clone();
        async move { leader.elect().await.unwrap() }
    });
    etcd.until(&key, 2).await;
    sleep(Duration::from_millis(300)).await;
    assert!(!campaign.is_finished());
    let resigned = Instant::now();
    interrupt(&ctl).await;
    let elected = campaign.await.unwrap();
    assert!(resigned.elapsed() < SOON, "{:?}", resigned.elapsed());
    assert!(elected.token().get() > held.revision);
    elected.resign().await.unwrap();
    assert_eq!(etcd.line(&key).await.len(), 0);

    // One whose lease has ended.
    let (_ctl, held) = etcd.ctl_holds(&["elect", &key, "web 2"]).await;
    while changes.next().await.unwrap().is_none_or(|seen| seen.node.id != "web 2") {}
    etcd.revoke(held.lease).await;
    assert_eq!(changes.next().await, Some(None));
    let elected = leader.elect().await.unwrap();
    assert!(elected.token().get() > held.revision);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_of_ours_is_read_by_etcdctl_and_followed() {
    let etcd = Etcd::start().await;
    let sync = etcd.coordinator("us").await;
    let node = |address: &str| Node::new("web-1").address(address).metadata("zone", "b");
    let leader = sync.leader("scheduler").node(node("h:1"));
    let key = leader.key().unwrap();
    let observer = etcd.ctl(&["elect", "-l", &key]);
    let elected = leader.elect().await.unwrap();

    let ctl = etcd.ctl(&["elect", &key, "theirs"]);
    etcd.until(&key, 2).await;
    for address in ["h:1", "h:2"] {
        let seen = json(&observer, address).await;
        assert_eq!((&seen["id"], &seen["metadata"]["zone"]), (&"web-1".into(), &"b".into()));
        elected.update(node("h:2")).await.unwrap();
    }
    assert!(!holds(&ctl), "an update is no handover");

    let (token, resigned) = (elected.token(), Instant::now());
    elected.resign().await.unwrap();
    ctl.print(&format!("{key}/")).await.unwrap();
    assert!(resigned.elapsed() < SOON, "{:?}", resigned.elapsed());
    observer.print("theirs").await.unwrap();
    let holder = leader.leader().await.unwrap().expect("a leader");
    assert_eq!(holder.node.id, "theirs");
    assert!(holder.token > Some(token));
    interrupt(&ctl).await;
}

/// The JSON with this address that an observer has printed.
async fn json(observer: &Example, address: &str) -> serde_json::Value {
    let until = Instant::now() + PATIENCE;
    loop {
        let printed = observer.printed();
        let values = printed.lines().filter_map(|line| serde_json::from_str(line).ok());
        let found = values.into_iter().find(|seen: &serde_json::Value| seen["address"] == address);
        match found {
            Some(seen) => return seen,
            None => assert!(Instant::now() < until, "no {address} in {printed}"),
        }
        sleep(Duration::from_millis(10)).await;
    }
}
