//! What does not work for a while is said when it begins, rarely while it lasts, and when it ends.

use std::time::Duration;

use crate::clock::Moment;

/// How long it is not said again while it lasts.
const SAID_EACH: Duration = Duration::from_secs(30);

/// One thing that may not work for a while.
#[derive(Debug, Default)]
pub(crate) struct Trouble {
    since: Option<Moment>,
    said: Option<Moment>,
}

impl Trouble {
    /// It did not work. Whether that is to be said.
    pub(crate) fn again(&mut self, now: Moment) -> bool {
        self.since.get_or_insert(now);
        let due = self.said.is_none_or(|said| now.since(said) >= SAID_EACH);
        if due {
            self.said = Some(now);
        }
        due
    }

    /// It works. For how long it did not, if it did not.
    pub(crate) fn over(&mut self, now: Moment) -> Option<Duration> {
        self.said = None;
        self.since.take().map(|since| now.since(since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_at_first_rarely_after_and_at_the_end() {
        let mut trouble = Trouble::default();
        let at = |seconds: u64| Moment::from_nanos(seconds * 1_000_000_000);
        assert_eq!(trouble.over(at(0)), None);
        assert!(trouble.again(at(1)));
        assert!(!trouble.again(at(2)) && !trouble.again(at(30)));
        assert!(trouble.again(at(31)));
        assert_eq!(trouble.over(at(41)), Some(Duration::from_secs(40)));
        assert_eq!(trouble.over(at(42)), None);
        assert!(trouble.again(at(43)));
    }
}
