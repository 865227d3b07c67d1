//! The protocol: which keys there are, and which script does what to them.
//!
//! Everything that changes a claim is one script on keys of one hash slot, so that it is done whole
//! or not at all. `scripts/` tells what each does; this file gives it its arguments and reads what
//! it answers.

use std::collections::BTreeMap;
use std::fmt;
use std::future::poll_fn;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use redis::{Cmd, Pipeline, Value};
use sync_core::backend::{
    Attempt, Backend, Claim, Ended, Grant, Held, Losses, Nonce, Profile, Renewal, Renewed, Session,
    Sighted, Sighting, Ticket, Updated, Version,
};
use sync_core::{
    Environment, FencingToken, Kind, LONGEST_RECORD, Moment, Name, StoreError, record_nonce,
};

use crate::connection::{Connector, Link};
use crate::error;
use crate::follow::Follower;
use crate::keys::{Keys, push_keys, void};
use crate::script::{self, Reply};

/// The longest time between two looks of one that waits. Each look is its heartbeat, and whoever
/// has missed three is passed over (`PATIENCE` in the scripts). It is also how late the end of a
/// holder that sends no message (redis-py) is noticed at the latest.
const LOOK: Duration = Duration::from_secs(1);

/// The shortest, however short the TTL (`LEAST_PATIENCE`).
const LEAST_LOOK: Duration = Duration::from_millis(100);

/// The shortest life of the marker that keeps a late attempt out.
const LEAST_VOID_LIFE: Duration = Duration::from_secs(60);

/// How many claims are renewed in one batch.
const BATCH: usize = 500;

/// By how much less than reckoned may be left of a key before it is worth a warning.
const EARLY_EXPIRY: Duration = Duration::from_millis(100);

/// One Redis or Valkey server as a [`Backend`]. Made by [`Config::backend`](crate::Config::backend);
/// most programs want [`Config::connect`](crate::Config::connect) instead.
///
/// ```no_run
/// # async fn example() -> Result<(), sync_redis::Error> {
/// use std::sync::Arc;
/// use sync_redis::{Config, Coordinator, Options};
///
/// let backend = Config::new("redis://127.0.0.1").backend().await?;
/// let sync = Coordinator::new(Arc::new(backend), &Options::new())?;
/// # Ok(()) }
/// ```
pub struct Redis {
    profile: Profile,
    keys: Keys,
    /// This coordinator, among all that wait in lines: 32 hexadecimal digits.
    coordinator: String,
    environment: Environment,
    connector: Connector,
    opened: AtomicU64,
    /// The open sessions, each with when its latest complete renewal was sent.
    sessions: Mutex<BTreeMap<Arc<str>, Option<Moment>>>,
}

impl Redis {
    pub(crate) fn new(
        profile: Profile,
        keys: Keys,
        coordinator: String,
        environment: Environment,
        connector: Connector,
    ) -> Self {
        Self {
            profile,
            keys,
            coordinator,
            environment,
            connector,
            opened: AtomicU64::new(0),
            sessions: Mutex::default(),
        }
    }

    fn place(&self, nonce: &str) -> String {
        [&self.coordinator, "-", nonce].concat()
    }

    /// A place in a line, given what is left of the claim's key if it expires.
    ///
    /// Three looks are no longer than the TTL: dead, one that waits blocks the others no longer
    /// than it would as the holder.
    fn blocked(&self, ttl: Duration, left: Option<u64>, first: bool) -> Ticket {
        let look = self.environment.jitter((ttl / 3).clamp(LEAST_LOOK, LOOK));
        // Only the first in line can take what expires; the others would look in vain.
        let look_after = match left {
            Some(left) if first => look.min(Duration::from_millis(left.saturating_add(1))),
            _ => look,
        };
        Ticket { look_after: Some(look_after), ..Ticket::default() }
    }

