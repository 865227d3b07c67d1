//! Fencing tokens, and what a resource does with them.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::mutant;

/// The number of one acquisition: greater than that of every earlier acquisition of the same name.
///
/// Send it along with everything that is done under the lock, and let the resource refuse what
/// comes with a smaller one (see [`Fence`]). That protects in any asynchrony, also where a
/// process was paused past its deadline in the middle of a write.
///
/// ```
/// use sync_core::FencingToken;
///
/// assert!(FencingToken::new(2) > FencingToken::new(1));
/// assert_eq!(FencingToken::new(7).to_string(), "7");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FencingToken(u64);

impl FencingToken {
    /// The token of this number.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// Its number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// What stands in front of a resource and refuses tokens older than the newest it has seen.
///
/// This one lives in memory, for a resource inside one process. In a database it is a column, and
/// a condition on each write:
///
/// ```sql
/// UPDATE report SET body = $1, token = $2 WHERE id = $3 AND token <= $2
/// ```
///
/// where no row changed means that somebody newer has written.
///
/// ```
/// use sync_core::{Fence, FencingToken};
///
/// let fence = Fence::new();
/// assert!(fence.admit(FencingToken::new(4)).is_ok());
/// assert!(fence.admit(FencingToken::new(4)).is_ok());
/// let refused = fence.admit(FencingToken::new(3)).unwrap_err();
/// assert_eq!(refused.to_string(), "token 3 is older than token 4, which was admitted before");
/// ```
#[derive(Debug, Default)]
pub struct Fence(Mutex<Option<FencingToken>>);

impl Fence {
    /// A fence that has admitted nobody yet.
    #[must_use]
    pub const fn new() -> Self {
        Self(Mutex::new(None))
    }

    /// Admits `token` unless a newer one was admitted before.
    ///
    /// # Errors
    /// [`StaleToken`] when a newer one was: do not touch the resource.
    pub fn admit(&self, token: FencingToken) -> Result<(), StaleToken> {
        self.guard(token, || ())
    }

    /// Runs `write` if `token` is admitted, with no other admission between the two.
    ///
    /// # Errors
    /// [`StaleToken`] when a newer token was admitted before; `write` has not run then.
    ///
    /// ```
    /// use sync_core::{Fence, FencingToken};
    ///
    /// let (fence, mut balance) = (Fence::new(), 10);
    /// fence.guard(FencingToken::new(1), || balance -= 3)?;
    /// assert_eq!(balance, 7);
    /// # Ok::<(), sync_core::StaleToken>(())
    /// ```
    pub fn guard<T>(
        &self,
        token: FencingToken,
        write: impl FnOnce() -> T,
    ) -> Result<T, StaleToken> {
        let mut newest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match *newest {
            Some(newest) if token < newest && !mutant::on(mutant::UNFENCED) => {
                Err(StaleToken { token, newest })
            }
            _ => {
                *newest = Some(token);
                Ok(write())
            }
        }
    }
}

/// A token was refused because a newer one had been admitted.
///
/// ```
/// use sync_core::{Fence, FencingToken};
///
/// let fence = Fence::new();
/// fence.admit(FencingToken::new(2)).unwrap();
/// assert_eq!(fence.admit(FencingToken::new(1)).unwrap_err().newest, FencingToken::new(2));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct StaleToken {
    /// The token that was refused.
    pub token: FencingToken,
    /// The newest that was admitted.
    pub newest: FencingToken,
}

impl fmt::Display for StaleToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let StaleToken { token, newest } = self;
        write!(f, "token {token} is older than token {newest}, which was admitted before")
    }
}

impl std::error::Error for StaleToken {}
