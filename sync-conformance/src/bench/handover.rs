//! One name that goes from client to client. A client that takes its own lock again hands nothing
//! over, and does not count.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use sync_core::Coordinator;
use tokio::task::JoinSet;

use super::measure::{Samples, Spread};
use super::table::{Goal, Quantity, Row};
use super::{Client, Field};
use crate::failed::Failed;

const KEY: &str = "bench:raw:handover";

/// Raw pairs in each round: what a round trip is worth just now.
const PAIRS: usize = 200;

/// What happened in a slice. Only the holder writes to it.
#[derive(Default)]
struct Slice {
    /// Who released last, and when.
    released: Option<(usize, Instant)>,
    /// From a release to the grant to another.
    handovers: Samples,
    /// To whom, how often.
    grants: Vec<u32>,
}

/// One round: a slice, and what a round trip took beside it.
struct Round {
    rate: f64,
    p50: f64,
    p99: f64,
    round_trip: f64,
}

pub(super) async fn run(field: &Field, clients: usize) -> Result<Vec<Row>, Failed> {
    let mut coordinators = Vec::new();
    for _ in 0..clients {
        coordinators.push(field.coordinator().await?);
    }
    let raw = field.raw().await?;
    let mut rounds = Vec::new();
    let mut grants = vec![0; clients];
    // The first round warms up.
    for number in 0..=field.scale.rounds {
        let mut slice = slice(field, &coordinators).await?;
        let round_trip = round_trip(field, &*raw).await?;
        if number > 0 {
            rounds.push(Round {
                rate: slice.handovers.len() as f64 / field.scale.slice.as_secs_f64(),
                p50: slice.handovers.percentile(0.5),
                p99: slice.handovers.percentile(0.99),
                round_trip,
            });
            grants.iter_mut().zip(slice.grants).for_each(|(sum, grants)| *sum += grants);
        }
    }
    for coordinator in coordinators {
        coordinator.shutdown().await?;
    }

    let of = |part: fn(&Round) -> f64| Spread::of(rounds.iter().map(part));
    let trip = Quantity::Time(of(|round| round.round_trip).median);
    let row =
        |what: &str, value| Row::new(field.flavour, format!("{clients} clients, {what}"), value);
    let share = |least: Option<&u32>, most: Option<&u32>| {
        least.zip(most).map_or(f64::NAN, |(least, most)| f64::from(*least) / f64::from(*most))
    };
    Ok(vec![
        row("handover p50 in round trips", Quantity::Time(of(|round| round.p50).median))
            .raw(trip, of(|round| round.p50 / round.round_trip))
            .goal(Goal::AtMost(2.0)),
        row("handover p99 in round trips", Quantity::Time(of(|round| round.p99).median))
            .raw(trip, of(|round| round.p99 / round.round_trip)),
        row("grants to another", Quantity::Rate(of(|round| round.rate).median)),
        row(
            "least share over most",
            Quantity::Number(share(grants.iter().min(), grants.iter().max())),
        )
        .goal(Goal::AtLeast(0.8)),
    ])
}

/// Lets all clients contend for a while.
async fn slice(field: &Field, coordinators: &[Coordinator]) -> Result<Slice, Failed> {
    let slice =
        Arc::new(Mutex::new(Slice { grants: vec![0; coordinators.len()], ..Slice::default() }));
    let end = Instant::now() + field.scale.slice;
    let mut tasks = JoinSet::new();
    for (me, coordinator) in coordinators.iter().enumerate() {
        let (lock, slice) = (coordinator.lock("handover"), Arc::clone(&slice));
        tasks.spawn(async move {
            while Instant::now() < end {
                let guard = lock.acquire().await?;
                let now = Instant::now();
                {
                    let mut slice = locked(&slice);
                    if now < end {
                        slice.grants[me] += 1;
                        if let Some((other, released)) = slice.released
                            && other != me
                        {
                            slice.handovers.push(now - released);
                        }
                    }
                    slice.released = Some((me, Instant::now()));
                }
                guard.release().await?;
            }
            Ok::<(), Failed>(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(std::mem::take(&mut *locked(&slice)))
}

/// What a round trip takes on an idle client: half a raw pair, in seconds.
async fn round_trip(field: &Field, raw: &dyn Client) -> Result<f64, Failed> {
    let mut pairs = Samples::default();
    for _ in 0..PAIRS {
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
