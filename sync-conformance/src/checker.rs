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

impl Violation {
    /// Whether a store can bring it about that ends sessions by which somebody holds.
    pub(crate) fn is_of_ended_sessions(&self) -> bool {
        matches!(self, Violation::Overlap(..) | Violation::Early(..) | Violation::Outside(..))
    }

    /// When it showed.
    pub(crate) fn at(&self) -> Moment {
        match self {
            Violation::Overlap(_, b) | Violation::Early(_, b) | Violation::Token(_, b) => b.granted,
            Violation::Stray(record) => record.at,
            Violation::Revived(a)
            | Violation::Twice(a)
            | Violation::Overdue(a)
            | Violation::Outside(a) => a.end(),
        }
    }
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
    pub(crate) fn new(mut leads: Vec<Duration>) -> Self {
        leads.sort_unstable();
        Self(leads)
    }

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
    (report.leads, report.expired_leads) = (Leads::new(leads), Leads::new(expired_leads));
    report
}

/// The acquisitions of each name, in the order in which they became visible.
pub(crate) fn acquisitions(history: &[Record]) -> Vec<Vec<Acquisition>> {
    let mut names: Vec<_> = collect(history, &mut Report::default()).into_values().collect();
    names.iter_mut().for_each(|name| name.sort_by_key(|acquisition| acquisition.granted));
    names
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
mod tests;
