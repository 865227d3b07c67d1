//! One agent as a [`Backend`]: the calls of the core, and what they come to.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use sync_core::backend::{
    Attempt, Backend, Claim, Ended, Grant, Held, Losses, Profile, Renewal, Session, Sighting,
    Ticket, Updated, Version,
};
use sync_core::{Environment, Kind, Name, StoreError};
use tokio::runtime::Handle;

use crate::acquire::{Note, Spot};
use crate::api::{Api, NewSession, ServiceCheck};
use crate::crowds::Crowds;
use crate::ghosts::Recent;
use crate::keys::Keys;
use crate::line::Line;
use crate::mutant;
use crate::pair::{Pair, index, sighting, version};
use crate::polls::{Following, Polls, State, Subject, Why};
use crate::sessions::{Place, Sessions};
use crate::txn::{Op, off_by_one};

/// What sessions are like.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) lock_delay: Duration,
    /// The lock-delay is at least the TTL.
    pub(crate) strict: bool,
    pub(crate) behavior: &'static str,
    pub(crate) node_checks: Vec<String>,
    pub(crate) service_checks: Vec<String>,
}

impl Settings {
    /// The session that is asked for.
    pub(crate) fn session(&self, ttl: Duration) -> NewSession<'_> {
        let lock_delay = if self.strict { self.lock_delay.max(ttl) } else { self.lock_delay };
        NewSession {
            name: "sync",
            // With the unit: small numbers alone would be read as seconds.
            ttl: format!("{}ms", ttl.as_millis()),
            lock_delay: format!("{}ms", lock_delay.as_millis()),
            behavior: self.behavior,
            node_checks: &self.node_checks,
            service_checks: self.service_checks.iter().map(|id| ServiceCheck { id }).collect(),
        }
    }
}

/// Consul as a [`Backend`]. Made by [`Config::backend`](crate::Config::backend); most programs want
/// [`Config::connect`](crate::Config::connect) instead.
///
/// ```no_run
/// # async fn example() -> Result<(), sync_consul::Error> {
/// use std::sync::Arc;
/// use sync_consul::{Config, Coordinator, Options};
///
/// let backend = Config::new("http://127.0.0.1:8500").backend().await?;
/// let sync = Coordinator::new(Arc::new(backend), &Options::new())?;
/// # Ok(()) }
/// ```
pub struct Consul {
    driver: Arc<Driver>,
}

/// What drives the protocol; `acquire`, `end`, `losses` and `ghosts` are the
/// rest of it.
pub(crate) struct Driver {
    profile: Profile,
    pub(crate) keys: Keys,
    settings: Settings,
    pub(crate) environment: Environment,
    /// The one that it was made on, for all that goes on in the background.
    pub(crate) runtime: Handle,
    pub(crate) api: Api,
    pub(crate) polls: Polls,
    pub(crate) sessions: Sessions,
    pub(crate) crowds: Crowds,
    pub(crate) ended: Mutex<Recent>,
    /// The lines in which a key that is no ticket was named already.
    strange: Mutex<BTreeSet<String>>,
}

/// How many lines with strange keys are remembered.
const MOST_STRANGE: usize = 100;

impl Consul {
    pub(crate) fn new(
        profile: Profile,
        keys: Keys,
        settings: Settings,
        environment: Environment,
        api: Api,
        poll: Duration,
    ) -> Self {
        let prefix = keys.prefix().to_owned();
        let runtime = Handle::current();
        let polls = Polls::new(api.clone(), environment.clone(), runtime.clone(), poll, prefix);
        let driver = Driver {
            profile,
            keys,
            settings,
            environment,
            runtime,
            api,
            polls,
            sessions: Sessions::default(),
            crowds: Crowds::default(),
            ended: Mutex::default(),
            strange: Mutex::default(),
        };
        Self { driver: Arc::new(driver) }
    }
}

impl Driver {
    /// Names a key in a line that is no ticket, once for each line.
    pub(crate) fn name_strange(&self, line: &Line) {
        let Some(key) = line.strange() else { return };
        let path = key.rsplit_once('/').map_or(key, |(path, _)| path);
        let mut named = self.strange.lock().unwrap_or_else(PoisonError::into_inner);
        if named.len() < MOST_STRANGE && named.insert(path.to_owned()) {
            tracing::warn!(line = path, "a key among the tickets is none: it is passed over");
        }
    }

