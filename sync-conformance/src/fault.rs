//! A [`Backend`] that fails as it is told, around one that works.

#![deny(clippy::missing_trait_methods)]

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use sync_core::backend::{
    Attempt, Claim, Ended, Grant, Held, Loss, Losses, Profile, Renewal, Session, Sighting, Ticket,
    Updated, Version,
};
use sync_core::{Backend, Clock, Coordinator, Error, ErrorKind, Kind, Name, Options, StoreError};
use tokio::sync::{broadcast, watch};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::BroadcastStream;

/// A method of [`Backend`] that speaks to the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    /// [`Backend::open`]
    Open,
    /// [`Backend::close`]
    Close,
    /// [`Backend::renew`]
    Renew,
    /// [`Backend::try_claim`]
    TryClaim,
    /// [`Backend::wait`]
    Wait,
    /// [`Backend::update`]
    Update,
    /// [`Backend::end`]
    End,
    /// [`Backend::holder`]
    Holder,
    /// [`Backend::watch`]
    Watch,
}

/// What happens to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The store refuses, and nothing was applied.
    Refuse(ErrorKind),
    /// The request never leaves: nothing is applied, and the caller knows.
    Unsent,
    /// The request is lost on its way: nothing is applied, and the caller does not know.
    LoseRequest,
    /// The request is applied and its answer is lost.
    LoseAnswer,
    /// The request leaves this much later, by the clock that [`Faulty`] was given.
    Delay(Duration),
    /// The request is under way for this long, and its answer as long again.
    Slow(Duration),
    /// The request stays with the caller until [`Faults::release`]. Whoever drops the call before
    /// takes it back: it is never applied.
    Hang,
    /// The request is under way until [`Faults::release`], and is applied then, also if the
    /// caller has dropped the call: the late request.
    Late,
    /// The request is applied, and its answer is under way until [`Faults::release`].
    LateAnswer,
    /// Something on the way repeats the request: it is applied twice, one right after the other, and
    /// the caller hears the answer to the first.
    Twice,
}

/// The handle by which a [`Faulty`] is told what to do. Clones are the same handle.
///
/// [`Faults::next`] plans one call, [`Faults::always`] all calls that have no plan of their own.
/// On [`Verb::Wait`], which cannot fail, the faults that lose something never resolve, and those
/// that refuse resolve at once.
///
/// ```
/// use sync_conformance::fault::{Fault, Faults, Verb};
///
/// let faults = Faults::new();
/// faults.next(Verb::TryClaim, Fault::LoseAnswer);
/// faults.always(Verb::Renew, Fault::Hang);
/// assert_eq!(faults.calls(Verb::Renew), 0);
/// ```
#[derive(Debug, Clone)]
pub struct Faults(Arc<Control>);

#[derive(Debug)]
struct Control {
    plans: Mutex<HashMap<Verb, Plan>>,
    /// How many calls came, for each verb.
    calls: watch::Sender<HashMap<Verb, usize>>,
    /// How many of them returned without an error.
    done: watch::Sender<HashMap<Verb, usize>>,
    /// How many of them have neither returned nor been dropped.
    under_way: watch::Sender<HashMap<Verb, usize>>,
    /// How many requests are [`Fault::Late`] and not applied yet.
    late: watch::Sender<usize>,
    /// How many answers have been [`Fault::LateAnswer`] so far.
    late_answers: watch::Sender<usize>,
    /// How many calls of [`Backend::end`] said that some attempt was never answered.
    abandons: AtomicUsize,
    /// Counts the releases: who began to wait under an earlier number goes on.
    releases: watch::Sender<u64>,
    losses: broadcast::Sender<Loss>,
}

#[derive(Debug, Default)]
struct Plan {
    next: VecDeque<Fault>,
    always: Option<Fault>,
}

