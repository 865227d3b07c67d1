//! The protocol: which transactions there are, and what their answers mean.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{
    Compare, CompareOp, GetOptions, KeyValue, LeaseGrantOptions, PutOptions, Txn, TxnOp,
    TxnResponse,
};
use sync_core::backend::{
    Attempt, Backend, Claim, Ended, Grant, Held, Losses, Profile, Renewal, Session, Sighted,
    Sighting, Ticket, Updated, Version,
};
use sync_core::{
    Environment, ErrorKind, FencingToken, Kind, LONGEST_RECORD, Name, StoreError, record_nonce,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::dial::{Connector, Link, ask, look};
use crate::error::Failure;
use crate::guard::Watched;
use crate::keys::{Keys, Line, read_lease};
use crate::line::{SCAN, Strangers, found, has_deleted, key_only, newest, oldest};
use crate::mutant;
use crate::reuse::Slot;
use crate::session::Lease;
use crate::watcher::{Change, Range, Watcher};

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
    environment: Environment,
    connector: Arc<Connector>,
    watcher: Arc<Watcher>,
    /// The open sessions.
    leases: Mutex<BTreeMap<Arc<str>, Arc<Lease>>>,
    strangers: Strangers,
}

/// Whoever waits for longer watches the own key, too: before, that would cost more than the wait.
const LONG: Duration = Duration::from_millis(100);

/// One claim with its keys.
struct Place<'a> {
    claim: &'a Claim,
    lease: &'a Arc<Lease>,
    line: Line,
    slot: Slot,
    key: String,
    void: String,
}

