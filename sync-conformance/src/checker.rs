//! The judge of a [history](crate::history).
//!
//! A holder is valid from its grant to the earliest of its deadline, as last extended, and its
//! revocation (a release begins with one). The rules:
//!
//! 1. Two valid holders of one name never overlap.
//! 2. No grant comes before the earlier holder's revocation or deadline, however short the new
//!    hold is.
//! 3. Tokens grow in the order in which grants became visible.
//! 4. What has ended is not extended, ends once, and not later than its deadline.
//! 5. Nothing is taken away from outside, unless the run does that itself ([`Outside::Expected`]).
//!
//! A holder whose key or session was removed from outside can be told only after the fact. Where
//! that is expected, such a holder's overlap is counted apart: it is no violation.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use sync_core::{Cause, FencingToken, Kind, Moment, What};

use crate::history::{Record, Seconds};

/// Whether keys and sessions are removed from outside in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outside {
    /// Nobody does: such a loss is a violation, since the store has not kept what it promised.
    Forbidden,
    /// The run does so itself, or stops a store that forgets: such losses are counted apart.
    Expected,
}

/// One acquisition, as its history tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acquisition {
    /// Which coordinator of which process.
    pub who: String,
    /// Its token.
    pub token: FencingToken,
    /// When it became visible.
    pub granted: Moment,
    /// Its deadline as last extended.
    pub deadline: Moment,
    /// When it was revoked, and why, if anybody lived to say so.
    pub revoked: Option<(Moment, Cause)>,
}

impl Acquisition {
    /// When it was no longer valid.
    #[must_use]
    pub fn end(&self) -> Moment {
        self.revoked.map_or(self.deadline, |(at, _)| at.min(self.deadline))
    }

    fn taken_away(&self) -> bool {
        matches!(self.revoked, Some((_, Cause::Key | Cause::Session)))
    }
}

impl fmt::Display for Acquisition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Acquisition { who, token, granted, .. } = self;
        let (from, to) = (Seconds(*granted), Seconds(self.end()));
        let why = self.revoked.map_or("its deadline", |(_, cause)| cause.as_str());
        write!(f, "token {token} of {who} from {from} to {to} ({why})")
    }
}

/// What a history must not contain.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Violation {
    /// Two holders were valid at once.
    Overlap(Acquisition, Acquisition),
    /// The second was granted before the first had ended, though it was not valid beside it.
    Early(Acquisition, Acquisition),
    /// The second became visible after the first, and its token is not greater.
    Token(Acquisition, Acquisition),
    /// It was extended after its end.
    Revived(Acquisition),
    /// It was revoked more than once.
    Twice(Acquisition),
    /// It was in use past its deadline.
    Overdue(Acquisition),
    /// Its key or session was removed though nobody did.
    Outside(Acquisition),
    /// An extension or a revocation of what was never granted.
    Stray(Record),
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Violation::Overlap(a, b) => write!(f, "two valid holders: {a}; {b}"),
            Violation::Early(a, b) => write!(f, "granted before the holder's end: {a}; {b}"),
            Violation::Token(a, b) => write!(f, "the token does not grow: {a}; {b}"),
            Violation::Revived(a) => write!(f, "extended after its end: {a}"),
            Violation::Twice(a) => write!(f, "revoked twice: {a}"),
            Violation::Overdue(a) => write!(f, "in use past its deadline: {a}"),
            Violation::Outside(a) => write!(f, "lost though nobody took it away: {a}"),
            Violation::Stray(record) => write!(f, "never granted: {record}"),
        }
    }
}

/// By how much revocations came before the next grant of the name to another.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Leads(Vec<Duration>);

impl Leads {
    /// How many there were.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The lead than which this percentage is shorter: 0 for the shortest. `None` without any.
    #[must_use]
    pub fn percentile(&self, percentage: usize) -> Option<Duration> {
        let last = self.0.len().checked_sub(1)?;
        self.0.get((last * percentage.min(100)).div_ceil(100)).copied()
    }
}

impl fmt::Display for Leads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Some(p0), Some(p50), Some(p99)) =
            (self.percentile(0), self.percentile(50), self.percentile(99))
        else {
            return f.write_str("none");
        };
        write!(f, "{} (p0 {p0:?}, p50 {p50:?}, p99 {p99:?})", self.count())
    }
}

