//! What goes wrong, and when: all of it decided by a seed before the run begins.

use std::fmt;
use std::time::Duration;

use super::dice::Dice;

/// Whom faults happen to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Targets {
    /// The processes: killed and stopped.
    pub(super) clients: bool,
    /// Their connections: cut, delayed, swallowed.
    pub(super) network: bool,
    /// The servers: stopped, killed and started again with their data.
    pub(super) servers: bool,
}

/// Something that goes wrong for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Mishap {
    /// A process is killed, and another starts in its place.
    Kill,
    /// A process is stopped for less than the TTL.
    Pause,
    /// A process is stopped for longer than the TTL.
    Freeze,
    /// Its connections are reset.
    Reset,
    /// Its connections are reset, and each new one.
    Cut,
    /// Everything takes longer, both ways.
    Delay,
    /// Its requests arrive and the answers vanish.
    LoseAnswers,
    /// Everything vanishes.
    Swallow,
    /// Its requests are kept back and arrive late, overtaken by those on newer connections.
    Late,
    /// A server is stopped for less than the TTL.
    ServerPause,
    /// A server is stopped for longer than the TTL.
    ServerFreeze,
    /// A server is killed and comes back with its data.
    ServerKill,
    /// The server that leads a cluster is stopped for so long that it may believe, when it goes on,
    /// that sessions have ended which were renewed meanwhile.
    LeaderFreeze,
}

impl Mishap {
    pub(super) fn is_of_a_server(self) -> bool {
        use Mishap::{LeaderFreeze, ServerFreeze, ServerKill, ServerPause};
        matches!(self, ServerPause | ServerFreeze | ServerKill | LeaderFreeze)
    }

    pub(super) fn is_of_a_link(self) -> bool {
        use Mishap::{Cut, Delay, Late, LoseAnswers, Reset, Swallow};
        matches!(self, Reset | Cut | Delay | LoseAnswers | Swallow | Late)
    }

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Mishap::Kill => "killed",
            Mishap::Pause => "stopped shorter than the TTL",
            Mishap::Freeze => "stopped until another may hold",
            Mishap::Reset => "connections reset",
            Mishap::Cut => "connections cut",
            Mishap::Delay => "connections delayed",
            Mishap::LoseAnswers => "answers swallowed",
            Mishap::Swallow => "everything swallowed",
            Mishap::Late => "requests held back and let through late",
            Mishap::ServerPause => "server stopped shorter than the TTL",
            Mishap::ServerFreeze => "server stopped longer than the TTL",
            Mishap::ServerKill => "server killed and restarted",
            Mishap::LeaderFreeze => "leading server stopped for twice the TTL and more",
        }
    }

    /// How long it lasts.
    fn lasts(self, dice: &Dice, terms: &Terms) -> Duration {
        let Terms { ttl, .. } = *terms;
        match self {
            Mishap::Reset => Duration::ZERO,
            Mishap::Kill => dice.part(ttl, 0.0, 0.5),
            Mishap::Pause | Mishap::ServerPause => dice.part(ttl, 0.1, 0.8),
            Mishap::Freeze => terms.longer() + dice.part(ttl, 1.4, 2.4),
            Mishap::ServerFreeze => dice.part(ttl, 1.4, 2.4),
            Mishap::LeaderFreeze => dice.part(ttl, 2.0, 2.6),
            Mishap::ServerKill => dice.part(ttl, 0.0, 0.3),
            Mishap::Cut | Mishap::Delay | Mishap::LoseAnswers | Mishap::Swallow | Mishap::Late => {
                dice.part(ttl, 0.2, 2.0) + dice.part(terms.longer(), 0.0, 1.0)
            }
        }
    }
}

impl fmt::Display for Mishap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// To whom it happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Aim {
    /// To anybody, whatever it is doing.
    Anybody,
    /// To whoever holds the lock. By chance one in eight would.
    Holder,
    /// To a holder whose answers take long: whoever counts from them counts too much.
    SlowHolder,
}

/// By what a plan is measured.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    pub(super) length: Duration,
    pub(super) ttl: Duration,
    /// How long the store keeps what the dead held.
    pub(super) kept: Duration,
    /// The store is not one server but several.
    pub(super) cluster: bool,
}

impl Terms {
    /// How much longer than the TTL the dead block the others.
    fn longer(&self) -> Duration {
        self.kept.saturating_sub(self.ttl)
    }
}

