//! From wanting a name to holding it: try, wait, try again; and whatever ends it on the way.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::backend::{Attempt, Claim, Expiry, Grant, Ticket};
use crate::backoff::Backoff;
use crate::claim::{Claimed, Entry};
use crate::clock::Moment;
use crate::coordinator::{Inner, SessionSlot};
use crate::error::{ErrorKind, StoreError};
use crate::mutant;
use crate::name::{Kind, Name};
use crate::node::{self, Node};
use crate::queue::Turn;
use crate::revocation::Hold;
use crate::session::LiveSession;
use crate::trouble::Trouble;

/// A wait shorter than this was none.
const NO_WAIT: Duration = Duration::from_millis(5);

/// How many hints in a row may be in vain before the next try is put off.
const MOST_IN_VAIN: u32 = 3;

/// For how long an answer may be under way before, to a caller whose wait is used up, it counts as
/// none.
const SILENCE: Duration = Duration::from_millis(500);

/// Attempts of a try that does not queue: the second heals a connection that had gone stale.
const TRIES_WITHOUT_QUEUE: u32 = 2;

/// One acquisition, checked and ready to be sent.
pub(crate) struct Acquisition {
    pub(crate) inner: Arc<Inner>,
    pub(crate) slot: Arc<SessionSlot>,
    pub(crate) kind: Kind,
    pub(crate) name: Name,
    pub(crate) node: Node,
    pub(crate) ttl: Duration,
    pub(crate) queue: bool,
    pub(crate) progress: Arc<Progress>,
}

/// What an acquisition under way can say to the caller whose wait is used up.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    had_its_turn: AtomicBool,
    trouble: Mutex<Option<StoreError>>,
    /// When what has not been answered yet was asked.
    asked: Mutex<Option<Moment>>,
    /// What is said of it to people.
    said: Mutex<Trouble>,
}

impl Progress {
    /// Whether it got as far as to speak to the store.
    pub(crate) fn had_its_turn(&self) -> bool {
        self.had_its_turn.load(Ordering::Acquire)
    }

    /// The latest thing that went wrong, unless the store has said since that the name is taken.
    pub(crate) fn trouble(&self, now: Moment) -> Option<StoreError> {
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner).take();
        let silent = self.asked().is_some_and(|asked| now.since(asked) >= SILENCE);
        trouble.or_else(|| silent.then(not_answered))
    }

    fn said(&self) -> MutexGuard<'_, Trouble> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn asked(&self) -> MutexGuard<'_, Option<Moment>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, trouble: Option<StoreError>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }
}

/// `None`: the coordinator is being shut down.
type Failure = Option<StoreError>;

/// What is left of an entry whose attempts are over.
enum Tried {
    Held(Claimed),
    /// Taken by somebody else, and nobody wants to wait.
    Taken,
    /// This entry is finished; another may do better.
    Again(Option<Turn>),
    /// The caller has gone, or the coordinator is closing.
    Stopped,
    Failed(StoreError),
}

impl Acquisition {
    /// Acquires. `gone` says that the caller has gone, which ends the waiting; what is returned is
    /// given back by being dropped.
    pub(crate) async fn run(
        self,
        turn: Turn,
        gone: CancellationToken,
    ) -> Result<Option<Claimed>, Failure> {
        turn.wanted_until(&gone);
        let mut turn = Some(turn);
        let mut backoff = Backoff::new();
        let mut tries = 0;
        self.progress.had_its_turn.store(true, Ordering::Release);
        self.progress.set(Some(not_answered()));
        loop {
            if self.is_stopped(&gone) {
                return Err(None);
            }
            let session = match self.slot.usable(&self.inner, self.ttl).await {
                Ok(session) => session,
                Err(error) => {
                    tries += 1;
                    self.after_error(error, tries, &mut backoff, &gone).await?;
                    continue;
                }
            };
            let entry = self.entry(session)?;
            if !entry.session.enter(&entry) {
                continue;
            }
            if let Some(turn) = turn.take() {
                entry.keep_turn(turn);
            }
            match self.try_entry(&entry, &mut tries, &mut backoff, &gone).await {
                // A shutdown that began meanwhile has not seen this claim.
                Tried::Held(_) if self.inner.shared.closing.is_cancelled() => return Err(None),
                Tried::Held(claimed) => return Ok(Some(claimed)),
                Tried::Taken => return Ok(None),
                Tried::Again(same_turn) => turn = same_turn,
                Tried::Stopped => return Err(None),
                Tried::Failed(error) => return Err(Some(error)),
            }
            if turn.is_none() {
                let next = tokio::select! {
                    biased;
                    () = gone.cancelled() => return Err(None),
                    () = self.inner.shared.closing.cancelled() => return Err(None),
                    next = self.inner.queue.enter(self.kind, &self.name) => next,
                };
                next.wanted_until(&gone);
                turn = Some(next);
            }
            // What the store has said was to an entry that is no more.
            self.progress.set(Some(not_answered()));
        }
    }