impl Faults {
    /// No faults at all.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(Control {
            plans: Mutex::default(),
            calls: watch::Sender::new(HashMap::new()),
            done: watch::Sender::new(HashMap::new()),
            under_way: watch::Sender::new(HashMap::new()),
            late: watch::Sender::new(0),
            late_answers: watch::Sender::new(0),
            abandons: AtomicUsize::new(0),
            releases: watch::Sender::new(0),
            losses: broadcast::Sender::new(1024),
        }))
    }

    /// A coordinator on this backend, with these faults in front of it.
    ///
    /// # Errors
    /// When the options cannot be used.
    pub fn coordinator(
        &self,
        backend: Arc<dyn Backend>,
        options: &Options,
    ) -> Result<Coordinator, Error> {
        let backend = Faulty::new(backend, options.to_environment().clock, self);
        Coordinator::new(Arc::new(backend), options)
    }

    /// Plans what happens to the next call that has no plan yet.
    pub fn next(&self, verb: Verb, fault: Fault) {
        self.plans().entry(verb).or_default().next.push_back(fault);
    }

    /// What happens to every call that was not planned by [`Faults::next`].
    pub fn always(&self, verb: Verb, fault: Fault) {
        self.plans().entry(verb).or_default().always = Some(fault);
    }

    /// Calls to come go through. Those that hang go on hanging.
    pub fn heal(&self) {
        self.plans().clear();
    }

    /// Lets go on what hangs or is under way now.
    pub fn release(&self) {
        self.0.releases.send_modify(|number| *number += 1);
    }

    /// How many calls of `verb` came so far.
    #[must_use]
    pub fn calls(&self, verb: Verb) -> usize {
        of(&self.0.calls.borrow(), verb)
    }

    /// Resolves once `count` calls of `verb` have come.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn called(&self, verb: Verb, count: usize) {
        let enough = |calls: &HashMap<Verb, usize>| of(calls, verb) >= count;
        // The sender lives as long as `self`.
        let _ = self.0.calls.subscribe().wait_for(enough).await;
    }

    /// How many calls of `verb` have returned without an error.
    #[must_use]
    pub fn done(&self, verb: Verb) -> usize {
        of(&self.0.done.borrow(), verb)
    }

    /// Resolves once `count` calls of `verb` have returned without an error.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn did(&self, verb: Verb, count: usize) {
        let enough = |done: &HashMap<Verb, usize>| of(done, verb) >= count;
        let _ = self.0.done.subscribe().wait_for(enough).await;
    }

    /// Resolves once exactly `count` calls of `verb` are under way: neither answered nor dropped.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn under_way(&self, verb: Verb, count: usize) {
        let as_many = |under_way: &HashMap<Verb, usize>| of(under_way, verb) == count;
        let _ = self.0.under_way.subscribe().wait_for(as_many).await;
    }

    /// Resolves once `count` requests have been applied whose answers are [`Fault::LateAnswer`].
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn answered_late(&self, count: usize) {
        let _ = self.0.late_answers.subscribe().wait_for(|late| *late >= count).await;
    }

    /// Resolves once no request is [`Fault::Late`] any more: all have been released and applied.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn landed(&self) {
        let _ = self.0.late.subscribe().wait_for(|late| *late == 0).await;
    }

    /// How many calls of [`Backend::end`] said that some attempt was never answered, so that a
    /// marker had to keep it out.
    #[must_use]
    pub fn abandons(&self) -> usize {
        self.0.abandons.load(Ordering::Acquire)
    }

    /// Tells a loss from outside to all sessions that are open.
    pub fn lose(&self, loss: Loss) {
        // No session is open where nobody listens.
        let _ = self.0.losses.send(loss);
    }

    fn plans(&self) -> std::sync::MutexGuard<'_, HashMap<Verb, Plan>> {
        self.0.plans.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a call and says what happens to it, and when it is released.
    fn meet(&self, verb: Verb) -> (Option<Fault>, Released) {
        let plan =
            self.plans().get_mut(&verb).and_then(|plan| plan.next.pop_front().or(plan.always));
        let released =
            Released { since: *self.0.releases.borrow(), now: self.0.releases.subscribe() };
        self.0.calls.send_modify(|calls| *calls.entry(verb).or_default() += 1);
        (plan, released)
    }
}

impl Default for Faults {
    fn default() -> Self {
        Self::new()
    }
}

fn of(counts: &HashMap<Verb, usize>, verb: Verb) -> usize {
    counts.get(&verb).copied().unwrap_or(0)
}

