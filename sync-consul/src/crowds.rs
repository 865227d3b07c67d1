//! Which names are contended for, so that whoever gives one back and wants it again at once stands
//! in line instead of trying first. A try would win it from the one whose turn it is, only to be
//! given back: two writes and some time for nothing.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sync_core::Moment;

/// How long a name that others stood in line for is taken to be crowded. Where it is not any more,
/// standing in line for it once costs one write.
const LASTS: Duration = Duration::from_secs(10);

/// How many names are remembered.
const MOST: usize = 1_000;

/// Names that others stood in line for lately, by their keys.
#[derive(Debug, Default)]
pub(crate) struct Crowds(Mutex<BTreeMap<String, Moment>>);

impl Crowds {
    /// Others were seen in the line, or nobody was.
    pub(crate) fn seen(&self, key: &str, others: bool, now: Moment) {
        let mut crowds = self.all();
        if !others {
            crowds.remove(key);
            return;
        }
        if crowds.len() >= MOST {
            crowds.retain(|_, seen| now.since(*seen) < LASTS);
        }
        if crowds.len() < MOST {
            crowds.insert(key.to_owned(), now);
        }
    }

    /// The name was held meanwhile: what was seen of its line before counts from now.
    pub(crate) fn held_until(&self, key: &str, now: Moment) {
        if let Some(seen) = self.all().get_mut(key) {
            *seen = now;
        }
    }

    pub(crate) fn is_crowded(&self, key: &str, now: Moment) -> bool {
        self.all().get(key).is_some_and(|seen| now.since(*seen) < LASTS)
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<String, Moment>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_lasts_for_a_while_after_the_end() {
        let crowds = Crowds::default();
        let at = |millis: u64| Moment::from_nanos(millis * 1_000_000);
        crowds.held_until("a", at(0));
        assert!(!crowds.is_crowded("a", at(0)), "nobody was seen");
        crowds.seen("a", true, at(0));
        assert!(crowds.is_crowded("a", at(9_999)) && !crowds.is_crowded("a", at(10_000)));
        crowds.held_until("a", at(50_000));
        assert!(crowds.is_crowded("a", at(59_999)) && !crowds.is_crowded("b", at(50_000)));
        crowds.seen("a", false, at(55_000));
        assert!(!crowds.is_crowded("a", at(55_000)));
        for name in 0..2 * MOST {
            crowds.seen(&name.to_string(), true, at(0));
        }
        assert_eq!(crowds.all().len(), MOST);
        crowds.seen("a", true, at(100_000));
        assert_eq!(crowds.all().len(), 1);
    }
}
