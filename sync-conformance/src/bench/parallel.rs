//! Many tasks, each with a name of its own, on one coordinator.

use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use tokio::task::JoinSet;

use super::measure::Spread;
use super::table::{Goal, Quantity, Row};
use super::{Field, machine};
use crate::failed::Failed;

const TASKS: usize = 64;

pub(super) async fn run(field: &Field) -> Result<Vec<Row>, Failed> {
    let sync = field.coordinator().await?;
    let raw = field.raw().await?;
    let ttl = field.scale.ttl;
    let ours = |number: usize| {
        let lock = sync.lock(format!("parallel-{number}"));
        move || {
            let lock = lock.clone();
            async move { Ok(lock.acquire().await?.release().await?) }
        }
    };
    let theirs = |number: usize| {
        let (raw, key) = (Arc::clone(&raw), Arc::from(format!("bench:raw:parallel-{number}")));
        move || {
            let (raw, key): (_, Arc<str>) = (Arc::clone(&raw), Arc::clone(&key));
            async move {
                raw.take(&key, ttl).await?;
                raw.give_back(&key).await
            }
        }
    };
    let mut rounds = Vec::new();
    // The first round warms up.
    for number in 0..=field.scale.rounds {
        let (ours_now, theirs_now) = if number % 2 == 0 {
            (slice(field, ours).await?, slice(field, theirs).await?)
        } else {
            let theirs_now = slice(field, theirs).await?;
            (slice(field, ours).await?, theirs_now)
        };
        if number > 0 {
            rounds.push((ours_now, theirs_now));
        }
    }
    sync.shutdown().await?;
    let row = |what: &str, of: fn(&Slice) -> f64, quantity: fn(f64) -> Quantity| {
        let ours = Spread::of(rounds.iter().map(|(ours, _)| of(ours)));
        let theirs = Spread::of(rounds.iter().map(|(_, theirs)| of(theirs)));
        let ratio = Spread::of(rounds.iter().map(|(ours, theirs)| of(ours) / of(theirs)));
        let what = format!("{TASKS} tasks, {TASKS} names, {what}");
        Row::new(field.flavour, what, quantity(ours.median)).beside(quantity(theirs.median), ratio)
    };
    let goal = Goal::AtLeast(field.raw.goals().parallel);
    Ok(vec![
        row("pairs", |slice| slice.rate, Quantity::Rate).goal(goal),
        row("client's CPU per pair", |slice| slice.cpu, Quantity::Time),
    ])
}

/// What all tasks together did in one slice.
struct Slice {
    /// Pairs a second.
    rate: f64,
    /// Processor time of this process for each pair, in seconds.
    cpu: f64,
}

async fn slice<W, P, F>(field: &Field, worker: W) -> Result<Slice, Failed>
where
    W: Fn(usize) -> P,
    P: Fn() -> F + Send + 'static,
    F: Future<Output = Result<(), Failed>> + Send,
{
    let (began, used) = (Instant::now(), machine::cpu_time());
    let end = began + field.scale.slice;
    let mut tasks = JoinSet::new();
    for number in 0..TASKS {
        let pair = worker(number);
        tasks.spawn(async move {
            let mut pairs = 0_u32;
            while Instant::now() < end {
                pair().await?;
                pairs += 1;
            }
            Ok::<u32, Failed>(pairs)
        });
    }
    let mut pairs = 0;
    while let Some(done) = tasks.join_next().await {
        pairs += done??;
    }
    Ok(Slice {
        rate: f64::from(pairs) / began.elapsed().as_secs_f64(),
        cpu: (machine::cpu_time() - used).as_secs_f64() / f64::from(pairs),
    })
}
