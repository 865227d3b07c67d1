//! Many tasks, each with a name of its own, on one coordinator.

use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use tokio::task::JoinSet;

use super::Field;
use super::measure::Spread;
use super::table::{Goal, Quantity, Row};
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
        let (our_rate, their_rate) = if number % 2 == 0 {
            (rate(field, ours).await?, rate(field, theirs).await?)
        } else {
            let their_rate = rate(field, theirs).await?;
            (rate(field, ours).await?, their_rate)
        };
        if number > 0 {
            rounds.push((our_rate, their_rate));
        }
    }
    sync.shutdown().await?;
    let our_rate = Spread::of(rounds.iter().map(|(ours, _)| *ours)).median;
    let their_rate = Spread::of(rounds.iter().map(|(_, theirs)| *theirs)).median;
    let ratio = Spread::of(rounds.iter().map(|(ours, theirs)| ours / theirs));
    let what = format!("{TASKS} tasks, {TASKS} names, pairs");
    Ok(vec![
        Row::new(field.flavour, what, Quantity::Rate(our_rate))
            .raw(Quantity::Rate(their_rate), ratio)
            .goal(Goal::AtLeast(0.6)),
    ])
}

/// How many pairs a second all tasks together do in one slice.
async fn rate<W, P, F>(field: &Field, worker: W) -> Result<f64, Failed>
where
    W: Fn(usize) -> P,
    P: Fn() -> F + Send + 'static,
    F: Future<Output = Result<(), Failed>> + Send,
{
    let began = Instant::now();
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
    Ok(f64::from(pairs) / began.elapsed().as_secs_f64())
}
