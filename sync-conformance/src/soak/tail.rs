//! The end of a history that is still being written.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use sync_core::{FencingToken, Moment, What};

use crate::history;

/// Follows the history of one name, and knows who holds it.
#[derive(Debug)]
pub(super) struct Tail {
    path: PathBuf,
    read: u64,
    newest: Option<Holder>,
    /// When each process was last granted the name.
    granted: BTreeMap<u32, Moment>,
}

#[derive(Debug)]
struct Holder {
    process: u32,
    token: FencingToken,
    deadline: Moment,
}

impl Tail {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, read: 0, newest: None, granted: BTreeMap::new() }
    }

    /// Reads what has been written since.
    pub(super) fn catch_up(&mut self) -> Result<(), String> {
        let text = self.more().map_err(|e| format!("the history cannot be read: {e}"))?;
        for record in history::parse(&text)? {
            let process = process_of(&record.who);
            match record.what {
                What::Granted { deadline } => {
                    self.granted.insert(process, record.at);
                    if self.newest.as_ref().is_none_or(|holder| holder.token < record.token) {
                        self.newest = Some(Holder { process, token: record.token, deadline });
                    }
                }
                What::Extended { deadline } => {
                    if let Some(holder) = self.newest_with(record.token) {
                        holder.deadline = deadline;
                    }
                }
                _ => {
                    if self.newest_with(record.token).is_some() {
                        self.newest = None;
                    }
                }
            }
        }
        Ok(())
    }

    /// The process that holds the name, as far as has been read.
    pub(super) fn holder(&self, now: Moment) -> Option<u32> {
        self.newest.as_ref().filter(|holder| now < holder.deadline).map(|holder| holder.process)
    }

    /// When this process was last granted the name.
    pub(super) fn granted(&self, process: u32) -> Option<Moment> {
        self.granted.get(&process).copied()
    }

    /// When any of them was last granted the name.
    pub(super) fn last_granted(&self) -> Option<Moment> {
        self.granted.values().max().copied()
    }

    fn newest_with(&mut self, token: FencingToken) -> Option<&mut Holder> {
        self.newest.as_mut().filter(|holder| holder.token == token)
    }

    /// What has been written since, in whole lines.
    fn more(&mut self) -> io::Result<String> {
        let file = match File::open(&self.path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
            file => file?,
        };
        let length = file.metadata()?.len().saturating_sub(self.read);
        let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        let read = file.read_at(&mut bytes, self.read)?;
        bytes.truncate(read);
        bytes.truncate(bytes.iter().rposition(|b| *b == b'\n').map_or(0, |end| end + 1));
        self.read += bytes.len() as u64;
        String::from_utf8(bytes).map_err(io::Error::other)
    }
}

/// The process that a history's `who` names; 0 where it names none.
pub(super) fn process_of(who: &str) -> u32 {
    who.split('.').next().and_then(|id| id.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn the_holder_is_known_as_lines_come_and_deadlines_pass() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("history");
        let mut tail = Tail::new(path.clone());
        tail.catch_up().unwrap();
        let at = |seconds: u64| Moment::from_nanos(seconds * 1_000_000_000);
        assert_eq!(tail.holder(at(0)), None);
        let mut file = File::create(&path).unwrap();
        let mut tell = |text: &str| file.write_all(text.as_bytes()).unwrap();

        tell("1.0 17.0 s lock a 1 granted 5.0\n1.5 17.0 s lock a 1 ext");
        tail.catch_up().unwrap();
        assert_eq!((tail.holder(at(4)), tail.holder(at(5))), (Some(17), None));
        tell("ended 9.0\n");
        tail.catch_up().unwrap();
        assert_eq!(tail.holder(at(8)), Some(17));
        tell("2.0 17.0 s lock a 1 revoked released\n");
        tail.catch_up().unwrap();
        assert_eq!(tail.holder(at(3)), None);
        // Its line comes late, after those of its successor.
        tell("3.0 19.4 s lock a 3 granted 5.0\n2.5 18.0 s lock a 2 granted 4.0\n");
        tell("4.5 18.0 s lock a 2 revoked deadline\n");
        tail.catch_up().unwrap();
        assert_eq!(tail.holder(at(4)), Some(19));
        assert_eq!((tail.granted(19), tail.granted(20)), (Some(at(3)), None));
        assert_eq!(tail.last_granted(), Some(at(3)));
    }
}
