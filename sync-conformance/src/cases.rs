//! The cases: one file for each promise.

use crate::suite::Case;

mod common;
mod exclusion;
mod failover;
mod harness;
mod revocation;

/// All cases, for every store.
pub(crate) fn all() -> Vec<Case> {
    [exclusion::cases(), failover::cases(), harness::cases(), revocation::cases()]
        .into_iter()
        .flatten()
        .collect()
}
