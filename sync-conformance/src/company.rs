//! Some who have to do with one name, and what they go through: for a crate's tests of what may go
//! wrong between a coordinator and its store.
//!
//! What must not come about is a panic: these are for tests.

#![allow(clippy::panic, clippy::expect_used, reason = "for tests, which report by panicking")]

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sync_core::{
    Backend, Cause, Changes, Coordinator, Elected, Error, Lock, LockGuard, Node, Options,
};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::StreamExt;

use crate::cli::example::Example;
use crate::fault::{Faults, Verb};
use crate::proxy::{Flow, Proxy, Toward};
use crate::server::Server;

/// For what comes about at once, on a busy machine.
const SOON: Duration = Duration::from_secs(5);

/// For what takes as long as it takes.
const LONG: Duration = Duration::from_secs(60);

/// Somebody who holds a lock and leads, somebody who waits for that lock, and somebody who follows
/// the election of the same name.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use std::time::Duration;
///
/// use sync_conformance::company::Company;
/// use sync_core::{Namespace, memory};
///
/// let store = memory::Store::new();
/// let backend = async |_: &str, _| store.backend(&Namespace::default());
/// let company = Company::begin("a", Duration::from_secs(5), ["memory", "memory"], backend).await;
/// company.go_on().await;
/// # }
/// ```
pub struct Company {
    /// Holds the lock.
    pub guard: LockGuard,
    /// Leads.
    pub elected: Elected,
    /// Stands in line for the lock.
    pub waiting: JoinHandle<Result<LockGuard, Error>>,
    /// Follows the election.
    pub changes: Changes,
    /// Of the holder, of who waits, of who follows.
    pub coordinators: [Coordinator; 3],
    /// What all this is of.
    of: String,
}

impl Company {
    /// All have come to where they are, each on a backend of its own: the holder's is connected to
    /// the first of these URLs, the others' to the second.
    ///
    /// # Panics
    /// When somebody does not.
    pub async fn begin<B: Backend>(
        of: &str,
        ttl: Duration,
        [holds, looks]: [&str; 2],
        backend: impl AsyncFn(&str, Options) -> B,
    ) -> Self {
        let calls = Faults::new();
        let options = Options::new().ttl(ttl);
        let connect = async |url| Arc::new(backend(url, options.clone()).await);
        let plain = |backend| Coordinator::new(backend, &options).expect("options that fit");
        let holder = plain(connect(holds).await);
        let waiter = connect(looks).await;
        let waiter = calls.coordinator(waiter, &options).expect("options that fit");
        let follower = plain(connect(looks).await);
        let guard = holder.lock(of).acquire().await.expect("it is free");
        let elected = holder.leader(of).node(Node::new("one")).elect().await.expect("it is free");
        let waiting = waiting_for(waiter.lock(of));
        let mut changes = follower.leader(of).changes().expect("it can be followed");
        told(&mut changes, "one").await;
        timeout(SOON, calls.called(Verb::Wait, 1)).await.expect("it stands in line");
        let coordinators = [holder, waiter, follower];
        Self { guard, elected, waiting, changes, coordinators, of: of.to_owned() }
    }

    /// All goes on as if nothing had been, and soon.
    ///
    /// # Panics
    /// When it does not.
    pub async fn go_on(mut self) {
        assert!(self.guard.is_valid(), "{:?}", self.guard.revocation());
        assert!(self.elected.is_valid(), "{:?}", self.elected.revocation());
        self.elected.update(Node::new("two")).await.expect("it leads");
        told(&mut self.changes, "two").await;
        self.guard.release().await.expect("it holds");
        served(self.waiting, Duration::from_secs(2)).await;
        self.elected.resign().await.expect("it leads");
    }

    /// Its connections break again and again, for longer than a TTL.
    ///
    /// # Panics
    /// When that takes something away.
    pub async fn reconnect(self, proxy: &Proxy, ttl: Duration) {
        for _ in 0..4 {
            proxy.reset();
            sleep(ttl / 3).await;
        }
        self.go_on().await;
    }

