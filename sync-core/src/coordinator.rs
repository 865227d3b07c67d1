//! Makes locks and elections on one store.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::backend::{Backend, Profile};
use crate::carried::within;
use crate::clock::Moment;
use crate::error::{Error, ErrorKind, StoreError};
use crate::handle::Wanting;
use crate::leader::Leader;
use crate::lease::Margin;
use crate::lock::Lock;
use crate::mutant;
use crate::name::{Kind, shown};
use crate::node::Node;
use crate::options::{Environment, Options};
use crate::queue::LocalQueue;
use crate::revocation::Cause;
use crate::session::LiveSession;
use crate::sightings::Sightings;

/// Makes locks and elections on one store. Cheap to clone; all clones share one session per TTL.
///
/// Dropping the last clone does not revoke live guards: the session stays until the last handle
/// and guard of it is gone. [`shutdown`](Coordinator::shutdown) ends everything at once.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), sync_core::Error> {
/// use sync_core::{Options, memory};
///
/// let sync = memory::Store::new().connect(&Options::new())?;
/// let guard = sync.lock("nightly-report").acquire().await?;
/// assert!(guard.is_valid());
/// guard.release().await?;
/// sync.shutdown().await
/// # }
/// ```
#[derive(Clone)]
pub struct Coordinator {
    inner: Arc<Inner>,
}

impl Coordinator {
    /// A coordinator on `backend`. Nothing is sent. Each store's crate has a `connect` that does
    /// this and speaks to the store first.
    ///
    /// Must be called inside a tokio runtime with time enabled; background work runs on it.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when the options cannot be used with this store, with both values;
    /// [`ErrorKind::Unsupported`] outside a runtime.
    pub fn new(backend: Arc<dyn Backend>, options: &Options) -> Result<Self, Error> {
        let profile = backend.profile().clone();
        options.check(&profile)?;
        let runtime = Handle::try_current().map_err(|_| {
            let what = format!("use {} at {}", profile.store, profile.endpoint);
            Error::new(ErrorKind::Unsupported, what, "there is no tokio runtime here")
                .advise("call it from inside one, such as #[tokio::main]")
        })?;
        let mut options = options.clone();
        if options.node.is_none() {
            options.node = Some(Node::new(default_id(&options.environment)?));
        }
        let margin = options.margin(&profile);
        let shared = Arc::new(Shared {
            backend,
            environment: options.environment.clone(),
            profile,
            options,
            margin,
            runtime,
            closing: CancellationToken::new(),
        });
        let canary = shared.runtime.spawn(std::future::pending());
        Ok(Self {
            inner: Arc::new(Inner {
                sightings: Sightings::new(Arc::clone(&shared)),
                shared,
                queue: Arc::new(LocalQueue::default()),
                usual: Arc::default(),
                others: Mutex::default(),
                opened: Mutex::new(Vec::new()),
                opening: tokio::sync::RwLock::new(()),
                canary,
            }),
        })
    }

    /// A handle on the lock of this name. Nothing is sent, and nothing checked, before it is used.
    #[must_use]
    pub fn lock(&self, name: impl Into<String>) -> Lock {
        Lock::new(Wanting::new(Arc::clone(&self.inner), Kind::Lock, name.into()))
    }

    /// A handle on the election of this name. Nothing is sent, and nothing checked, before it is
    /// used.
    #[must_use]
    pub fn leader(&self, name: impl Into<String>) -> Leader {
        Leader::new(Wanting::new(Arc::clone(&self.inner), Kind::Leader, name.into()))
    }

    /// Ends everything: who waits gets an error of kind [`Closed`](ErrorKind::Closed), what is
    /// held is revoked with [`Cause::Closed`] and released, and the sessions are closed. What a
    /// [`run`](Lock::run) holds is released once its body, which the revocation stops, has ended.
    /// Whatever is asked of the store afterwards, who holds a name included, is `Closed` too, and
    /// streams of changes end.
    ///
    /// # Errors
    /// [`ErrorKind::Unknown`] when the store has not confirmed all of it within the release
    /// timeout. It goes on in the background; what cannot be done ends with its TTL.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop it. Calling it again waits for the same.
    pub async fn shutdown(&self) -> Result<(), Error> {
        let Inner { shared, opening, .. } = &*self.inner;
        if !mutant::on(mutant::CLOSED_NOT_TOLD) {
            shared.closing.cancel();
        }
        self.inner.shut_sessions();
        let all_closed = async {
            // One that is being opened now is closed like the others.
            let _nothing_opens = opening.write().await;
            let mut outcome = Ok(());
            for session in self.inner.shut_sessions() {
                let closed = session.closed().await.map_err(|error| error.to_string());
                outcome = outcome.and(closed);
            }
            outcome
        };
        let limit = shared.options.release_timeout;
        let why = match shared.within(limit, all_closed).await {
            Some(Ok(())) => return Ok(()),
            Some(Err(why)) => why,
            None => format!("not all was confirmed within {limit:?}"),
        };
        let what = format!("shut down on {}", shared.place());
        Err(Error::new(ErrorKind::Unknown, what, why).advise(
            "what is left ends when the store lets it run out; a body of `run` that still runs \
             holds its lock",
        ))
    }
}

impl fmt::Debug for Coordinator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Profile { store, endpoint, .. } = &self.inner.shared.profile;
        f.debug_struct("Coordinator")
            .field("store", store)
            .field("endpoint", endpoint)
            .finish_non_exhaustive()
    }
}

