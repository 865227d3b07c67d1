//! What can go wrong, for the person who reads it at night.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use crate::revocation::{Cause, Revocation};

type Source = Arc<dyn StdError + Send + Sync>;

/// What a caller can do about an [`Error`].
///
/// ```
/// use sync_core::ErrorKind;
///
/// assert_eq!(ErrorKind::Timeout.to_string(), "timed out");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The wait was used up while somebody else held the name. Try later.
    Timeout,
    /// What was held is held no longer: stop what was done under it.
    Lost,
    /// The store's answer never came; what was asked may have been done, or may be done yet.
    /// The crates go on cleaning up in the background.
    Unknown,
    /// The store cannot be reached, or cannot serve now.
    Unreachable,
    /// The store refuses: credentials or permissions are missing.
    Denied,
    /// What was given cannot be used. Nothing was sent.
    Invalid,
    /// Somebody else's data stands where ours belongs. It was left alone.
    Foreign,
    /// The coordinator was shut down.
    Closed,
    /// The store cannot do this, or this build cannot.
    Unsupported,
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ErrorKind::Timeout => "timed out",
            ErrorKind::Lost => "lost",
            ErrorKind::Unknown => "not known",
            ErrorKind::Unreachable => "unreachable",
            ErrorKind::Denied => "denied",
            ErrorKind::Invalid => "invalid",
            ErrorKind::Foreign => "foreign data",
            ErrorKind::Closed => "closed",
            ErrorKind::Unsupported => "unsupported",
        })
    }
}

/// What was being done, on which name and endpoint, why it failed, and what to do about it.
///
/// Its text never holds a credential. [`kind`](Error::kind) says what a program can do.
///
/// ```
/// # async fn example(sync: sync_core::Coordinator) {
/// use sync_core::ErrorKind;
///
/// let error = sync.lock("").acquire().await.unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::Invalid);
/// # }
/// ```
pub struct Error(Box<Details>);

struct Details {
    kind: ErrorKind,
    what: String,
    reason: String,
    advice: Option<String>,
    revocation: Option<Revocation>,
    source: Option<Source>,
}

impl Error {
    /// An error of `kind` while doing `what` ("acquire lock \"a\" on redis at h:1"), because of
    /// `reason`.
    #[must_use]
    pub fn new(kind: ErrorKind, what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self(Box::new(Details {
            kind,
            what: what.into(),
            reason: reason.into(),
            advice: None,
            revocation: None,
            source: None,
        }))
    }

    /// What a store answered, or failed to, while doing `what`.
    #[must_use]
    pub fn from_store(what: impl Into<String>, error: StoreError) -> Self {
        let StoreError { kind, at, reason, advice, source, .. } = error;
        let what = what.into();
        let is_told =
            |at: &String| what.strip_suffix(&**at).is_some_and(|what| what.ends_with(' '));
        let reason = match at.filter(|at| !is_told(at)) {
            Some(at) => format!("{at}: {reason}"),
            None => reason,
        };
        Self(Box::new(Details { kind, what, reason, advice, revocation: None, source }))
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn advise(mut self, advice: impl Into<String>) -> Self {
        self.0.advice = Some(advice.into());
        self
    }

    /// The error of somebody who wanted to use a claim that was revoked; `unrenewed` is why it was
    /// not renewed, where that is known.
    pub(crate) fn lost(
        what: impl Into<String>,
        revocation: Revocation,
        unrenewed: Option<&StoreError>,
    ) -> Self {
        let kind = match revocation.cause {
            Cause::Closed => ErrorKind::Closed,
            _ => ErrorKind::Lost,
        };
        let reason = match (revocation.cause, unrenewed) {
            (Cause::Deadline, Some(why)) => format!("{revocation}: the last one failed: {why}"),
            _ => revocation.to_string(),
        };
        let mut error = Self::new(kind, what, reason);
        error.0.revocation = Some(revocation);
        error
    }

    /// What a program can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Why and when the claim was lost, for errors of kind [`Lost`](ErrorKind::Lost) that know, and
    /// of kind [`Closed`](ErrorKind::Closed) where a shutdown has ended it.
    #[must_use]
    pub fn revocation(&self) -> Option<Revocation> {
        self.0.revocation
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Details { what, reason, advice, .. } = &*self.0;
        write!(f, "could not {what}: {reason}")?;
        match advice {
            Some(advice) => write!(f, " ({advice})"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("text", &self.to_string())
            .finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

/// What a [`Backend`](crate::Backend) reports when a call did not do what was asked.
///
/// The one thing that safety hangs on is whether the request is [`settled`](StoreError::settled).
/// To call a refusal unknown is always safe; to call settled what may yet be applied never is.
///
/// ```
/// use sync_core::{ErrorKind, StoreError};
///
/// let error = StoreError::refused(ErrorKind::Denied, "NOPERM this user may not run EVALSHA")
///     .advise("grant the user the commands that the documentation lists");
/// assert!(error.settled());
/// assert!(!StoreError::unknown("no answer within 2s").settled());
/// ```
#[derive(Debug, Clone)]
pub struct StoreError {
    kind: ErrorKind,
    settled: bool,
    /// At which of several endpoints.
    at: Option<String>,
    reason: String,
    advice: Option<String>,
    source: Option<Source>,
}

impl StoreError {
    /// The store answered: the request was not applied and never will be.
    #[must_use]
    pub fn refused(kind: ErrorKind, reason: impl Into<String>) -> Self {
        Self { kind, settled: true, at: None, reason: reason.into(), advice: None, source: None }
    }

    /// The request never left this process.
    #[must_use]
    pub fn unsent(reason: impl Into<String>) -> Self {
        Self::refused(ErrorKind::Unreachable, reason)
    }

    /// No answer, or none that counts: the request may have been applied, or may be applied yet.
    #[must_use]
    pub fn unknown(reason: impl Into<String>) -> Self {
        Self { settled: false, ..Self::refused(ErrorKind::Unknown, reason) }
    }

    /// The same, but some of it may have been applied, or may be applied yet: an attempt of
    /// several requests, of which a later one was refused.
    #[must_use]
    pub fn unsettled(mut self) -> Self {
        self.settled = false;
        self
    }

    /// Says at which of several endpoints. Left out where the whole error names no other.
    #[must_use]
    pub fn at(mut self, endpoint: &str) -> Self {
        self.at = Some(endpoint.to_owned());
        self
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }

    /// Adds the client library's own error. Its text must not hold a credential.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into().into());
        self
    }

    /// What can be done about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether it is certain that the request has not been and will not be applied.
    #[must_use]
    pub fn settled(&self) -> bool {
        self.settled
    }

    /// Whether the same request may succeed later without anybody changing anything.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self.kind, ErrorKind::Unknown | ErrorKind::Unreachable)
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(at) = &self.at {
            write!(f, "{at}: ")?;
        }
        f.write_str(&self.reason)?;
        match &self.advice {
            Some(advice) => write!(f, " ({advice})"),
            None => Ok(()),
        }
    }
}

impl StdError for StoreError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_told_where_it_is_not_the_only_one() {
        let refused = || StoreError::unsent("connection refused").at("h:1");
        assert_eq!(refused().to_string(), "h:1: connection refused");
        let text = |what: &str| Error::from_store(what, refused()).to_string();
        assert_eq!(
            text("connect to s at h:1"),
            "could not connect to s at h:1: connection refused"
        );
        for several in ["connect to s at h:0,h:1", "connect to s at other-h:1"] {
            let text = text(several);
            assert!(text.ends_with(": h:1: connection refused"), "{text}");
        }
    }
}
