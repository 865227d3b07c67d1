//! The line of those who wait for a name: tickets, in the order in which they were made.

use crate::keys::is_ticket_of;
use crate::pair::Pair;

/// The ticket before the own one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Before {
    pub(crate) key: String,
    /// When it was made: a session takes a ticket of the same name again.
    pub(crate) created: u64,
    /// When it was changed last: from there on its going is waited for.
    pub(crate) modified: u64,
}

/// What was seen of a line, of which only what matters to one that stands in it is kept.
#[derive(Debug, Default)]
pub(crate) struct Line {
    /// What the tickets' keys begin with.
    prefix: String,
    /// The own ticket's key.
    own: String,
    /// When that was made, where it is known.
    created: Option<u64>,
    /// How often it was seen.
    times_seen: u32,
    /// The latest ticket before it.
    before: Option<Before>,
    others: bool,
    /// Keys among the tickets that are none, of which one is named.
    strange: Option<String>,
    cut: bool,
}

impl Line {
    /// For whoever stands in it with the ticket `own`, made at `created` if that is known already.
    pub(crate) fn new(prefix: String, own: String, created: Option<u64>) -> Self {
        Self { prefix, own, created, ..Self::default() }
    }

    /// Takes a key that was read. The own ticket must come first where it was not known when it was
    /// made.
    pub(crate) fn add(&mut self, pair: Pair) {
        let Some(segment) = pair.key.strip_prefix(&self.prefix) else { return };
        // Somebody else's data, or a ticket that its session no longer holds: it is in nobody's way.
        if !is_ticket_of(segment, &pair.session) {
            self.strange = Some(pair.key);
            return;
        }
        if pair.key == self.own {
            self.created = Some(pair.create_index);
            self.times_seen += 1;
            return;
        }
        self.others = true;
        let earlier = self.created.is_none_or(|own| pair.create_index < own);
        let later = self.before.as_ref().is_none_or(|before| before.created < pair.create_index);
        if earlier && later {
            let Pair { key, create_index: created, modify_index: modified, .. } = pair;
            self.before = Some(Before { key, created, modified });
        }
    }

    /// The rest is too long to be read.
    pub(crate) fn cut(&mut self) {
        self.cut = true;
    }

    /// Whether nobody else stands in it.
    pub(crate) fn is_empty(&self) -> bool {
        !self.others && !self.cut
    }

    /// Whether the own ticket stands in it, as far as it was read.
    pub(crate) fn stands(&self) -> bool {
        self.times_seen > 0 || self.cut
    }

    /// How often an answer has shown the own ticket.
    pub(crate) fn times_seen(&self) -> u32 {
        self.times_seen
    }

    /// When the own ticket was made.
    pub(crate) fn created(&self) -> Option<u64> {
        self.created
    }

    /// The ticket before the own one; `None` for the first.
    pub(crate) fn before(&self) -> Option<&Before> {
        self.before.as_ref()
    }

    /// Whether the ticket before the own one is known, or that there is none.
    pub(crate) fn is_known(&self) -> bool {
        !self.cut
    }

    /// A key in the line that is no ticket, if there is one.
    pub(crate) fn strange(&self) -> Option<&str> {
        self.strange.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PREFIX: &str = "ns/line/lock/a/";

    fn session(number: u64) -> String {
        format!("00000000-0000-0000-0000-{number:012}")
    }

    fn ticket(number: u64, created: u64) -> Pair {
        let (session, nonce) = (session(number), "ab".repeat(16));
        let key = format!("{PREFIX}{session}-{nonce}");
        Pair { key, session, create_index: created, modify_index: created, ..Pair::default() }
    }

    fn line(created: Option<u64>) -> Line {
        Line::new(PREFIX.to_owned(), ticket(5, 0).key, created)
    }

    #[test]
    fn the_order_is_that_of_their_making_and_not_of_their_keys() {
        let mut seen = line(Some(20));
        for (number, created) in [(1, 30), (2, 10), (5, 20), (7, 15), (8, 40)] {
            seen.add(ticket(number, created));
        }
        assert!(seen.stands() && seen.is_known() && !seen.is_empty());
        let before = seen.before().unwrap();
        assert_eq!((&before.key, before.modified), (&ticket(7, 15).key, 15));

        let mut seen = line(None);
        seen.add(ticket(5, 20));
        assert!(seen.is_empty() && seen.before().is_none());
        seen.add(ticket(9, 21));
        assert!(!seen.is_empty() && seen.before().is_none());
        assert_eq!(seen.created(), Some(20));
    }

    #[test]
    fn what_is_no_ticket_is_in_nobodys_way() {
        let mut seen = line(Some(20));
        let released = Pair { session: String::new(), ..ticket(1, 1) };
        let stolen = Pair { session: session(2), ..ticket(1, 1) };
        let garbage = Pair { key: format!("{PREFIX}note"), ..Pair::default() };
        let elsewhere = Pair { key: "ns/lock/a/.lock".to_owned(), ..ticket(1, 1) };
        for pair in [released, stolen, elsewhere] {
            seen.add(pair);
        }
        seen.add(garbage);
        assert!(seen.is_empty() && !seen.stands() && seen.before().is_none());
        assert_eq!(seen.strange(), Some("ns/line/lock/a/note"));
    }

    #[test]
    fn of_a_line_too_long_to_be_read_nothing_is_concluded() {
        let mut seen = line(Some(20));
        seen.cut();
        assert!(seen.stands() && !seen.is_known() && !seen.is_empty());
    }
}
