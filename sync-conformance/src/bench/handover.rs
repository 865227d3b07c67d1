//! One name that goes from client to client. A client that takes its own lock again hands nothing
//! over, and does not count.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use sync_core::{Coordinator, Lock, LockGuard};
use tokio::task::JoinSet;

use super::goals::AgainstRival;
use super::measure::{Samples, Spread};
use super::table::{Goal, Quantity, Row};
use super::{Client, Contender, Field, Scale};
use crate::failed::Failed;

const NAME: &str = "handover";
const KEY: &str = "bench:raw:handover";
const RIVALS: &str = "bench:rival";

/// Raw pairs in each round at most: what a round trip is worth just now.
const PAIRS: usize = 200;

/// After this a slice is over even if hardly anything was handed over.
const LATEST: Duration = Duration::from_secs(30);

pub(super) async fn run(field: &Field, clients: usize) -> Result<Vec<Row>, Failed> {
    let mut coordinators = Vec::new();
    for _ in 0..clients {
        coordinators.push(field.coordinator().await?);
    }
    let mut here = Side::new(coordinators.iter().map(Ours::boxed));
    let mut rival = None;
    if let Some(way) = field.raw.rival() {
        let mut contenders = Vec::new();
        for _ in 0..clients {
            contenders.push(way.contender(&field.url, RIVALS).await?);
        }
        rival = Some((way.name(), Side::new(contenders)));
    }
    let raw = field.raw().await?;
    let mut round_trips = Vec::new();
    let (mut requests, mut writes) = (Vec::new(), Vec::new());
    // The first round warms up.
    for number in 0..=field.scale.rounds {
        // Whoever comes second finds warmer caches: that is each in turn.
        if let Some((_, rival)) = rival.as_mut().filter(|_| number % 2 == 1) {
            rival.round(field, number).await?;
        }
        let before = (raw.requests().await?, raw.writes().await?);
        let taken = f64::from(here.round(field, number).await?);
        let after = (raw.requests().await?, raw.writes().await?);
        if let Some((_, rival)) = rival.as_mut().filter(|_| number % 2 == 0) {
            rival.round(field, number).await?;
        }
        let round_trip = round_trip(field, &*raw).await?;
        if number > 0 {
            round_trips.push(round_trip);
            requests.push((after.0 - before.0) as f64 / taken);
            writes.extend(
                after.1.zip(before.1).map(|(after, before)| (after - before) as f64 / taken),
            );
        }
    }
    for coordinator in coordinators {
        coordinator.shutdown().await?;
    }

    let row =
        |what: &str, value| Row::new(field.flavour, format!("{clients} clients, {what}"), value);
    let trips = |what: &str, of: fn(&Round) -> f64| {
        let times = Spread::of(here.rounds.iter().map(of));
        let ratio = here.rounds.iter().zip(&round_trips).map(|(round, trip)| of(round) / trip);
        let trip = Spread::of(round_trips.iter().copied()).median;
        row(what, Quantity::Time(times.median)).beside(Quantity::Time(trip), Spread::of(ratio))
    };
    let goals = field.raw.goals();
    let mut rows = vec![
        trips("handover p50 in round trips", |round| round.p50)
            .goal(goals.handover.map(Goal::AtMost)),
        trips("handover p99 in round trips", |round| round.p99),
    ];
    let least =
        Row::goal(row("least share over most", Quantity::Number(here.share())), Goal::AtLeast(0.8));
    if let Some((name, rival)) = &rival {
        let beside = |what: &str, of: fn(&Round) -> f64, quantity: fn(f64) -> Quantity| {
            let sides = || here.rounds.iter().zip(&rival.rounds);
            let (ours, theirs) =
                (sides().map(|(ours, _)| of(ours)), sides().map(|(_, theirs)| of(theirs)));
            let ratio = sides().map(|(ours, theirs)| of(ours) / of(theirs));
            row(&format!("{what}, beside {name}"), quantity(Spread::of(ours).median))
                .beside(quantity(Spread::of(theirs).median), Spread::of(ratio))
        };
        let goal = |of: fn(&AgainstRival) -> Goal| goals.of_rival(clients).as_ref().map(of);
        rows.extend([
            beside("grants to another", |round| round.rate, Quantity::Rate)
                .goal(goal(|goal| Goal::AtLeast(goal.rate))),
            beside("handover p50", |round| round.p50, Quantity::Time),
            beside("handover p99", |round| round.p99, Quantity::Time)
                .goal(goal(|goal| Goal::AtMost(goal.p99))),
            least.beside(Quantity::Number(rival.share()), None),
        ]);
    } else {
        let rate = Spread::of(here.rounds.iter().map(|round| round.rate)).median;
        rows.extend([row("grants to another", Quantity::Rate(rate)), least]);
    }
    rows.push(row("requests per grant", Quantity::Number(Spread::of(requests).median)));
    if !writes.is_empty() {
        rows.push(row("log writes per grant", Quantity::Number(Spread::of(writes).median)));
    }
    Ok(rows)
}

