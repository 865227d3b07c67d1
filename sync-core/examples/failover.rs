//! Three nodes campaign. The leader is cut off from the store and stops in time, another takes
//! over, and what the old leader still tries to write is refused.
//!
//! The store is in memory and the clock is held by hand: the output is the same each time.

use std::fmt::{Display, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sync_core::memory::Store;
use sync_core::{
    Clock, Coordinator, Environment, Error, Event, Fence, FencingToken, HeldClock, Moment,
    Namespace, Node, Observer, Options, SeededRng, What,
};
use tokio::sync::Notify;

#[path = "failover/link.rs"]
mod link;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    print!("{}", story().await?);
    Ok(())
}

/// What every node runs: it campaigns, works while it leads, and stops when it no longer may.
async fn serve(process: Process, sync: Coordinator) -> Result<(), Error> {
    process.says("campaigns");
    let elected = sync.leader("scheduler").elect().await?;
    let (token, until) = (elected.token(), process.world.time(elected.deadline()));
    process.says(format!("leads with token {token}, safe until {until}"));
    process.writes(token);

    tokio::select! {
        biased;
        lost = elected.revoked() => process.says(format!("stops: {lost}")),
        () = process.retire.notified() => {
            process.says("resigns");
            elected.resign().await?;
        }
    }
    Ok(())
}

/// What happens to the three of them.
pub(crate) async fn story() -> Result<String, Error> {
    let world = World::new();
    let alpha = Process::start("alpha", 1, &world)?;
    world.pass_until(1).await;
    let beta = Process::start("beta", 2, &world)?;
    world.pass_until(2).await;
    Process::start("gamma", 3, &world)?;

    world.pass_until(7).await;
    alpha.says("is cut off: the store does not answer it any more");
    alpha.cut.store(true, Ordering::Relaxed);

    world.pass_until(22).await;
    alpha.writes(FencingToken::new(1));

    world.pass_until(23).await;
    beta.retire.notify_one();
    world.pass_until(24).await;
    Ok(world.timeline.lock().unwrap_or_else(PoisonError::into_inner).clone())
}

/// What the nodes share.
#[derive(Debug, Clone)]
struct World {
    clock: Arc<HeldClock>,
    began: Moment,
    store: Store,
    /// What stands in front of the database that the leader writes to.
    fence: Arc<Fence>,
    timeline: Arc<Mutex<String>>,
}

impl World {
    fn new() -> Self {
        let clock = Arc::new(HeldClock::new());
        let store = Store::with_clock(clock.clone());
        let (began, fence, timeline) = (clock.now(), Arc::default(), Arc::default());
        Self { clock, began, store, fence, timeline }
    }

    /// Lets time pass until `second`, in steps after each of which everybody does what is due.
    async fn pass_until(&self, second: u64) {
        let end = self.began + Duration::from_secs(second);
        loop {
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            if self.clock.now() >= end {
                return;
            }
            self.clock.advance(Duration::from_millis(10));
        }
    }

    fn time(&self, at: Moment) -> String {
        format!("{:.2} s", at.since(self.began).as_secs_f64())
    }
}

/// One node.
#[derive(Debug, Clone)]
struct Process {
    id: &'static str,
    world: World,
    cut: Arc<AtomicBool>,
    retire: Arc<Notify>,
}

impl Process {
    fn start(id: &'static str, seed: u64, world: &World) -> Result<Self, Error> {
        let (world, cut, retire) = (world.clone(), Arc::default(), Arc::default());
        let process = Self { id, world, cut, retire };
        let environment = Environment::default()
            .clock(process.world.clock.clone())
            .rng(Arc::new(SeededRng::new(seed)))
            .observer(Arc::new(process.clone()));
        let options = Options::new().node(Node::new(id)).environment(environment);
        let store = process.world.store.backend(&Namespace::default());
        let link = link::Link { store, cut: Arc::clone(&process.cut) };
        let sync = Coordinator::new(Arc::new(link), &options)?;
        tokio::spawn(serve(process.clone(), sync));
        Ok(process)
    }

    fn says(&self, what: impl Display) {
        let now = self.world.time(self.world.clock.now());
        let mut timeline = self.world.timeline.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = writeln!(timeline, "{now:>8}  {:<5}  {what}", self.id);
    }

    fn writes(&self, token: FencingToken) {
        match self.world.fence.admit(token) {
            Ok(()) => self.says(format!("writes with token {token}")),
            Err(stale) => self.says(format!("is refused a write: {stale}")),
        }
    }
}

impl Observer for Process {
    fn observe(&self, event: &Event) {
        if let What::Extended { deadline } = event.what {
            self.says(format!("has renewed, safe until {}", self.world.time(deadline)));
        }
    }
}
