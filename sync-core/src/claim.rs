//! One acquisition from the first attempt to the acknowledged end.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::backend::{Claim, Ended, Expiry, Grant, Held, Nonce, Updated};
use crate::backoff::Backoff;
use crate::carried::Carried;
use crate::coordinator::SessionSlot;
use crate::error::{Error, ErrorKind, StoreError};
use crate::mutant;
use crate::queue::Turn;
use crate::revocation::{Cause, Hold, Revocation};
use crate::session::LiveSession;

/// What becomes of a name whose release the store has not confirmed.
const RUNS_OUT: &str = "the name is free when the store lets it run out";

/// How long an unacknowledged end is repeated at the least.
const SHORTEST_CLEAN_UP: Duration = Duration::from_secs(60);

/// One acquisition: wanted, then perhaps held, then ended.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) session: Arc<LiveSession>,
    pub(crate) hold: Hold,
    pub(crate) nonce: Nonce,
    since: SystemTime,
    state: Mutex<State>,
    ending: AtomicBool,
    /// A body runs under the claim, and whoever runs it ends the claim once it has ended.
    has_body: AtomicBool,
    /// The store refuses to end it.
    refused: Notify,
    /// The loss has been logged.
    mourned: AtomicBool,
    /// How often its record was to be changed.
    changes: AtomicU64,
    /// At most one call to the store about this claim at a time.
    calling: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct State {
    claim: Arc<Claim>,
    grant: Option<Grant>,
    /// Some attempt may have left something in the store.
    attempted: bool,
    /// Some attempt was never answered.
    unanswered: bool,
    turn: Option<Turn>,
    /// Why the end has not been acknowledged so far.
    trouble: Option<StoreError>,
    /// Why it was not renewed, once its deadline has passed.
    unrenewed: Option<StoreError>,
}

impl Entry {
    pub(crate) fn new(
        session: Arc<LiveSession>,
        hold: Hold,
        claim: Arc<Claim>,
        since: SystemTime,
    ) -> Self {
        Self {
            since,
            session,
            hold,
            nonce: claim.nonce,
            state: Mutex::new(State {
                claim,
                grant: None,
                attempted: false,
                unanswered: false,
                turn: None,
                trouble: None,
                unrenewed: None,
            }),
            ending: AtomicBool::new(false),
            has_body: AtomicBool::new(false),
            refused: Notify::new(),
            mourned: AtomicBool::new(false),
            changes: AtomicU64::new(0),
            calling: tokio::sync::Mutex::new(()),
        }
    }

    /// Keeps the turn in the local queue until the claim has ended.
    pub(crate) fn keep_turn(&self, turn: Turn) {
        self.state().turn = Some(turn);
    }

    /// Gives the turn back, for another entry of the same acquisition or for the next in line.
    pub(crate) fn take_turn(&self) -> Option<Turn> {
        self.state().turn.take()
    }

    /// An attempt that may leave something in the store is about to be made.
    pub(crate) fn attempting(&self) -> (Arc<Claim>, bool) {
        let mut state = self.state();
        state.attempted = true;
        (Arc::clone(&state.claim), state.unanswered)
    }

    /// An attempt was never answered.
    pub(crate) fn unanswered(&self) {
        self.state().unanswered = true;
    }

    /// An attempt was answered, and left nothing behind that an earlier one had not.
    pub(crate) fn left_nothing(&self) {
        let mut state = self.state();
        state.attempted = state.unanswered || state.grant.is_some();
    }

    /// From here on a body runs under the claim: a loss stops it, and only then is the claim ended.
    pub(crate) fn has_body(&self) {
        self.has_body.store(true, Ordering::Release);
    }

    pub(crate) fn granted(&self, grant: Grant) {
        self.state().grant = Some(grant);
    }