/// What the coordinator, its handles and its guards keep alive.
pub(crate) struct Inner {
    pub(crate) shared: Arc<Shared>,
    pub(crate) queue: Arc<LocalQueue>,
    pub(crate) sightings: Sightings,
    /// The place of the session with the coordinator's own TTL.
    usual: Arc<SessionSlot>,
    /// Those of other TTLs, each for as long as a handle uses it.
    others: Mutex<BTreeMap<Duration, Weak<SessionSlot>>>,
    /// Every session that was opened and may not be closed yet.
    opened: Mutex<Vec<Weak<LiveSession>>>,
    /// Shared by those who open a session.
    opening: tokio::sync::RwLock<()>,
    /// A task that does nothing but end with the runtime.
    canary: JoinHandle<()>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.canary.abort();
    }
}

impl Inner {
    /// The place of the session that all handles with this TTL share.
    pub(crate) fn slot(&self, ttl: Duration) -> Arc<SessionSlot> {
        if ttl == self.shared.options.ttl {
            return Arc::clone(&self.usual);
        }
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        others.retain(|_, slot| slot.strong_count() > 0);
        if let Some(slot) = others.get(&ttl).and_then(Weak::upgrade) {
            return slot;
        }
        let slot = Arc::default();
        others.insert(ttl, Arc::downgrade(&slot));
        slot
    }

    /// Whether the runtime that everything in the background runs on is still there.
    pub(crate) fn is_driven(&self) -> bool {
        !self.canary.is_finished()
    }

    /// Ends everything on the sessions that are open, and has them closed once nothing is left.
    fn shut_sessions(&self) -> Vec<Arc<LiveSession>> {
        let sessions: Vec<_> = {
            let opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
            opened.iter().filter_map(Weak::upgrade).collect()
        };
        for entry in sessions.iter().flat_map(|session| session.shut()) {
            if entry.held().is_some() {
                entry.lost(Cause::Closed);
            }
        }
        sessions
    }

    fn note_opened(&self, session: &Arc<LiveSession>) {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        opened.retain(|session| session.strong_count() > 0);
        opened.push(Arc::downgrade(session));
    }
}

/// The place of a session that is opened when it is needed, and anew when it has ended.
#[derive(Debug, Default)]
pub(crate) struct SessionSlot {
    current: Mutex<Option<Arc<LiveSession>>>,
    opening: tokio::sync::Mutex<()>,
}

impl SessionSlot {
    /// A session on which something may be granted now.
    pub(crate) async fn usable(
        &self,
        inner: &Inner,
        ttl: Duration,
    ) -> Result<Arc<LiveSession>, StoreError> {
        loop {
            let session = match self.serving(ttl) {
                Some(session) => session,
                None => self.open(inner, ttl).await?,
            };
            if session.fresh().await {
                return Ok(session);
            }
        }
    }

    async fn open(&self, inner: &Inner, ttl: Duration) -> Result<Arc<LiveSession>, StoreError> {
        let _opening = self.opening.lock().await;
        if let Some(session) = self.serving(ttl) {
            return Ok(session);
        }
        let _not_while_shutting_down = inner.opening.read().await;
        if inner.shared.closing.is_cancelled() {
            return Err(StoreError::unsent("the coordinator is being shut down"));
        }
        let session = LiveSession::open(&inner.shared, ttl).await?;
        inner.note_opened(&session);
        let before = self.current().replace(Arc::clone(&session));
        if let Some(before) = before {
            before.retire();
        }
        Ok(session)
    }

    fn serving(&self, ttl: Duration) -> Option<Arc<LiveSession>> {
        self.current().as_ref().filter(|session| session.serves(ttl)).cloned()
    }

    fn current(&self) -> std::sync::MutexGuard<'_, Option<Arc<LiveSession>>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for SessionSlot {
    fn drop(&mut self) {
        if let Some(session) = self.current().take() {
            session.retire();
        }
    }
}

/// What everything of one coordinator needs, background tasks included.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) profile: Profile,
    pub(crate) options: Options,
    pub(crate) environment: Environment,
    pub(crate) margin: Margin,
    pub(crate) runtime: Handle,
    pub(crate) closing: CancellationToken,
}

impl Shared {
    pub(crate) fn now(&self) -> Moment {
        self.environment.clock.now()
    }

    /// One request, bounded by `limit` and by the request timeout: past that it is unanswered.
    pub(crate) async fn request<T>(
        &self,
        limit: Duration,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let limit = limit.min(self.options.request_timeout);
        match self.within(limit, call).await {
            Some(answer) => answer,
            None => Err(StoreError::unknown(format!("no answer within {limit:?}"))),
        }
    }

    pub(crate) async fn within<T>(
        &self,
        limit: Duration,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        within(&*self.environment.clock, limit, work).await
    }

    /// What the store says of a TTL, as far as it is to be believed: to count less is always safe.
    pub(crate) fn believable(&self, ttl: Duration) -> Duration {
        ttl.min(self.profile.longest_ttl)
    }

    /// What an error says was being done.
    pub(crate) fn subject(&self, verb: &str, kind: Kind, name: &str) -> String {
        format!("{verb} {kind} {:?} on {}", shown(name), self.place())
    }

    /// Which store, and where.
    pub(crate) fn place(&self) -> String {
        format!("{} at {}", self.profile.store, self.profile.endpoint)
    }
}

/// `host-pid-random`
fn default_id(environment: &Environment) -> Result<String, Error> {
    #[cfg(unix)]
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    #[cfg(not(unix))]
    let host = std::env::var("COMPUTERNAME").unwrap_or_else(|_| "host".to_owned());
    let random = environment.nonce()?.to_hex();
    Ok(format!("{host}-{}-{}", std::process::id(), &random[..8]))
}
