//! Stores that break one promise each, around the one in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use sync_conformance::{Failed, Server, Store, Tamper};
use sync_core::backend::{
    Attempt, Claim, Ended, Grant, Held, Losses, Nonce, Profile, Renewal, Renewed, Session,
    Sighting, Ticket, Updated, Version,
};
use sync_core::{Backend, Error, FencingToken, Kind, Name, Namespace, Options, StoreError, memory};

use crate::memory::Memory;

macro_rules! defects {
    ($($defect:ident = $name:literal, $what:literal;)*) => {
        /// What is wrong with a store.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Defect { $($defect),* }

        impl Defect {
            pub(crate) const ALL: &[Self] = &[$(Self::$defect),*];

            pub(crate) const fn name(self) -> &'static str {
                match self { $(Self::$defect => $name),* }
            }

            pub(crate) const fn what(self) -> &'static str {
                match self { $(Self::$defect => $what),* }
            }
        }
    };
}

defects! {
    NoExclusion = "no-exclusion", "everybody who asks for a name holds it";
    TokenRepeats = "token-repeats", "every other grant has the token of the one before";
    NewToken = "new-token", "a repeated attempt is a new grant, under a new token";
    EndsAnothers = "ends-anothers", "a release deletes the key, whoever holds it";
    NeverRenews = "never-renews", "a renewal says extended, and asks nobody";
    HidesLosses = "hides-losses", "no loss is told, and a renewal says extended of what is gone";
    NeverExpires = "never-expires", "the TTL is ignored: what the dead held is never free";
    ExpiresEarly = "expires-early", "a session ends after half of its TTL";
    ClosesNothing = "closes-nothing", "a closed session keeps what was held on it";
    KeepsPlace = "keeps-place", "whoever leaves the line keeps its place in it";
    AlwaysQueues = "always-queues", "a try that does not wait leaves a place in line";
    NewestFirst = "newest-first", "the newest in line is served first";
    NeverWakes = "never-wakes", "nobody who waits is woken";
    VoidIgnored = "void-ignored", "nothing keeps an abandoned attempt from coming true later";
    UpdatesBlindly = "updates-blindly", "a changed record is not compared with what stands there";
    StaleHolder = "stale-holder", "who holds a name is what was read of it first";
    NeverChanges = "never-changes", "no change of the holder is told";
    NamesCollide = "names-collide", "`a/b` is `a`";
    KindsCollide = "kinds-collide", "a lock and an election of one name are one";
    NamespacesCollide = "namespaces-collide", "all namespaces are one";
    SeesNothingLeft = "sees-nothing-left", "the suite is told that nothing is ever left behind";
    TampersNot = "tampers-not", "what the suite removes from outside stays there";
}

/// The store in memory with something wrong with it, or with nothing.
pub(crate) struct Broken {
    inner: Memory,
    defect: Option<Defect>,
    notes: Arc<Mutex<Notes>>,
}

/// What a broken store needs to remember.
#[derive(Debug, Default)]
struct Notes {
    granted: BTreeSet<Nonce>,
    first_seen: BTreeMap<String, Sighting>,
    lines: BTreeMap<String, Vec<Nonce>>,
}

impl Broken {
    pub(crate) fn new(defect: Option<Defect>) -> Self {
        Self { inner: Memory(memory::Store::new()), defect, notes: Arc::default() }
    }

