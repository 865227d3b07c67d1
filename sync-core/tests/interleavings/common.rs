//! A backend over `memory` whose calls can be made to fail, hang, or arrive late.
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use sync_core::backend::*;
use sync_core::memory::{Memory, Store};
use sync_core::*;
use tokio::sync::{Notify, mpsc};

#[derive(Clone)]
pub(crate) enum Act {
    Pass,
    /// answered: refused
    Refuse(ErrorKind),
    /// not applied, no answer
    Swallow,
    /// an error that says "unknown", at once; not applied
    Unknown,
    /// answered and applied once the gate opens
    Slow(Arc<Notify>),
    /// no answer; applied in the background when the gate opens
    Ghost(Arc<Notify>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Verb {
    Open,
    Close,
    Renew,
    Claim,
    Update,
    End,
}

#[derive(Default)]
pub(crate) struct Plan {
    next: Mutex<HashMap<Verb, VecDeque<Act>>>,
    always: Mutex<HashMap<Verb, Act>>,
    counts: Mutex<HashMap<Verb, usize>>,
    pub waits: AtomicUsize,
    pub tell: Mutex<Vec<mpsc::UnboundedSender<Loss>>>,
    pub nonces: Mutex<Vec<Nonce>>,
    pub in_flight: Mutex<HashMap<Nonce, Vec<Verb>>>,
    pub overlaps: Mutex<Vec<(Verb, Verb)>>,
}
impl std::fmt::Debug for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Plan")
    }
}

impl Plan {
    pub(crate) fn next(&self, verb: Verb, act: Act) {
        self.next.lock().unwrap().entry(verb).or_default().push_back(act);
    }
    pub(crate) fn always(&self, verb: Verb, act: Act) {
        self.always.lock().unwrap().insert(verb, act);
    }
    pub(crate) fn count(&self, verb: Verb) -> usize {
        self.counts.lock().unwrap().get(&verb).copied().unwrap_or(0)
    }
    fn take(&self, verb: Verb) -> Act {
        *self.counts.lock().unwrap().entry(verb).or_default() += 1;
        if let Some(act) = self.next.lock().unwrap().get_mut(&verb).and_then(VecDeque::pop_front) {
            return act;
        }
        self.always.lock().unwrap().get(&verb).cloned().unwrap_or(Act::Pass)
    }
    pub(crate) fn tell(&self, loss: Loss) {
        for t in self.tell.lock().unwrap().iter() {
            let _ = t.send(loss);
        }
    }
}

pub(crate) struct Flight {
    plan: Arc<Plan>,
    nonce: Nonce,
    verb: Verb,
}
impl Drop for Flight {
    fn drop(&mut self) {
        let mut f = self.plan.in_flight.lock().unwrap();
        let v = f.get_mut(&self.nonce).unwrap();
        let i = v.iter().position(|x| *x == self.verb).unwrap();
        v.remove(i);
    }
}
fn fly(plan: &Arc<Plan>, nonce: Nonce, verb: Verb) -> Flight {
    let mut f = plan.in_flight.lock().unwrap();
    let v = f.entry(nonce).or_default();
    for other in v.iter() {
        plan.overlaps.lock().unwrap().push((*other, verb));
    }
    v.push(verb);
    Flight { plan: Arc::clone(plan), nonce, verb }
}

#[derive(Debug)]
pub(crate) struct Faulty {
    pub memory: Arc<Memory>,
    pub plan: Arc<Plan>,
    pub profile: Profile,
    /// let the store's own losses through
    pub losses: bool,
    pub wait_at_once: bool,
    pub grants: Option<Duration>,
}

impl Faulty {
    fn claimwise(&self) -> bool {
        self.profile.expiry == Expiry::Claim
    }
}

macro_rules! act {
    ($self:ident, $verb:expr, $call:expr) => {{
        match $self.plan.take($verb) {
            Act::Pass => $call.await,
            Act::Refuse(kind) => Err(StoreError::refused(kind, format!("{:?} refused", $verb))),
            Act::Unknown => Err(StoreError::unknown(format!("{:?} unknown", $verb))),
            Act::Swallow => std::future::pending().await,
            Act::Slow(gate) => {
                gate.notified().await;
                $call.await
            }
            Act::Ghost(gate) => {
                tokio::spawn(async move {
                    gate.notified().await;
                    let _ = $call.await;
                });
                std::future::pending().await
            }
        }
    }};
}

