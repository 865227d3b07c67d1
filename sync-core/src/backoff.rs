//! Delays between tries: doubling, with jitter, bounded.

use std::time::Duration;

use crate::options::Environment;

const SHORTEST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(1);

/// The delays of one series of tries.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
}

impl Backoff {
    pub(crate) const fn new() -> Self {
        Self { next: SHORTEST }
    }

    /// Something went well: begin anew.
    pub(crate) fn reset(&mut self) {
        self.next = SHORTEST;
    }

    /// How long to wait before the next try.
    pub(crate) fn next(&mut self, environment: &Environment) -> Duration {
        let delay = environment.jitter(self.next);
        self.next = (self.next * 2).min(LONGEST);
        delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_a_second_and_begin_anew() {
        let environment = Environment::default();
        let mut backoff = Backoff::new();
        let mut ceiling = SHORTEST;
        for _ in 0..10 {
            let delay = backoff.next(&environment);
            assert!(delay <= ceiling && delay >= ceiling / 2, "{delay:?} under {ceiling:?}");
            ceiling = (ceiling * 2).min(LONGEST);
        }
        backoff.reset();
        assert!(backoff.next(&environment) <= SHORTEST);
    }
}
