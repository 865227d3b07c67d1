//! What cases of several promises share: names that are wanted, and futures polled by hand.

use std::future::{Future, poll_fn};
use std::ops::Deref;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use sync_core::{
    Coordinator, Elected, Error, Hold, Holder, Kind, Leader, Lock, LockGuard, SeededRng,
};
use tokio::task::JoinHandle;

/// Longer than a few round trips take on a busy machine, and shorter than what time alone needs to
/// remove anything from any store.
pub(crate) const SOON: Duration = Duration::from_secs(2);

/// What is promised of locks is promised of elections.
pub(crate) const BOTH: [Kind; 2] = [Kind::Lock, Kind::Leader];

/// A lock or an election that is wanted.
#[derive(Debug, Clone)]
pub(crate) enum Want {
    Lock(Lock),
    Leader(Leader),
}

impl Want {
    pub(crate) fn new(sync: &Coordinator, kind: Kind, name: &str) -> Self {
        match kind {
            Kind::Lock => Self::Lock(sync.lock(name)),
            Kind::Leader => Self::Leader(sync.leader(name)),
        }
    }

    pub(crate) fn wait(self, wait: Duration) -> Self {
        match self {
            Self::Lock(lock) => Self::Lock(lock.wait(wait)),
            Self::Leader(leader) => Self::Leader(leader.wait(wait)),
        }
    }

    pub(crate) fn ttl(self, ttl: Duration) -> Self {
        match self {
            Self::Lock(lock) => Self::Lock(lock.ttl(ttl)),
            Self::Leader(leader) => Self::Leader(leader.ttl(ttl)),
        }
    }

    pub(crate) fn dedicated_session(self) -> Self {
        match self {
            Self::Lock(lock) => Self::Lock(lock.dedicated_session()),
            Self::Leader(leader) => Self::Leader(leader.dedicated_session()),
        }
    }

    pub(crate) async fn take(&self) -> Result<Taken, Error> {
        match self {
            Self::Lock(lock) => lock.acquire().await.map(Taken::Lock),
            Self::Leader(leader) => leader.elect().await.map(Taken::Leader),
        }
    }

    pub(crate) async fn try_take(&self) -> Result<Option<Taken>, Error> {
        match self {
            Self::Lock(lock) => Ok(lock.try_acquire().await?.map(Taken::Lock)),
            Self::Leader(leader) => Ok(leader.try_elect().await?.map(Taken::Leader)),
        }
    }

    pub(crate) async fn holder(&self) -> Result<Option<Holder>, Error> {
        match self {
            Self::Lock(lock) => lock.holder().await,
            Self::Leader(leader) => leader.leader().await,
        }
    }

    pub(crate) fn key(&self) -> Result<String, Error> {
        match self {
            Self::Lock(lock) => lock.key(),
            Self::Leader(leader) => leader.key(),
        }
    }

    /// [`Want::take`] in a task.
    pub(crate) fn taking(&self) -> Taking {
        let want = self.clone();
        tokio::spawn(async move { want.take().await })
    }
}

/// A task that takes one.
pub(crate) type Taking = JoinHandle<Result<Taken, Error>>;

/// A lock or a leadership that is held.
#[derive(Debug)]
pub(crate) enum Taken {
    Lock(LockGuard),
    Leader(Elected),
}

impl Taken {
    pub(crate) async fn give_back(self) -> Result<(), Error> {
        match self {
            Self::Lock(guard) => guard.release().await,
            Self::Leader(elected) => elected.resign().await,
        }
    }
}

impl Deref for Taken {
    type Target = Hold;

    fn deref(&self) -> &Hold {
        match self {
            Self::Lock(guard) => guard,
            Self::Leader(elected) => elected,
        }
    }
}

/// Polls `future` at most so often, each time it asks for it: its output, or what is left of it.
pub(crate) async fn polled<F: Future>(times: usize, future: F) -> Result<F::Output, Pin<Box<F>>> {
    let mut future = Box::pin(future);
    let mut polls = 0;
    let output = poll_fn(|context| {
        if polls == times {
            return Poll::Ready(None);
        }
        polls += 1;
        match future.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if polls == times => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await;
    output.ok_or(future)
}

/// A number below `end`, from a seed.
pub(crate) fn below(rng: &SeededRng, end: usize) -> usize {
    use sync_core::Rng;
    let mut bytes = [0; 8];
    // A seeded sequence never fails.
    let _ = rng.fill(&mut bytes);
    usize::try_from(u64::from_le_bytes(bytes) % end as u64).unwrap_or(0)
}
