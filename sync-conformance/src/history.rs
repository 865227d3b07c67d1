//! Histories: what happened to claims, written down before anybody could act on it.
//!
//! One line per event, one `write` per line, appended to a file that all processes of a run share.
//! So a process that was killed or stopped still has a known interval: what it did not write, its
//! user never saw. All processes of one host read the same boot-time clock, so the lines of all of
//! them can be put in order.
//!
//! ```text
//! 5400.123456789 4711.0 sync lock reports=2Fnightly 17 granted 5402.113456789
//! 5400.823456789 4711.0 sync lock reports=2Fnightly 17 extended 5402.803456789
//! 5401.000000000 4711.0 sync lock reports=2Fnightly 17 revoked released
//! ```
//!
//! The columns: when, who (process and coordinator), namespace, kind, name, token, what, and until
//! when or why.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use sync_core::{Cause, Event, FencingToken, Kind, Moment, Namespace, Observer, What};

/// One event of a history.
///
/// ```
/// use sync_conformance::history::Record;
///
/// let line = "5.000000001 4711.0 sync lock report 17 revoked deadline";
/// let record: Record = line.parse()?;
/// assert_eq!(record.token.get(), 17);
/// assert_eq!(record.to_string(), line);
/// # Ok::<(), String>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// When, on the clock that all processes of the run share.
    pub at: Moment,
    /// Which coordinator of which process.
    pub who: String,
    /// The namespace, encoded.
    pub scope: String,
    /// Lock or leadership.
    pub kind: Kind,
    /// The name, encoded.
    pub name: String,
    /// The acquisition's token.
    pub token: FencingToken,
    /// What happened.
    pub what: What,
}

impl Record {
    fn of(event: &Event, who: &str, scope: &str) -> Self {
        Self {
            at: event.at,
            who: who.to_owned(),
            scope: scope.to_owned(),
            kind: event.kind,
            name: event.name.encoded(),
            token: event.token,
            what: event.what,
        }
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Record { at, who, scope, kind, name, token, what } = self;
        write!(f, "{} {who} {scope} {kind} {name} {token} ", Seconds(*at))?;
        match what {
            What::Granted { deadline } => write!(f, "granted {}", Seconds(*deadline)),
            What::Extended { deadline } => write!(f, "extended {}", Seconds(*deadline)),
            What::Revoked { cause } => write!(f, "revoked {}", cause.as_str()),
            // The core may learn to tell of more; a reader then says that it cannot judge it.
            _ => f.write_str("unknown -"),
        }
    }
}

impl FromStr for Record {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let columns: Vec<&str> = line.split(' ').collect();
        let [at, who, scope, kind, name, token, what, more] = columns[..] else {
            return Err(format!("{} columns instead of 8", columns.len()));
        };
        let kind = match kind {
            "lock" => Kind::Lock,
            "leader" => Kind::Leader,
            other => return Err(format!("{other:?} is no kind of claim")),
        };
        let token = token.parse().map_err(|_| format!("{token:?} is no token"))?;
        let what = match what {
            "granted" => What::Granted { deadline: moment(more)? },
            "extended" => What::Extended { deadline: moment(more)? },
            "revoked" => What::Revoked { cause: cause(more)? },
            other => return Err(format!("{other:?} is no event")),
        };
        Ok(Self {
            at: moment(at)?,
            who: who.to_owned(),
            scope: scope.to_owned(),
            kind,
            name: name.to_owned(),
            token: FencingToken::new(token),
            what,
        })
    }
}

/// An [`Observer`] that appends to a file.
///
/// A line that cannot be written ends the process: a history with holes proves nothing.
///
/// ```
/// use std::sync::Arc;
/// use sync_conformance::history::{Journal, read};
/// use sync_core::{Environment, Namespace};
///
/// let dir = tempfile::tempdir()?;
/// let path = dir.path().join("history");
/// let journal = Journal::open(&path, &Namespace::default())?;
/// let environment = Environment::default().observer(Arc::new(journal));
/// assert!(read(&path)?.is_empty());
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct Journal {
    file: File,
    who: String,
    scope: String,
}

impl Journal {
    /// Appends to the file at `path`, and makes it if it is not there. One for each coordinator:
    /// that is whom the checker takes it for.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn open(path: &Path, namespace: &Namespace) -> io::Result<Self> {
        let file = File::options().create(true).append(true).open(path)?;
        Ok(Self { file, who: who(), scope: namespace.joined('/') })
    }
}

impl Observer for Journal {
    fn observe(&self, event: &Event) {
        let line = format!("{}\n", Record::of(event, &self.who, &self.scope));
        match (&self.file).write(line.as_bytes()) {
            Ok(written) if written == line.len() => {}
            outcome => {
                eprintln!("the history cannot be written: {outcome:?}");
                std::process::abort();
            }
        }
    }
}

/// An [`Observer`] that keeps the history in memory, for cases of one process and a clock of
/// their own.
///
/// ```
/// use sync_conformance::history::Recorder;
///
/// let recorder = Recorder::new();
/// assert!(recorder.records().is_empty());
/// ```
#[derive(Debug)]
pub struct Recorder {
    who: String,
    records: std::sync::Arc<Mutex<Vec<Record>>>,
}

