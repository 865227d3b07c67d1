//! Deliberate faults of the core, by which the shared suite proves that it would notice them.
//!
//! They exist only under `--cfg sync_mutants`; otherwise `on` is `false` and compiles away.

#![cfg_attr(not(sync_mutants), allow(unreachable_pub, reason = "the suite sees them"))]

/// The deliberate faults of a crate: a constant for each, `ALL` of them with what is wrong, and `on`,
/// which tells whether the process runs with one (`SYNC_MUTANT` in its environment, after the crate's
/// prefix). The crate makes the module public under `--cfg sync_mutants` alone.
#[doc(hidden)]
#[macro_export]
macro_rules! mutants {
    ($prefix:literal, $($constant:ident = $name:literal, $what:literal;)*) => {
        $(#[doc = $what] pub const $constant: &str = concat!($prefix, $name);)*

        /// Every variant with what is wrong in it.
        #[cfg(sync_mutants)]
        pub const ALL: &[(&str, &str)] = &[$(($name, $what)),*];

        /// Whether the process runs as this variant.
        #[cfg(sync_mutants)]
        pub fn on(mutant: &str) -> bool {
            use std::sync::OnceLock;
            static CHOSEN: OnceLock<Option<String>> = OnceLock::new();
            CHOSEN.get_or_init(|| std::env::var("SYNC_MUTANT").ok()).as_deref() == Some(mutant)
        }

        /// Never, in a build that is not made for it.
        #[cfg(not(sync_mutants))]
        pub(crate) const fn on(_: &str) -> bool {
            false
        }
    };
}

mutants! {
    "",
    DEADLINE_FROM_ANSWER = "deadline-from-answer",
        "the deadline counts from the answer instead of the send";
    FLAG_ONLY = "flag-only", "validity is a mere flag: nothing looks at the clock";
    LATE_REPLY_REVIVES = "late-reply-revives", "a late reply revives a guard that was lost";
    NEVER_REVOKED = "never-revoked", "the revocation never fires";
    PLAIN_RELEASE = "plain-release", "a plain release after an attempt that was never answered";
    CANCEL_LEAVES_KEY = "cancel-leaves-key", "a cancelled acquire leaves what it won";
    RELEASE_BEFORE_END = "release-before-end", "`run` releases before the body has ended";
    LOSS_IGNORED = "loss-ignored", "a loss told by the store is ignored";
    NO_MARGIN = "no-margin", "nothing is taken off a TTL: the holder counts as long as the store";
    EARLY_END = "early-end",
        "a claim is ended in the store at its holder's deadline, not after what was taken off";
    DEAD_SESSION = "dead-session", "a grant counts though its session has ended meanwhile";
    RENEWAL_LOSS_IGNORED = "renewal-loss-ignored",
        "that a renewal finds a claim gone is ignored";
    UNNAMED_EXTENDED = "unnamed-extended",
        "a renewal extends what it did not name, where claims expire singly";
    FRESH_NONCE = "fresh-nonce",
        "after an attempt that was never answered comes one under another nonce";
    KEEPS_PLACE = "keeps-place", "whoever stops waiting keeps its place in line";
    ENDS_ONCE = "ends-once", "a release that was not answered is not repeated";
    ALIKE_RECORDS = "alike-records",
        "a record that is changed back is the same as it was, so that a late change can undo it";
    HINTS_BELIEVED = "hints-believed", "every hint is followed at once, however often in vain";
    NEWEST_FIRST = "newest-first", "inside a process the newest is served first";
    TOLD_AFTER = "told-after", "the observer is told afterwards";
    VALID_WHILE_RELEASED = "valid-while-released", "a guard is valid until its release is answered";
    BODY_RUNS_ON = "body-runs-on", "`run` does not stop its body on a loss";
    BODY_BELIEVED = "body-believed", "`run` takes for done what outlasted its claim";
    CLOSED_NOT_TOLD = "closed-not-told", "a shutdown tells nobody who waits";
    UNFENCED = "unfenced", "a fence admits every token";
}