    /// Who waits and who follows are cut off, by connections that break or that fall silent, and miss
    /// what is done: by the holder, and `meanwhile`.
    ///
    /// # Panics
    /// When one of them does not look at the present as soon as it can.
    pub async fn miss(mut self, proxy: &Proxy, broken: bool, meanwhile: impl Future<Output = ()>) {
        match broken {
            true => proxy.cut(),
            false => proxy.set(Toward::Client, Flow::Hold),
        }
        self.elected.update(Node::new("missed")).await.expect("it leads");
        self.elected.update(Node::new("last")).await.expect("it leads");
        self.guard.release().await.expect("it holds");
        meanwhile.await;
        sleep(Duration::from_millis(700)).await;
        assert!(!self.waiting.is_finished(), "it has heard nothing");
        let healed = Instant::now();
        match broken {
            true => proxy.heal(),
            false => proxy.let_through(),
        }
        told(&mut self.changes, "last").await;
        served(self.waiting, SOON).await;
        assert!(healed.elapsed() < Duration::from_secs(4), "{:?}", healed.elapsed());
        // Here, and not in the background: there another server may have this one's port by then, and
        // the same numbers.
        self.elected.resign().await.expect("it leads");
    }

    /// Of the two ways to the store now one and now the other falls silent or breaks, each for longer
    /// than the TTL.
    async fn change_ways(self, ways: &[Proxy; 2], silent: bool, ttl: Duration) {
        for bad in ways {
            match silent {
                true => bad.set(Toward::Client, Flow::Swallow),
                false => bad.cut(),
            }
            sleep(ttl + ttl / 2).await;
            let revoked = self.guard.revocation();
            assert!(revoked.is_none(), "silent: {silent}: {revoked:?}");
            bad.heal();
            sleep(Duration::from_millis(100)).await;
        }
        assert!(ways.iter().all(|way| way.accepted() > 0));
        self.go_on().await;
    }

    /// The server is stopped for less than the TTL.
    ///
    /// # Panics
    /// When that takes something away.
    pub async fn outlast(self, server: &Server, stop: Duration) {
        server.stop().expect("it runs");
        sleep(stop).await;
        server.resume().expect("it is stopped");
        sleep(Duration::from_secs(2)).await;
        self.go_on().await;
    }

    /// The server is stopped until the deadline has passed; `within` is how long after that it may
    /// take until who waits is served.
    ///
    /// # Panics
    /// When the loss is told too late or too early, or nobody is served.
    pub async fn lose(self, server: &Server, ttl: Duration, within: Duration) {
        server.stop().expect("it runs");
        let stopped = Instant::now();
        let revoked = timeout(ttl, self.guard.revoked()).await.expect("by its deadline");
        assert_eq!(revoked.cause, Cause::Deadline);
        assert!(stopped.elapsed() > ttl / 2, "not before it has to be: {:?}", stopped.elapsed());
        assert!(!self.elected.is_valid());
        assert!(!self.waiting.is_finished());
        server.resume().expect("it is stopped");
        served(self.waiting, within).await;
    }

    /// The holder has lost everything, and the store is back: within this time who waits is served,
    /// and within as long somebody leads.
    ///
    /// # Panics
    /// When it takes longer, or the follower is not told.
    pub async fn recover(mut self, within: Duration) {
        served(self.waiting, within).await;
        let campaign = self.coordinators[1].leader(&*self.of).node(Node::new("two"));
        let elected = timeout(within, campaign.elect()).await.expect("it is elected in time");
        told(&mut self.changes, "two").await;
        elected.expect("it is elected").resign().await.expect("it leads");
    }
}

impl fmt::Debug for Company {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Company").field("guard", &self.guard).finish_non_exhaustive()
    }
}

/// A number in a file, which several count up that have nothing else in common. Without mutual
/// exclusion some of it is lost.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let counter = sync_conformance::company::Counter::new();
/// counter.add_one().await;
/// assert_eq!(counter.value(), 1);
/// # }
/// ```
#[derive(Debug)]
pub struct Counter {
    /// Holds the file until the end.
    _dir: TempDir,
    path: PathBuf,
}

