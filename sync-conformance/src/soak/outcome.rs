//! What a run comes to.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::Settings;
use super::arena::Done;
use super::plan::Mishap;
use super::tail::process_of;
use crate::checker::{Acquisition, Leads, Report, Violation};
use crate::register::Contents;

/// Everything that is told of a run, and judged.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) store: String,
    pub(super) version: String,
    pub(super) settings: Settings,
    pub(super) done: BTreeMap<Mishap, usize>,
    /// How many of them were done to the member that led a cluster.
    pub(super) to_leaders: usize,
    pub(super) report: Report,
    /// Violations that are counted apart, see [`take_apart`].
    pub(super) apart: Vec<Violation>,
    pub(super) failovers: Leads,
    pub(super) register: Contents,
    pub(super) notes: BTreeMap<String, usize>,
    /// What stood in the store when the last process had ended.
    pub(super) orphans: usize,
    /// What still stood there when time should have removed it.
    pub(super) left: Vec<String>,
    /// Why the run was broken off, or did not recover.
    pub(super) failed: Option<String>,
}

impl Outcome {
    /// What is wrong with the store, the crates, or the run; nothing if all is well.
    pub(super) fn wrong(&self) -> Vec<String> {
        let mut wrong: Vec<String> = self.failed.iter().cloned().collect();
        let Settings { length, ttl, kept, targets, relaxed, .. } = self.settings;
        if !self.report.is_clean() && !relaxed {
            wrong.push(format!("{} violations", self.report.violations.len()));
        }
        if self.register.value != self.register.accepted {
            wrong.push(format!("{} register updates were lost", self.lost_updates()));
        }
        if !self.left.is_empty() {
            wrong.push(format!("left behind: {}", self.left.join(", ")));
        }
        // What proves nothing is not a success.
        let times = |time: Duration| {
            usize::try_from(length.as_millis() / time.as_millis().max(1)).unwrap_or(0)
        };
        let terms = times(ttl);
        let mut at_least = |count: usize, least: usize, what: &str| {
            if count < least {
                wrong.push(format!("{what}: {count}, which is too few to mean anything ({least})"));
            }
        };
        at_least(self.report.grants, terms * 4, "grants");
        at_least(self.report.handovers, terms * 2, "handovers");
        if targets.clients || targets.network {
            at_least(self.done.values().sum(), times(kept).div_ceil(2), "faults");
        }
        if targets.clients {
            let refused = usize::try_from(self.register.refused).unwrap_or(usize::MAX);
            // Not everybody who is stopped holds, or goes on to write: of a few none may.
            let stopped = self.done.get(&Mishap::Freeze).copied().unwrap_or(0);
            at_least(refused, (stopped / 4).min(1), "stale accesses refused");
            at_least(self.failovers.count(), 1, "failovers");
        }
        wrong
    }

    fn lost_updates(&self) -> u64 {
        self.register.accepted.abs_diff(self.register.value)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Settings { length, seed, processes, ttl, relaxed, .. } = self.settings;
        let Self { store, version, report, register, .. } = self;
        let strict = if relaxed { "relaxed" } else { "strict" };
        writeln!(f, "soak of {store}: {processes} processes, one lock, {length:?}, TTL {ttl:?}")?;
        writeln!(f, "server: {version}")?;
        writeln!(f, "seed: {seed} ({strict})")?;
        writeln!(f, "faults: {}", self.done.values().sum::<usize>())?;
        for (mishap, count) in &self.done {
            writeln!(f, "  {mishap}: {count}")?;
        }
        if self.to_leaders > 0 {
            writeln!(f, "  of these, to the member that led the cluster: {}", self.to_leaders)?;
        }
        writeln!(f, "{report}")?;
        if let Some(freezes) = self.done.get(&Mishap::LeaderFreeze) {
            let apart = self.apart.len();
            writeln!(f, "apart, from the first of {freezes} long stops of a leader on: {apart}")?;
            self.apart.iter().try_for_each(|violation| writeln!(f, "  {violation}"))?;
        }
        writeln!(f, "failover, from the fault to the next grant: {}", self.failovers)?;
        let unanswered = self.notes.get("unanswered try_claim").copied().unwrap_or(0);
        writeln!(f, "acquires that were never answered: {unanswered}")?;
        for (what, count) in self.notes.iter().filter(|(what, _)| *what != "unanswered try_claim") {
            writeln!(f, "  {what}: {count}")?;
        }
        writeln!(
            f,
            "register: {} updates accepted, {} lost, {} stale accesses refused \
             (most processes write without a look at their guard)",
            register.accepted,
            self.lost_updates(),
            register.refused
        )?;
        writeln!(f, "orphans: {} at the end, {} after their time", self.orphans, self.left.len())?;
        match self.wrong()[..] {
            [] => f.write_str("soak: clean"),
            ref wrong => write!(f, "soak: FAILED: {}", wrong.join("; ")),
        }
    }
}

