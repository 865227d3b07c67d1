//! The face of an election.

use std::fmt;
use std::future::Future;
use std::ops::Deref;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;
use tokio_util::sync::CancellationToken;

use crate::carried::Carried;
use crate::claim::Claimed;
use crate::error::Error;
use crate::handle::Wanting;
use crate::lock::{finish, until_revoked};
use crate::name::Kind;
use crate::node::{self, Holder, Node};
use crate::revocation::{Cause, Hold};

/// A handle on one election. Cheap to clone; nothing is sent before it is used.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), sync_core::Error> {
/// # let sync = sync_core::memory::Store::new().connect(&Default::default())?;
/// use sync_core::{LeaderStatus, Node};
///
/// let scheduler = sync.leader("scheduler").node(Node::new("web-1"));
/// let elected = scheduler.elect().await?;
/// assert_eq!(scheduler.status(), LeaderStatus::Elected);
/// assert_eq!(scheduler.leader().await?.unwrap().node.id, "web-1");
/// elected.resign().await
/// # }
/// ```
#[derive(Clone)]
pub struct Leader {
    wanting: Wanting,
    part: Arc<Part>,
}

/// The part that a handle and its clones have in the election.
#[derive(Debug, Default)]
struct Part {
    campaigns: AtomicUsize,
    elected: Mutex<Vec<Hold>>,
}

/// What part this node has in an election.
///
/// ```
/// assert_ne!(sync_core::LeaderStatus::Follower, sync_core::LeaderStatus::Candidate);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LeaderStatus {
    /// It does not take part.
    Follower,
    /// It campaigns.
    Candidate,
    /// It leads.
    Elected,
}

impl Leader {
    pub(crate) fn new(wanting: Wanting) -> Self {
        Self { wanting, part: Arc::default() }
    }

    /// How long a dead leader blocks others, instead of the coordinator's TTL.
    #[must_use]
    pub fn ttl(self, ttl: Duration) -> Self {
        Self { wanting: self.wanting.ttl(ttl), ..self }
    }

    /// How long to campaign, instead of the coordinator's wait. Zero tries once.
    #[must_use]
    pub fn wait(self, wait: Duration) -> Self {
        Self { wanting: self.wanting.wait(wait), ..self }
    }

    /// Who the candidate is, instead of the coordinator's node.
    #[must_use]
    pub fn node(self, node: Node) -> Self {
        Self { wanting: self.wanting.node(node), ..self }
    }

    /// Gives this handle and its clones a session of their own, so that they do not share the fate
    /// of the coordinator's other claims. Costs renewals of its own.
    #[must_use]
    pub fn dedicated_session(self) -> Self {
        Self { wanting: self.wanting.dedicated_session(), ..self }
    }

    /// The election's name.
    #[must_use]
    pub fn id(&self) -> &str {
        self.wanting.id()
    }

    /// The key under which the leader stands in the store, for other tools.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) when the name cannot be one.
    pub fn key(&self) -> Result<String, Error> {
        self.wanting.key()
    }

    /// Campaigns until this node leads, in the order in which candidates came, for as long as the
    /// wait allows.
    ///
    /// # Errors
    /// As [`Lock::acquire`](crate::Lock::acquire).
    ///
    /// # Cancel safety
    /// As [`Lock::acquire`](crate::Lock::acquire): dropping the future withdraws the candidate.
    pub async fn elect(&self) -> Result<Elected, Error> {
        let _campaign = self.campaign();
        Ok(self.elected(self.wanting.claim().await?))
    }

    /// Takes the leadership if nobody has it.
    ///
    /// # Errors
    /// As [`Lock::try_acquire`](crate::Lock::try_acquire).
    ///
    /// # Cancel safety
    /// As [`elect`](Leader::elect).
    pub async fn try_elect(&self) -> Result<Option<Elected>, Error> {
        let _campaign = self.campaign();
        Ok(self.wanting.try_claim().await?.map(|claimed| self.elected(claimed)))
    }

