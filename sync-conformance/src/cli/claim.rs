//! A lock or a leadership: what is the same about wanting and having either.

use std::ops::Deref;
use std::time::Duration;

use sync_core::{Coordinator, Elected, Error, Hold, Kind, Leader, Lock, LockGuard};

use super::arguments::Plan;

/// A name that is wanted.
pub(super) enum Wanted {
    Lock(Lock),
    Leader(Leader),
}

impl Wanted {
    pub(super) fn new(sync: &Coordinator, plan: &Plan) -> Self {
        match plan.kind {
            Kind::Lock => Self::Lock(sync.lock(&plan.name)),
            Kind::Leader => Self::Leader(sync.leader(&plan.name)),
        }
    }

    pub(super) fn waiting(self, wait: Option<Duration>) -> Self {
        match (self, wait) {
            (Self::Lock(lock), Some(wait)) => Self::Lock(lock.wait(wait)),
            (Self::Leader(leader), Some(wait)) => Self::Leader(leader.wait(wait)),
            (wanted, None) => wanted,
        }
    }

    pub(super) async fn try_claim(&self) -> Result<Option<Claim>, Error> {
        Ok(match self {
            Self::Lock(lock) => lock.try_acquire().await?.map(Claim::Lock),
            Self::Leader(leader) => leader.try_elect().await?.map(Claim::Leader),
        })
    }

    pub(super) async fn claim(&self) -> Result<Claim, Error> {
        Ok(match self {
            Self::Lock(lock) => Claim::Lock(lock.acquire().await?),
            Self::Leader(leader) => Claim::Leader(leader.elect().await?),
        })
    }
}

/// A name that is held.
pub(super) enum Claim {
    Lock(LockGuard),
    Leader(Elected),
}

impl Claim {
    pub(super) async fn release(self) -> Result<(), Error> {
        match self {
            Self::Lock(guard) => guard.release().await,
            Self::Leader(elected) => elected.resign().await,
        }
    }

    pub(super) fn hold(&self) -> Hold {
        match self {
            Self::Lock(guard) => guard.hold(),
            Self::Leader(elected) => elected.hold(),
        }
    }
}

impl Deref for Claim {
    type Target = Hold;

    fn deref(&self) -> &Hold {
        match self {
            Self::Lock(guard) => guard,
            Self::Leader(elected) => elected,
        }
    }
}
