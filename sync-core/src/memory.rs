//! A store inside the process: the embedded default, and the reference that the suite is
//! developed against. Sessions have real TTLs, names a line in order of arrival.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), sync_core::Error> {
//! use sync_core::{Options, memory};
//!
//! let store = memory::Store::new();
//! let (a, b) = (store.connect(&Options::new())?, store.connect(&Options::new())?);
//! let guard = a.lock("x").acquire().await?;
//! assert!(b.lock("x").try_acquire().await?.is_none());
//! # drop(guard);
//! # Ok(()) }
//! ```

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::backend::{
    Attempt, Backend, Claim, Ended, Expiry, Grant, Held, Loss, Losses, Nonce, Profile, Renewal,
    Renewed, Session, Sighted, Sighting, Ticket, Updated, Version,
};
use crate::clock::{BootClock, Clock, Moment};
use crate::coordinator::Coordinator;
use crate::error::{Error, StoreError};
use crate::name::{Kind, Name, Namespace};
use crate::options::Options;
use crate::token::FencingToken;

/// What several coordinators of one process share. Cheap to clone: clones are the same store.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), sync_core::Error> {
/// use sync_core::{Options, memory::Store};
///
/// let store = Store::new();
/// let sync = store.connect(&Options::new())?;
/// let guard = sync.lock("x").acquire().await?;
/// assert_eq!(store.keys(), ["sync/lock/x"]);
/// guard.release().await?;
/// assert!(store.keys().is_empty());
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

impl Store {
    /// An empty store on the machine's clock.
    #[must_use]
    pub fn new() -> Self {
        Self::with_clock(Arc::new(BootClock::new()))
    }

    /// An empty store on this clock: its sessions expire by it.
    #[must_use]
    pub fn with_clock(clock: Arc<dyn Clock>) -> Self {
        Self {
            inner: Arc::new(Inner {
                clock,
                state: Mutex::default(),
                changed: watch::Sender::new(0),
            }),
        }
    }

    /// A coordinator on this store.
    ///
    /// # Errors
    /// As [`Coordinator::new`].
    pub fn connect(&self, options: &Options) -> Result<Coordinator, Error> {
        let namespace = options.parsed_namespace()?;
        Coordinator::new(Arc::new(self.backend(&namespace)), options)
    }

    /// The backend that speaks to this store, for those who wrap or drive it themselves.
    #[must_use]
    pub fn backend(&self, namespace: &Namespace) -> Memory {
        let all = Duration::from_millis(10)..=Duration::from_secs(24 * 3600);
        Memory {
            store: self.clone(),
            namespace: namespace.joined('/'),
            profile: Profile::new("memory", "this process", Expiry::Session).ttl(all),
        }
    }

    /// All keys of claims, held and waiting, and of void markers: what is left behind.
    #[must_use]
    pub fn keys(&self) -> Vec<String> {
        let mut state = self.inner.swept();
        let State { names, voids, .. } = &mut *state;
        let mut keys = Vec::new();
        for (key, row) in names {
            keys.extend(row.holder.iter().map(|_| key.clone()));
            keys.extend(row.line.iter().map(|_| format!("{key}:line")));
        }
        keys.extend(voids.iter().map(|_| "void".to_owned()));
        keys
    }

    /// What an operator may do: removes the holder's key, if there is one.
    pub fn remove_key(&self, key: &str) -> bool {
        let mut state = self.inner.swept();
        let removed = state.names.get_mut(key).and_then(|row| row.holder.take());
        if let Some(Holding { seat, .. }) = &removed
            && let Some(session) = state.sessions.get(&seat.session)
        {
            session.tell(Loss::Claim(seat.nonce));
        }
        drop(state);
        self.inner.touch();
        removed.is_some()
    }

    /// What an operator may do: ends the session that holds the key, if there is one.
    pub fn end_session_of(&self, key: &str) -> bool {
        let mut state = self.inner.swept();
        let holder = state.names.get(key).and_then(|row| row.holder.as_ref());
        let Some(id) = holder.map(|holding| holding.seat.session.clone()) else {
            return false;
        };
        state.end(&id);
        drop(state);
        self.inner.touch();
        true
    }
}

impl Default for Store {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").finish_non_exhaustive()
    }
}

struct Inner {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    /// Counts changes, for those who wait for one.
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    sessions: BTreeMap<Arc<str>, Lease>,
    names: BTreeMap<String, Row>,
    voids: BTreeSet<(Arc<str>, Nonce)>,
    opened: u64,
    /// Numbers all grants, so that tokens grow although names without holder are forgotten.
    count: u64,
}

struct Lease {
    ttl: Duration,
    expires: Moment,
    losses: Option<mpsc::UnboundedSender<Loss>>,
}

impl Lease {
    fn tell(&self, loss: Loss) {
        if let Some(losses) = &self.losses {
            // Nobody listens any more: the coordinator has gone.
            let _ = losses.send(loss);
        }
    }
}

/// One name that is held or waited for.
#[derive(Default)]
struct Row {
    holder: Option<Holding>,
    line: VecDeque<Seat>,
}

