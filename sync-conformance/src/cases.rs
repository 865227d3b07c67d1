//! The cases: one file for each promise.

use crate::suite::Case;

mod cancellation;
mod cluster;
mod common;
mod exclusion;
mod failover;
mod faults;
mod fencing;
mod harness;
mod history;
mod lifecycle;
mod names;
mod order;
mod release;
mod renewal;
mod revocation;
mod run;
mod scale;
mod status;
mod unanswered;
mod waiting;
mod wants;

/// All cases, for every store.
pub(crate) fn all() -> Vec<Case> {
    let promises = [
        cancellation::cases(),
        cluster::cases(),
        exclusion::cases(),
        failover::cases(),
        fencing::cases(),
        faults::cases(),
        harness::cases(),
        history::cases(),
        lifecycle::cases(),
        names::cases(),
        order::cases(),
        release::cases(),
        renewal::cases(),
        revocation::cases(),
        run::cases(),
        scale::cases(),
        status::cases(),
        unanswered::cases(),
        waiting::cases(),
    ];
    promises.into_iter().flatten().collect()
}