/// One fault of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    /// After the beginning of the run.
    pub(super) at: Duration,
    pub(super) mishap: Mishap,
    pub(super) lasts: Duration,
    /// By how much a [`Mishap::Delay`] delays each direction, and a slow holder's answers come late.
    pub(super) by: Duration,
    pub(super) aim: Aim,
    /// Whom to try first.
    pub(super) pick: u64,
}

/// What happens one after the other, over and over; when, for how long and to whom is chance.
struct Deck {
    cards: &'static [(Mishap, Aim)],
    /// Between which multiples of the TTL passes from one to the next.
    pause: (f64, f64),
    /// Each costs the others as long as the store keeps what the dead held, or their places in line:
    /// the pauses are multiples of that.
    blocks: bool,
    /// Between which parts of the run.
    when: (f64, f64),
}

const HOLDERS: Deck = Deck {
    cards: &[
        (Mishap::Freeze, Aim::Holder),
        (Mishap::Kill, Aim::SlowHolder),
        (Mishap::Freeze, Aim::SlowHolder),
        (Mishap::Pause, Aim::Holder),
        (Mishap::Kill, Aim::Holder),
    ],
    pause: (2.5, 4.0),
    blocks: true,
    when: (0.0, 1.0),
};
const HOLDERS_LINKS: Deck = Deck {
    cards: &[
        (Mishap::Swallow, Aim::Holder),
        (Mishap::LoseAnswers, Aim::Holder),
        (Mishap::Late, Aim::Holder),
        (Mishap::Cut, Aim::Holder),
        (Mishap::Reset, Aim::Holder),
    ],
    pause: (3.5, 6.0),
    blocks: true,
    when: (0.0, 1.0),
};
const CLIENTS: Deck = Deck {
    cards: &[
        (Mishap::Kill, Aim::Anybody),
        (Mishap::Freeze, Aim::Anybody),
        (Mishap::Pause, Aim::Anybody),
    ],
    pause: (2.0, 4.0),
    blocks: true,
    when: (0.0, 1.0),
};
const LINKS: Deck = Deck {
    cards: &[
        (Mishap::Delay, Aim::Anybody),
        (Mishap::LoseAnswers, Aim::Anybody),
        (Mishap::Late, Aim::Anybody),
        (Mishap::Cut, Aim::Anybody),
        (Mishap::Reset, Aim::Anybody),
        (Mishap::Swallow, Aim::Anybody),
    ],
    pause: (1.0, 2.0),
    blocks: true,
    when: (0.0, 1.0),
};
/// While somebody is known to hold: a server that forgets him grants the lock again.
const SERVERS: Deck = Deck {
    cards: &[
        (Mishap::ServerPause, Aim::Anybody),
        (Mishap::ServerKill, Aim::Holder),
        (Mishap::ServerFreeze, Aim::Anybody),
    ],
    pause: (5.0, 9.0),
    blocks: false,
    when: (0.0, 1.0),
};

/// One member of a cluster at a time, which costs the others less.
const MEMBERS: Deck = Deck { pause: (2.5, 4.5), when: (0.0, 0.75), ..SERVERS };

/// At the end, since what comes after is counted apart.
const LEADERS: Deck = Deck {
    cards: &[(Mishap::LeaderFreeze, Aim::Anybody)],
    pause: (2.8, 4.0),
    blocks: false,
    when: (0.75, 1.0),
};

/// The plan of a run: the same for the same arguments.
pub(super) fn plan(seed: u64, targets: Targets, terms: Terms) -> Vec<Step> {
    let cluster = terms.cluster;
    let decks = [
        (targets.clients, HOLDERS),
        (targets.network, HOLDERS_LINKS),
        (targets.clients, CLIENTS),
        (targets.network, LINKS),
        (targets.servers, if cluster { MEMBERS } else { SERVERS }),
        (targets.servers && cluster, LEADERS),
    ];
    let mut steps = Vec::new();
    let seeds = Dice::new(seed);
    for (used, deck) in decks {
        // Each has a sequence of its own: without one of them the others stay as they are.
        let dice = Dice::new(seeds.number());
        if used {
            steps.extend(deal(&dice, &deck, &terms));
        }
    }
    steps.sort_by_key(|step| step.at);
    steps
}

