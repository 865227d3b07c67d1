//! The cases: one file for each promise.

use crate::suite::Case;

mod exclusion;
mod harness;

/// All cases, for every store.
pub(crate) fn all() -> Vec<Case> {
    [exclusion::cases(), harness::cases()].into_iter().flatten().collect()
}
