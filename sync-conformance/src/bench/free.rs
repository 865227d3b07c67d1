//! One task takes a free name and gives it back, again and again.

use std::time::Instant;

use sync_core::Lock;

use super::measure::{Samples, Spread};
use super::table::{Goal, Quantity, Row};
use super::{Client, Field, Scale};
use crate::failed::Failed;

const KEY: &str = "bench:raw:free";

/// One round of one side.
#[derive(Default)]
struct Round {
    take: Samples,
    give_back: Samples,
    pair: Samples,
}

impl Round {
    async fn ours(&mut self, lock: &Lock, field: &Field) -> Result<(), Failed> {
        for began in starts(field.scale) {
            let guard = lock.acquire().await?;
            let taken = self.take.lap(began);
            guard.release().await?;
            self.give_back.lap(taken);
            self.pair.lap(began);
        }
        Ok(())
    }

    async fn raw(&mut self, raw: &dyn Client, field: &Field) -> Result<(), Failed> {
        for began in starts(field.scale) {
            raw.take(KEY, field.scale.ttl).await?;
            let taken = self.take.lap(began);
            raw.give_back(KEY).await?;
            self.give_back.lap(taken);
            self.pair.lap(began);
        }
        Ok(())
    }
}

/// When each operation of a slice begins: now.
fn starts(scale: Scale) -> impl Iterator<Item = Instant> {
    let end = Instant::now() + scale.patience;
    (0..scale.batch).map(|_| Instant::now()).take_while(move |now| *now < end)
}

pub(super) async fn run(field: &Field) -> Result<Vec<Row>, Failed> {
    let sync = field.coordinator().await?;
    let lock = sync.lock("free");
    let raw = field.raw().await?;
    let mut rounds = Vec::new();
    // The first round warms up.
    for number in 0..=field.scale.rounds {
        let (mut ours, mut theirs) = (Round::default(), Round::default());
        for batch in 0..field.scale.batches {
            // Whoever comes second finds warmer caches: that is each in turn.
            if (number + batch) % 2 == 0 {
                ours.ours(&lock, field).await?;
                theirs.raw(&*raw, field).await?;
            } else {
                theirs.raw(&*raw, field).await?;
                ours.ours(&lock, field).await?;
            }
        }
        if number > 0 {
            rounds.push((ours, theirs));
        }
    }
    let before = raw.requests().await?;
    let mut counted = Round::default();
    counted.ours(&lock, field).await?;
    let requests = (raw.requests().await? - before) as f64 / counted.pair.len() as f64;
    sync.shutdown().await?;

    let mut row = |what: &str, samples: fn(&mut Round) -> &mut Samples, part: f64| {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for (our_round, their_round) in &mut rounds {
            ours.push(samples(our_round).percentile(part));
            theirs.push(samples(their_round).percentile(part));
        }
        let ratios = Spread::of(ours.iter().zip(&theirs).map(|(ours, theirs)| ours / theirs));
        Row::new(field.flavour, what, Quantity::Time(Spread::of(ours).median))
            .beside(Quantity::Time(Spread::of(theirs).median), ratios)
    };
    Ok(vec![
        row("free name, pair, p50", |round| &mut round.pair, 0.5)
            .goal(Goal::AtMost(field.raw.goals().free)),
        row("free name, pair, p99", |round| &mut round.pair, 0.99),
        row("of it taking, p50", |round| &mut round.take, 0.5),
        row("of it giving back, p50", |round| &mut round.give_back, 0.5),
        Row::new(field.flavour, "requests per pair", Quantity::Number(requests)),
    ])
}
