//! One session for all claims of a coordinator with the same TTL: renewed by one task, and the
//! place from which losses are told.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;

use crate::backend::{Expiry, Grant, Held, Loss, Losses, Nonce, Renewal, Renewed, Session};
use crate::backoff::Backoff;
use crate::claim::Entry;
use crate::clock::Moment;
use crate::coordinator::Shared;
use crate::error::{ErrorKind, StoreError};
use crate::lease::Lease;
use crate::mutant;
use crate::revocation::Cause;
use crate::trouble::Trouble;

/// Void markers that one session collects before new claims use a fresh one.
const MOST_MARKERS: u32 = 100;

/// How long the end of a session is repeated at the least.
const SHORTEST_CLEAN_UP: Duration = Duration::from_secs(60);

/// A session that a store has opened, with everything that hangs on it.
pub(crate) struct LiveSession {
    pub(crate) shared: Arc<Shared>,
    pub(crate) session: Session,
    /// The TTL that was asked for.
    asked: Duration,
    state: Mutex<State>,
    /// The task is to look again.
    wake: Notify,
    renewed: Notify,
    ended: CancellationToken,
    closed: CancellationToken,
    /// Why it could not be closed in the store.
    unclosed: OnceLock<StoreError>,
    retired: AtomicBool,
}

struct State {
    lease: Lease,
    claims: BTreeMap<Nonce, Arc<Entry>>,
    /// No claim's deadline is earlier than this.
    next_expiry: Option<Moment>,
    markers: u32,
    trouble: Trouble,
    /// Why the latest renewal failed, if it did.
    failure: Option<StoreError>,
}

type Renewing = Pin<Box<dyn Future<Output = Result<Renewal, StoreError>> + Send>>;

/// A renewal under way: when it was sent, and which claims it names (in order).
struct InFlight {
    sent: Moment,
    named: Vec<Nonce>,
    answer: Renewing,
}

impl LiveSession {
    /// Opens a session and starts the task that drives it.
    pub(crate) async fn open(shared: &Arc<Shared>, ttl: Duration) -> Result<Arc<Self>, StoreError> {
        let sent = shared.now();
        let mut session = shared.request(ttl, shared.backend.open(ttl)).await?;
        session.ttl = shared.believable(session.ttl);
        if let Err(why) = check_granted(shared, session.ttl) {
            // It ends by itself, and nothing was made on it.
            drop(shared.request(ttl, shared.backend.close(&session)).await);
            return Err(why);
        }
        let lease = Lease::opened(shared.profile.expiry, shared.margin, sent, session.ttl);
        let losses = shared.backend.losses(&session);
        let live = Arc::new(Self {
            shared: Arc::clone(shared),
            session,
            asked: ttl,
            state: Mutex::new(State {
                lease,
                claims: BTreeMap::new(),
                next_expiry: None,
                markers: 0,
                trouble: Trouble::default(),
                failure: None,
            }),
            wake: Notify::new(),
            renewed: Notify::new(),
            ended: CancellationToken::new(),
            closed: CancellationToken::new(),
            unclosed: OnceLock::new(),
            retired: AtomicBool::new(false),
        });
        shared.runtime.spawn(Arc::clone(&live).drive(losses));
        Ok(live)
    }

    pub(crate) fn ttl(&self) -> Duration {
        self.session.ttl
    }

    /// Why the latest renewal failed, if it did.
    pub(crate) fn failure(&self) -> Option<StoreError> {
        self.state().failure.clone()
    }

    /// Whether new claims with this TTL may use it.
    pub(crate) fn serves(&self, ttl: Duration) -> bool {
        self.asked == ttl
            && !self.is_retired()
            && !self.has_ended()
            && self.state().lease.valid(self.shared.now())
    }

    /// Whether closing it would end nothing that is not ending already.
    pub(crate) fn only_waits_for_ends(&self) -> bool {
        self.is_retired() && self.state().claims.values().all(|entry| entry.is_ending())
    }

    fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Acquire)
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.is_cancelled()
    }

    /// Resolves when nothing can be granted on this session any more.
    pub(crate) async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// Resolves when the session has been closed in the store, or that was given up: why, then.
    pub(crate) async fn closed(&self) -> Result<(), &StoreError> {
        self.closed.cancelled().await;
        self.unclosed.get().map_or(Ok(()), Err)
    }

    /// No new claims; closed once the last one has ended.
    pub(crate) fn retire(&self) {
        self.retired.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    /// Waits until so much is left that something may be granted, or the coordinator is being shut
    /// down; `false` if the session ended.
    pub(crate) async fn fresh(&self) -> bool {
        loop {
            let renewed = self.renewed.notified();
            let deadline = {
                let mut state = self.state();
                let now = self.shared.now();
                if self.has_ended() || !state.lease.valid(now) {
                    return false;
                }
                match state.lease.deadline() {
                    Some(deadline) if state.lease.is_short(now) => deadline,
                    _ => return true,
                }
            };
            tokio::select! {
                biased;
                () = self.ended() => return false,
                () = self.shared.closing.cancelled() => return true,
                () = renewed => {}
                // The task that would tell is gone if its runtime is.
                () = self.shared.environment.clock.sleep_until(deadline) => return false,
            }
        }
    }

    /// Takes a claim in before its first attempt, so that a loss told early is not missed.
    /// `false` if the session has ended.
    pub(crate) fn enter(&self, entry: &Arc<Entry>) -> bool {
        let mut state = self.state();
        let valid = state.lease.valid(self.shared.now());
        if valid {
            state.claims.insert(entry.nonce, Arc::clone(entry));
        }
        valid
    }

    /// Forgets a claim that has ended.
    pub(crate) fn leave(&self, nonce: Nonce) {
        let mut state = self.state();
        state.claims.remove(&nonce);
        if state.claims.is_empty() && self.is_retired() {
            self.wake.notify_one();
        }
    }

    /// A void marker stays in the store for as long as the session, where sessions can end.
    pub(crate) fn leaves_marker(&self) {
        if self.shared.profile.expiry == Expiry::Claim {
            return;
        }
        let mut state = self.state();
        state.markers += 1;
        if state.markers > MOST_MARKERS {
            drop(state);
            self.retire();
        }
    }

    /// Makes a grant visible, if by now it still counts. `sent` is when the attempt was.
    pub(crate) fn grant(&self, entry: &Arc<Entry>, grant: Grant, sent: Moment) -> bool {
        let (token, ttl) = (grant.token, grant.ttl.unwrap_or(self.session.ttl));
        entry.granted(grant);
        let mut state = self.state();
        let now = self.shared.now();
        let over = self.has_ended() || !state.lease.valid(now);
        if over && !mutant::on(mutant::DEAD_SESSION) {
            return false;
        }
        let sent = if mutant::on(mutant::DEADLINE_FROM_ANSWER) { now } else { sent };
        let own = self.shared.margin.deadline(sent, self.shared.believable(ttl));
        let deadline = state.lease.deadline().unwrap_or(own);
        if !entry.hold.grant(token, deadline) {
            return false;
        }
        if self.shared.profile.expiry == Expiry::Claim {
            let due = sent + state.lease.interval();
            if state.lease.renew_at().is_none_or(|renew_at| due < renew_at) {
                state.lease.renew_by(due);
                self.wake.notify_one();
            }
        }
        if state.next_expiry.is_none_or(|next| deadline < next) {
            state.next_expiry = Some(deadline);
            self.wake.notify_one();
        }
        true
    }

    /// The store said, in answer to something else, that this session is no more.
    pub(crate) fn found_ended(&self) {
        self.on_loss(Loss::Session);
        self.wake.notify_one();
    }

    /// Ends all claims because the coordinator is being shut down; returns them.
    pub(crate) fn shut(&self) -> Vec<Arc<Entry>> {
        self.retire();
        self.state().claims.values().cloned().collect()
    }

    async fn drive(self: Arc<Self>, mut losses: Losses) {
        let clock = Arc::clone(&self.shared.environment.clock);
        let mut in_flight: Option<InFlight> = None;
        let mut listening = true;
        loop {
            let now = clock.now();
            self.expire(now);
            if self.is_over(now) {
                break;
            }
            if in_flight.is_none() {
                in_flight = self.begin_renewal(now);
            }
            let wake_at = self.next_wake(now, in_flight.is_some());
            tokio::select! {
                biased;
                loss = losses.next(), if listening => match loss {
                    Some(loss) => self.on_loss(loss),
                    None => listening = false,
                },
                answer = answered(&mut in_flight) => {
                    if let Some(InFlight { sent, named, .. }) = in_flight.take() {
                        self.on_renewal(sent, &named, answer);
                    }
                }
                () = self.wake.notified() => {}
                () = async {
                    match wake_at {
                        Some(at) => clock.sleep_until(at).await,
                        None => std::future::pending().await,
                    }
                } => {}
            }
        }
        drop(in_flight);
        self.finish().await;
    }

    /// Whether nothing is left to drive.
    fn is_over(&self, now: Moment) -> bool {
        let mut state = self.state();
        !state.lease.valid(now) || (self.is_retired() && state.claims.is_empty())
    }

    /// Ends the session in the store. Everything on it has ended by now.
    async fn finish(&self) {
        let clock = &*self.shared.environment.clock;
        let (claims, over) = {
            let mut state = self.state();
            let over = state.lease.deadline().filter(|deadline| *deadline <= clock.now());
            state.lease.end();
            (state.claims.values().cloned().collect::<Vec<_>>(), over)
        };
        self.ended.cancel();
        for entry in claims.iter().filter(|entry| entry.held().is_some()) {
            entry.lost(Cause::Session);
        }
        if let Some(deadline) = over.filter(|_| !mutant::on(mutant::EARLY_END)) {
            // What the store counts longer than the holders is theirs, to stop in.
            clock.sleep_until(deadline + self.shared.margin.of(self.session.ttl)).await;
        }
        let give_up = clock.now() + (self.session.ttl * 4).max(SHORTEST_CLEAN_UP);
        let mut backoff = Backoff::new();
        loop {
            let call = self.shared.backend.close(&self.session);
            match self.shared.request(self.session.ttl, call).await {
                Ok(()) => break,
                Err(error) if error.is_transient() && clock.now() < give_up => {
                    clock.sleep_until(clock.now() + backoff.next(&self.shared.environment)).await;
                }
                Err(error) => {
                    tracing::warn!(%error, "a session could not be closed; it ends with its TTL");
                    drop(self.unclosed.set(error));
                    break;
                }
            }
        }
        self.closed.cancel();
    }

    /// Revokes what has passed its deadline.
    fn expire(&self, now: Moment) {
        let due: Vec<_> = {
            let mut state = self.state();
            if state.next_expiry.is_none_or(|next| now < next) {
                return;
            }
            let held = |entry: &&Arc<Entry>| entry.hold.is_granted();
            let (mut due, mut next) = (Vec::new(), None);
            for entry in state.claims.values().filter(held) {
                let deadline = entry.hold.deadline();
                if deadline <= now {
                    due.push(Arc::clone(entry));
                } else {
                    next = Some(next.map_or(deadline, |n: Moment| n.min(deadline)));
                }
            }
            state.next_expiry = next;
            due
        };
        if mutant::on(mutant::NEVER_REVOKED) {
            return;
        }
        for entry in due {
            entry.lost(Cause::Deadline);
        }
    }

    fn next_wake(&self, now: Moment, renewing: bool) -> Option<Moment> {
        let state = self.state();
        let renew_at = if renewing { None } else { state.lease.renew_at() };
        let wakes = [renew_at, state.next_expiry, state.lease.deadline()];
        // What was due has been done; looking for it again would spin.
        wakes.into_iter().flatten().filter(|at| *at > now).min()
    }

    fn begin_renewal(self: &Arc<Self>, now: Moment) -> Option<InFlight> {
        let mut state = self.state();
        if state.lease.renew_at().is_none_or(|at| now < at) {
            return None;
        }
        let held: Vec<Held> = state.claims.values().filter_map(|entry| entry.held()).collect();
        state.lease.sent();
        let idle = held.is_empty() && self.shared.profile.expiry == Expiry::Claim;
        if idle {
            return None;
        }
        let limit = state.lease.attempt_limit();
        let named = held.iter().map(|held| held.claim.nonce).collect();
        let session = Arc::clone(self);
        let answer = Box::pin(async move {
            let call = session.shared.backend.renew(&session.session, &held);
            session.shared.request(limit, call).await
        });
        Some(InFlight { sent: now, named, answer })
    }

    fn on_renewal(&self, sent: Moment, named: &[Nonce], answer: Result<Renewal, StoreError>) {
        let now = self.shared.now();
        let sent = if mutant::on(mutant::DEADLINE_FROM_ANSWER) { now } else { sent };
        match answer {
            Ok(Renewal::Alive { ttl, claims }) => {
                self.on_alive(now, sent, ttl, named, claims);
                self.renewed.notify_waiters();
            }
            Ok(Renewal::Ended) => self.on_loss(Loss::Session),
            Err(error) => {
                let mut state = self.state();
                if state.trouble.again(now) {
                    let held = state.claims.values().filter(|entry| entry.held().is_some());
                    let left = held.map(|entry| entry.hold.deadline().since(now)).min();
                    let (claims, place) = (state.claims.len(), self.shared.place());
                    let left = left.map(tracing::field::debug);
                    tracing::warn!(place, claims, left, %error, "renewal failed; trying again");
                }
                state.failure = Some(error);
                state.lease.retry(now);
            }
        }
    }

    fn on_alive(
        &self,
        now: Moment,
        sent: Moment,
        ttl: Duration,
        named: &[Nonce],
        claims: Vec<(Nonce, Renewed)>,
    ) {
        let mut lost = Vec::new();
        {
            let mut state = self.state();
            state.lease.renewed(now, sent, self.shared.believable(ttl));
            let mut shared_deadline = state.lease.deadline();
            if mutant::on(mutant::UNNAMED_EXTENDED) {
                shared_deadline = shared_deadline.or(Some(self.shared.margin.deadline(sent, ttl)));
            }
            let unknown = match self.shared.profile.expiry {
                Expiry::Claim => named.len().saturating_sub(claims.len()),
                Expiry::Session => 0,
            };
            for (nonce, renewed) in claims {
                let Some(entry) = state.claims.get(&nonce) else { continue };
                match renewed {
                    Renewed::Lost if mutant::on(mutant::RENEWAL_LOSS_IGNORED) => {}
                    Renewed::Lost => lost.push(Arc::clone(entry)),
                    Renewed::Extended(ttl)
                        if shared_deadline.is_none() && named.binary_search(&nonce).is_ok() =>
                    {
                        let ttl = self.shared.believable(ttl);
                        entry.hold.extend(self.shared.margin.deadline(sent, ttl));
                    }
                    Renewed::Extended(_) => {}
                }
            }
            if let Some(deadline) = shared_deadline {
                let lost: BTreeSet<Nonce> = lost.iter().map(|entry| entry.nonce).collect();
                for entry in state.claims.values().filter(|entry| !lost.contains(&entry.nonce)) {
                    entry.hold.extend(deadline);
                }
            }
            if unknown > 0 {
                tracing::warn!(unknown, claims = named.len(), "not all was renewed; soon again");
                state.lease.retry(now);
            } else {
                state.failure = None;
                if let Some(lasted) = state.trouble.over(now) {
                    tracing::info!(place = self.shared.place(), ?lasted, "renewed again");
                }
                tracing::debug!(claims = named.len(), "renewed");
            }
        }
        for entry in lost {
            self.on_claim_lost(&entry);
        }
    }

    fn on_loss(&self, loss: Loss) {
        if mutant::on(mutant::LOSS_IGNORED) {
            return;
        }
        match loss {
            Loss::Claim(nonce) => {
                let entry = self.state().claims.get(&nonce).cloned();
                if let Some(entry) = entry {
                    self.on_claim_lost(&entry);
                }
            }
            Loss::Session => {
                let entries: Vec<_> = {
                    let mut state = self.state();
                    state.lease.end();
                    state.claims.values().cloned().collect()
                };
                self.ended.cancel();
                for entry in entries.iter().filter(|entry| entry.held().is_some()) {
                    entry.lost(Cause::Session);
                }
            }
        }
    }

    fn on_claim_lost(&self, entry: &Arc<Entry>) {
        // Not granted yet: whoever is acquiring will find that it cannot be.
        entry.hold.revoke(Cause::Key);
        if entry.hold.is_granted() {
            entry.lost(Cause::Key);
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for LiveSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LiveSession").field("ttl", &self.session.ttl).finish_non_exhaustive()
    }
}

/// Whether enough of a TTL that a store has granted can be used.
fn check_granted(shared: &Shared, granted: Duration) -> Result<(), StoreError> {
    let taken_off = shared.margin.of(granted);
    if taken_off <= granted / 2 {
        return Ok(());
    }
    let why = format!("it granted a TTL of {granted:?}, of which {taken_off:?} cannot be used");
    Err(StoreError::refused(ErrorKind::Unsupported, why))
}

/// The answer of the renewal under way; pending while there is none.
async fn answered(in_flight: &mut Option<InFlight>) -> Result<Renewal, StoreError> {
    match in_flight {
        Some(in_flight) => in_flight.answer.as_mut().await,
        None => std::future::pending().await,
    }
}