    /// Renews what one batch can hold, and says what the server told of each.
    async fn renew_batch(
        &self,
        mut link: Link,
        session: &Session,
        held: &[Held],
        latest: Option<Moment>,
    ) -> Batch {
        let mut told = Batch::default();
        let mut left_over: Vec<&Held> = held.iter().collect();
        for round in 0..2 {
            let mut batch = Pipeline::with_capacity(left_over.len() + 1);
            if round > 0 {
                batch.add_command(script::RENEW.load());
            }
            for held in &left_over {
                batch.add_command(self.renewal(session, held));
            }
            let mut answers = match link.send_all(&batch).await {
                Ok(answers) => answers.into_iter(),
                Err(error) => {
                    told.failed = Some(error);
                    return told;
                }
            };
            if round > 0
                && let Some(Value::ServerError(refusal)) = answers.next()
            {
                told.failed = Some(link.replied(&error::text(&refusal)));
            }
            // At least this must be left of a key that the latest renewal extended.
            let reckoned = latest.map(|latest| {
                let elapsed = self.environment.clock.now().since(latest);
                millis(session.ttl.saturating_sub(elapsed + EARLY_EXPIRY))
            });
            let mut forgotten = Vec::new();
            for (held, answer) in left_over.into_iter().zip(answers) {
                if matches!(&answer, Value::ServerError(error) if error::is_no_script(error)) {
                    forgotten.push(held);
                    continue;
                }
                let nonce = held.claim.nonce;
                match Reply::read(answer, &nonce.to_hex(), &link) {
                    Ok(reply) => match reply.status() {
                        "extended" => {
                            let left = reply.words().next().and_then(|left| left.parse().ok());
                            told.early += usize::from(left < reckoned);
                            told.known.push((nonce, Renewed::Extended(session.ttl)));
                        }
                        "lost" => told.known.push((nonce, Renewed::Lost)),
                        _ => told.failed = Some(reply.unexpected()),
                    },
                    Err(error) => told.failed = Some(error),
                }
            }
            left_over = forgotten;
            if left_over.is_empty() {
                return told;
            }
        }
        told.failed = told.failed.or_else(|| {
            Some(StoreError::unsent("the server forgets a script as soon as it is told it"))
        });
        told
    }

    fn renewal(&self, session: &Session, held: &Held) -> Cmd {
        let claim = &held.claim;
        let key = self.keys.claim(claim.kind, &claim.name);
        let mut call = script::RENEW.call(3, 3, 4 * key.len() + 128);
        push_keys(&mut call, &key, &[":holder", ":token"]);
        call.arg(claim.nonce.to_hex()).arg(millis(session.ttl)).arg(held.grant.token.get());
        call
    }

    fn look(&self, kind: Kind, name: &Name) -> (String, Cmd) {
        let key = self.keys.claim(kind, name);
        let mut call = script::HOLDER.call(3, 2, 5 * key.len() + 64);
        push_keys(&mut call, &key, &[":holder", ":token"]);
        call.arg(&key).arg(LONGEST_RECORD - 1);
        (key, call)
    }

    /// Takes note of when the latest complete renewal of a session was sent, and tells which
    /// was the one before.
    fn renewed(&self, session: &Session, sent: Option<Moment>) -> Option<Moment> {
        let mut sessions = self.sessions();
        sessions.get_mut(&session.id).and_then(|latest| std::mem::replace(latest, sent))
    }

