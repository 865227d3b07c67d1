//! Chance that a seed repeats.

use std::time::Duration;

use sync_core::{Rng, SeededRng};

/// A sequence of random choices that belongs to a seed.
#[derive(Debug)]
pub(super) struct Dice(SeededRng);

impl Dice {
    pub(super) const fn new(seed: u64) -> Self {
        Self(SeededRng::new(seed))
    }

    pub(super) fn number(&self) -> u64 {
        let mut bytes = [0; 8];
        // A seeded sequence has no end.
        let _ = self.0.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// A number below `end`, which must not be zero.
    pub(super) fn below(&self, end: u64) -> u64 {
        self.number() % end
    }

    /// A part of `whole` between these two factors.
    pub(super) fn part(&self, whole: Duration, least: f64, most: f64) -> Duration {
        let steps = 1 << 20;
        #[allow(clippy::cast_precision_loss)] // both are small
        let between = self.below(steps) as f64 / steps as f64;
        whole.mul_f64(least + (most - least) * between)
    }

    pub(super) fn shuffle<T>(&self, items: &mut [T]) {
        for end in (1..items.len()).rev() {
            let other = self.below(end as u64 + 1);
            items.swap(end, usize::try_from(other).unwrap_or(end));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_its_choices_and_another_does_not() {
        let rolls = |seed| {
            let dice = Dice::new(seed);
            (0..20).map(|_| dice.below(1000)).collect::<Vec<_>>()
        };
        assert_eq!(rolls(7), rolls(7));
        assert_ne!(rolls(7), rolls(8));
    }

    #[test]
    fn a_shuffle_loses_nothing_and_a_part_keeps_its_bounds() {
        let dice = Dice::new(1);
        let mut items: Vec<u32> = (0..10).collect();
        dice.shuffle(&mut items);
        assert_ne!(items, (0..10).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..10).collect::<Vec<_>>());
        for _ in 0..1000 {
            let part = dice.part(Duration::from_secs(10), 0.5, 2.0);
            assert!((Duration::from_secs(5)..Duration::from_secs(20)).contains(&part));
        }
    }
}
