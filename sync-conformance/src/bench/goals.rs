//! What figures should come to.

/// What the figures of a store should come to: shown beside them, met or missed.
///
/// ```
/// use sync_conformance::bench::Goals;
///
/// // Two clients hand over at five times the rival's rate, and p99 is a fifth of the rival's.
/// let goals = Goals::default().parallel(0.9).renewal(1.0).against_rival(2, 5.0, 0.2);
/// ```
#[derive(Debug, Clone)]
pub struct Goals {
    pub(super) free: f64,
    pub(super) parallel: f64,
    pub(super) handover: Option<f64>,
    pub(super) renewal: Option<f64>,
    rival: Vec<AgainstRival>,
}

/// Of a handover beside the rival's, with this many clients.
#[derive(Debug, Clone, Copy)]
pub(super) struct AgainstRival {
    clients: usize,
    /// Grants a second to another.
    pub(super) rate: f64,
    /// From release to grant.
    pub(super) p99: f64,
}

impl Default for Goals {
    fn default() -> Self {
        Self { free: 1.1, parallel: 0.9, handover: None, renewal: None, rival: Vec::new() }
    }
}

impl Goals {
    /// `free`: p50 of the pair at most so many times the raw pair's. Default 1.1.
    #[must_use]
    pub fn free(mut self, times: f64) -> Self {
        self.free = times;
        self
    }

    /// `parallel`: at least so many times the raw pairs a second. Default 0.9.
    #[must_use]
    pub fn parallel(mut self, times: f64) -> Self {
        self.parallel = times;
        self
    }

    /// `handover`: p50 at most so many raw round trips. Default: shown without a goal.
    #[must_use]
    pub fn handover(mut self, round_trips: f64) -> Self {
        self.handover = Some(round_trips);
        self
    }

    /// `held`: at most so many requests for a renewal of all that is held. Default: shown without
    /// a goal.
    #[must_use]
    pub fn renewal(mut self, requests: f64) -> Self {
        self.renewal = Some(requests);
        self
    }

    /// `handover` between so many clients, beside the [rival's](super::Rival): at least so many
    /// times its rate, and a p99 at most so many times its own. Default: shown without a goal.
    #[must_use]
    pub fn against_rival(mut self, clients: usize, rate: f64, p99: f64) -> Self {
        self.rival.push(AgainstRival { clients, rate, p99 });
        self
    }

    pub(super) fn of_rival(&self, clients: usize) -> Option<AgainstRival> {
        self.rival.iter().copied().find(|goal| goal.clients == clients)
    }
}