/// Deals the deck, one card after each pause, until the time is up.
fn deal(dice: &Dice, deck: &Deck, terms: &Terms) -> Vec<Step> {
    let Terms { length, ttl, kept, .. } = *terms;
    let (mut at, end) = (length.mul_f64(deck.when.0), length.mul_f64(deck.when.1));
    let step = |(mishap, aim): &(Mishap, Aim)| {
        let lasts = mishap.lasts(dice, terms);
        at += dice.part(if deck.blocks { kept } else { ttl }, deck.pause.0, deck.pause.1);
        let (by, pick) = (dice.part(ttl, 0.02, 0.4), dice.number());
        Step { at, mishap: *mishap, lasts, by, aim: *aim, pick }
    };
    let steps = deck.cards.iter().cycle().map(step);
    steps.take_while(|step| step.at + step.lasts <= end).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const TTL: Duration = Duration::from_secs(1);
    const LENGTH: Duration = Duration::from_secs(60);
    const ONE: Terms = Terms { length: LENGTH, ttl: TTL, kept: TTL, cluster: false };
    const THREE: Terms = Terms { cluster: true, ..ONE };
    const ALL: Targets = Targets { clients: true, network: true, servers: true };

    fn count(steps: &[Step]) -> BTreeMap<Mishap, usize> {
        let mut count = BTreeMap::new();
        for step in steps {
            *count.entry(step.mishap).or_default() += 1;
        }
        count
    }

    #[test]
    fn a_seed_decides_everything() {
        assert_eq!(plan(7, ALL, ONE), plan(7, ALL, ONE));
        assert_ne!(plan(7, ALL, ONE), plan(8, ALL, ONE));
    }

    #[test]
    fn every_fault_happens_and_ends_in_time() {
        for (seed, terms) in (0..50).flat_map(|seed| [(seed, ONE), (seed, THREE)]) {
            let steps = plan(seed, ALL, terms);
            let count = count(&steps);
            let all = if terms.cluster { 13 } else { 12 };
            assert_eq!(count.len(), all, "seed {seed}: {count:?}");
            assert!(count.values().all(|count| *count >= 2), "seed {seed}: {count:?}");
            assert!(steps.iter().all(|step| step.at + step.lasts <= LENGTH));
            assert!(steps.is_sorted_by_key(|step| step.at));
        }
    }

    #[test]
    fn a_short_run_strikes_holders_too() {
        for seed in 0..50 {
            let terms = Terms { length: LENGTH / 4, ..ONE };
            let steps = plan(seed, Targets { servers: false, ..ALL }, terms);
            let freezes = |step: &&Step| step.aim != Aim::Anybody && step.mishap == Mishap::Freeze;
            assert!(steps.iter().filter(freezes).count() >= 2, "seed {seed}: {steps:?}");
            assert!(steps.len() >= 16, "seed {seed}: {}", steps.len());
        }
    }

    #[test]
    fn a_cluster_is_struck_more_often_than_one_server() {
        let servers = Targets { servers: true, ..Targets::default() };
        for seed in 0..50 {
            let [one, three] = [ONE, THREE].map(|terms| plan(seed, servers, terms).len());
            assert!(three > one && one >= 6, "seed {seed}: {one}, {three}");
        }
    }

    #[test]
    fn who_is_stopped_goes_on_when_the_store_has_let_go() {
        let slow = Terms { kept: TTL * 5 / 2, ..THREE };
        for seed in 0..50 {
            let steps = plan(seed, ALL, slow);
            let freezes: Vec<_> =
                steps.iter().filter(|step| step.mishap == Mishap::Freeze).collect();
            assert!(freezes.len() >= 4, "seed {seed}: {steps:?}");
            assert!(freezes.iter().all(|step| step.lasts > slow.kept));
        }
    }

    #[test]
    fn what_is_counted_apart_comes_last() {
        for seed in 0..50 {
            let steps = plan(seed, ALL, THREE);
            let first = steps.iter().position(|step| step.mishap == Mishap::LeaderFreeze);
            let first = first.unwrap_or_else(|| panic!("seed {seed}: {steps:?}"));
            assert!(steps[first].lasts >= TTL * 2);
            let mut later = steps[first..].iter().filter(|step| step.mishap.is_of_a_server());
            assert!(later.all(|step| step.mishap == Mishap::LeaderFreeze));
        }
    }

    #[test]
    fn only_who_is_a_target_is_struck() {
        let nobody = Targets::default();
        assert!(plan(1, nobody, THREE).is_empty());
        let servers = plan(1, Targets { servers: true, ..nobody }, THREE);
        assert!(!servers.is_empty());
        assert!(servers.iter().all(|step| step.mishap.is_of_a_server()));
        // What else is struck does not change the rest of the plan.
        let with: Vec<_> = plan(1, ALL, THREE);
        let others = |step: &&Step| !step.mishap.is_of_a_server();
        let with: Vec<_> = with.iter().filter(others).cloned().collect();
        assert_eq!(plan(1, Targets { servers: false, ..ALL }, THREE), with);
    }
}