    /// Who leads now, as the store tells it. What is read may be over by the time it is used:
    /// decide nothing by it.
    ///
    /// # Errors
    /// As [`Lock::holder`](crate::Lock::holder).
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn leader(&self) -> Result<Option<Holder>, Error> {
        self.wanting.holder().await
    }

    /// What part this handle and its clones have in the election. Nothing is sent.
    #[must_use]
    pub fn status(&self) -> LeaderStatus {
        let mut elected = self.part.elected.lock().unwrap_or_else(PoisonError::into_inner);
        elected.retain(Hold::is_valid);
        if !elected.is_empty() {
            LeaderStatus::Elected
        } else if self.part.campaigns.load(Ordering::Acquire) > 0 {
            LeaderStatus::Candidate
        } else {
            LeaderStatus::Follower
        }
    }

    /// Who leads, now and after each change. See [`Changes`].
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) when the name cannot be one.
    pub fn changes(&self) -> Result<Changes, Error> {
        let name = self.wanting.name("watch")?;
        Ok(Changes { states: self.wanting.inner.sightings.follow(Kind::Leader, &name) })
    }

    /// Runs `body` while this node leads: campaigns, runs it, and stops it (drops its future) when
    /// the leadership is lost, to campaign again. Ends when a body ends by itself; the leadership
    /// is resigned only after that.
    ///
    /// # Errors
    /// As [`elect`](Leader::elect), a [`Timeout`](crate::ErrorKind::Timeout) of the wait included.
    ///
    /// # Cancel safety
    /// Dropping the future drops the body first and resigns then, in the background.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), sync_core::Error> {
    /// # let sync = sync_core::memory::Store::new().connect(&Default::default())?;
    /// let term = sync.leader("scheduler").run(|hold| async move { hold.token() }).await?;
    /// # assert_eq!(term.get(), 1);
    /// # Ok(()) }
    /// ```
    pub async fn run<T, F, Fut>(&self, body: F) -> Result<T, Error>
    where
        F: FnMut(Hold) -> Fut,
        Fut: Future<Output = T>,
    {
        match self.run_until(std::future::pending(), body).await? {
            Some(output) => Ok(output),
            None => Err(self.wanting.closed()),
        }
    }

    /// As [`run`](Leader::run), until `stop` resolves: the body is dropped then, the leadership
    /// resigned, and the result is `None`.
    ///
    /// # Errors
    /// As [`run`](Leader::run).
    ///
    /// # Cancel safety
    /// As [`run`](Leader::run).
    pub async fn run_until<T, F, Fut>(
        &self,
        stop: impl Future<Output = ()>,
        mut body: F,
    ) -> Result<Option<T>, Error>
    where
        F: FnMut(Hold) -> Fut,
        Fut: Future<Output = T>,
    {
        let mut stop = pin!(stop);
        loop {
            let elected = tokio::select! {
                biased;
                () = &mut stop => return Ok(None),
                elected = self.elect() => elected?,
            };
            let work = until_revoked(&elected.claimed, body(elected.hold()));
            let outcome = tokio::select! {
                biased;
                () = &mut stop => None,
                outcome = work => Some(outcome),
            };
            match outcome {
                None => {
                    finish(elected.claimed, "resign").await;
                    return Ok(None);
                }
                Some(Some(output)) => {
                    finish(elected.claimed, "resign").await;
                    return Ok(Some(output));
                }
                Some(None) => {
                    let lost = elected.revoked().await;
                    if lost.cause == Cause::Closed {
                        return Err(elected.claimed.into_lost(&self.wanting.what("go on as")));
                    }
                    tracing::warn!(name = self.id(), %lost, "no longer leader; campaigning again");
                }
            }
        }
    }

    fn campaign(&self) -> Campaign<'_> {
        self.part.campaigns.fetch_add(1, Ordering::AcqRel);
        Campaign(&self.part)
    }

    fn elected(&self, claimed: Claimed) -> Elected {
        let mut elected = self.part.elected.lock().unwrap_or_else(PoisonError::into_inner);
        elected.retain(Hold::is_valid);
        elected.push(claimed.entry.hold.clone());
        Elected { claimed }
    }
}

