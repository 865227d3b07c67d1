//! Deliberate faults of the core, by which the shared suite proves that it would notice them.
//!
//! They exist only under `--cfg sync_mutants`; otherwise [`on`] is `false` and compiles away.

#![cfg_attr(not(sync_mutants), allow(unreachable_pub, reason = "the suite sees them"))]

macro_rules! mutants {
    ($($constant:ident = $name:literal, $what:literal;)*) => {
        $(#[doc = $what] pub const $constant: &str = $name;)*

        /// Every variant with what is wrong in it.
        #[cfg(sync_mutants)]
        pub const ALL: &[(&str, &str)] = &[$(($name, $what)),*];
    };
}

mutants! {
    DEADLINE_FROM_ANSWER = "deadline-from-answer",
        "the deadline counts from the answer instead of the send";
    FLAG_ONLY = "flag-only", "validity is a mere flag: nothing looks at the clock";
    LATE_REPLY_REVIVES = "late-reply-revives", "a late reply revives a guard that was lost";
    NEVER_REVOKED = "never-revoked", "the revocation never fires";
    PLAIN_RELEASE = "plain-release", "a plain release after an attempt that was never answered";
    CANCEL_LEAVES_KEY = "cancel-leaves-key", "a cancelled acquire leaves what it won";
    RELEASE_BEFORE_END = "release-before-end", "`run` releases before the body has ended";
    LOSS_IGNORED = "loss-ignored", "a loss told by the store is ignored";
    NO_RENEWAL = "no-renewal", "nothing renews";
}

/// Whether the process runs as this variant (`SYNC_MUTANT` in its environment).
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
