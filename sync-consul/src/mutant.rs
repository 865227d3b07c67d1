//! Deliberate faults of the protocol, by which the shared suite proves that it would notice them.

#![cfg_attr(not(sync_mutants), allow(unreachable_pub, reason = "the suite sees them"))]

sync_core::mutants! {
    "consul:",
    KEY_MAY_EXIST = "key-may-exist", "the key is locked whether or not it is there already";
    NO_COMPARE = "no-compare", "an attempt does not ask whether it was abandoned";
    NO_MARKER = "no-marker", "an abandon leaves no marker for what is late";
    KEY_LEFT = "key-left", "an abandon does not look whether the key was taken by then";
    ENDS_UNCOMPARED = "ends-uncompared", "a release deletes the key, whoever has made it";
    NEWCOMERS_FIRST = "newcomers-first", "a newcomer keeps what it got ahead of those who stand in line";
    EVERYBODY_FIRST = "everybody-first", "whoever stands in line tries the key, whoever is before him";
    TICKETS_ALIKE = "tickets-alike", "a ticket that was made anew counts as the one that was seen";
    KEEPS_PLACE = "keeps-place", "whoever leaves the line leaves its ticket there";
    ALWAYS_QUEUES = "always-queues", "a try for an election that does not wait leaves its ticket";
    WAITS_UNREAD = "waits-unread", "what stands there when a wait begins is not looked at";
    NEVER_WOKEN = "never-woken", "nobody hears of the end of the one before in line";
    UNGUARDED = "unguarded", "nobody watches what is held";
    NONCE_UNREAD = "nonce-unread", "whatever our session has locked is taken for our claim";
    CLOSES_NOTHING = "closes-nothing", "a closed session is neither freed of its keys nor destroyed";
    DEAD_RENEWED = "dead-renewed", "a session that the agent does not know counts as renewed";
    TTL_DOUBLED = "ttl-doubled", "a session is believed to live twice its TTL, as it mostly does";
    UPDATES_BLINDLY = "updates-blindly", "a changed record is not compared with what stands there";
    TOKEN_OF_RECORD = "token-of-record", "the token is the index of the last change";
    ELECTIONS_TRY_FIRST = "elections-try-first",
        "a candidate takes the key, and gives it back if others stand in line";
    ONE_AGENT = "one-agent", "a connection that broke is made to the same agent again";
    SILENCE_TRUSTED = "silence-trusted", "an agent that does not answer is asked again and again";
}