/// Those who contend with each other, and how it went.
struct Side {
    /// Each locked by its own task, for a slice.
    contenders: Vec<Arc<tokio::sync::Mutex<Box<dyn Contender>>>>,
    rounds: Vec<Round>,
    /// To whom, how often, in all rounds.
    grants: Vec<u32>,
}

/// What came of one slice.
struct Round {
    rate: f64,
    p50: f64,
    p99: f64,
}

impl Side {
    fn new(contenders: impl IntoIterator<Item = Box<dyn Contender>>) -> Self {
        let shared = |contender| Arc::new(tokio::sync::Mutex::new(contender));
        let contenders: Vec<_> = contenders.into_iter().map(shared).collect();
        let grants = vec![0; contenders.len()];
        Self { contenders, rounds: Vec::new(), grants }
    }

    /// One slice, which counts unless its number is 0; how often the name was taken in it.
    async fn round(&mut self, field: &Field, number: usize) -> Result<u32, Failed> {
        let mut slice = self.slice(field).await?;
        if number > 0 {
            self.rounds.push(Round {
                rate: slice.handovers.len() as f64 / slice.length.as_secs_f64(),
                p50: slice.handovers.percentile(0.5),
                p99: slice.handovers.percentile(0.99),
            });
            self.grants.iter_mut().zip(&slice.grants).for_each(|(sum, grants)| *sum += grants);
        }
        Ok(slice.taken)
    }

    /// Lets all of them contend for a while.
    async fn slice(&self, field: &Field) -> Result<Slice, Failed> {
        let slice = Arc::new(Mutex::new(Slice::new(field.scale, self.contenders.len())));
        let mut tasks = JoinSet::new();
        for (me, contender) in self.contenders.iter().enumerate() {
            let (contender, slice) = (Arc::clone(contender), Arc::clone(&slice));
            tasks.spawn(async move {
                let mut contender = contender.lock().await;
                loop {
                    contender.lock().await?;
                    let goes_on = locked(&slice).granted(me);
                    contender.unlock().await?;
                    if !goes_on {
                        return Ok::<(), Failed>(());
                    }
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            done??;
        }
        Ok(Arc::into_inner(slice).ok_or("a slice goes on")?.into_inner()?)
    }

    /// What the least served got over what the most served got.
    fn share(&self) -> f64 {
        let ends = self.grants.iter().min().zip(self.grants.iter().max());
        ends.map_or(f64::NAN, |(least, most)| f64::from(*least) / f64::from(*most))
    }
}

/// What happens in a slice. Only the holder writes to it.
struct Slice {
    scale: Scale,
    began: Instant,
    /// How long it was; zero until it is over.
    length: Duration,
    /// Who released last, and when.
    released: Option<(usize, Instant)>,
    /// From a release to the grant to another.
    handovers: Samples,
    /// To whom, how often.
    grants: Vec<u32>,
    /// How often the name was taken, also by those who still stood in line at the end.
    taken: u32,
}

impl Slice {
    fn new(scale: Scale, clients: usize) -> Self {
        Self {
            scale,
            began: Instant::now(),
            length: Duration::ZERO,
            released: None,
            handovers: Samples::default(),
            grants: vec![0; clients],
            taken: 0,
        }
    }

    /// What the holder notes as soon as it has the name; whether the slice goes on.
    fn granted(&mut self, me: usize) -> bool {
        let now = Instant::now();
        self.taken += 1;
        let length = now - self.began;
        let enough = length >= self.scale.slice && self.handovers.len() >= self.scale.handovers;
        if self.length.is_zero() && (enough || length >= LATEST) {
            self.length = length;
        }
        if !self.length.is_zero() {
            return false;
        }
        self.grants[me] += 1;
        if let Some((other, released)) = self.released
            && other != me
        {
            self.handovers.push(now - released);
        }
        self.released = Some((me, Instant::now()));
        true
    }
}

/// One of ours.
struct Ours {
    lock: Lock,
    guard: Option<LockGuard>,
}

impl Ours {
    fn boxed(coordinator: &Coordinator) -> Box<dyn Contender> {
        Box::new(Self { lock: coordinator.lock(NAME), guard: None })
    }
}

#[async_trait]
impl Contender for Ours {
    async fn lock(&mut self) -> Result<(), Failed> {
        self.guard = Some(self.lock.acquire().await?);
        Ok(())
    }

    async fn unlock(&mut self) -> Result<(), Failed> {
        Ok(self.guard.take().ok_or("it is not held")?.release().await?)
    }
}

/// What a round trip takes on an idle client: half a raw pair, in seconds.
async fn round_trip(field: &Field, raw: &dyn Client) -> Result<f64, Failed> {
    let mut pairs = Samples::default();
    let end = Instant::now() + field.scale.slice;
    while pairs.len() < PAIRS && Instant::now() < end {
        let began = Instant::now();
        raw.take(KEY, field.scale.ttl).await?;
        raw.give_back(KEY).await?;
        pairs.lap(began);
    }
    Ok(pairs.percentile(0.5) / 2.0)
}

fn locked(slice: &Mutex<Slice>) -> MutexGuard<'_, Slice> {
    slice.lock().unwrap_or_else(PoisonError::into_inner)
}
