//! The protocol: which transactions there are, and what their answers mean.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{
    Compare, CompareOp, GetOptions, KeyValue, LeaseGrantOptions, Txn, TxnOp, TxnResponse,
};
use sync_core::backend::{
    Attempt, Backend, Claim, Ended, Grant, Held, Losses, Profile, Renewal, Session, Sighted,
    Sighting, Ticket, Updated, Version,
};
use sync_core::{Environment, ErrorKind, Kind, LONGEST_RECORD, Name, StoreError, record_nonce};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::dial::{Connector, ask, look};
use crate::error::Failure;
use crate::guard::{SHORT, Watched, watch};
use crate::keys::{Keys, Line, read_lease};
use crate::line::{SCAN, Strangers, found, has_deleted, oldest};
use crate::mutant;
use crate::place::{Note, Place, created, not_asked_for, revision, token, version_of};
use crate::session::Lease;
use crate::watcher::{Range, Watcher};

/// The longest pause of one that cannot see whether its turn has come.
const UNSEEN: Duration = Duration::from_millis(250);

/// An etcd cluster as a [`Backend`]. Made by [`Config::backend`](crate::Config::backend); most
/// programs want [`Config::connect`](crate::Config::connect) instead.
///
/// ```no_run
/// # async fn example() -> Result<(), sync_etcd::Error> {
/// use std::sync::Arc;
/// use sync_etcd::{Config, Coordinator, Options};
///
/// let backend = Config::new("http://127.0.0.1:2379").backend().await?;
/// let sync = Coordinator::new(Arc::new(backend), &Options::new())?;
/// # Ok(()) }
/// ```
pub struct Etcd {
    profile: Profile,
    keys: Keys,
    pub(crate) environment: Environment,
    connector: Arc<Connector>,
    pub(crate) watcher: Arc<Watcher>,
    /// The open sessions.
    leases: Mutex<BTreeMap<Arc<str>, Arc<Lease>>>,
    pub(crate) strangers: Strangers,
}

impl Etcd {
    pub(crate) fn new(
        profile: Profile,
        keys: Keys,
        environment: Environment,
        connector: Arc<Connector>,
    ) -> Self {
        let watcher = Arc::new(Watcher::new(Arc::clone(&connector)));
        let (leases, strangers) = Default::default();
        Self { profile, keys, environment, connector, watcher, leases, strangers }
    }

    fn place<'a>(&'a self, lease: &'a Arc<Lease>, claim: &'a Claim) -> Place<'a> {
        self.place_in(self.keys.line(claim.kind, &claim.name), lease, claim)
    }

    fn place_in<'a>(&'a self, line: Line, lease: &'a Arc<Lease>, claim: &'a Claim) -> Place<'a> {
        let slot = lease.slots().of(claim.nonce);
        let key = line.place(lease.id, slot.nonce);
        Place { claim, lease, line, slot, key, keys: &self.keys }
    }

    /// `txn` is made again if it has to be sent again.
    pub(crate) async fn commit(&self, txn: impl Fn() -> Txn) -> Result<TxnResponse, Failure> {
        let link = self.connector.link().await.map_err(Failure::Unsent)?;
        ask(&link, || {
            let (mut kv, txn) = (link.connection.kv(), txn());
            async move { kv.txn(txn).await }
        })
        .await
    }

    /// Watches the key of a claim that is held.
    fn guard(&self, place: &Place<'_>, grant: &Grant) {
        let watched = Watched {
            lease: Arc::downgrade(place.lease),
            key: place.key.clone(),
            nonce: place.claim.nonce,
            token: grant.token,
        };
        let (watcher, environment) = (Arc::clone(&self.watcher), self.environment.clone());
        let clock = &self.environment.clock;
        let (due, nonce) = (clock.now() + SHORT, place.claim.nonce);
        place.lease.watches.begin(&self.watcher.runtime, clock, due, nonce, || {
            watch(watched, watcher, environment)
        });
    }

    fn lease(&self, session: &Session) -> Option<Arc<Lease>> {
        self.leases().get(&session.id).cloned()
    }

    fn leases(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, Arc<Lease>>> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who is the first claim in a line. Read by whoever may go away, or not.
    async fn first(&self, line: &Line, may_go: bool) -> Result<Sighting, StoreError> {
        let link = self.connector.link().await?;
        let read = async |key: &[u8], options: GetOptions| {
            let request = || {
                let (mut kv, options, key) = (link.connection.kv(), options.clone(), key.to_vec());
                async move { kv.get(key, Some(options)).await }
            };
            let answer = match may_go {
                true => look(&link, request).await,
                false => ask(&link, request).await.map_err(Failure::into_store),
            };
            answer.map(|mut answer| answer.take_kvs())
        };
        let prefix = line.prefix().as_bytes();
        let found = read(prefix, oldest(1)).await?;
        let Some(first) = found.first() else { return Ok(Sighting::default()) };
        if line.is_claim(first) {
            return Ok(sighting(first));
        }
        let found = read(prefix, oldest(SCAN).with_keys_only()).await?;
        let Some(first) = self.strangers.pass(line, &found, SCAN)? else {
            return Ok(Sighting::default());
        };
        let created = first.create_revision();
        match read(first.key(), GetOptions::new()).await?.first() {
            Some(first) if line.is_claim(first) && first.create_revision() == created => {
                Ok(sighting(first))
            }
            // It has gone meanwhile, and so has this answer.
            _ => Err(StoreError::refused(ErrorKind::Unreachable, "the holder changed meanwhile")),
        }
    }
}