/// Takes those violations out of a report that a server can bring about which led, was stopped for
/// long, and leads again: from its stop on.
pub(super) fn take_apart(report: &mut Report, done: &[Done]) -> Vec<Violation> {
    let long = done.iter().filter(|done| done.mishap == Mishap::LeaderFreeze);
    let Some(first) = long.map(|done| done.at).min() else { return Vec::new() };
    let is_apart =
        |violation: &mut Violation| violation.is_of_ended_sessions() && violation.at() >= first;
    report.violations.extract_if(.., is_apart).collect()
}

/// From each fault that took the lock from its holder by time, to the next grant.
pub(super) fn failovers(done: &[Done], acquisitions: &[Acquisition]) -> Leads {
    let took = |done: &Done| {
        let process = done.holder?;
        let held = acquisitions.iter().position(|held| {
            process_of(&held.who) == process && held.granted <= done.at && done.at < held.end()
        })?;
        let [held, next] = acquisitions.get(held..held + 2)? else { return None };
        (held.end() == held.deadline).then(|| next.granted.since(done.at))
    };
    let took: Vec<Duration> = done.iter().filter_map(took).collect();
    Leads::new(took)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::{Outside, acquisitions, check};
    use crate::history::parse;
    use crate::soak::plan::Targets;
    use sync_core::Moment;

    const HISTORY: &str = "\
1.0 17.0 s lock a 1 granted 2.0
2.5 18.0 s lock a 2 granted 3.5
3.0 18.0 s lock a 2 revoked released
3.1 17.1 s lock a 3 granted 4.0
4.0 17.1 s lock a 3 revoked deadline
4.6 19.0 s lock a 4 granted 5.0
";

    fn done(at: u64, mishap: Mishap, holder: u32) -> Done {
        let at = Moment::from_nanos(at * 100_000_000);
        Done { at, mishap, holder: Some(holder), to_leader: false }
    }

    #[test]
    fn a_failover_lasts_from_the_fault_to_the_next_grant_where_time_decided() {
        let history = parse(HISTORY).unwrap();
        let names = acquisitions(&history);
        let strikes = [
            done(15, Mishap::Kill, 17),
            done(26, Mishap::Pause, 18), // it released in time
            done(33, Mishap::Freeze, 17),
            done(34, Mishap::Freeze, 99), // held nothing
        ];
        let failovers = failovers(&strikes, &names[0]);
        assert_eq!(failovers.count(), 2);
        assert_eq!(failovers.percentile(0), Some(Duration::from_secs(1)));
        assert_eq!(failovers.percentile(100), Some(Duration::from_millis(1300)));
    }

    fn sound() -> Outcome {
        let settings = Settings {
            length: Duration::from_secs(2),
            ttl: Duration::from_secs(2),
            kept: Duration::from_secs(2),
            targets: Targets { clients: true, ..Targets::default() },
            seed: 1,
            processes: 8,
            relaxed: false,
            keep: false,
        };
        let history = parse(HISTORY).unwrap();
        let strikes = [done(15, Mishap::Kill, 17)];
        Outcome {
            store: "toy".into(),
            version: "toy 1".into(),
            settings,
            done: BTreeMap::from([(Mishap::Kill, 1)]),
            to_leaders: 0,
            report: check(&history, Outside::Forbidden),
            apart: Vec::new(),
            failovers: failovers(&strikes, &acquisitions(&history)[0]),
            register: Contents { value: 3, accepted: 3, refused: 1, ..Contents::default() },
            notes: BTreeMap::new(),
            orphans: 1,
            left: Vec::new(),
            failed: None,
        }
    }

    /// So many were stopped until another might hold, and no stale access was refused.
    fn never_refused(outcome: &mut Outcome, stopped: usize) {
        outcome.done.insert(Mishap::Freeze, stopped);
        outcome.register.refused = 0;
    }

    #[test]
    fn whatever_is_wrong_with_a_run_is_told() {
        assert_eq!(sound().wrong(), [""; 0]);
        let mut few = sound();
        never_refused(&mut few, 3);
        assert_eq!(few.wrong(), [""; 0]);
        assert!(sound().to_string().ends_with("soak: clean"));
        type Break = fn(&mut Outcome);
        let broken: [(Break, &str); 7] = [
            (|o| o.register.value -= 1, "1 register updates were lost"),
            (|o| o.left.push("key".into()), "left behind: key"),
            (|o| o.failed = Some("broken off".into()), "broken off"),
            (|o| o.settings.length *= 2, "grants: 4, which is too few"),
            (|o| o.done.clear(), "faults: 0, which is too few"),
            (|o| never_refused(o, 4), "stale accesses refused: 0"),
            (|o| o.failovers = Leads::default(), "failovers: 0"),
        ];
        for (break_it, expected) in broken {
            let mut outcome = sound();
            break_it(&mut outcome);
            let text = outcome.to_string();
            let last = text.lines().last().unwrap();
            assert!(last.starts_with("soak: FAILED: ") && last.contains(expected), "{text}");
        }
    }

    #[test]
    fn a_violation_fails_a_strict_run_and_is_counted_in_a_relaxed_one() {
        let twice = HISTORY.replace("granted 2.0", "granted 2.6");
        let mut outcome = sound();
        outcome.report = check(&parse(&twice).unwrap(), Outside::Forbidden);
        assert_eq!(outcome.wrong(), ["1 violations"]);
        outcome.settings.relaxed = true;
        assert_eq!(outcome.wrong(), [""; 0]);
        assert!(outcome.to_string().contains("violations: 1\n  two valid holders"));
    }

    #[test]
    fn what_a_leader_may_take_back_is_counted_apart_and_nothing_else_is() {
        // At 2.5 a second holder, at 4.6 a token that does not grow.
        let twice =
            HISTORY.replace("granted 2.0", "granted 2.6").replace("a 4 granted", "a 3 granted");
        let judge = |stopped: u64| {
            let mut report = check(&parse(&twice).unwrap(), Outside::Forbidden);
            let strikes =
                [done(stopped, Mishap::LeaderFreeze, 0), done(1, Mishap::ServerFreeze, 0)];
            let apart = take_apart(&mut report, &strikes).len();
            (report.violations.len(), apart)
        };
        assert_eq!(judge(24), (1, 1));
        assert_eq!(judge(26), (2, 0), "it was not stopped yet");

        let mut outcome = sound();
        outcome.done.insert(Mishap::LeaderFreeze, 1);
        outcome.apart = check(&parse(&twice).unwrap(), Outside::Forbidden).violations;
        assert_eq!(outcome.wrong(), [""; 0]);
        assert!(outcome.to_string().contains("long stops of a leader on: 2\n  two valid holders"));
    }
}