struct Holding {
    seat: Seat,
    token: u64,
    /// Differs for each record.
    version: u64,
}

impl Row {
    fn held_by(&self, nonce: Nonce) -> Option<&Holding> {
        self.holder.as_ref().filter(|holding| holding.seat.nonce == nonce)
    }

    /// Whether an attempt under this nonce would hold.
    fn is_for(&self, nonce: Nonce) -> bool {
        self.held_by(nonce).is_some() || self.is_next(nonce)
    }

    fn is_next(&self, nonce: Nonce) -> bool {
        self.holder.is_none() && self.line.front().is_none_or(|first| first.nonce == nonce)
    }
}

#[derive(Clone)]
struct Seat {
    session: Arc<str>,
    nonce: Nonce,
    record: Arc<[u8]>,
}

impl State {
    fn end(&mut self, id: &Arc<str>) -> bool {
        let Some(lease) = self.sessions.remove(id) else {
            return false;
        };
        lease.tell(Loss::Session);
        self.names.retain(|_, row| {
            row.holder.take_if(|holding| holding.seat.session == *id);
            row.line.retain(|seat| seat.session != *id);
            row.holder.is_some() || !row.line.is_empty()
        });
        self.voids.retain(|(session, _)| session != id);
        true
    }

    fn next_expiry(&self) -> Option<Moment> {
        self.sessions.values().map(|lease| lease.expires).min()
    }
}