#[async_trait]
impl Backend for Etcd {
    fn profile(&self) -> &Profile {
        &self.profile
    }

    fn key(&self, kind: Kind, name: &Name) -> String {
        self.keys.name(kind, name)
    }

    async fn open(&self, ttl: Duration) -> Result<Session, StoreError> {
        // An id that an earlier attempt cannot bring back.
        let random = self
            .environment
            .nonce()
            .map_err(|error| StoreError::refused(ErrorKind::Unsupported, error.to_string()))?;
        let id = i64::from_str_radix(&random.to_hex()[..15], 16).unwrap_or(0).max(1);
        let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
        let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
        let link = self.connector.link().await?;
        let granted = ask(&link, || {
            let mut leases = link.connection.lease();
            async move { leases.grant(seconds, Some(LeaseGrantOptions::new().with_id(id))).await }
        });
        let granted = granted.await.map_err(Failure::into_store)?;
        let ttl = mutant::ttl(u64::try_from(granted.ttl()).unwrap_or(0), 0);
        if granted.id() != id || ttl == 0 {
            return Err(not_asked_for());
        }
        let ttl = Duration::from_secs(ttl);
        let session = Session::new(format!("{id:x}"), ttl);
        self.leases().insert(Arc::clone(&session.id), Arc::new(Lease::new(id, ttl)));
        Ok(session)
    }

    async fn close(&self, session: &Session) -> Result<(), StoreError> {
        if let Some(lease) = self.leases().remove(&session.id) {
            lease.end();
        }
        let id = read_lease(&session.id).filter(|_| !mutant::on(mutant::CLOSES_NOTHING));
        let Some(id) = id else { return Ok(()) };
        let link = self.connector.link().await?;
        let revoked = ask(&link, || {
            let mut leases = link.connection.lease();
            async move { leases.revoke(id).await }
        });
        match revoked.await {
            Err(failure) if !failure.is_lease_gone() => return Err(failure.into_store()),
            _ => {}
        }
        if self.leases().is_empty() {
            self.watcher.rest();
            self.connector.disconnect();
        }
        Ok(())
    }

    async fn renew(&self, session: &Session, _held: &[Held]) -> Result<Renewal, StoreError> {
        match self.lease(session) {
            Some(lease) => lease.renew(&self.connector).await,
            None => Ok(Renewal::Ended),
        }
    }

    async fn try_claim(
        &self,
        session: &Session,
        claim: &Claim,
        ticket: Option<&Ticket>,
        unanswered: bool,
    ) -> Result<Attempt, StoreError> {
        let Some(lease) = self.lease(session) else { return Ok(Attempt::SessionEnded) };
        let fresh = ticket.is_none() && !unanswered;
        let line = self.keys.line(claim.kind, &claim.name);
        lease.slots().begin(line.prefix(), claim.nonce, fresh);
        let place = self.place_in(line, &lease, claim);
        let attempt = match ticket.and_then(|ticket| Note::read(&ticket.place)) {
            Some(note) => self.look_around(&place, note.created, 1).await?,
            None => {
                let tried = match claim.queue || mutant::on(mutant::ALWAYS_QUEUES) {
                    true => self.join(&place).await,
                    false => self.take(&place).await,
                };
                if tried.as_ref().is_err_and(|error| error.settled() && !unanswered) {
                    lease.slots().over(claim.nonce);
                }
                tried?
            }
        };
        match &attempt {
            Attempt::Held(_) if mutant::on(mutant::UNGUARDED) => {}
            Attempt::Held(grant) => self.guard(&place, grant),
            // It has left nothing behind, and nothing else of it is under way.
            Attempt::Blocked(_) if !claim.queue && !unanswered => {
                lease.slots().free(place.line.prefix(), claim.nonce, place.slot.after);
            }
            Attempt::Anew | Attempt::SessionEnded => lease.slots().over(claim.nonce),
            Attempt::Blocked(_) => {}
        }
        Ok(attempt)
    }

    async fn wait(&self, session: &Session, claim: &Claim, ticket: &Ticket) {
        let Some(lease) = self.lease(session) else { return };
        let Some(note) = Note::read(&ticket.place) else { return };
        let place = self.place(&lease, claim);
        if self.turn(&place, &note).await.is_err() {
            // The try that follows would soon be back.
            let clock = &self.environment.clock;
            clock.sleep_until(clock.now() + self.environment.jitter(UNSEEN)).await;
        }
    }