    fn has(&self, defect: Defect) -> bool {
        self.defect == Some(defect)
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Store for Broken {
    fn name(&self) -> &str {
        self.inner.name()
    }

    async fn start(&self) -> Result<Server, Failed> {
        self.inner.start().await
    }

    async fn connect(&self, _: &str, options: &Options) -> Result<Arc<dyn Backend>, Error> {
        let mut namespace = options.parsed_namespace()?;
        if self.has(Defect::NamespacesCollide) {
            namespace = Namespace::default();
        }
        let store = self.inner.0.clone();
        let inner = store.backend(&namespace);
        Ok(match self.defect {
            None => Arc::new(inner),
            Some(defect) => {
                Arc::new(BrokenBackend { inner, store, defect, notes: Arc::clone(&self.notes) })
            }
        })
    }

    async fn leftovers(&self, url: &str, namespace: &str) -> Result<Vec<String>, Failed> {
        if self.has(Defect::SeesNothingLeft) {
            return Ok(Vec::new());
        }
        self.inner.leftovers(url, namespace).await
    }

    async fn version(&self, url: &str) -> Result<String, Failed> {
        self.inner.version(url).await
    }

    async fn prepare(&self, url: &str) -> Result<(), Failed> {
        self.inner.prepare(url).await
    }

    async fn leader(&self, url: &str) -> Result<usize, Failed> {
        self.inner.leader(url).await
    }

    fn tampers(&self) -> &[Tamper] {
        self.inner.tampers()
    }

    async fn tamper(&self, url: &str, key: &str, how: Tamper) -> Result<(), Failed> {
        if self.has(Defect::TampersNot) {
            return Ok(());
        }
        self.inner.tamper(url, key, how).await
    }

    fn ttl(&self) -> Duration {
        self.inner.ttl()
    }

    fn kept(&self, ttl: Duration) -> Duration {
        self.inner.kept(ttl)
    }
}

struct BrokenBackend {
    inner: memory::Memory,
    store: memory::Store,
    defect: Defect,
    notes: Arc<Mutex<Notes>>,
}

impl BrokenBackend {
    fn has(&self, defect: Defect) -> bool {
        self.defect == defect
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What this store takes a kind and a name for.
    fn taken_for(&self, kind: Kind, name: &Name) -> (Kind, Name) {
        let outer = name.as_str().split('/').next().and_then(|outer| Name::parse(outer).ok());
        match (self.defect, outer) {
            (Defect::KindsCollide, _) => (Kind::Lock, name.clone()),
            (Defect::NamesCollide, Some(outer)) => (kind, outer),
            _ => (kind, name.clone()),
        }
    }

    /// The claim that this store makes of one.
    fn made_of(&self, claim: &Claim) -> Claim {
        let (kind, mut name) = self.taken_for(claim.kind, &claim.name);
        if self.has(Defect::NoExclusion) {
            // A name of its own for each who asks.
            name = Name::parse(&claim.nonce.to_hex()).unwrap_or(name);
        }
        let queue = match self.defect {
            Defect::AlwaysQueues => true,
            Defect::NewestFirst => false,
            _ => claim.queue,
        };
        Claim::new(kind, name, claim.nonce, Arc::clone(&claim.record), queue)
    }

    fn token(&self, token: FencingToken) -> FencingToken {
        let halved = FencingToken::new(token.get() / 2);
        if self.has(Defect::TokenRepeats) { halved } else { token }
    }

    fn seen(&self, mut sighting: Sighting) -> Sighting {
        if let Some(holder) = &mut sighting.holder {
            holder.token = holder.token.map(|token| self.token(token));
        }
        sighting
    }

    /// Whether nobody stands behind this claim in line.
    fn is_newest(&self, claim: &Claim) -> bool {
        let key = self.key(claim.kind, &claim.name);
        self.notes().lines.get(&key).is_none_or(|line| line.last() == Some(&claim.nonce))
    }

    fn stand_in_line(&self, claim: &Claim) {
        let key = self.key(claim.kind, &claim.name);
        let mut notes = self.notes();
        let line = notes.lines.entry(key).or_default();
        if !line.contains(&claim.nonce) {
            line.push(claim.nonce);
        }
    }

    fn leave_line(&self, claim: &Claim) {
        let key = self.key(claim.kind, &claim.name);
        let mut notes = self.notes();
        if let Some(line) = notes.lines.get_mut(&key) {
            line.retain(|nonce| *nonce != claim.nonce);
            if line.is_empty() {
                notes.lines.remove(&key);
            }
        }
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Backend for BrokenBackend {
    fn profile(&self) -> &Profile {
        self.inner.profile()
    }

    fn key(&self, kind: Kind, name: &Name) -> String {
        let (kind, name) = self.taken_for(kind, name);
        self.inner.key(kind, &name)
    }

    async fn open(&self, ttl: Duration) -> Result<Session, StoreError> {
        let kept = match self.defect {
            Defect::NeverExpires => Duration::from_secs(24 * 3600),
            Defect::ExpiresEarly => ttl / 2,
            _ => ttl,
        };
        Ok(Session::new(self.inner.open(kept).await?.id, ttl))
    }

    async fn close(&self, session: &Session) -> Result<(), StoreError> {
        if self.has(Defect::ClosesNothing) {
            return Ok(());
        }
        self.inner.close(session).await
    }

    async fn renew(&self, session: &Session, held: &[Held]) -> Result<Renewal, StoreError> {
        let ttl = session.ttl;
        let claims = held.iter().map(|h| (h.claim.nonce, Renewed::Extended(ttl))).collect();
        if self.has(Defect::NeverRenews) {
            return Ok(Renewal::Alive { ttl, claims });
        }
        let made_of = |h: &Held| Held { claim: Arc::new(self.made_of(&h.claim)), ..h.clone() };
        let held: Vec<Held> = held.iter().map(made_of).collect();
        Ok(match self.inner.renew(session, &held).await? {
            _ if self.has(Defect::HidesLosses) => Renewal::Alive { ttl, claims },
            Renewal::Alive { claims, .. } => Renewal::Alive { ttl, claims },
            Renewal::Ended => Renewal::Ended,
        })
    }

    async fn try_claim(
        &self,
        session: &Session,
        claim: &Claim,
        ticket: Option<&Ticket>,
        unanswered: bool,
    ) -> Result<Attempt, StoreError> {
        if self.has(Defect::NewestFirst) && claim.queue {
            self.stand_in_line(claim);
            if !self.is_newest(claim) {
                return Ok(Attempt::Blocked(Ticket::default()));
            }
        }
        let claim = self.made_of(claim);
        let mut attempt = self.inner.try_claim(session, &claim, ticket, unanswered).await?;
        let Attempt::Held(grant) = &mut attempt else { return Ok(attempt) };
        grant.token = self.token(grant.token);
        self.leave_line(&claim);
        let first = self.notes().granted.insert(claim.nonce);
        if self.has(Defect::NewToken) && !first {
            self.inner.end(session, &claim, None, false).await?;
            return self.inner.try_claim(session, &claim, None, false).await;
        }
        Ok(attempt)
    }

    async fn wait(&self, session: &Session, claim: &Claim, ticket: &Ticket) {
        match self.defect {
            Defect::NeverWakes => pending().await,
            Defect::NewestFirst => loop {
                tokio::time::sleep(Duration::from_millis(5)).await;
                let sighting = self.inner.holder(claim.kind, &claim.name).await;
                if self.is_newest(claim) && sighting.is_ok_and(|seen| seen.holder.is_none()) {
                    return;
                }
            },
            _ => self.inner.wait(session, &self.made_of(claim), ticket).await,
        }
    }

    async fn update(
        &self,
        session: &Session,
        claim: &Claim,
        grant: &Grant,
    ) -> Result<Updated, StoreError> {
        let (claim, mut grant) = (self.made_of(claim), grant.clone());
        if self.has(Defect::UpdatesBlindly) {
            grant.version = self.inner.holder(claim.kind, &claim.name).await?.version;
        }
        self.inner.update(session, &claim, &grant).await
    }

    async fn end(
        &self,
        session: &Session,
        claim: &Claim,
        grant: Option<&Grant>,
        unanswered: bool,
    ) -> Result<Ended, StoreError> {
        if self.has(Defect::KeepsPlace) && grant.is_none() && !unanswered {
            return Ok(Ended::Released);
        }
        let unanswered = unanswered && !self.has(Defect::VoidIgnored);
        self.leave_line(claim);
        let ended = self.inner.end(session, &self.made_of(claim), grant, unanswered).await?;
        if self.has(Defect::EndsAnothers) && grant.is_some() {
            self.store.remove_key(&self.key(claim.kind, &claim.name));
        }
        Ok(ended)
    }

    fn losses(&self, session: &Session) -> Losses {
        match self.defect {
            Defect::NeverRenews | Defect::HidesLosses | Defect::ExpiresEarly => {
                Box::pin(tokio_stream::pending())
            }
            _ => self.inner.losses(session),
        }
    }

    async fn holder(&self, kind: Kind, name: &Name) -> Result<Sighting, StoreError> {
        let key = self.key(kind, name);
        let (kind, name) = self.taken_for(kind, name);
        let now = self.seen(self.inner.holder(kind, &name).await?);
        if self.has(Defect::StaleHolder) {
            return Ok(self.notes().first_seen.entry(key).or_insert(now).clone());
        }
        Ok(now)
    }

    async fn watch(&self, kind: Kind, name: &Name, seen: &Version) -> Result<Sighting, StoreError> {
        if matches!(self.defect, Defect::StaleHolder | Defect::NeverChanges) {
            pending::<()>().await;
        }
        let (kind, name) = self.taken_for(kind, name);
        Ok(self.seen(self.inner.watch(kind, &name, seen).await?))
    }
}

impl fmt::Debug for BrokenBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BrokenBackend").field("defect", &self.defect).finish_non_exhaustive()
    }
}
