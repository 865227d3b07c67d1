//! Watching what is held: for backends that spend a task, and a watch in the store, on each claim.
//!
//! Most claims are given back before either would have been worth it. So a watch begins only after
//! a while, and until then one task sees to all of them.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::runtime::Handle;
use tokio::task::AbortHandle;

use crate::backend::Nonce;
use crate::clock::{Clock, Moment};

/// The watches of one session's claims. They end when this is dropped.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use std::sync::Arc;
/// use std::time::Duration;
/// use sync_core::backend::Nonce;
/// use sync_core::watches::Watches;
/// use sync_core::{BootClock, Clock};
///
/// let (watches, nonce) = (Watches::new(), Nonce::from_bytes([7; 16]));
/// let clock: Arc<dyn Clock> = Arc::new(BootClock::new());
/// let (due, runtime) = (clock.now() + Duration::from_millis(20), tokio::runtime::Handle::current());
/// watches.begin(&runtime, &clock, due, nonce, || async {
///     // … watch its key, and tell of its loss …
/// });
/// watches.over(nonce); // given back: the watch was not even begun
/// # }
/// ```
#[derive(Default)]
pub struct Watches(Arc<Mutex<State>>);

type Watch = Pin<Box<dyn Future<Output = ()> + Send>>;
type Start = Box<dyn FnOnce() -> Watch + Send>;

#[derive(Default)]
struct State {
    /// Held so shortly that nobody watches it yet; from when on somebody should.
    fresh: BTreeMap<Nonce, (Moment, Start)>,
    watching: BTreeMap<Nonce, AbortHandle>,
    /// Sees to those that are fresh.
    usher: Option<AbortHandle>,
}

impl Watches {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Watches a claim from `due` on, instead of what watched it before. `watch` is called then, on
    /// `runtime`: whoever acquires may be on one that ends sooner.
    pub fn begin<W>(
        &self,
        runtime: &Handle,
        clock: &Arc<dyn Clock>,
        due: Moment,
        nonce: Nonce,
        watch: impl FnOnce() -> W + Send + 'static,
    ) where
        W: Future<Output = ()> + Send + 'static,
    {
        let mut state = lock(&self.0);
        state.end(nonce);
        state.fresh.insert(nonce, (due, Box::new(|| Box::pin(watch()))));
        if state.usher.as_ref().is_none_or(AbortHandle::is_finished) {
            let usher = usher(Arc::downgrade(&self.0), Arc::clone(clock), due);
            state.usher = Some(runtime.spawn(usher).abort_handle());
        }
    }

    /// The claim is given back: nobody needs to watch it.
    pub fn over(&self, nonce: Nonce) {
        lock(&self.0).end(nonce);
    }

    /// Nothing is watched any more.
    pub fn end(&self) {
        let state = std::mem::take(&mut *lock(&self.0));
        for task in state.watching.into_values().chain(state.usher) {
            task.abort();
        }
    }
}

impl Drop for Watches {
    fn drop(&mut self) {
        self.end();
    }
}

impl fmt::Debug for Watches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = lock(&self.0);
        let (fresh, watching) = (state.fresh.len(), state.watching.len());
        f.debug_struct("Watches").field("fresh", &fresh).field("watching", &watching).finish()
    }
}

impl State {
    fn end(&mut self, nonce: Nonce) {
        self.fresh.remove(&nonce);
        if let Some(watch) = self.watching.remove(&nonce) {
            watch.abort();
        }
    }

    /// Begins what is due, on the runtime that this is called on; when to look again.
    fn look(&mut self, now: Moment) -> Option<Moment> {
        for (nonce, (due, watch)) in std::mem::take(&mut self.fresh) {
            if due > now {
                self.fresh.insert(nonce, (due, watch));
            } else {
                self.watching.insert(nonce, tokio::spawn(watch()).abort_handle());
            }
        }
        let next = self.fresh.values().map(|(due, _)| *due).min();
        if next.is_none() {
            self.usher = None;
        }
        next
    }
}

/// A later claim may be due earlier, if its backend asks for that; it is then begun with the next.
async fn usher(state: Weak<Mutex<State>>, clock: Arc<dyn Clock>, first: Moment) {
    let mut next = Some(first);
    while let Some(due) = next {
        clock.sleep_until(due).await;
        let Some(state) = state.upgrade() else { return };
        next = lock(&state).look(clock.now());
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};

    use super::*;
    use crate::clock::HeldClock;

    struct World {
        held: Arc<HeldClock>,
        clock: Arc<dyn Clock>,
        watches: Watches,
        begun: UnboundedSender<(u8, mpsc::Sender<()>)>,
        seen: UnboundedReceiver<(u8, mpsc::Sender<()>)>,
    }

    impl World {
        fn new() -> Self {
            let held = Arc::new(HeldClock::new());
            let (begun, seen) = mpsc::unbounded_channel();
            Self { clock: held.clone(), held, watches: Watches::new(), begun, seen }
        }

        /// Watches in so many seconds; the task says that it runs, and then waits for ever.
        fn begin(&self, number: u8, seconds: u64) {
            let (begun, due) =
                (self.begun.clone(), self.clock.now() + Duration::from_secs(seconds));
            self.watches.begin(
                &Handle::current(),
                &self.clock,
                due,
                nonce(number),
                move || async move {
                    let (alive, mut never) = mpsc::channel(1);
                    begun.send((number, alive)).unwrap();
                    never.recv().await;
                },
            );
        }

        async fn pass(&self, seconds: u64) {
            tokio::task::yield_now().await;
            self.held.advance(Duration::from_secs(seconds));
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
        }
    }

    fn nonce(number: u8) -> Nonce {
        Nonce::from_bytes([number; 16])
    }

    #[tokio::test]
    async fn what_is_held_for_a_while_is_watched_until_it_is_given_back() {
        let mut world = World::new();
        world.begin(1, 2);
        world.pass(1).await;
        world.begin(2, 2);
        world.begin(3, 2);
        world.watches.over(nonce(3));
        assert!(world.seen.try_recv().is_err());
        world.pass(1).await;
        let (number, first) = world.seen.try_recv().unwrap();
        assert!(number == 1 && !first.is_closed() && world.seen.try_recv().is_err());
        world.pass(1).await;
        let (number, second) = world.seen.try_recv().unwrap();
        assert!(number == 2 && world.seen.try_recv().is_err());
        world.watches.over(nonce(1));
        world.pass(9).await;
        assert!(first.is_closed() && !second.is_closed());

        // The usher, who had left, is back.
        world.begin(4, 1);
        world.pass(1).await;
        assert_eq!(world.seen.try_recv().unwrap().0, 4);
        // Held again: another watch instead.
        world.begin(2, 1);
        world.pass(1).await;
        assert!(second.is_closed() && world.seen.try_recv().unwrap().0 == 2);
    }

    #[tokio::test]
    async fn all_watches_end_with_their_session() {
        let mut world = World::new();
        world.begin(1, 1);
        world.pass(1).await;
        let (_, watched) = world.seen.try_recv().unwrap();
        world.begin(2, 1);
        world.watches = Watches::new();
        world.pass(1).await;
        assert!(watched.is_closed() && world.seen.try_recv().is_err());
    }
}
