//! A resource outside every store that several processes write to under fencing tokens.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use sync_core::{Fence, FencingToken, StaleToken};

/// The length of the file: four numbers of 20 digits, each with an end.
const LENGTH: usize = 84;

/// A number in a file, with the newest token that wrote it and a count of what was refused.
///
/// Every process opens it for itself. It refuses tokens older than the newest that it has seen,
/// so a holder that was stopped past its deadline in the middle of its work does no harm. Reading
/// takes a token too: what a holder has read, no earlier one changes under its hands.
///
/// ```
/// use sync_conformance::register::Register;
/// use sync_core::FencingToken;
///
/// let dir = tempfile::tempdir()?;
/// let register = Register::open(&dir.path().join("register"))?;
/// let (older, newer) = (FencingToken::new(1), FencingToken::new(2));
/// assert_eq!(register.read(older)?, Ok(0));
/// assert_eq!(register.read(newer)?, Ok(0));
/// assert!(register.write(older, 10)?.is_err());
/// assert_eq!(register.write(newer, 11)?, Ok(()));
/// assert_eq!((register.contents()?.value, register.contents()?.refused), (11, 1));
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct Register {
    file: File,
}

/// What a [`Register`] holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Contents {
    /// The newest token that has read or written.
    pub token: u64,
    /// What was written last.
    pub value: u64,
    /// How many writes were accepted.
    pub accepted: u64,
    /// How many reads and writes were refused.
    pub refused: u64,
}

impl Register {
    /// The register in the file at `path`, made if it is not there.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file =
            File::options().create(true).truncate(false).read(true).write(true).open(path)?;
        Ok(Self { file })
    }

    /// The value, for the holder with this token: from now on no older one writes.
    ///
    /// # Errors
    /// Those of the file system; inside, [`StaleToken`] when a newer token has read or written.
    pub fn read(&self, token: FencingToken) -> io::Result<Result<u64, StaleToken>> {
        self.locked(|contents| contents.admit(token).map(|()| contents.value))
    }

    /// Writes `value` under `token`.
    ///
    /// # Errors
    /// Those of the file system; inside, [`StaleToken`] when a newer token has read or written.
    pub fn write(&self, token: FencingToken, value: u64) -> io::Result<Result<(), StaleToken>> {
        self.locked(|contents| {
            contents.admit(token)?;
            contents.value = value;
            contents.accepted += 1;
            Ok(())
        })
    }

    /// All that stands there, for those who only look.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn contents(&self) -> io::Result<Contents> {
        self.locked(|contents| *contents)
    }

    /// Reads, changes and writes with every other process kept out.
    fn locked<T>(&self, change: impl FnOnce(&mut Contents) -> T) -> io::Result<T> {
        // Each open file has its own lock, and a process that is killed gives it up.
        flock(&self.file, FlockOperation::LockExclusive)?;
        let result = self.load().and_then(|before| {
            let mut after = before;
            let result = change(&mut after);
            if after != before {
                let Contents { token, value, accepted, refused } = after;
                let text = format!("{token:020} {value:020} {accepted:020} {refused:020}\n");
                self.file.write_all_at(text.as_bytes(), 0)?;
            }
            Ok(result)
        });
        flock(&self.file, FlockOperation::Unlock)?;
        result
    }

    fn load(&self) -> io::Result<Contents> {
        let mut text = [0; LENGTH];
        let read = self.file.read_at(&mut text, 0)?;
        if read == 0 {
            return Ok(Contents::default());
        }
        let bad = || io::Error::new(io::ErrorKind::InvalidData, "this is no register");
        let text = std::str::from_utf8(&text[..read]).map_err(|_| bad())?;
        let numbers: Vec<u64> =
            text.split_whitespace().map(str::parse).collect::<Result<_, _>>().map_err(|_| bad())?;
        let [token, value, accepted, refused] = numbers[..] else { return Err(bad()) };
        Ok(Contents { token, value, accepted, refused })
    }
}

impl Contents {
    fn admit(&mut self, token: FencingToken) -> Result<(), StaleToken> {
        let fence = Fence::new();
        let admitted = fence.admit(FencingToken::new(self.token)).and_then(|()| fence.admit(token));
        match admitted {
            Ok(()) => self.token = token.get(),
            Err(_) => self.refused += 1,
        }
        admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_accepted_write_is_lost_among_many() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("register");
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let register = Register::open(&path).unwrap();
                std::thread::spawn(move || {
                    for _ in 0..100 {
                        register
                            .locked(|c| (c.value, c.accepted) = (c.value + 1, c.accepted + 1))
                            .unwrap();
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        let contents = Register::open(&path).unwrap().contents().unwrap();
        assert_eq!((contents.value, contents.accepted), (800, 800));
    }

    #[test]
    fn the_same_token_may_write_again_and_an_older_one_may_not() {
        let dir = tempfile::tempdir().unwrap();
        let register = Register::open(&dir.path().join("register")).unwrap();
        assert_eq!(register.contents().unwrap(), Contents::default());
        let newest = FencingToken::new(u64::MAX);
        register.write(newest, 1).unwrap().unwrap();
        register.write(newest, u64::MAX).unwrap().unwrap();
        let stale = register.write(FencingToken::new(7), 3).unwrap().unwrap_err();
        assert_eq!((stale.token.get(), stale.newest), (7, newest));
        assert!(register.read(FencingToken::new(8)).unwrap().is_err());
        let Contents { value, accepted, refused, .. } = register.contents().unwrap();
        assert_eq!((value, accepted, refused), (u64::MAX, 2, 2));
    }

    #[test]
    fn who_has_read_is_not_overtaken_by_an_older_write() {
        let dir = tempfile::tempdir().unwrap();
        let register = Register::open(&dir.path().join("register")).unwrap();
        let (older, newer) = (FencingToken::new(1), FencingToken::new(2));
        let seen = register.read(older).unwrap().unwrap();
        assert_eq!(register.read(newer).unwrap(), Ok(seen));
        assert!(register.write(older, seen + 1).unwrap().is_err());
        assert_eq!(register.write(newer, seen + 1).unwrap(), Ok(()));
        let contents = register.contents().unwrap();
        assert_eq!(contents.value, contents.accepted);
    }
}
