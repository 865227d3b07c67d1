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
    fn a_part_keeps_its_bounds() {
        let dice = Dice::new(1);
        let parts: Vec<_> =
            (0..1000).map(|_| dice.part(Duration::from_secs(10), 0.5, 2.0).as_secs()).collect();
        assert_eq!((parts.iter().min(), parts.iter().max()), (Some(&5), Some(&19)));
    }
}
