//! When a session must be renewed and until when it counts: pure state, told what time it is.

use std::time::Duration;

use crate::backend::Expiry;
use crate::clock::Moment;
use crate::mutant;

/// What is taken off a TTL so that the holder knows before the store does.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Margin {
    /// By which part two clocks may run apart.
    pub(crate) drift: f64,
    /// A fixed time besides: scheduling, and the store's rounding.
    pub(crate) slack: Duration,
}

impl Margin {
    /// `t_send + ttl · (1 − ρ) − δ`
    pub(crate) fn deadline(self, sent: Moment, ttl: Duration) -> Moment {
        if mutant::on(mutant::NO_MARGIN) {
            return sent + ttl;
        }
        (sent + ttl.mul_f64(1.0 - self.drift)).before(self.slack)
    }

    /// What is taken off a TTL: how much longer than its holder the store may count a claim.
    pub(crate) fn of(self, ttl: Duration) -> Duration {
        ttl.mul_f64(self.drift).saturating_add(self.slack)
    }
}

/// The lease of one session.
#[derive(Debug)]
pub(crate) struct Lease {
    margin: Margin,
    ttl: Duration,
    /// `None` where sessions never end by themselves.
    deadline: Option<Moment>,
    /// `None` while there is nothing to renew.
    renew_at: Option<Moment>,
    over: bool,
}

impl Lease {
    /// A session whose opening was sent at `sent` and granted with `ttl`.
    pub(crate) fn opened(expiry: Expiry, margin: Margin, sent: Moment, ttl: Duration) -> Self {
        let (deadline, renew_at) = match expiry {
            Expiry::Session => (Some(margin.deadline(sent, ttl)), Some(sent + ttl / 3)),
            Expiry::Claim => (None, None),
        };
        Self { margin, ttl, deadline, renew_at, over: false }
    }

    /// Until when claims on this session count; `None` where each has a deadline of its own.
    pub(crate) fn deadline(&self) -> Option<Moment> {
        self.deadline
    }

    /// Whether the session still counts. The first look past the deadline is the last.
    pub(crate) fn valid(&mut self, now: Moment) -> bool {
        if mutant::on(mutant::LATE_REPLY_REVIVES) {
            return !self.over;
        }
        self.over |= self.deadline.is_some_and(|deadline| now >= deadline);
        !self.over
    }

    /// Ends the session, whatever its deadline.
    pub(crate) fn end(&mut self) {
        self.over = true;
    }

    /// Whether so little is left that nothing is to be granted before a renewal.
    pub(crate) fn is_short(&self, now: Moment) -> bool {
        self.deadline.is_some_and(|deadline| deadline.since(now) < self.ttl / 3)
    }

    /// How long one renewal may take.
    pub(crate) fn attempt_limit(&self) -> Duration {
        self.ttl / 6
    }

    /// When the next renewal is due.
    pub(crate) fn renew_at(&self) -> Option<Moment> {
        self.renew_at
    }

    /// Asks for a renewal at `at`, or earlier if one is due earlier.
    pub(crate) fn renew_by(&mut self, at: Moment) {
        self.renew_at = Some(self.renew_at.map_or(at, |due| due.min(at)));
    }

    /// The usual time from one renewal to the next.
    pub(crate) fn interval(&self) -> Duration {
        self.ttl / 3
    }

    /// A renewal is on its way; `None` where there was nothing to renew.
    pub(crate) fn sent(&mut self) {
        self.renew_at = None;
    }

    /// The renewal sent at `sent` was answered. A late answer revives nothing.
    pub(crate) fn renewed(&mut self, now: Moment, sent: Moment, ttl: Duration) {
        if !self.valid(now) {
            return;
        }
        self.ttl = ttl;
        if let Some(deadline) = &mut self.deadline {
            *deadline = (*deadline).max(self.margin.deadline(sent, ttl));
        }
        self.renew_by(sent + ttl / 3);
    }

    /// A renewal was not answered, or not in full: soon again.
    pub(crate) fn retry(&mut self, now: Moment) {
        let delay = (self.ttl / 12).clamp(Duration::from_millis(10), Duration::from_secs(1));
        self.renew_by(now + delay);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(15);
    const MARGIN: Margin = Margin { drift: 0.01, slack: Duration::from_millis(10) };

    fn at(millis: u64) -> Moment {
        Moment::from_nanos(millis * 1_000_000)
    }

    fn opened() -> Lease {
        Lease::opened(Expiry::Session, MARGIN, at(0), TTL)
    }

    #[test]
    fn the_deadline_counts_from_the_send() {
        let mut lease = opened();
        assert_eq!(lease.deadline(), Some(at(14_840)));
        lease.renewed(at(8_000), at(5_000), TTL);
        assert_eq!(lease.deadline(), Some(at(19_840)));
    }

    #[test]
    fn an_answer_out_of_order_never_shortens_it() {
        let mut lease = opened();
        lease.renewed(at(6_000), at(5_000), TTL);
        lease.renewed(at(6_100), at(1_000), TTL);
        assert_eq!(lease.deadline(), Some(at(19_840)));
    }

    #[test]
    fn a_late_answer_revives_nothing() {
        let mut lease = opened();
        assert!(lease.valid(at(14_839)));
        lease.renewed(at(14_840), at(14_000), TTL);
        assert!(!lease.valid(at(14_841)));
        assert!(!lease.valid(at(0)), "the first look past the deadline latches");
    }

    #[test]
    fn it_renews_each_third_and_soon_after_a_failure() {
        let mut lease = opened();
        assert_eq!(lease.renew_at(), Some(at(5_000)));
        lease.sent();
        lease.retry(at(7_500));
        assert_eq!(lease.renew_at(), Some(at(8_500)));
        lease.sent();
        lease.renewed(at(8_600), at(8_500), TTL);
        assert_eq!(lease.renew_at(), Some(at(13_500)));
    }

    #[test]
    fn little_left_is_short() {
        let lease = opened();
        assert!(!lease.is_short(at(9_800)));
        assert!(lease.is_short(at(9_900)));
    }

    #[test]
    fn where_claims_expire_singly_the_session_never_does() {
        let mut lease = Lease::opened(Expiry::Claim, MARGIN, at(0), TTL);
        assert_eq!((lease.deadline(), lease.renew_at()), (None, None));
        assert!(lease.valid(at(1_000_000)) && !lease.is_short(at(1_000_000)));
    }
}