    fn sessions(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, Option<Moment>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Backend for Redis {
    fn profile(&self) -> &Profile {
        &self.profile
    }

    fn key(&self, kind: Kind, name: &Name) -> String {
        self.keys.claim(kind, name)
    }

    /// Redis knows no sessions: nothing is sent.
    async fn open(&self, ttl: Duration) -> Result<Session, StoreError> {
        let number = self.opened.fetch_add(1, Ordering::Relaxed);
        let id: Arc<str> = format!("{}.{number}", self.coordinator).into();
        self.sessions().insert(Arc::clone(&id), None);
        Ok(Session::new(id, Duration::from_millis(millis(ttl))))
    }

    async fn close(&self, session: &Session) -> Result<(), StoreError> {
        let mut sessions = self.sessions();
        if sessions.remove(&session.id).is_some() && sessions.is_empty() {
            self.connector.disconnect();
        }
        Ok(())
    }

    async fn renew(&self, session: &Session, held: &[Held]) -> Result<Renewal, StoreError> {
        let sent = self.environment.clock.now();
        let mut claims = Vec::with_capacity(held.len());
        if !held.is_empty() {
            let link = self.connector.link().await?;
            let latest = self.renewed(session, None);
            // At once: each would else have to wait for the answers to those before it.
            let mut batches = Vec::new();
            for batch in held.chunks(BATCH) {
                batches.push(self.renew_batch(link.clone(), session, batch, latest));
            }
            let (mut early, mut failed) = (0, None);
            for batch in all(batches).await {
                claims.extend(batch.known);
                early += batch.early;
                failed = failed.or(batch.failed);
            }
            if early > 0 {
                tracing::warn!(
                    keys = early,
                    "the time to live of held keys fell faster than time passed: the server's \
                     clock jumped, or another program changes them"
                );
            }
            if let Some(error) = failed {
                if claims.is_empty() {
                    return Err(error);
                }
                let (renewed, of) = (claims.len(), held.len());
                tracing::warn!(%error, renewed, of, "not all that is held was renewed");
            }
        }
        if claims.len() == held.len() {
            self.renewed(session, Some(sent));
        }
        Ok(Renewal::Alive { ttl: session.ttl, claims })
    }

    async fn try_claim(
        &self,
        session: &Session,
        claim: &Claim,
        ticket: Option<&Ticket>,
        _unanswered: bool,
    ) -> Result<Attempt, StoreError> {
        let key = self.keys.claim(claim.kind, &claim.name);
        let nonce = claim.nonce.to_hex();
        let mut call = script::ACQUIRE.call(6, 6, 7 * key.len() + claim.record.len() + 400);
        push_keys(&mut call, &key, &[":token", ":holder", ":line", ":beat", &void(&nonce)]);
        call.arg(&nonce)
            .arg(millis(session.ttl))
            .arg(&*claim.record)
            .arg(self.place(&nonce))
            .arg(u8::from(claim.queue))
            .arg(news(claim.kind));

        let mut link = self.connector.link().await?;
        if claim.queue {
            self.connector.wakes().expect(claim.nonce, link.generation());
        }
        let mut reply = match script::ACQUIRE.run(&mut link, &call, &nonce).await {
            Ok(reply) => reply,
            Err(error) => {
                if error.settled() && ticket.is_none() {
                    self.connector.wakes().forget(claim.nonce);
                }
                return Err(error);
            }
        };
        let attempt = match reply.status() {
            "held" => {
                let token = reply.words().next().and_then(|token| token.parse().ok());
                let record = reply.bytes().map(Arc::from);
                Attempt::Held(Grant {
                    token: FencingToken::new(token.ok_or_else(|| reply.unexpected())?),
                    version: Version::new(record.unwrap_or_else(|| Arc::clone(&claim.record))),
                    ttl: Some(session.ttl),
                })
            }
            "blocked" => {
                let mut words = reply.words();
                let left = words.next().and_then(|left| left.parse().ok());
                return Ok(Attempt::Blocked(self.blocked(
                    session.ttl,
                    left,
                    words.next() == Some("1"),
                )));
            }
            "void" => Attempt::Anew,
            // Ours, but nobody can say with which token; a fresh one might not be greater.
            "lost" => {
                self.end(session, claim, None, true).await?;
                Attempt::Anew
            }
            _ => return Err(reply.unexpected()),
        };
        self.connector.wakes().forget(claim.nonce);
        Ok(attempt)
    }

    async fn wait(&self, _session: &Session, claim: &Claim, _ticket: &Ticket) {
        self.connector.wakes().woken(claim.nonce).await;
    }

    async fn update(
        &self,
        _session: &Session,
        claim: &Claim,
        grant: &Grant,
    ) -> Result<Updated, StoreError> {
        let key = self.keys.claim(claim.kind, &claim.name);
        let nonce = claim.nonce.to_hex();
        let known = grant.version.as_bytes();
        let bytes = 3 * key.len() + known.len() + claim.record.len() + 100;
        let mut call = script::UPDATE.call(3, 4, bytes);
        push_keys(&mut call, &key, &[":holder", ":line"]);
        call.arg(&nonce).arg(known).arg(&*claim.record).arg(news(claim.kind));
        let mut link = self.connector.link().await?;
        let mut reply = script::UPDATE.run(&mut link, &call, &nonce).await?;
        match reply.status() {
            "stale" => match reply.bytes() {
                Some(record) => Ok(Updated::Stale(Version::new(record))),
                None => Err(reply.unexpected()),
            },
            "done" => Ok(Updated::Done(Version::new(Arc::clone(&claim.record)))),
            "other" => Ok(Updated::NotOurs),
            _ => Err(reply.unexpected()),
        }
    }

    async fn end(
        &self,
        session: &Session,
        claim: &Claim,
        grant: Option<&Grant>,
        unanswered: bool,
    ) -> Result<Ended, StoreError> {
        self.connector.wakes().forget(claim.nonce);
        let key = self.keys.claim(claim.kind, &claim.name);
        let nonce = claim.nonce.to_hex();
        let life = if unanswered { LEAST_VOID_LIFE.max(session.ttl * 4) } else { Duration::ZERO };
        let mut call = script::END.call(5, 5, 6 * key.len() + 300);
        push_keys(&mut call, &key, &[":holder", ":line", ":beat", &void(&nonce)]);
        call.arg(&nonce)
            .arg(self.place(&nonce))
            .arg(millis(life))
            .arg(self.keys.wake_prefix())
            .arg(news(claim.kind));
        let mut link = self.connector.link().await?;
        let reply = script::END.run(&mut link, &call, &nonce).await?;
        match reply.status() {
            "held" => Ok(Ended::Released),
            // Whoever was granted the claim had no place in line to give back, but the claim.
            "queued" if grant.is_none() => Ok(Ended::Released),
            "queued" | "nothing" => Ok(Ended::NotOurs),
            _ => Err(reply.unexpected()),
        }
    }

    /// Redis does not tell: the renewals find out.
    fn losses(&self, _session: &Session) -> Losses {
        Box::pin(tokio_stream::pending())
    }

    async fn holder(&self, kind: Kind, name: &Name) -> Result<Sighting, StoreError> {
        let (key, call) = self.look(kind, name);
        let mut link = self.connector.link().await?;
        sighting(script::HOLDER.run(&mut link, &call, &key).await?)
    }

    async fn watch(&self, kind: Kind, name: &Name, seen: &Version) -> Result<Sighting, StoreError> {
        let (key, call) = self.look(kind, name);
        let mut follower = Follower::new(&self.connector, &key);
        loop {
            let mut link = self.connector.link().await?;
            if kind == Kind::Leader {
                follower.subscribe(&mut link).await?;
            }
            follower.caught_up();
            let sighting = sighting(script::HOLDER.look(&mut link, &call, &key).await?)?;
            if sighting.version != *seen {
                return Ok(sighting);
            }
            follower.news_or(self.environment.jitter(LOOK)).await;
        }
    }
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis").field("endpoint", &self.profile.endpoint).finish_non_exhaustive()
    }
}

/// What the server told of the claims in one batch.
#[derive(Debug, Default)]
struct Batch {
    known: Vec<(Nonce, Renewed)>,
    /// How many have less time left than they should.
    early: usize,
    /// Why it told nothing of the others.
    failed: Option<StoreError>,
}

/// Waits for all at once; what they come to, in their order.
async fn all<T>(works: Vec<impl Future<Output = T>>) -> Vec<T> {
    let mut works: Vec<_> = works.into_iter().map(|work| (Box::pin(work), None)).collect();
    poll_fn(|context| {
        let mut pending = false;
        for (work, done) in works.iter_mut().filter(|(_, done)| done.is_none()) {
            match work.as_mut().poll(context) {
                Poll::Ready(outcome) => *done = Some(outcome),
                Poll::Pending => pending = true,
            }
        }
        if pending { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
    works.into_iter().filter_map(|(_, done)| done).collect()
}

/// Whether changes are published: elections have followers.
fn news(kind: Kind) -> u8 {
    u8::from(kind == Kind::Leader)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Reads who holds a name. A record counts only if it names the nonce that stands in the key:
/// anything else there is somebody's who does not use this crate, and reads as it is.
fn sighting(mut reply: Reply) -> Result<Sighting, StoreError> {
    match reply.status() {
        "free" => return Ok(Sighting::default()),
        "held" => {}
        _ => return Err(reply.unexpected()),
    }
    let (Some(value), Some(record), Some(token)) = (reply.bytes(), reply.bytes(), reply.bytes())
    else {
        return Err(reply.unexpected());
    };
    let nonce = std::str::from_utf8(&value).ok().and_then(Nonce::from_hex);
    let (version, holder) = if nonce.is_some() && record_nonce(&record) == nonce {
        let token = std::str::from_utf8(&token).ok().and_then(|token| token.parse().ok());
        let token = token.map(FencingToken::new);
        // As a grant has it; the nonce in the record tells acquisitions apart.
        (Version::new(record.clone()), Sighted { record, token })
    } else {
        let version = Version::new([&b"foreign\n"[..], &value, b"\n", &record].concat());
        (version, Sighted { record: value, token: None })
    };
    Ok(Sighting { version, holder: Some(holder) })
}