    /// What a renewal names, while there is something to renew.
    pub(crate) fn held(&self) -> Option<Held> {
        let state = self.state();
        let grant = state.grant.clone()?;
        (self.hold.is_granted() && self.hold.is_valid())
            .then(|| Held { claim: Arc::clone(&state.claim), grant })
    }

    /// Whether its end has begun.
    pub(crate) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Acquire)
    }

    /// Claims the right to end this; true for the first caller alone.
    pub(crate) fn begin_end(&self) -> bool {
        let first = !self.ending.swap(true, Ordering::AcqRel);
        if first && let Some(turn) = &self.state().turn {
            turn.ending();
        }
        first
    }

    /// The claim was lost: lets the next one of this process go on, and cleans up behind it.
    pub(crate) fn lost(self: &Arc<Self>, cause: Cause) {
        let revocation = self.hold.revoke(cause);
        // Whoever releases sees to the end, and is told of it.
        if revocation.cause == Cause::Released {
            return;
        }
        if !self.mourned.swap(true, Ordering::AcqRel) {
            // Kept: what is renewed later may be other claims of the session.
            self.state().unrenewed = self.session.failure();
            let (kind, name) = (self.claim().kind, self.hold.name());
            let token = self.hold.token().get();
            match revocation.cause {
                Cause::Closed => tracing::debug!(name, token, "released by the shutdown"),
                cause => tracing::warn!(%kind, name, token, cause = cause.as_str(), "revoked"),
            }
        }
        if self.has_body.load(Ordering::Acquire) || !self.begin_end() {
            return;
        }
        if revocation.cause != Cause::Deadline {
            self.spawn_end();
            return;
        }
        // By time, this claim is over in the store too before a new one can be granted.
        drop(self.take_turn());
        // What the store counts longer than the holder is the holder's, to stop in.
        let (entry, shared) = (Arc::clone(self), Arc::clone(&self.session.shared));
        self.session.shared.runtime.spawn(async move {
            let over = entry.hold.deadline() + shared.margin.of(entry.session.ttl());
            if !mutant::on(mutant::EARLY_END) {
                shared.environment.clock.sleep_until(over).await;
            }
            drop(entry.end().await);
        });
    }

    /// Ends the claim in the background. Only for whoever [`begin_end`](Entry::begin_end) chose.
    pub(crate) fn spawn_end(self: &Arc<Self>) {
        let entry = Arc::clone(self);
        self.session.shared.runtime.spawn(async move { drop(entry.end().await) });
    }

    /// Ends the claim in the store, repeated until that is answered, the session has ended, or it
    /// no longer matters. Only for whoever [`begin_end`](Entry::begin_end) chose.
    ///
    /// `Ok(Released)` also when an earlier, unanswered try of this very call had done it.
    pub(crate) async fn end(self: Arc<Self>) -> Result<Ended, StoreError> {
        let outcome = self.end_in_store().await;
        self.session.leave(self.nonce);
        drop(self.take_turn());
        if let Err(error) = &outcome {
            tracing::warn!(name = self.hold.name(), %error, "clean-up given up");
        }
        outcome
    }

    async fn end_in_store(&self) -> Result<Ended, StoreError> {
        let _calling = self.calling.lock().await;
        let (claim, grant, unanswered, attempted) = {
            let state = self.state();
            (Arc::clone(&state.claim), state.grant.clone(), state.unanswered, state.attempted)
        };
        if !attempted {
            return Ok(Ended::NotOurs);
        }
        if unanswered {
            self.session.leaves_marker();
        }
        let told = unanswered && !mutant::on(mutant::PLAIN_RELEASE);
        let shared = &self.session.shared;
        let clock = &*shared.environment.clock;
        let began = clock.now();
        let give_up = began + (self.session.ttl() * 4).max(SHORTEST_CLEAN_UP);
        let mut backoff = Backoff::new();
        let (mut repeated, mut refused) = (false, false);
        loop {
            if self.session.has_ended() && shared.profile.expiry == Expiry::Session {
                // The session's own end frees everything that was made on it.
                return Ok(if repeated { Ended::Released } else { Ended::NotOurs });
            }
            let call = shared.backend.end(&self.session.session, &claim, grant.as_ref(), told);
            let error = match shared.request(self.session.ttl(), call).await {
                Ok(ended) => {
                    self.state().trouble = None;
                    let released = repeated && ended == Ended::NotOurs;
                    return Ok(if released { Ended::Released } else { ended });
                }
                Err(error) => error,
            };
            if mutant::on(mutant::ENDS_ONCE) {
                return Err(error);
            }
            repeated |= !error.settled();
            let now = clock.now();
            let hopeless = match shared.profile.expiry {
                Expiry::Claim => now >= give_up,
                // Where the session lives on, what is left on it would do so too; where it is about
                // to be closed, that ends what is left.
                Expiry::Session => {
                    self.session.only_waits_for_ends()
                        && (!error.is_transient() || now >= began + shared.options.release_timeout)
                }
            };
            if hopeless {
                return Err(error);
            }
            if !error.is_transient() && !refused {
                refused = true;
                let (kind, name) = (claim.kind, self.hold.name());
                tracing::warn!(%kind, name, %error, "not given back yet; trying on");
            }
            self.state().trouble = Some(error);
            if refused {
                self.refused.notify_one();
            }
            let again = clock.now() + backoff.next(&shared.environment);
            tokio::select! {
                biased;
                () = self.session.ended(), if shared.profile.expiry == Expiry::Session => {}
                () = clock.sleep_until(again) => {}
            }
        }
    }

    /// Replaces the record, comparing its last known version. One change at a time.
    pub(crate) async fn update(
        self: Arc<Self>,
        encode: impl Fn(Nonce, u64) -> Result<Vec<u8>, String> + Send,
    ) -> Result<(), Error> {
        let shared = &self.session.shared;
        let what = || shared.subject("update", self.claim().kind, self.hold.name());
        let change = self.changes.fetch_add(1, Ordering::Relaxed) + 1;
        let change = if mutant::on(mutant::ALIKE_RECORDS) { 0 } else { change };
        let record = encode(self.nonce, change)
            .map_err(|why| Error::new(ErrorKind::Invalid, what(), why))?;
        let _calling = self.calling.lock().await;
        let claim = Arc::new(Claim { record: record.into(), ..(*self.claim()).clone() });
        let clock = &*shared.environment.clock;
        let give_up = clock.now() + shared.options.release_timeout;
        let mut backoff = Backoff::new();
        loop {
            if let Some(revocation) = self.hold.revocation() {
                return Err(self.error_of(what(), revocation));
            }
            let error = match self.try_update(&claim).await {
                Ok(Changed::Done) => return Ok(()),
                Ok(Changed::Lost) => {
                    self.lost(Cause::Key);
                    continue;
                }
                Ok(Changed::Meanwhile) => {
                    StoreError::refused(ErrorKind::Unreachable, "the record changes all the time")
                }
                Err(error) => error,
            };
            if !error.is_transient() || clock.now() >= give_up {
                return Err(Error::from_store(what(), error));
            }
            clock.sleep_until(clock.now() + backoff.next(&shared.environment)).await;
        }
    }

    async fn try_update(&self, claim: &Arc<Claim>) -> Result<Changed, StoreError> {
        let shared = &self.session.shared;
        let Some(grant) = self.state().grant.clone() else {
            return Ok(Changed::Lost);
        };
        let call = shared.backend.update(&self.session.session, claim, &grant);
        let answer = shared.request(self.session.ttl(), call).await?;
        let mut state = self.state();
        let (version, changed) = match answer {
            Updated::Done(version) => {
                state.claim = Arc::clone(claim);
                (version, Changed::Done)
            }
            // An earlier change of our own, whose answer never came.
            Updated::Stale(version) => (version, Changed::Meanwhile),
            Updated::NotOurs => return Ok(Changed::Lost),
        };
        state.grant = Some(Grant { version, ..grant });
        Ok(changed)
    }

    /// The error of somebody who wanted to use the claim after this.
    fn error_of(&self, what: impl Into<String>, revocation: Revocation) -> Error {
        let kept = self.state().unrenewed.clone();
        let unrenewed = kept.or_else(|| self.session.failure());
        Error::lost(what, revocation, unrenewed.as_ref())
    }

    /// The holder's wall clock when it asked, as the record says.
    pub(crate) fn since(&self) -> SystemTime {
        self.since
    }

    fn claim(&self) -> Arc<Claim> {
        Arc::clone(&self.state().claim)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What came of one try to change a record.
enum Changed {
    Done,
    /// The claim is no longer ours.
    Lost,
    /// Another version stands there, which is known now.
    Meanwhile,
}

/// What a guard owns: dropping it gives the claim back in the background. While it lives, others
/// with its TTL share its session.
#[derive(Debug)]
pub(crate) struct Claimed {
    pub(crate) entry: Arc<Entry>,
    _session: Arc<SessionSlot>,
}

impl Claimed {
    pub(crate) fn new(entry: Arc<Entry>, session: Arc<SessionSlot>) -> Self {
        Self { entry, _session: session }
    }

    /// The error that says why this was lost.
    pub(crate) fn into_lost(self, what: &str) -> Error {
        self.entry.error_of(what, self.entry.hold.revoke(Cause::Released))
    }

    /// Gives the claim back and waits for the store to say so, within the release timeout.
    ///
    /// Dropping the future does not stop it.
    pub(crate) async fn release(self, verb: &'static str) -> Result<(), Error> {
        let entry = Arc::clone(&self.entry);
        let shared = &entry.session.shared;
        let what = || shared.subject(verb, entry.claim().kind, entry.hold.name());
        let revocation = if mutant::on(mutant::VALID_WHILE_RELEASED) {
            Revocation { cause: Cause::Released, at: shared.now() }
        } else {
            entry.hold.revoke(Cause::Released)
        };
        if revocation.cause != Cause::Released || !entry.begin_end() {
            return Err(entry.error_of(what(), revocation));
        }
        let end = Arc::clone(&entry).end();
        let end = Carried::new(shared.runtime.clone(), CancellationToken::new(), end);
        let answer = async {
            tokio::select! {
                biased;
                ended = end => Some(ended),
                () = entry.refused.notified() => None,
            }
        };
        let ended = shared.within(shared.options.release_timeout, answer).await.flatten();
        let trouble = entry.state().trouble.take();
        match (ended, trouble) {
            // Given up, since its session is over.
            (Some(Ok(_)), Some(error)) => {
                let reason =
                    format!("the store had not answered before its session ended: {error}");
                let error = StoreError::unknown(reason).advise(RUNS_OUT);
                Err(Error::from_store(what(), error))
            }
            (Some(Ok(Ended::Released)), None) => {
                tracing::debug!(name = entry.hold.name(), "released");
                Ok(())
            }
            (Some(Ok(Ended::NotOurs)), None) => Err(Error::new(
                ErrorKind::Lost,
                what(),
                "the store had it no longer: it was removed or overwritten from outside, or its \
                 session had ended",
            )),
            (Some(Err(error)), _) => Err(Error::from_store(what(), error)),
            (None, trouble) => {
                let limit = shared.options.release_timeout;
                let error = trouble.filter(|error| !error.is_transient()).unwrap_or_else(|| {
                    StoreError::unknown(format!("no answer within {limit:?}"))
                        .advise(format!("it goes on in the background; else {RUNS_OUT}"))
                });
                Err(Error::from_store(what(), error))
            }
        }
    }
}

impl Drop for Claimed {
    fn drop(&mut self) {
        self.entry.hold.revoke(Cause::Released);
        if self.entry.begin_end() {
            self.entry.spawn_end();
        }
    }
}