    async fn update(
        &self,
        session: &Session,
        claim: &Claim,
        grant: &Grant,
    ) -> Result<Updated, StoreError> {
        let (Some(lease), Some(version)) = (self.lease(session), revision(&grant.version)) else {
            return Ok(Updated::NotOurs);
        };
        let place = self.place(&lease, claim);
        let (compared, than) = match mutant::on(mutant::UPDATES_BLINDLY) {
            true => (CompareOp::Greater, version - 1),
            false => (CompareOp::Equal, version),
        };
        let put = || match mutant::on(mutant::UPDATE_DETACHES) {
            true => TxnOp::put(place.key.as_str(), &*claim.record, None),
            false => place.put(),
        };
        let txn = || {
            Txn::new()
                .when([
                    created(&place.key, &grant.token),
                    Compare::mod_revision(place.key.as_str(), compared, than),
                ])
                .and_then([put()])
                .or_else([TxnOp::get(place.key.as_str(), None)])
        };
        let answer = match self.commit(txn).await {
            Err(failure) if failure.is_lease_gone() => return Ok(Updated::NotOurs),
            other => other.map_err(Failure::into_store)?,
        };
        if answer.succeeded() {
            let revision = answer.header().map(|header| header.revision());
            return revision.map(|now| Updated::Done(version_of(now))).ok_or_else(not_asked_for);
        }
        let own = found(answer).next().unwrap_or_default();
        let ours = |own: &&KeyValue| {
            place.is(own)
                && u64::try_from(own.create_revision()) == Ok(grant.token.get())
                && record_nonce(own.value()) == Some(claim.nonce)
        };
        Ok(match own.first().filter(ours) {
            Some(own) if own.value() == &*claim.record => {
                Updated::Done(version_of(own.mod_revision()))
            }
            Some(own) => Updated::Stale(version_of(own.mod_revision())),
            None => Updated::NotOurs,
        })
    }

    async fn end(
        &self,
        session: &Session,
        claim: &Claim,
        grant: Option<&Grant>,
        unanswered: bool,
    ) -> Result<Ended, StoreError> {
        let Some(lease) = self.lease(session) else { return Ok(Ended::NotOurs) };
        lease.watches.over(claim.nonce);
        lease.left(claim.nonce);
        if lease.slots().is_anothers(claim.nonce) && !mutant::on(mutant::ENDS_UNCOMPARED) {
            return Ok(Ended::NotOurs);
        }
        let place = self.place(&lease, claim);
        let txn = || match grant {
            _ if unanswered => place.abandon(),
            Some(grant) if !mutant::on(mutant::ENDS_UNCOMPARED) => {
                Txn::new().when([created(&place.key, &grant.token)]).and_then([place.delete()])
            }
            // It is this claim's key, and can be nobody else's.
            _ => Txn::new().and_then([place.delete()]),
        };
        let answer = match self.commit(txn).await {
            Err(failure) if failure.is_lease_gone() => return Ok(Ended::NotOurs),
            Err(failure) if unanswered && failure.is_full() => {
                // There is no room for the marker now, but the key need not block others meanwhile.
                drop(self.commit(|| Txn::new().and_then([place.delete()])).await);
                return Err(failure.into_store());
            }
            other => other.map_err(Failure::into_store)?,
        };
        let deleted = has_deleted(&answer);
        match answer.header() {
            Some(header) if deleted && grant.is_some() && !unanswered => {
                let revision = u64::try_from(header.revision()).unwrap_or(0);
                lease.slots().free(place.line.prefix(), claim.nonce, revision);
            }
            _ => lease.slots().over(claim.nonce),
        }
        Ok(if deleted { Ended::Released } else { Ended::NotOurs })
    }

    fn losses(&self, session: &Session) -> Losses {
        let (told, losses) = mpsc::unbounded_channel();
        if let Some(lease) = self.lease(session) {
            lease.tell(told);
        }
        Box::pin(UnboundedReceiverStream::new(losses))
    }

    async fn holder(&self, kind: Kind, name: &Name) -> Result<Sighting, StoreError> {
        self.first(&self.keys.line(kind, name), false).await
    }

    async fn watch(&self, kind: Kind, name: &Name, seen: &Version) -> Result<Sighting, StoreError> {
        let line = self.keys.line(kind, name);
        let (_link, [mut watch]) =
            self.watcher.open([Range::Prefix(line.prefix().to_owned())]).await?;
        loop {
            watch.catch_up()?;
            let sighting = self.first(&line, true).await?;
            if sighting.version != *seen {
                return Ok(sighting);
            }
            watch.change().await?;
        }
    }
}

impl fmt::Debug for Etcd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Etcd").field("endpoint", &self.profile.endpoint).finish_non_exhaustive()
    }
}

fn sighting(first: &KeyValue) -> Sighting {
    let mut record = first.value().to_vec();
    record.truncate(LONGEST_RECORD);
    let holder = Sighted { record, token: Some(token(first)) };
    Sighting { version: version_of(first.mod_revision()), holder: Some(holder) }
}