#[async_trait]
impl Backend for Faulty {
    fn profile(&self) -> &Profile {
        &self.profile
    }
    fn key(&self, kind: Kind, name: &Name) -> String {
        self.memory.key(kind, name)
    }
    async fn open(&self, ttl: Duration) -> Result<Session, StoreError> {
        let m = Arc::clone(&self.memory);
        let claimwise = self.claimwise();
        let real = if claimwise { Duration::from_secs(24 * 3600) } else { ttl };
        let r: Result<Session, StoreError> =
            act!(self, Verb::Open, async move { m.open(real).await });
        r.map(|s| if claimwise { Session::new(s.id, ttl) } else { s }).map(|s| match self.grants {
            Some(t) => Session::new(s.id, t),
            None => s,
        })
    }
    async fn close(&self, session: &Session) -> Result<(), StoreError> {
        let (m, s) = (Arc::clone(&self.memory), session.clone());
        let claimwise = self.claimwise();
        // a store whose claims expire singly knows no sessions: closing frees nothing
        act!(self, Verb::Close, async move { if claimwise { Ok(()) } else { m.close(&s).await } })
    }
    async fn renew(&self, session: &Session, held: &[Held]) -> Result<Renewal, StoreError> {
        let (m, s, h) = (Arc::clone(&self.memory), session.clone(), held.to_vec());
        let claimwise = self.claimwise();
        act!(self, Verb::Renew, async move {
            let r = m.renew(&s, &h).await?;
            Ok::<Renewal, StoreError>(match r {
                Renewal::Alive { claims, .. } if claimwise => Renewal::Alive {
                    ttl: s.ttl,
                    claims: claims
                        .into_iter()
                        .map(|(n, r)| {
                            (
                                n,
                                match r {
                                    Renewed::Extended(_) => Renewed::Extended(s.ttl),
                                    l => l,
                                },
                            )
                        })
                        .collect(),
                },
                r => r,
            })
        })
    }
    async fn try_claim(
        &self,
        session: &Session,
        claim: &Claim,
        ticket: Option<&Ticket>,
        unanswered: bool,
    ) -> Result<Attempt, StoreError> {
        self.plan.nonces.lock().unwrap().push(claim.nonce);
        let _flight = fly(&self.plan, claim.nonce, Verb::Claim);
        let (m, s, c, t) =
            (Arc::clone(&self.memory), session.clone(), claim.clone(), ticket.cloned());
        let claimwise = self.claimwise();
        act!(self, Verb::Claim, async move {
            Ok::<Attempt, StoreError>(match m.try_claim(&s, &c, t.as_ref(), unanswered).await? {
                Attempt::Held(g) if claimwise => Attempt::Held(Grant { ttl: Some(s.ttl), ..g }),
                a => a,
            })
        })
    }
    async fn wait(&self, session: &Session, claim: &Claim, ticket: &Ticket) {
        self.plan.waits.fetch_add(1, Ordering::SeqCst);
        if self.wait_at_once {
            return;
        }
        self.memory.wait(session, claim, ticket).await;
    }
    async fn update(
        &self,
        session: &Session,
        claim: &Claim,
        grant: &Grant,
    ) -> Result<Updated, StoreError> {
        let _flight = fly(&self.plan, claim.nonce, Verb::Update);
        let (m, s, c, g) =
            (Arc::clone(&self.memory), session.clone(), claim.clone(), grant.clone());
        act!(self, Verb::Update, async move { m.update(&s, &c, &g).await })
    }
    async fn end(
        &self,
        session: &Session,
        claim: &Claim,
        grant: Option<&Grant>,
        unanswered: bool,
    ) -> Result<Ended, StoreError> {
        let _flight = fly(&self.plan, claim.nonce, Verb::End);
        let (m, s, c, g) =
            (Arc::clone(&self.memory), session.clone(), claim.clone(), grant.cloned());
        act!(self, Verb::End, async move { m.end(&s, &c, g.as_ref(), unanswered).await })
    }
    fn losses(&self, session: &Session) -> Losses {
        let (tell, told) = mpsc::unbounded_channel();
        self.plan.tell.lock().unwrap().push(tell);
        let mine = tokio_stream::wrappers::UnboundedReceiverStream::new(told);
        let theirs = self.memory.losses(session);
        if self.losses {
            Box::pin(tokio_stream::StreamExt::merge(mine, theirs))
        } else {
            Box::pin(mine)
        }
    }
    async fn holder(&self, kind: Kind, name: &Name) -> Result<Sighting, StoreError> {
        self.memory.holder(kind, name).await
    }
    async fn watch(&self, kind: Kind, name: &Name, seen: &Version) -> Result<Sighting, StoreError> {
        self.memory.watch(kind, name, seen).await
    }
}

pub(crate) struct World {
    pub clock: Arc<HeldClock>,
    pub store: Store,
    pub plan: Arc<Plan>,
    pub sync: Coordinator,
}

#[derive(Debug, Default)]
pub(crate) struct History(pub Mutex<Vec<Event>>);
impl Observer for History {
    fn observe(&self, event: &Event) {
        self.0.lock().unwrap().push(event.clone());
    }
}

pub(crate) fn options(clock: Arc<dyn Clock>) -> Options {
    Options::new().environment(Environment::default().clock(clock).rng(Arc::new(SeededRng::new(1))))
}

pub(crate) fn faulty(store: &Store, expiry: Expiry, losses: bool) -> (Arc<Plan>, Faulty) {
    let plan = Arc::new(Plan::default());
    let all = Duration::from_millis(10)..=Duration::from_secs(24 * 3600);
    let f = Faulty {
        memory: Arc::new(store.backend(&Namespace::default())),
        plan: Arc::clone(&plan),
        profile: Profile::new("faulty", "here", expiry).ttl(all),
        losses,
        wait_at_once: false,
        grants: None,
    };
    (plan, f)
}

pub(crate) fn world(expiry: Expiry, losses: bool) -> World {
    let clock = Arc::new(HeldClock::new());
    let store = Store::with_clock(clock.clone());
    let (plan, f) = faulty(&store, expiry, losses);
    let sync = Coordinator::new(Arc::new(f), &options(clock.clone())).unwrap();
    World { clock, store, plan, sync }
}

impl World {
    pub(crate) fn other(&self) -> Coordinator {
        self.store
            .connect(&options(self.clock.clone()).environment(
                Environment::default().clock(self.clock.clone()).rng(Arc::new(SeededRng::new(99))),
            ))
            .unwrap()
    }
}

/// Lets everything that can run, run.
pub(crate) async fn settle() {
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
}

/// Moves the held clock in steps, letting everything run between.
pub(crate) async fn pass(clock: &HeldClock, time: Duration) {
    let step = Duration::from_millis(100);
    let mut left = time;
    while !left.is_zero() {
        let s = step.min(left);
        clock.advance(s);
        left -= s;
        settle().await;
    }
}