    /// Resolves when the claim is worth another try.
    async fn worth_it(&self, at: &Spot<'_>, note: Note) {
        if note.created == 0 {
            // The core has waited for as long as was to be waited.
            return;
        }
        let mut free = false;
        loop {
            match self.sessions.place(at.session, at.claim.nonce) {
                Place::First if free => return,
                Place::First => {
                    until(self.turn(&at.key), is_free).await;
                    return;
                }
                Place::After(before) => {
                    let states = self.polls.follow_seen(before.key.clone(), before.modified);
                    // Where a session's end leaves its keys, the ticket may stay.
                    let stands = |pair: &Pair| at.stands(pair, &before);
                    if mutant::on(mutant::NEVER_WOKEN) {
                        std::future::pending::<()>().await;
                    }
                    if !until(states, |pair| !pair.is_some_and(stands)).await {
                        return;
                    }
                    let Some(mut states) = self.turn(&at.key) else { return };
                    match states.next().await {
                        // Whoever enters was the first, and who stood behind it is that now: this
                        // spares a look at the line.
                        State::Is(Some(pair)) if at.has_entered(&pair, &before.key) => {
                            self.sessions.stands(at.session, at.claim.nonce, Place::First);
                            until(Some(states), is_free).await;
                            return;
                        }
                        State::Is(pair) => free = is_free(pair.as_deref()),
                        _ => free = false,
                    }
                }
                Place::Unknown => {}
            }
            // A ticket that is gone is for the next try to replace.
            match self.look_at_line(at, note.created).await {
                Ok(line) if line.stands() => {}
                _ => return,
            }
        }
    }

    fn turn(&self, key: &str) -> Option<Following> {
        self.polls.follow(Subject::Key(key.to_owned()), Why::Turn)
    }
}

fn is_free(pair: Option<&Pair>) -> bool {
    pair.is_none_or(|pair| pair.session.is_empty())
}

/// Resolves when what stands at a key is as wanted, or (`false`) cannot be read.
async fn until(states: Option<Following>, wanted: impl Fn(Option<&Pair>) -> bool) -> bool {
    let Some(mut states) = states else { return false };
    if mutant::on(mutant::WAITS_UNREAD) {
        states.next().await;
    }
    loop {
        match states.next().await {
            State::Is(pair) if wanted(pair.as_deref()) => return true,
            State::Failed(_) => return false,
            _ => {}
        }
    }
}

#[async_trait]
impl Backend for Consul {
    fn profile(&self) -> &Profile {
        &self.driver.profile
    }

    fn key(&self, kind: Kind, name: &Name) -> String {
        self.driver.keys.claim(kind, name)
    }