/// What a history comes to.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Report {
    /// Grants.
    pub grants: usize,
    /// Grants to another than the one before.
    pub handovers: usize,
    /// Extensions.
    pub extensions: usize,
    /// Revocations by cause.
    pub revocations: BTreeMap<&'static str, usize>,
    /// What must not be.
    pub violations: Vec<Violation>,
    /// Grants beside a holder whose key or session had been removed from outside, where that was
    /// expected.
    pub outside_overlaps: usize,
    /// Leads of all handovers.
    pub leads: Leads,
    /// Leads of the handovers where time decided: the holder's deadline passed.
    pub expired_leads: Leads,
}

impl Report {
    /// Whether nothing was violated.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.violations.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "grants: {}", self.grants)?;
        writeln!(f, "handovers: {}", self.handovers)?;
        writeln!(f, "extensions: {}", self.extensions)?;
        for (cause, count) in &self.revocations {
            writeln!(f, "revoked, {cause}: {count}")?;
        }
        writeln!(f, "overlaps after a loss from outside: {}", self.outside_overlaps)?;
        writeln!(f, "lead of revocation over the next grant: {}", self.leads)?;
        writeln!(f, "the same where time decided: {}", self.expired_leads)?;
        write!(f, "violations: {}", self.violations.len())?;
        self.violations.iter().try_for_each(|violation| write!(f, "\n  {violation}"))
    }
}

/// Judges a history: records in the order in which each process wrote them.
///
/// ```
/// use sync_conformance::checker::{Outside, check};
/// use sync_conformance::history::parse;
///
/// let two_at_once = "\
/// 1.0 1.0 sync lock a 1 granted 9.0
/// 2.0 2.0 sync lock a 2 granted 9.5
/// ";
/// let report = check(&parse(two_at_once)?, Outside::Forbidden);
/// assert!(report.violations[0].to_string().starts_with("two valid holders"));
/// # Ok::<(), String>(())
/// ```
#[must_use]
pub fn check(history: &[Record], outside: Outside) -> Report {
    let mut report = Report::default();
    let names = collect(history, &mut report);
    let (mut leads, mut expired_leads) = (Vec::new(), Vec::new());
    for mut acquisitions in names.into_values() {
        // A process that was stopped writes late what it had read from the clock before.
        acquisitions.sort_by_key(|acquisition| acquisition.granted);
        order(&acquisitions, outside, &mut report);
        for pair in acquisitions.windows(2) {
            let [before, after] = pair else { continue };
            if before.who == after.who {
                continue;
            }
            report.handovers += 1;
            if after.granted < before.end() {
                continue;
            }
            let lead = after.granted.since(before.end());
            leads.push(lead);
            if before.end() == before.deadline {
                expired_leads.push(lead);
            }
        }
    }
    leads.sort_unstable();
    expired_leads.sort_unstable();
    (report.leads, report.expired_leads) = (Leads(leads), Leads(expired_leads));
    report
}

type Names = BTreeMap<(String, Kind, String), Vec<Acquisition>>;

/// Puts the records of each acquisition together (rule 4).
fn collect(history: &[Record], report: &mut Report) -> Names {
    let mut names = Names::new();
    for record in history {
        let key = (record.scope.clone(), record.kind, record.name.clone());
        let acquisitions = names.entry(key).or_default();
        if let What::Granted { deadline } = record.what {
            report.grants += 1;
            acquisitions.push(Acquisition {
                who: record.who.clone(),
                token: record.token,
                granted: record.at,
                deadline,
                revoked: None,
            });
            continue;
        }
        let ours = |a: &&mut Acquisition| a.who == record.who && a.token == record.token;
        let Some(acquisition) = acquisitions.iter_mut().rev().find(ours) else {
            report.violations.push(Violation::Stray(record.clone()));
            continue;
        };
        match record.what {
            What::Extended { deadline } => {
                report.extensions += 1;
                if record.at >= acquisition.end() {
                    report.violations.push(Violation::Revived(acquisition.clone()));
                }
                acquisition.deadline = acquisition.deadline.max(deadline);
            }
            What::Revoked { cause } => {
                *report.revocations.entry(cause.as_str()).or_default() += 1;
                if acquisition.revoked.is_some() {
                    report.violations.push(Violation::Twice(acquisition.clone()));
                    continue;
                }
                if record.at > acquisition.deadline {
                    report.violations.push(Violation::Overdue(acquisition.clone()));
                }
                acquisition.revoked = Some((record.at, cause));
            }
            _ => report.violations.push(Violation::Stray(record.clone())),
        }
    }
    names.retain(|_, acquisitions| !acquisitions.is_empty());
    names
}