impl Place<'_> {
    fn put(&self) -> TxnOp {
        let attached = PutOptions::new().with_lease(self.lease.id);
        TxnOp::put(self.key.as_str(), &*self.claim.record, Some(attached))
    }

    fn delete(&self) -> TxnOp {
        TxnOp::delete(self.key.as_str(), None)
    }

    /// Keeps what arrives late out, for as long as the lease lives.
    fn abandon(&self) -> Txn {
        let attached = PutOptions::new().with_lease(self.lease.id);
        if mutant::on(mutant::NO_MARKER) {
            return Txn::new().and_then([self.delete()]);
        }
        let mark = TxnOp::put(self.void.as_str(), "", Some(attached));
        Txn::new().and_then([mark, self.delete()])
    }

    fn is_not_void(&self) -> Compare {
        if mutant::on(mutant::NO_COMPARE) {
            return Compare::create_revision(self.void.as_str(), CompareOp::Greater, -1);
        }
        absent(&self.void)
    }

    /// Whether this key, as an answer shows it, is the claim's and can be held by.
    fn is(&self, found: &KeyValue) -> bool {
        found.key() == self.key.as_bytes()
            && found.lease() == self.lease.id
            && found.create_revision() > self.slot.after
    }
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

    fn place<'a>(&self, lease: &'a Arc<Lease>, claim: &'a Claim) -> Place<'a> {
        let line = self.keys.line(claim.kind, &claim.name);
        let slot = lease.slots().of(claim.nonce);
        let key = line.place(lease.id, slot.nonce);
        let void = self.keys.void(lease.id, claim.nonce);
        Place { claim, lease, line, slot, key, void }
    }

    async fn commit(&self, txn: Txn) -> Result<TxnResponse, Failure> {
        let link = self.connector.link().await.map_err(Failure::Unsent)?;
        ask(&link, || {
            let (mut kv, txn) = (link.connection.kv(), txn.clone());
            async move { kv.txn(txn).await }
        })
        .await
    }

    /// Puts the key at the end of the line, if it is nowhere yet.
    async fn join(&self, place: &Place<'_>) -> Result<Attempt, StoreError> {
        let txn = Txn::new()
            .when([absent(&place.key), place.is_not_void()])
            .and_then([place.put(), newest(&place.line, None, 2)])
            .or_else([key_only(&place.void), key_only(&place.key)]);
        let answer = match self.commit(txn).await {
            Err(failure) if failure.is_lease_gone() => return Ok(Attempt::SessionEnded),
            other => other.map_err(Failure::into_store)?,
        };
        let succeeded = answer.succeeded();
        let mut found = found(answer);
        if !succeeded {
            let (void, own) = (found.next(), found.next());
            return self.stands(place, void, own).await;
        }
        let found = found.nth(1).unwrap_or_default();
        let Some(own) = found.first().filter(|own| place.is(own)) else {
            return Err(not_asked_for());
        };
        match found.get(1).filter(|_| !mutant::on(mutant::EVERYBODY_FIRST)) {
            None => Ok(held(place, own)),
            Some(before) if place.line.is_claim(before) => Ok(blocked(place, own, before)),
            Some(_) => self.look_around(place, own.create_revision(), SCAN).await,
        }
    }

    /// Takes the name if nobody has it or waits for it, and leaves nothing behind otherwise.
    async fn take(&self, place: &Place<'_>) -> Result<Attempt, StoreError> {
        if place.lease.is_leaving(place.claim.nonce) {
            // The request by which an earlier try left was never answered, and may arrive yet.
            return self.abandon(place).await;
        }
        let nobody =
            Compare::create_revision(place.line.prefix(), CompareOp::Equal, 0).with_prefix();
        let txn = Txn::new()
            .when([nobody, place.is_not_void()])
            .and_then([place.put(), key_only(&place.key)])
            .or_else([key_only(&place.void), key_only(&place.key), newest(&place.line, None, 2)]);
        let answer = match self.commit(txn).await {
            Err(failure) if failure.is_lease_gone() => return Ok(Attempt::SessionEnded),
            other => other.map_err(Failure::into_store)?,
        };
        let succeeded = answer.succeeded();
        let mut found = found(answer);
        if succeeded {
            let own = found.nth(1).unwrap_or_default();
            let own = own.first().filter(|own| place.is(own));
            return own.map(|own| held(place, own)).ok_or_else(not_asked_for);
        }
        let (void, own) = (found.next().unwrap_or_default(), found.next().unwrap_or_default());
        let attempt = if void.is_empty() && own.is_empty() {
            let others = found.next().unwrap_or_default();
            if others.iter().any(|other| place.line.is_claim(other)) {
                return Ok(Attempt::Blocked(Ticket::default()));
            }
            // Keys that nobody can hold by, at least at the end: only in the line can be seen
            // whether somebody stands before them.
            self.join(place).await?
        } else {
            self.stands(place, Some(void), Some(own)).await?
        };
        if let Attempt::Blocked(_) = attempt {
            place.lease.leaving(place.claim.nonce);
            let left = self.commit(Txn::new().and_then([place.delete()])).await;
            left.map_err(|failure| failure.into_store().unsettled())?;
            place.lease.left(place.claim.nonce);
            return Ok(Attempt::Blocked(Ticket::default()));
        }
        Ok(attempt)
    }

    /// What it means that marker or key stood there already.
    async fn stands(
        &self,
        place: &Place<'_>,
        void: Option<Vec<KeyValue>>,
        own: Option<Vec<KeyValue>>,
    ) -> Result<Attempt, StoreError> {
        if void.is_some_and(|void| !void.is_empty()) {
            return Ok(Attempt::Anew);
        }
        match own.unwrap_or_default().first() {
            Some(own) => self.look_around(place, own.create_revision(), 1).await,
            None => Err(not_asked_for()),
        }
    }

    /// Who stands before the key, which was put there at `created`; one more look, at more keys, if
    /// the nearest are no claims.
    async fn look_around(
        &self,
        place: &Place<'_>,
        created: i64,
        limit: i64,
    ) -> Result<Attempt, StoreError> {
        let mut limit = limit;
        loop {
            let read = [key_only(&place.key), newest(&place.line, Some(created), limit)];
            let answer = self.commit(Txn::new().and_then(read)).await;
            let answer = answer.map_err(|failure| failure.into_store().unsettled())?;
            let mut found = found(answer);
            let (own, before) = (found.next(), found.next().unwrap_or_default());
            let own = own.unwrap_or_default();
            let Some(own) = own.first().filter(|own| own.create_revision() == created) else {
                if mutant::on(mutant::GRANTS_UNREAD) {
                    let (token, version) = (token_of(created), version_of(created));
                    return Ok(Attempt::Held(Grant { token, version, ttl: None }));
                }
                // Taken away from outside: back to the end of the line.
                return Box::pin(self.join(place)).await;
            };
            if !place.is(own) {
                // Detached from the lease from outside: nobody can hold by it any more.
                return self.abandon(place).await;
            }
            match before.first().filter(|_| !mutant::on(mutant::EVERYBODY_FIRST)) {
                None => return Ok(held(place, own)),
                Some(next) if place.line.is_claim(next) => return Ok(blocked(place, own, next)),
                Some(_) if limit < SCAN => limit = SCAN,
                Some(_) => {
                    let claim = self.strangers.pass(&place.line, &before, SCAN);
                    return Ok(match claim.map_err(StoreError::unsettled)? {
                        Some(claim) => blocked(place, own, claim),
                        None => held(place, own),
                    });
                }
            }
        }
    }

    /// Sees to it that nobody ever holds by this key.
    async fn abandon(&self, place: &Place<'_>) -> Result<Attempt, StoreError> {
        match self.commit(place.abandon()).await {
            Err(failure) if failure.is_lease_gone() => return Ok(Attempt::SessionEnded),
            Err(failure) => return Err(failure.into_store().unsettled()),
            Ok(_) => {}
        }
        place.lease.left(place.claim.nonce);
        Ok(Attempt::Anew)
    }

    /// Resolves when the key before a place is gone, or the place itself.
    async fn turn(&self, place: &Place<'_>, note: &Note<'_>) -> Result<(), StoreError> {
        let before = [place.line.prefix(), note.before].concat();
        let (link, [mut other]) = self.watcher.open([Range::Key(before.clone())]).await?;
        // What happened before the watch was open.
        if !self.is_behind(place, note, &before, &link).await? {
            return Ok(());
        }
        // Other programs use a key again: it may stand behind this one by now. A holder that changes
        // its record goes on holding.
        let stands = |change: Result<Change, StoreError>, latest: i64| matches!(change, Ok(Change::Put { token, lease: 1.., .. }) if token <= latest);
        let clock = &self.environment.clock;
        let mut longer = clock.sleep_until(clock.now() + LONG);
        loop {
            tokio::select! {
                biased;
                change = other.change() => {
                    if !stands(change, note.created - 1) {
                        return Ok(());
                    }
                }
                () = &mut longer => break,
            }
        }
        let (link, [mut own]) = self.watcher.open([Range::Key(place.key.clone())]).await?;
        if !self.is_behind(place, note, &before, &link).await? {
            return Ok(());
        }
        loop {
            let stand = tokio::select! {
                biased;
                change = own.change() => stands(change, note.created),
                change = other.change() => stands(change, note.created - 1),
            };
            if !stand {
                return Ok(());
            }
        }
    }

    /// Whether both keys stand, the own one behind the other.
    async fn is_behind(
        &self,
        place: &Place<'_>,
        note: &Note<'_>,
        before: &str,
        link: &Link,
    ) -> Result<bool, StoreError> {
        if mutant::on(mutant::WATCHES_UNREAD) {
            return Ok(true);
        }
        let read = Txn::new().and_then([key_only(&place.key), key_only(before)]);
        let answer = look(link, || {
            let (mut kv, read) = (link.connection.kv(), read.clone());
            async move { kv.txn(read).await }
        });
        let mut found = found(answer.await?);
        let mut stands_by = |created: i64| {
            let key = found.next().and_then(|keys| keys.into_iter().next());
            key.is_some_and(|key| place.line.is_claim(&key) && key.create_revision() <= created)
        };
        Ok(stands_by(note.created) && stands_by(note.created - 1))
    }

    /// Watches the key of a claim that is held.
    fn guard(&self, place: &Place<'_>, grant: &Grant) {
        let watched = Watched {
            lease: Arc::downgrade(place.lease),
            key: place.key.clone(),
            nonce: place.claim.nonce,
            token: grant.token,
        };
        place.lease.guards.begin(watched, &self.watcher, &self.environment);
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
        lease.slots().begin(&self.keys.line(claim.kind, &claim.name), claim.nonce, fresh);
        let place = self.place(&lease, claim);
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
                lease.slots().free(&place.line, claim.nonce, place.slot.after);
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
        let put = match mutant::on(mutant::UPDATE_DETACHES) {
            true => TxnOp::put(place.key.as_str(), &*claim.record, None),
            false => place.put(),
        };
        let txn = Txn::new()
            .when([
                created(&place.key, &grant.token),
                Compare::mod_revision(place.key.as_str(), compared, than),
            ])
            .and_then([put])
            .or_else([TxnOp::get(place.key.as_str(), None)]);
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
        lease.guards.over(claim.nonce);
        lease.left(claim.nonce);
        if lease.slots().is_anothers(claim.nonce) {
            return Ok(Ended::NotOurs);
        }
        let place = self.place(&lease, claim);
        let txn = match grant {
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
                drop(self.commit(Txn::new().and_then([place.delete()])).await);
                return Err(failure.into_store());
            }
            other => other.map_err(Failure::into_store)?,
        };
        let deleted = has_deleted(&answer);
        match answer.header() {
            Some(header) if deleted && grant.is_some() && !unanswered => {
                lease.slots().free(&place.line, claim.nonce, header.revision());
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

/// What a ticket says of a place: when the key was put there, and what the key before it is called
/// under the same prefix.
struct Note<'a> {
    created: i64,
    before: &'a str,
}

impl<'a> Note<'a> {
    fn read(place: &'a str) -> Option<Self> {
        let (created, before) = place.split_once(' ')?;
        Some(Self { created: created.parse().ok()?, before })
    }
}

fn blocked(place: &Place<'_>, own: &KeyValue, before: &KeyValue) -> Attempt {
    let before = String::from_utf8_lossy(before.key());
    let before = before.strip_prefix(place.line.prefix()).unwrap_or_default();
    Attempt::Blocked(Ticket {
        // A watch can die unnoticed.
        look_after: Some(place.lease.ttl()),
        place: format!("{} {before}", own.create_revision()).into(),
        ..Ticket::default()
    })
}

fn held(place: &Place<'_>, own: &KeyValue) -> Attempt {
    debug_assert!(place.is(own), "a grant is by the key that was asked for");
    Attempt::Held(Grant { token: token(own), version: version_of(own.mod_revision()), ttl: None })
}

fn token(found: &KeyValue) -> FencingToken {
    token_of(match mutant::on(mutant::TOKEN_OF_RECORD) {
        true => found.mod_revision(),
        false => found.create_revision(),
    })
}

fn token_of(revision: i64) -> FencingToken {
    FencingToken::new(u64::try_from(revision).unwrap_or(0))
}

fn version_of(revision: i64) -> Version {
    Version::new(revision.to_be_bytes())
}

fn revision(version: &Version) -> Option<i64> {
    Some(i64::from_be_bytes(version.as_bytes().try_into().ok()?))
}

fn absent(key: &str) -> Compare {
    Compare::create_revision(key, CompareOp::Equal, 0)
}

fn created(key: &str, token: &FencingToken) -> Compare {
    let created = i64::try_from(token.get()).unwrap_or(i64::MAX);
    Compare::create_revision(key, CompareOp::Equal, created)
}

fn sighting(first: &KeyValue) -> Sighting {
    let mut record = first.value().to_vec();
    record.truncate(LONGEST_RECORD);
    let holder = Sighted { record, token: Some(token(first)) };
    Sighting { version: version_of(first.mod_revision()), holder: Some(holder) }
}

fn not_asked_for() -> StoreError {
    StoreError::unknown("the answer does not belong to the request")
}