    /// Each attempt makes a session of its own; one that nobody heard of runs out.
    async fn open(&self, ttl: Duration) -> Result<Session, StoreError> {
        // Consul counts no parts of a millisecond.
        let ttl = Duration::from_millis(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX));
        let id = self.driver.api.create_session(&self.driver.settings.session(ttl)).await?;
        let believed = if mutant::on(mutant::TTL_DOUBLED) { ttl * 2 } else { ttl };
        let session = Session::new(id, believed);
        self.driver.sessions.opened(&session.id);
        Ok(session)
    }

    async fn close(&self, session: &Session) -> Result<(), StoreError> {
        let driver = &self.driver;
        if mutant::on(mutant::CLOSES_NOTHING) {
            return Ok(());
        }
        // It is the end that they would find. Before all that may fail, which is not repeated for ever.
        driver.sessions.unwatched(&session.id);
        driver.free(&session.id).await?;
        driver.api.destroy_session(&session.id).await?;
        driver.sessions.closed(&session.id);
        Ok(())
    }

    async fn renew(&self, session: &Session, _held: &[Held]) -> Result<Renewal, StoreError> {
        match self.driver.api.renew_session(&session.id).await? {
            true => Ok(Renewal::Alive { ttl: session.ttl, claims: Vec::new() }),
            false if mutant::on(mutant::DEAD_RENEWED) => {
                Ok(Renewal::Alive { ttl: session.ttl, claims: Vec::new() })
            }
            false => Ok(Renewal::Ended),
        }
    }

    async fn try_claim(
        &self,
        session: &Session,
        claim: &Claim,
        ticket: Option<&Ticket>,
        unanswered: bool,
    ) -> Result<Attempt, StoreError> {
        let (driver, nonce) = (&self.driver, claim.nonce);
        let fresh = ticket.is_none() && !unanswered;
        driver.sessions.begin(
            &session.id,
            &driver.keys.line(claim.kind, &claim.name),
            nonce,
            fresh,
        );
        let at = driver.spot(session, claim);
        driver.sessions.enter(&session.id, nonce, &at.key, &at.ticket);
        let attempt = driver.attempt(&at, Note::read(ticket), unanswered).await;
        let over = match &attempt {
            Ok(Attempt::Held(_)) if mutant::on(mutant::UNGUARDED) => false,
            Ok(Attempt::Held(grant)) => {
                driver.watch_held(session, nonce, &at.key, grant.token);
                false
            }
            Ok(Attempt::Anew | Attempt::SessionEnded) => true,
            // Nothing is left in the store, and so there will be no end.
            Ok(Attempt::Blocked(_)) => !claim.queue && !unanswered,
            Err(error) => error.settled() && fresh,
        };
        match &attempt {
            Ok(Attempt::Blocked(_)) if over => {
                driver.sessions.answered(&session.id, nonce, &at.line);
            }
            _ if over => driver.sessions.leave(&session.id, nonce),
            _ => {}
        }
        attempt
    }

    async fn wait(&self, session: &Session, claim: &Claim, ticket: &Ticket) {
        let at = self.driver.spot(session, claim);
        self.driver.worth_it(&at, Note::read(Some(ticket))).await;
    }

    async fn update(
        &self,
        session: &Session,
        claim: &Claim,
        grant: &Grant,
    ) -> Result<Updated, StoreError> {
        let (driver, at) = (&self.driver, self.driver.spot(session, claim));
        let ops = [
            Op::unchanged(&at.key, index(&grant.version)),
            Op::lock(&at.key, at.session, &claim.record),
            Op::get(&at.key),
        ];
        let ours = |pair: &&Pair| at.is_ours(pair) && pair.create_index == grant.token.get();
        let mut seen = at.seen(None);
        let first = usize::from(mutant::on(mutant::UPDATES_BLINDLY));
        if driver.api.commit(&ops[first..], &mut seen).await? {
            return match seen.pair.as_ref().filter(ours) {
                Some(pair) => Ok(Updated::Done(version(pair.modify_index))),
                None => Err(off_by_one()),
            };
        }
        match driver.api.read(&at.key).await?.as_ref().filter(ours) {
            // An earlier try of this very change.
            Some(pair) if pair.record() == *claim.record => {
                Ok(Updated::Done(version(pair.modify_index)))
            }
            Some(pair) => Ok(Updated::Stale(version(pair.modify_index))),
            None => Ok(Updated::NotOurs),
        }
    }

    async fn end(
        &self,
        session: &Session,
        claim: &Claim,
        grant: Option<&Grant>,
        unanswered: bool,
    ) -> Result<Ended, StoreError> {
        let (driver, at) = (&self.driver, self.driver.spot(session, claim));
        let ended = driver.finish(&at, grant, unanswered).await?;
        // Without a grant the end is about the ticket, and an earlier one may be under way.
        if grant.is_some() && !unanswered {
            driver.sessions.answered(&session.id, claim.nonce, &at.line);
        } else {
            driver.sessions.leave(&session.id, claim.nonce);
        }
        if !unanswered {
            driver.look_again(&session.id, claim.nonce, at.key, at.ticket);
        }
        Ok(ended)
    }

    fn losses(&self, session: &Session) -> Losses {
        self.driver.losses(session)
    }

    async fn holder(&self, kind: Kind, name: &Name) -> Result<Sighting, StoreError> {
        let pair = self.driver.api.read(&self.driver.keys.claim(kind, name)).await?;
        Ok(sighting(pair.as_ref()))
    }

    async fn watch(&self, kind: Kind, name: &Name, seen: &Version) -> Result<Sighting, StoreError> {
        let driver = &self.driver;
        let key = driver.keys.claim(kind, name);
        let mut states = driver
            .polls
            .follow(Subject::Key(key.clone()), Why::Wait)
            .ok_or_else(|| StoreError::unsent("too much is followed"))?;
        loop {
            match states.next().await {
                State::Is(pair) if sighting(pair.as_deref()).version != *seen => {
                    // Whoever joins a poll late may be told what was so a moment ago.
                    let now = sighting(driver.api.read(&key).await?.as_ref());
                    if now.version != *seen {
                        return Ok(now);
                    }
                }
                State::Failed(error) => {
                    return Err(StoreError::refused(error.kind(), error.to_string()));
                }
                _ => {}
            }
        }
    }
}

impl fmt::Debug for Consul {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let endpoint = &self.driver.profile.endpoint;
        f.debug_struct("Consul").field("endpoint", endpoint).finish_non_exhaustive()
    }
}