impl Inner {
    /// The state as of now: what has expired is gone.
    fn swept(&self) -> std::sync::MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.clock.now();
        let dead: Vec<_> = state
            .sessions
            .iter()
            .filter(|(_, lease)| lease.expires <= now)
            .map(|(id, _)| Arc::clone(id))
            .collect();
        for id in &dead {
            state.end(id);
        }
        if !dead.is_empty() {
            self.touch();
        }
        state
    }

    fn touch(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    /// Resolves once `look` finds something, looking again at each change and each expiry.
    async fn until<T>(&self, look: impl Fn(&State) -> Option<T> + Send) -> T {
        let mut changed = self.changed.subscribe();
        loop {
            changed.mark_unchanged();
            let expiry = {
                let state = self.swept();
                if let Some(found) = look(&state) {
                    return found;
                }
                state.next_expiry()
            };
            let expired = async {
                match expiry {
                    Some(at) => self.clock.sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                // The sender lives in `self`.
                _ = changed.changed() => {}
                () = expired => {}
            }
        }
    }
}

/// The [`Backend`] of a [`Store`].
///
/// ```
/// use sync_core::backend::Backend;
/// use sync_core::{Kind, Name, Namespace, memory};
///
/// let backend = memory::Store::new().backend(&Namespace::default());
/// assert_eq!(backend.key(Kind::Lock, &Name::parse("a/b")?), "sync/lock/a=2Fb");
/// # Ok::<(), sync_core::InvalidName>(())
/// ```
#[derive(Debug)]
pub struct Memory {
    store: Store,
    namespace: String,
    profile: Profile,
}

impl Memory {
    fn inner(&self) -> &Inner {
        &self.store.inner
    }
}

#[async_trait]
impl Backend for Memory {
    fn profile(&self) -> &Profile {
        &self.profile
    }

    fn key(&self, kind: Kind, name: &Name) -> String {
        format!("{}/{kind}/{}", self.namespace, name.encoded())
    }

    async fn open(&self, ttl: Duration) -> Result<Session, StoreError> {
        let mut state = self.inner().swept();
        state.opened += 1;
        let id: Arc<str> = format!("session-{}", state.opened).into();
        let expires = self.inner().clock.now() + ttl;
        state.sessions.insert(Arc::clone(&id), Lease { ttl, expires, losses: None });
        Ok(Session::new(id, ttl))
    }

    async fn close(&self, session: &Session) -> Result<(), StoreError> {
        self.inner().swept().end(&session.id);
        self.inner().touch();
        Ok(())
    }

    async fn renew(&self, session: &Session, held: &[Held]) -> Result<Renewal, StoreError> {
        let now = self.inner().clock.now();
        let mut state = self.inner().swept();
        let State { sessions, names, .. } = &mut *state;
        let Some(lease) = sessions.get_mut(&session.id) else {
            return Ok(Renewal::Ended);
        };
        lease.expires = now + lease.ttl;
        let claims = held
            .iter()
            .map(|Held { claim, .. }| {
                let row = names.get(&self.key(claim.kind, &claim.name));
                let ours = row.is_some_and(|row| row.held_by(claim.nonce).is_some());
                (claim.nonce, if ours { Renewed::Extended(lease.ttl) } else { Renewed::Lost })
            })
            .collect();
        Ok(Renewal::Alive { ttl: lease.ttl, claims })
    }

    async fn try_claim(
        &self,
        session: &Session,
        claim: &Claim,
        _ticket: Option<&Ticket>,
        _unanswered: bool,
    ) -> Result<Attempt, StoreError> {
        let mut state = self.inner().swept();
        if !state.sessions.contains_key(&session.id) {
            return Ok(Attempt::SessionEnded);
        }
        if state.voids.contains(&(Arc::clone(&session.id), claim.nonce)) {
            return Ok(Attempt::Anew);
        }
        let State { names, count, .. } = &mut *state;
        let key = self.key(claim.kind, &claim.name);
        let free_or_taken = names.get(&key);
        if !claim.queue && free_or_taken.is_some_and(|row| !row.is_for(claim.nonce)) {
            return Ok(Attempt::Blocked(Ticket::default()));
        }
        let row = names.entry(key).or_default();
        let seat = Seat {
            session: Arc::clone(&session.id),
            nonce: claim.nonce,
            record: Arc::clone(&claim.record),
        };
        if row.is_next(claim.nonce) {
            row.line.pop_front();
            *count += 1;
            row.holder = Some(Holding { seat, token: *count, version: *count });
        } else if row.held_by(claim.nonce).is_none()
            && row.line.iter().all(|seat| seat.nonce != claim.nonce)
        {
            row.line.push_back(seat);
        }
        let Some(holding) = row.held_by(claim.nonce) else {
            return Ok(Attempt::Blocked(Ticket::default()));
        };
        let grant = Grant {
            token: FencingToken::new(holding.token),
            version: version(holding.version),
            ttl: None,
        };
        drop(state);
        self.inner().touch();
        Ok(Attempt::Held(grant))
    }

    async fn wait(&self, session: &Session, claim: &Claim, _ticket: &Ticket) {
        let key = self.key(claim.kind, &claim.name);
        let worth_it = |state: &State| {
            let row = state.names.get(&key);
            let alive = state.sessions.contains_key(&session.id);
            (!alive || row.is_none_or(|row| row.is_next(claim.nonce))).then_some(())
        };
        self.inner().until(worth_it).await;
    }

    async fn update(
        &self,
        _session: &Session,
        claim: &Claim,
        grant: &Grant,
    ) -> Result<Updated, StoreError> {
        let mut state = self.inner().swept();
        let State { names, count, .. } = &mut *state;
        let row = names.get_mut(&self.key(claim.kind, &claim.name));
        let holding = row.and_then(|row| row.holder.as_mut());
        let Some(holding) = holding.filter(|holding| holding.seat.nonce == claim.nonce) else {
            return Ok(Updated::NotOurs);
        };
        if holding.seat.record != claim.record {
            if version(holding.version) != grant.version {
                return Ok(Updated::Stale(version(holding.version)));
            }
            holding.seat.record = Arc::clone(&claim.record);
            *count += 1;
            holding.version = *count;
        }
        let now = version(holding.version);
        drop(state);
        self.inner().touch();
        Ok(Updated::Done(now))
    }

    async fn end(
        &self,
        session: &Session,
        claim: &Claim,
        _grant: Option<&Grant>,
        unanswered: bool,
    ) -> Result<Ended, StoreError> {
        let mut state = self.inner().swept();
        if unanswered && state.sessions.contains_key(&session.id) {
            state.voids.insert((Arc::clone(&session.id), claim.nonce));
        }
        let mut found = false;
        if let Entry::Occupied(mut entry) = state.names.entry(self.key(claim.kind, &claim.name)) {
            let row = entry.get_mut();
            let queued = row.line.len();
            row.line.retain(|seat| seat.nonce != claim.nonce);
            let left = row.line.len() < queued;
            let held = row.holder.take_if(|holding| holding.seat.nonce == claim.nonce);
            found = left || held.is_some();
            if row.holder.is_none() && row.line.is_empty() {
                entry.remove();
            }
        }
        drop(state);
        self.inner().touch();
        Ok(if found { Ended::Released } else { Ended::NotOurs })
    }

    fn losses(&self, session: &Session) -> Losses {
        let (losses, told) = mpsc::unbounded_channel();
        match self.inner().swept().sessions.get_mut(&session.id) {
            Some(lease) => lease.losses = Some(losses),
            None => drop(losses.send(Loss::Session)),
        }
        Box::pin(UnboundedReceiverStream::new(told))
    }

    async fn holder(&self, kind: Kind, name: &Name) -> Result<Sighting, StoreError> {
        Ok(sighting(&self.inner().swept(), &self.key(kind, name)))
    }

    async fn watch(&self, kind: Kind, name: &Name, seen: &Version) -> Result<Sighting, StoreError> {
        let key = self.key(kind, name);
        let differs = |state: &State| Some(sighting(state, &key)).filter(|s| s.version != *seen);
        Ok(self.inner().until(differs).await)
    }
}

fn version(count: u64) -> Version {
    Version::new(count.to_be_bytes())
}

fn sighting(state: &State, key: &str) -> Sighting {
    let holding = state.names.get(key).and_then(|row| row.holder.as_ref());
    Sighting {
        version: version(holding.map_or(0, |holding| holding.version)),
        holder: holding.map(|holding| Sighted {
            record: holding.seat.record.to_vec(),
            token: Some(FencingToken::new(holding.token)),
        }),
    }
}