impl Counter {
    /// It stands at zero.
    ///
    /// # Panics
    /// When there is no place for a file.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "it makes a file")]
    pub fn new() -> Self {
        let dir = TempDir::new().expect("a folder");
        let counter = Self { path: dir.path().join("counter"), _dir: dir };
        counter.set(0);
        counter
    }

    /// A command for `sh` that adds one.
    #[must_use]
    pub fn script(&self) -> String {
        let at = self.path.display();
        format!("read n <{at}; sleep 0.01; echo $((n + 1)) >{at}")
    }

    /// Adds one, not at once.
    pub async fn add_one(&self) {
        let before = self.value();
        sleep(Duration::from_millis(10)).await;
        self.set(before + 1);
    }

    /// Acquires, adds one and releases, as often, with a pause after each.
    ///
    /// # Panics
    /// When a lock cannot be had, or not be given back.
    pub async fn count_up(&self, lock: &Lock, times: u64, pause: Duration) {
        for _ in 0..times {
            let guard = lock.acquire().await.expect("it is granted");
            self.add_one().await;
            guard.release().await.expect("it holds");
            sleep(pause).await;
        }
    }

    /// Where it stands.
    ///
    /// # Panics
    /// When that is no number.
    #[must_use]
    pub fn value(&self) -> u64 {
        let text = std::fs::read_to_string(&self.path).expect("a file");
        text.trim().parse().expect("a number")
    }

    fn set(&self, value: u64) {
        std::fs::write(&self.path, format!("{value}\n")).expect("a file");
    }
}

/// One company whose ways to this server fall silent and one whose ways break, at the same time: of
/// its two ways now the one and now the other, each for longer than the TTL. `begin` makes the
/// company of a name that is connected by these addresses.
///
/// # Panics
/// When the other way is not found in time.
pub async fn change_ways(
    server: &Server,
    ttl: Duration,
    begin: impl AsyncFn(&str, [SocketAddr; 2]) -> Company,
) {
    let address = *server.addresses().first().expect("it has an address");
    let way = || async { Proxy::start(address).await.expect("a port") };
    let survives = async |of, silent| {
        let ways = [way().await, way().await];
        let company = begin(of, [ways[0].address(), ways[1].address()]).await;
        company.change_ways(&ways, silent, ttl).await;
    };
    tokio::join!(survives("silent", true), survives("broken", false));
}

/// Somebody counts up `ours` times by this lock, and so do others `theirs` times by a program of the
/// store's own, two of them at a time: `start` runs a script under the same lock. Nothing of it is
/// lost.
///
/// # Panics
/// When something is, or one of them cannot have the lock.
pub async fn lose_no_update(
    lock: &Lock,
    [ours, theirs]: [u64; 2],
    pause: Duration,
    start: impl Fn(&str) -> Example,
) {
    let counter = Counter::new();
    let script = counter.script();
    let others = async {
        for _ in 0..theirs / 2 {
            for other in [start(&script), start(&script)] {
                let status = other.exit(LONG).await.expect("it ends");
                assert_eq!(status, 0, "{}", other.said());
            }
        }
    };
    tokio::join!(others, counter.count_up(lock, ours, pause));
    assert_eq!(counter.value(), ours + theirs);
}

/// Acquires in the background.
pub fn waiting_for(lock: Lock) -> JoinHandle<Result<LockGuard, Error>> {
    tokio::spawn(async move { lock.acquire().await })
}

/// Until a follower has seen this leader.
///
/// # Panics
/// When it does not soon.
pub async fn told(changes: &mut Changes, id: &str) {
    let look = async {
        loop {
            match changes.next().await {
                Some(Some(holder)) if holder.node.id == id => return,
                Some(_) => {}
                None => panic!("nothing more is told"),
            }
        }
    };
    timeout(SOON, look).await.unwrap_or_else(|_| panic!("never told of {id}"));
}

/// It is granted, within this time, and given back.
async fn served(waiting: JoinHandle<Result<LockGuard, Error>>, within: Duration) {
    let served = timeout(within, waiting).await.expect("it is served in time");
    let guard = served.expect("no panic").expect("it is granted");
    guard.release().await.expect("it holds");
}
