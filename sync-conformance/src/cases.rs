//! The cases: one file for each promise.

use crate::suite::Case;

mod common;
mod cancellation;
mod exclusion;
mod failover;
mod fencing;
mod harness;
mod lifecycle;
mod release;
mod revocation;
mod run;
mod status;

/// All cases, for every store.
pub(crate) fn all() -> Vec<Case> {
    [
        exclusion::cases(),
        failover::cases(),
        fencing::cases(),
        harness::cases(),
        lifecycle::cases(),
        release::cases(),
        revocation::cases(),
        run::cases(),
        status::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
mod history;
mod names;
mod order;
mod scale;
mod unanswered;
mod waiting;
mod wants;

/// All cases, for every store.
pub(crate) fn all() -> Vec<Case> {
    let promises = [
        cancellation::cases(),
        exclusion::cases(),
        harness::cases(),
        history::cases(),
        names::cases(),
        order::cases(),
        scale::cases(),
        unanswered::cases(),
        waiting::cases(),
    ];
    promises.into_iter().flatten().collect()
}