/// The next release, seen from when a call came.
struct Released {
    since: u64,
    now: watch::Receiver<u64>,
}

impl Released {
    async fn wait(mut self) {
        let since = self.since;
        if self.now.wait_for(|now| *now > since).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// A call that has neither returned nor been dropped.
struct UnderWay<'a>(&'a Control, Verb);

impl<'a> UnderWay<'a> {
    fn begin(control: &'a Control, verb: Verb) -> Self {
        control.under_way.send_modify(|calls| *calls.entry(verb).or_default() += 1);
        Self(control, verb)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.under_way.send_modify(|calls| *calls.entry(self.1).or_default() -= 1);
    }
}

/// A backend around another that does with each call what its [`Faults`] say.
///
/// ```no_run
/// # async fn example(memory: std::sync::Arc<dyn sync_core::Backend>) -> Result<(), sync_core::Error> {
/// use std::sync::Arc;
/// use sync_conformance::fault::{Fault, Faults, Faulty, Verb};
/// use sync_core::{BootClock, Coordinator, Options};
///
/// let faults = Faults::new();
/// let backend = Faulty::new(memory, Arc::new(BootClock::new()), &faults);
/// let sync = Coordinator::new(Arc::new(backend), &Options::new())?;
/// faults.always(Verb::Renew, Fault::Hang);
/// let guard = sync.lock("report").acquire().await?;
/// guard.revoked().await;
/// # Ok(()) }
/// ```
pub struct Faulty {
    inner: Arc<dyn Backend>,
    clock: Arc<dyn Clock>,
    faults: Faults,
}

impl Faulty {
    /// Puts `faults` in front of `inner`.
    pub fn new(inner: Arc<dyn Backend>, clock: Arc<dyn Clock>, faults: &Faults) -> Self {
        Self { inner, clock, faults: faults.clone() }
    }

    async fn meet<T: Send + 'static, F>(
        &self,
        verb: Verb,
        call: impl Fn() -> F + Send,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        let _until_the_end = UnderWay::begin(&self.faults.0, verb);
        let answer = self.suffer(verb, call).await;
        if answer.is_ok() {
            self.faults.0.done.send_modify(|done| *done.entry(verb).or_default() += 1);
        }
        answer
    }

    /// Does with `call` what is planned for `verb`.
    async fn suffer<T: Send + 'static, F>(
        &self,
        verb: Verb,
        call: impl Fn() -> F + Send,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        let (fault, released) = self.faults.meet(verb);
        let lost = || StoreError::unknown(format!("{verb:?} was lost on purpose"));
        match fault {
            None => call().await,
            Some(Fault::Refuse(kind)) => Err(StoreError::refused(kind, "refused on purpose")),
            Some(Fault::Unsent) => Err(StoreError::unsent("not sent on purpose")),
            Some(Fault::LoseRequest) => Err(lost()),
            Some(Fault::LoseAnswer) => {
                let _ = call().await;
                Err(lost())
            }
            Some(Fault::Delay(by)) => {
                self.clock.sleep_until(self.clock.now() + by).await;
                call().await
            }
            Some(Fault::Slow(by)) => {
                self.clock.sleep_until(self.clock.now() + by).await;
                let answer = call().await;
                self.clock.sleep_until(self.clock.now() + by).await;
                answer
            }
            Some(Fault::Hang) => {
                released.wait().await;
                call().await
            }
            Some(Fault::Late) => {
                self.faults.0.late.send_modify(|late| *late += 1);
                let control = Arc::clone(&self.faults.0);
                let call = call();
                let late = tokio::spawn(async move {
                    released.wait().await;
                    let answer = call.await;
                    control.late.send_modify(|late| *late -= 1);
                    answer
                });
                late.await.unwrap_or_else(|_| Err(lost()))
            }
            Some(Fault::LateAnswer) => {
                let answer = call().await;
                self.faults.0.late_answers.send_modify(|late| *late += 1);
                released.wait().await;
                answer
            }
            Some(Fault::Twice) => {
                let answer = call().await;
                let _ = call().await;
                answer
            }
        }
    }
}