impl fmt::Debug for Leader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leader")
            .field("id", &self.id())
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}

/// Counts a campaign for as long as it lasts.
struct Campaign<'a>(&'a Part);

impl Drop for Campaign<'_> {
    fn drop(&mut self) {
        self.0.campaigns.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A leadership: see [`Hold`] for what can be asked of it, [`revoked`](Hold::revoked) first of all.
///
/// Dropping it resigns in the background and never blocks; [`resign`](Elected::resign) is the
/// checked way. Where the runtime ends before that is done, the TTL frees the name:
/// [`shutdown`](crate::Coordinator::shutdown) before `main` returns. [`Leader::run`] does all of it,
/// and campaigns again after a loss: what most services want.
///
/// ```no_run
/// # async fn serve() -> Result<(), sync_core::Error> { Ok(()) }
/// # async fn example(sync: sync_core::Coordinator) -> Result<(), sync_core::Error> {
/// let elected = sync.leader("scheduler").elect().await?;
/// tokio::select! {
///     lost = elected.revoked() => tracing::warn!(%lost, "no longer leader"),
///     done = serve() => {
///         done?;
///         elected.resign().await?;
///     }
/// }
/// # Ok(()) }
/// ```
#[must_use = "the leadership is resigned when it is dropped"]
pub struct Elected {
    claimed: Claimed,
}

impl Elected {
    /// A view that can be cloned and outlives the leadership.
    #[must_use]
    pub fn hold(&self) -> Hold {
        self.claimed.entry.hold.clone()
    }

    /// Changes what others read of the leader, without a new token.
    ///
    /// # Errors
    /// [`Lost`](crate::ErrorKind::Lost) when this node does not lead any more;
    /// [`Invalid`](crate::ErrorKind::Invalid) when the record would be too long;
    /// [`Unknown`](crate::ErrorKind::Unknown) when the store has not answered within the release timeout:
    /// others may read either.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop it.
    pub async fn update(&self, node: Node) -> Result<(), Error> {
        let entry = Arc::clone(&self.claimed.entry);
        let shared = Arc::clone(&entry.session.shared);
        let since = entry.since();
        let change = entry.update(move |nonce, change| node::encode(&node, since, &nonce, change));
        Carried::new(shared.runtime.clone(), CancellationToken::new(), change).await
    }

    /// Hands over now, and waits for the store to say so. Errors and cancel safety are those of
    /// [`LockGuard::release`](crate::LockGuard::release).
    ///
    /// # Errors
    /// As [`LockGuard::release`](crate::LockGuard::release).
    ///
    /// # Cancel safety
    /// Dropping the future does not stop it.
    pub async fn resign(self) -> Result<(), Error> {
        self.claimed.release("resign").await
    }
}

impl fmt::Debug for Elected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Elected").field(&**self).finish()
    }
}

impl Deref for Elected {
    type Target = Hold;

    fn deref(&self) -> &Hold {
        &self.claimed.entry.hold
    }
}

/// Who leads, now and after each change: a [`Stream`] that goes on through reconnects. States that
/// pass while nobody reads are left out, the last never is. It ends when the coordinator is shut
/// down, and what that changes is not among them: not even that a leadership of its own is over.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), sync_core::Error> {
/// # let sync = sync_core::memory::Store::new().connect(&Default::default())?;
/// use tokio_stream::StreamExt;
///
/// let mut changes = sync.leader("scheduler").changes()?;
/// assert_eq!(changes.next().await, Some(None));
/// let elected = sync.leader("scheduler").elect().await?;
/// let leader = changes.next().await.flatten().unwrap();
/// assert_eq!(leader.token, Some(elected.token()));
/// # Ok(()) }
/// ```
#[must_use = "streams do nothing unless polled"]
pub struct Changes {
    states: crate::sightings::States,
}

impl Stream for Changes {
    type Item = Option<Holder>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.states.as_mut().poll_next(context)
    }
}

impl fmt::Debug for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Changes").finish_non_exhaustive()
    }
}
