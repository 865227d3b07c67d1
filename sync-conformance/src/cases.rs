//! The cases: one file for each promise.

use crate::suite::Case;

mod common;
mod exclusion;
mod failover;
mod fencing;
mod harness;
mod release;
mod revocation;

/// All cases, for every store.
pub(crate) fn all() -> Vec<Case> {
    [
        exclusion::cases(),
        failover::cases(),
        fencing::cases(),
        harness::cases(),
        release::cases(),
        revocation::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