impl fmt::Debug for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faulty").field("inner", &self.inner).finish_non_exhaustive()
    }
}

#[async_trait]
impl Backend for Faulty {
    fn profile(&self) -> &Profile {
        self.inner.profile()
    }

    fn key(&self, kind: Kind, name: &Name) -> String {
        self.inner.key(kind, name)
    }

    async fn open(&self, ttl: Duration) -> Result<Session, StoreError> {
        let call = || {
            let inner = Arc::clone(&self.inner);
            async move { inner.open(ttl).await }
        };
        self.meet(Verb::Open, call).await
    }

    async fn close(&self, session: &Session) -> Result<(), StoreError> {
        let call = || {
            let (inner, session) = (Arc::clone(&self.inner), session.clone());
            async move { inner.close(&session).await }
        };
        self.meet(Verb::Close, call).await
    }

    async fn renew(&self, session: &Session, held: &[Held]) -> Result<Renewal, StoreError> {
        let call = || {
            let (inner, session) = (Arc::clone(&self.inner), session.clone());
            let held = held.to_vec();
            async move { inner.renew(&session, &held).await }
        };
        self.meet(Verb::Renew, call).await
    }

    async fn try_claim(
        &self,
        session: &Session,
        claim: &Claim,
        ticket: Option<&Ticket>,
        unanswered: bool,
    ) -> Result<Attempt, StoreError> {
        let call = || {
            let (inner, session) = (Arc::clone(&self.inner), session.clone());
            let (claim, ticket) = (claim.clone(), ticket.cloned());
            async move { inner.try_claim(&session, &claim, ticket.as_ref(), unanswered).await }
        };
        self.meet(Verb::TryClaim, call).await
    }

    async fn wait(&self, session: &Session, claim: &Claim, ticket: &Ticket) {
        let call = || {
            let (inner, session) = (Arc::clone(&self.inner), session.clone());
            let (claim, ticket) = (claim.clone(), ticket.clone());
            async move {
                inner.wait(&session, &claim, &ticket).await;
                Ok(())
            }
        };
        if self.meet(Verb::Wait, call).await.is_err_and(|e| !e.settled()) {
            std::future::pending::<()>().await;
        }
    }

    async fn update(
        &self,
        session: &Session,
        claim: &Claim,
        grant: &Grant,
    ) -> Result<Updated, StoreError> {
        let call = || {
            let (inner, session) = (Arc::clone(&self.inner), session.clone());
            let (claim, grant) = (claim.clone(), grant.clone());
            async move { inner.update(&session, &claim, &grant).await }
        };
        self.meet(Verb::Update, call).await
    }

    async fn end(
        &self,
        session: &Session,
        claim: &Claim,
        grant: Option<&Grant>,
        unanswered: bool,
    ) -> Result<Ended, StoreError> {
        let abandons = usize::from(unanswered);
        self.faults.0.abandons.fetch_add(abandons, Ordering::AcqRel);
        let call = || {
            let (inner, session) = (Arc::clone(&self.inner), session.clone());
            let (claim, grant) = (claim.clone(), grant.cloned());
            async move { inner.end(&session, &claim, grant.as_ref(), unanswered).await }
        };
        self.meet(Verb::End, call).await
    }

    fn losses(&self, session: &Session) -> Losses {
        let told = BroadcastStream::new(self.faults.0.losses.subscribe()).filter_map(Result::ok);
        Box::pin(self.inner.losses(session).merge(told))
    }

    async fn holder(&self, kind: Kind, name: &Name) -> Result<Sighting, StoreError> {
        let call = || {
            let (inner, name) = (Arc::clone(&self.inner), name.clone());
            async move { inner.holder(kind, &name).await }
        };
        self.meet(Verb::Holder, call).await
    }

    async fn watch(&self, kind: Kind, name: &Name, seen: &Version) -> Result<Sighting, StoreError> {
        let call = || {
            let (inner, name, seen) = (Arc::clone(&self.inner), name.clone(), seen.clone());
            async move { inner.watch(kind, &name, &seen).await }
        };
        self.meet(Verb::Watch, call).await
    }
}

#[cfg(test)]
mod tests;