    /// Tries under one nonce on one session until something is settled.
    async fn try_entry(
        &self,
        entry: &Arc<Entry>,
        tries: &mut u32,
        backoff: &mut Backoff,
        gone: &CancellationToken,
    ) -> Tried {
        let shared = &self.inner.shared;
        let mut ticket: Option<Ticket> = None;
        let mut in_vain = 0;
        loop {
            if entry.hold.revocation().is_some() || !entry.session.fresh().await {
                return Tried::Again(self.leave(entry));
            }
            if self.is_stopped(gone) {
                if mutant::on(mutant::KEEPS_PLACE) {
                    drop(entry.take_turn());
                } else {
                    give_up(entry);
                }
                return Tried::Stopped;
            }
            *tries += 1;
            let (claim, unanswered) = entry.attempting();
            let sent = shared.now();
            *self.progress.asked() = Some(sent);
            let call = shared.backend.try_claim(
                &entry.session.session,
                &claim,
                ticket.as_ref(),
                unanswered,
            );
            match shared.request(entry.session.ttl(), call).await {
                Ok(Attempt::Held(grant)) => {
                    self.answered();
                    if let Some(tried) = self.hold(entry, grant, sent) {
                        return tried;
                    }
                    if !self.queue && *tries >= TRIES_WITHOUT_QUEUE {
                        give_up(entry);
                        let why = "the store's answers take longer than the TTL";
                        return Tried::Failed(StoreError::refused(ErrorKind::Unreachable, why));
                    }
                }
                Ok(Attempt::Blocked(place)) => {
                    self.answered();
                    if !self.queue {
                        entry.left_nothing();
                        give_up(entry);
                        return Tried::Taken;
                    }
                    let began = shared.now();
                    self.wait(entry, &claim, &place, gone).await;
                    ticket = Some(place);
                    // A store whose hints are in vain again and again is not asked all the time.
                    if shared.now().since(began) >= NO_WAIT {
                        in_vain = 0;
                        backoff.reset();
                    } else if in_vain < MOST_IN_VAIN || mutant::on(mutant::HINTS_BELIEVED) {
                        in_vain += 1;
                    } else {
                        self.pause(backoff, gone).await;
                    }
                }
                Ok(Attempt::Anew) => {
                    entry.session.leaves_marker();
                    entry.session.leave(entry.nonce);
                    return Tried::Again(entry.take_turn());
                }
                Ok(Attempt::SessionEnded) => {
                    entry.session.found_ended();
                    let turn = self.leave(entry);
                    self.pause(backoff, gone).await;
                    return Tried::Again(turn);
                }
                Err(error) => {
                    if error.settled() {
                        if ticket.is_none() {
                            entry.left_nothing();
                        }
                    } else {
                        entry.unanswered();
                        if mutant::on(mutant::FRESH_NONCE) {
                            return Tried::Again(entry.take_turn());
                        }
                    }
                    if let Err(failure) = self.after_error(error, *tries, backoff, gone).await {
                        give_up(entry);
                        return failure.map_or(Tried::Stopped, Tried::Failed);
                    }
                }
            }
        }
    }

    /// Makes a grant visible. `None`: it came too late, and is to be asked for again.
    fn hold(&self, entry: &Arc<Entry>, grant: Grant, sent: Moment) -> Option<Tried> {
        if entry.session.grant(entry, grant, sent) {
            tracing::debug!(name = entry.hold.name(), token = entry.hold.token().get(), "granted");
            return Some(Tried::Held(Claimed::new(Arc::clone(entry), Arc::clone(&self.slot))));
        }
        if entry.hold.revocation().is_none()
            && !entry.session.has_ended()
            && self.inner.shared.profile.expiry == Expiry::Claim
        {
            return None;
        }
        Some(Tried::Again(self.leave(entry)))
    }

