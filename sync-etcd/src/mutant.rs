//! Deliberate faults of the protocol, by which the shared suite proves that it would notice them.

#![cfg_attr(not(sync_mutants), allow(unreachable_pub, reason = "the suite sees them"))]

sync_core::mutants! {
    "etcd:",
    EVERYBODY_FIRST = "everybody-first", "whoever stands in line holds, whoever stands before him";
    STRANGERS_HOLD = "strangers-hold", "any key under the name's prefix is taken for a claim";
    ALWAYS_QUEUES = "always-queues", "a try that does not wait leaves its place in line";
    NO_COMPARE = "no-compare", "an attempt does not ask whether it was abandoned";
    NO_MARKER = "no-marker", "an abandon deletes the key, and leaves no marker for what is late";
    SHARED_KEY = "shared-key", "all claims of a session for a name are one key, without a nonce";
    GRANTS_UNREAD = "grants-unread", "after a wait a grant counts though the own key has gone";
    WATCHES_UNREAD = "watches-unread", "a watch is opened, and what was before is not read again";
    UNGUARDED = "unguarded", "nobody watches what is held";
    ENDS_UNCOMPARED = "ends-uncompared", "a release deletes the key whoever has made it";
    CLOSES_NOTHING = "closes-nothing", "a closed session's lease is not revoked";
    UPDATE_DETACHES = "update-detaches", "a changed record is put without the lease";
    UPDATES_BLINDLY = "updates-blindly", "a changed record is not compared with what stands there";
    TOKEN_OF_RECORD = "token-of-record", "the token is the revision of the last change";
    TTL_DOUBLED = "ttl-doubled", "a lease is believed to live twice as long as it was granted";
    DEAD_RENEWED = "dead-renewed", "an answer with a TTL of 0 counts as a renewal";
    TOKEN_KEPT = "token-kept", "nobody logs in again when the server does not know the token";
    ONE_MEMBER = "one-member", "a connection that broke is made to the same member again";
    SILENCE_TRUSTED = "silence-trusted", "a member that does not answer is asked again and again";
}

/// The TTL that an answer tells, of a lease that was granted for so long.
pub(crate) fn ttl(told: u64, granted: u64) -> u64 {
    match told {
        0 if on(DEAD_RENEWED) => granted,
        told if on(TTL_DOUBLED) => told * 2,
        told => told,
    }
}

/// Where to connect to: for [`ONE_MEMBER`] to where the process connected first.
pub(crate) fn member(index: usize) -> usize {
    if on(ONE_MEMBER) { FIRST_MEMBER.get().copied().unwrap_or(index) } else { index }
}

/// That there is a connection to this member.
pub(crate) fn connected(index: usize) {
    if on(ONE_MEMBER) {
        let _ = FIRST_MEMBER.set(index);
    }
}

static FIRST_MEMBER: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