impl Recorder {
    /// An empty history.
    #[must_use]
    pub fn new() -> Self {
        Self { who: who(), records: std::sync::Arc::default() }
    }

    /// One for another coordinator that adds to the same history.
    #[must_use]
    pub fn another(&self) -> Self {
        Self { who: who(), records: std::sync::Arc::clone(&self.records) }
    }

    /// What has been told so far, in the order in which it was told.
    #[must_use]
    pub fn records(&self) -> Vec<Record> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Default for Recorder {
    fn default() -> Self {
        Self::new()
    }
}

impl Observer for Recorder {
    fn observe(&self, event: &Event) {
        let record = Record::of(event, &self.who, "-");
        self.records.lock().unwrap_or_else(PoisonError::into_inner).push(record);
    }
}

/// Reads a history. A last line without its end is left out: its writer was killed before
/// anybody could see what it tells. A file that is not there is an empty history.
///
/// # Errors
/// Those of the file system, and [`io::ErrorKind::InvalidData`] with the number of the line that
/// cannot be read.
pub fn read(path: &Path) -> io::Result<Vec<Record>> {
    let text = match std::fs::read_to_string(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        text => text?,
    };
    parse(&text).map_err(|why| io::Error::new(io::ErrorKind::InvalidData, why))
}

/// Reads a history from its text, as [`read`] does.
///
/// # Errors
/// The number of the line that cannot be read, and why.
///
/// ```
/// use sync_conformance::history::parse;
///
/// let torn = "5.0 1.0 sync lock a 1 granted 7.0\n6.0 1.0 sync lock a 1 exte";
/// assert_eq!(parse(torn)?.len(), 1);
/// # Ok::<(), String>(())
/// ```
pub fn parse(text: &str) -> Result<Vec<Record>, String> {
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let lines = whole.lines().enumerate();
    lines.map(|(at, line)| line.parse().map_err(|e| format!("line {}: {e}", at + 1))).collect()
}

/// This process and a number that no other observer of it has.
fn who() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("{}.{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A moment as seconds with nine digits behind the point.
pub(crate) struct Seconds(pub(crate) Moment);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.as_nanos();
        write!(f, "{}.{:09}", nanos / 1_000_000_000, nanos % 1_000_000_000)
    }
}

fn moment(text: &str) -> Result<Moment, String> {
    let read = || {
        let (seconds, part) = text.split_once('.')?;
        if part.len() > 9 || !part.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let nanos: u64 = format!("{part:0<9}").parse().ok()?;
        seconds.parse::<u64>().ok()?.checked_mul(1_000_000_000)?.checked_add(nanos)
    };
    read().map(Moment::from_nanos).ok_or_else(|| format!("{text:?} is no moment"))
}

fn cause(text: &str) -> Result<Cause, String> {
    let all = [Cause::Deadline, Cause::Session, Cause::Key, Cause::Released, Cause::Closed];
    all.into_iter().find(|c| c.as_str() == text).ok_or_else(|| format!("{text:?} is no cause"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: &str = "\
5400.123456789 4711.0 sync lock reports=2Fnightly 17 granted 5402.113456789
5400.823456789 4711.0 sync leader a 18446744073709551615 extended 5402.000000001
5401.000000000 4711.1 a/b lock x 17 revoked released
5401.000000000 4711.1 a/b lock x 18 revoked session
";

    #[test]
    fn lines_read_back_as_they_were_written() {
        let written: String =
            parse(LINES).unwrap().iter().map(|record| format!("{record}\n")).collect();
        assert_eq!(written, LINES);
    }

    #[test]
    fn a_torn_last_line_is_left_out_and_any_other_is_an_error() {
        for end in 1..LINES.len() {
            let whole = LINES[..end].matches('\n').count();
            assert_eq!(parse(&LINES[..end]).unwrap().len(), whole);
        }
        let error =
            parse("5.0 1.0 sync lock a 1 granted 7.0\n6.0 1.0 syn5.0 1.0 sync\n").unwrap_err();
        assert!(error.starts_with("line 2: "), "{error}");
        for bad in ["1.0000000001", "1.+5", "1", "x.0", ".5", "99999999999999999999.0"] {
            assert!(moment(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn many_writers_share_one_file_and_no_line_is_torn() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("history");
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let record: Record = "5.0 1.0 sync lock a 1 granted 7.0".parse().unwrap();
                let journal = Journal::open(&path, &Namespace::default()).unwrap();
                std::thread::spawn(move || {
                    for _ in 0..200 {
                        let line = format!("{record}\n");
                        assert_eq!((&journal.file).write(line.as_bytes()).unwrap(), line.len());
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(read(&path).unwrap().len(), 1600);
    }

    #[test]
    fn no_history_is_an_empty_one() {
        assert!(read(Path::new("/no/such/history")).unwrap().is_empty());
    }
}