    /// Ends an entry whose session or key was lost under it. Its turn goes on to the next entry
    /// where the end needs no answer of the store.
    fn leave(&self, entry: &Arc<Entry>) -> Option<Turn> {
        let ended_with_session =
            self.inner.shared.profile.expiry == Expiry::Session && entry.session.has_ended();
        let turn = if ended_with_session { entry.take_turn() } else { None };
        give_up(entry);
        turn
    }

    /// Waits until another try is worth it.
    async fn wait(
        &self,
        entry: &Arc<Entry>,
        claim: &Claim,
        ticket: &Ticket,
        gone: &CancellationToken,
    ) {
        let shared = &self.inner.shared;
        let clock = &*shared.environment.clock;
        let began = clock.now();
        let hint = async {
            if !ticket.not_before.is_zero() {
                clock.sleep_until(began + ticket.not_before).await;
            }
            shared.backend.wait(&entry.session.session, claim, ticket).await;
        };
        let look = async {
            match ticket.look_after {
                Some(after) => clock.sleep_until(began + after.max(ticket.not_before)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = gone.cancelled() => {}
            () = shared.closing.cancelled() => {}
            () = entry.session.ended() => {}
            () = entry.hold.told() => {}
            () = hint => {}
            () = look => {}
        }
    }

    /// The store has answered.
    fn answered(&self) {
        self.progress.set(None);
        *self.progress.asked() = None;
        if let Some(lasted) = self.progress.said().over(self.inner.shared.now()) {
            let name = self.name.as_str();
            tracing::info!(kind = %self.kind, name, ?lasted, "the store answers again");
        }
    }

    /// Whether to go on after an error: a pause if so, the failure if not.
    async fn after_error(
        &self,
        error: StoreError,
        tries: u32,
        backoff: &mut Backoff,
        gone: &CancellationToken,
    ) -> Result<(), Failure> {
        let give_up = !self.queue && tries >= TRIES_WITHOUT_QUEUE;
        if !error.is_transient() || give_up {
            return Err(Some(error));
        }
        let (name, place) = (self.name.as_str(), self.inner.shared.place());
        if self.progress.said().again(self.inner.shared.now()) {
            tracing::warn!(kind = %self.kind, name, place, %error, "cannot ask for it; trying again");
        }
        self.progress.set(Some(error));
        self.pause(backoff, gone).await;
        if self.is_stopped(gone) { Err(None) } else { Ok(()) }
    }

    async fn pause(&self, backoff: &mut Backoff, gone: &CancellationToken) {
        let shared = &self.inner.shared;
        let clock = &*shared.environment.clock;
        let again = clock.now() + backoff.next(&shared.environment);
        tokio::select! {
            biased;
            () = gone.cancelled() => {}
            () = shared.closing.cancelled() => {}
            () = clock.sleep_until(again) => {}
        }
    }

    fn is_stopped(&self, gone: &CancellationToken) -> bool {
        gone.is_cancelled() || self.inner.shared.closing.is_cancelled()
    }

    fn entry(&self, session: Arc<LiveSession>) -> Result<Arc<Entry>, Failure> {
        let environment = &self.inner.shared.environment;
        let invalid = |why: String| Some(StoreError::refused(ErrorKind::Invalid, why));
        let nonce = environment.nonce().map_err(|error| invalid(error.to_string()))?;
        let since = environment.clock.wall();
        let record = node::encode(&self.node, since, &nonce, 0).map_err(invalid)?;
        let claim = Claim {
            kind: self.kind,
            name: self.name.clone(),
            nonce,
            record: record.into(),
            queue: self.queue,
        };
        let hold = Hold::wanted(environment.clone(), self.kind, self.name.clone());
        Ok(Arc::new(Entry::new(session, hold, Arc::new(claim), since)))
    }
}

fn not_answered() -> StoreError {
    StoreError::unknown("the store did not answer within the wait")
}

/// Ends an entry in the background; its turn lasts until that is answered.
fn give_up(entry: &Arc<Entry>) {
    if entry.begin_end() {
        entry.spawn_end();
    }
}