/// Compares the acquisitions of one name, in the order in which they became visible (rules 1 to
/// 3 and 5).
fn order(acquisitions: &[Acquisition], outside: Outside, report: &mut Report) {
    let expected = outside == Outside::Expected;
    let mut holders: Vec<&Acquisition> = Vec::new();
    let mut newest: Option<&Acquisition> = None;
    for now in acquisitions {
        if now.taken_away() && !expected {
            report.violations.push(Violation::Outside(now.clone()));
        }
        if let Some(before) = newest
            && now.token <= before.token
        {
            // Removed from outside, a claim may be granted after another whose answer was quicker.
            let excused = expected && now.taken_away() && now.token < before.token;
            if !excused {
                report.violations.push(Violation::Token(before.clone(), now.clone()));
            }
        } else {
            newest = Some(now);
        }
        holders.retain(|holder| holder.end() > now.granted);
        for holder in &holders {
            let older = if holder.token < now.token { holder } else { &now };
            if expected && older.taken_away() {
                report.outside_overlaps += 1;
            } else if now.end() > now.granted {
                report.violations.push(Violation::Overlap((*holder).clone(), now.clone()));
            } else {
                report.violations.push(Violation::Early((*holder).clone(), now.clone()));
            }
        }
        holders.push(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::parse;

    /// Judges lines of `at who token what more` about one lock.
    fn judge(lines: &str, outside: Outside) -> Report {
        let line = |line: &str| {
            let columns: Vec<&str> = line.split_whitespace().collect();
            let [at, who, token, what, more] = columns[..] else { panic!("{line}") };
            format!("{at} {who} sync lock a {token} {what} {more}\n")
        };
        let text: String = lines.trim().lines().map(line).collect();
        check(&parse(&text).unwrap(), outside)
    }

    /// What is violated, one word for each.
    fn violated(lines: &str, outside: Outside) -> Vec<&'static str> {
        let word = |violation: &Violation| match violation {
            Violation::Overlap(..) => "overlap",
            Violation::Early(..) => "early",
            Violation::Token(..) => "token",
            Violation::Revived(..) => "revived",
            Violation::Twice(..) => "twice",
            Violation::Overdue(..) => "overdue",
            Violation::Outside(..) => "outside",
            Violation::Stray(..) => "stray",
        };
        judge(lines, outside).violations.iter().map(word).collect()
    }

    fn strict(lines: &str) -> Vec<&'static str> {
        violated(lines, Outside::Forbidden)
    }

    #[test]
    fn a_release_and_an_expiry_each_followed_by_a_grant_pass() {
        let report = judge(
            "1.0 p 1 granted 3.0
             2.0 p 1 extended 4.0
             2.5 p 1 revoked released
             2.6 q 2 granted 4.6
             4.9 r 3 granted 6.9
             5.0 r 3 revoked closed
             5.0 r 4 granted 7.0",
            Outside::Forbidden,
        );
        assert!(report.is_clean(), "{report}");
        assert_eq!((report.grants, report.extensions, report.handovers), (4, 1, 2));
        assert_eq!(report.leads.percentile(0), Some(Duration::from_millis(100)));
        assert_eq!(report.leads.percentile(99), Some(Duration::from_millis(300)));
        assert_eq!(report.expired_leads.count(), 1);
        assert_eq!(report.revocations["released"], 1);
    }

    #[test]
    fn two_valid_holders_are_found() {
        assert_eq!(strict("1.0 p 1 granted 3.0\n 2.9 q 2 granted 5.0"), ["overlap"]);
    }

    #[test]
    fn two_valid_holders_are_found_beyond_the_next_grant() {
        let lines = "1.0 p 1 granted 9.0
             2.0 q 2 granted 4.0
             3.0 q 2 revoked released
             5.0 r 3 granted 7.0";
        assert_eq!(strict(lines), ["overlap", "overlap"]);
    }

    #[test]
    fn an_extension_counts_for_the_overlap() {
        let lines = "1.0 p 1 granted 3.0
             2.0 p 1 extended 4.0
             3.5 q 2 granted 5.0";
        assert_eq!(strict(lines), ["overlap"]);
    }

    #[test]
    fn a_killed_holder_holds_to_its_deadline() {
        assert_eq!(strict("1.0 p 1 granted 3.0\n 3.0 q 2 granted 5.0"), [""; 0]);
        assert_eq!(strict("1.0 p 1 granted 3.0\n 2.999999999 q 2 granted 5.0"), ["overlap"]);
    }

    #[test]
    fn a_grant_before_the_earlier_end_is_found_though_it_was_never_valid() {
        let lines = "1.0 p 1 granted 3.0
             2.0 q 2 granted 4.0
             2.0 q 2 revoked released";
        assert_eq!(strict(lines), ["early"]);
    }

    #[test]
    fn a_token_that_repeats_or_falls_is_found() {
        let released = "1.0 p 5 granted 3.0\n 2.0 p 5 revoked released\n";
        assert_eq!(strict(&format!("{released} 2.5 q 5 granted 4.0")), ["token"]);
        assert_eq!(strict(&format!("{released} 2.5 p 5 granted 4.0")), ["token"]);
        assert_eq!(strict(&format!("{released} 2.5 q 4 granted 4.0")), ["token"]);
        assert_eq!(strict(&format!("{released} 2.5 q 6 granted 4.0")), [""; 0]);
        let later = "2.5 q 6 granted 3.0\n 3.5 r 5 granted 4.0";
        assert_eq!(strict(&format!("{released} {later}")), ["token"]);
    }

    #[test]
    fn what_a_stopped_process_wrote_late_is_put_in_order() {
        let lines = "4.0 q 2 granted 6.0
             1.0 p 1 granted 3.0";
        assert_eq!(strict(lines), [""; 0]);
    }

    #[test]
    fn a_revived_guard_is_found() {
        assert_eq!(strict("1.0 p 1 granted 3.0\n 3.0 p 1 extended 5.0"), ["revived"]);
        let released = "1.0 p 1 granted 3.0
             1.5 p 1 revoked released
             2.0 p 1 extended 4.0";
        assert_eq!(strict(released), ["revived"]);
    }

    #[test]
    fn a_second_revocation_is_found() {
        let lines = "1.0 p 1 granted 3.0
             1.5 p 1 revoked released
             1.6 p 1 revoked closed";
        assert_eq!(strict(lines), ["twice"]);
    }

    #[test]
    fn use_past_the_deadline_is_found() {
        assert_eq!(strict("1.0 p 1 granted 3.0\n 3.5 p 1 revoked released"), ["overdue"]);
        assert_eq!(strict("1.0 p 1 granted 3.0\n 3.0 p 1 revoked deadline"), [""; 0]);
    }

    #[test]
    fn events_without_a_grant_are_found() {
        assert_eq!(strict("1.0 p 1 extended 3.0"), ["stray"]);
        assert_eq!(strict("1.0 p 1 granted 3.0\n 2.0 q 1 revoked released"), ["stray"]);
        assert_eq!(strict("1.0 p 1 granted 3.0\n 2.0 p 2 revoked released"), ["stray"]);
    }

    #[test]
    fn a_loss_from_outside_is_a_violation_unless_it_is_expected() {
        let lines = "1.0 p 1 granted 3.0
             2.0 q 2 granted 4.0
             2.1 p 1 revoked key";
        assert_eq!(strict(lines), ["outside", "overlap"]);
        let report = judge(lines, Outside::Expected);
        assert!(report.is_clean(), "{report}");
        assert_eq!(report.outside_overlaps, 1);
    }

    #[test]
    fn a_loss_from_outside_excuses_only_the_one_who_lost() {
        let successor_lost = "1.0 p 1 granted 3.0
             2.0 q 2 granted 4.0
             2.1 q 2 revoked session";
        assert_eq!(violated(successor_lost, Outside::Expected), ["overlap"]);
        let late_answer = "2.0 q 2 granted 4.0
             2.1 p 1 granted 3.0
             2.2 p 1 revoked key";
        assert_eq!(violated(late_answer, Outside::Expected), [""; 0]);
        let same_token = "2.0 q 1 granted 4.0
             4.1 p 1 granted 6.0
             4.2 p 1 revoked key";
        assert_eq!(violated(same_token, Outside::Expected), ["token"]);
    }

    #[test]
    fn names_kinds_and_namespaces_are_judged_apart() {
        let text = "\
1.0 p sync lock a 1 granted 3.0
1.0 p sync lock b 1 granted 3.0
1.0 p sync leader a 1 granted 3.0
1.0 p other lock a 1 granted 3.0
";
        assert!(check(&parse(text).unwrap(), Outside::Forbidden).is_clean());
    }

    #[test]
    fn percentiles_are_of_what_was_seen() {
        let leads = Leads((0..=100).map(Duration::from_millis).collect());
        assert_eq!(leads.percentile(0), Some(Duration::ZERO));
        assert_eq!(leads.percentile(50), Some(Duration::from_millis(50)));
        assert_eq!(leads.percentile(99), Some(Duration::from_millis(99)));
        assert_eq!(Leads::default().percentile(50), None);
    }
}
