//! Samples, and what is read off them.

use std::time::{Duration, Instant};

/// Durations, of which percentiles are taken.
#[derive(Debug, Default)]
pub(super) struct Samples(Vec<Duration>);

impl Samples {
    pub(super) fn push(&mut self, sample: Duration) {
        self.0.push(sample);
    }

    /// Time since `began`, which is returned for the next.
    pub(super) fn lap(&mut self, began: Instant) -> Instant {
        let now = Instant::now();
        self.push(now - began);
        now
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// In seconds; not a number where there are no samples.
    pub(super) fn percentile(&mut self, part: f64) -> f64 {
        self.0.sort_unstable();
        at(&self.0, part).map_or(f64::NAN, |sample| sample.as_secs_f64())
    }
}

/// The median of several rounds, and the quartiles.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) low: f64,
    pub(super) high: f64,
}

impl Spread {
    pub(super) fn of(rounds: impl IntoIterator<Item = f64>) -> Self {
        let mut rounds: Vec<f64> = rounds.into_iter().collect();
        rounds.sort_unstable_by(f64::total_cmp);
        let part = |part| at(&rounds, part).unwrap_or(f64::NAN);
        Self { median: part(0.5), low: part(0.25), high: part(0.75) }
    }
}

/// What stands at this part of an ordered list.
fn at<T: Copy>(ordered: &[T], part: f64) -> Option<T> {
    let last = ordered.len().checked_sub(1)?;
    ordered.get((last as f64 * part).round() as usize).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_ordered_samples() {
        let mut samples = Samples::default();
        assert!(samples.percentile(0.5).is_nan());
        for millis in [5, 1, 4, 2, 3] {
            samples.push(Duration::from_millis(millis));
        }
        assert_eq!(samples.percentile(0.5), 0.003);
        assert_eq!(samples.percentile(1.0), 0.005);
        let spread = Spread::of([9.0, 1.0, 2.0, 8.0, 3.0]);
        assert_eq!(spread, Spread { median: 3.0, low: 2.0, high: 8.0 });
    }
}
