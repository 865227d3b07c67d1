//! Keys that are used again.
//!
//! Until it is compacted, a server walks over every key that ever stood under a prefix: if each
//! acquisition left one behind, taking a name would cost more each time. So a session takes a name
//! again by the key by which it had it last.
//!
//! Only by one whose every request was answered: nothing of it can arrive late. (A change or a
//! deletion that was repeated compares the create revision, which the key's next use moves.)

use std::collections::BTreeMap;

use sync_core::backend::Nonce;

use crate::keys::Line;

/// For how many names a session remembers a key.
const MOST: usize = 1000;

/// The last part of a key's name, and which of the keys of that name it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slot {
    /// The nonce of the first acquisition by it.
    pub(crate) nonce: Nonce,
    /// What was created by this revision was another acquisition's.
    pub(crate) after: i64,
}

/// The keys of one lease.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    /// Each deleted, by its prefix.
    free: BTreeMap<String, Slot>,
    /// Those in use.
    used: BTreeMap<Nonce, Slot>,
}

impl Slots {
    /// By which key a claim is made.
    pub(crate) fn of(&self, nonce: Nonce) -> Slot {
        self.used.get(&nonce).copied().unwrap_or(Slot { nonce, after: 0 })
    }

    /// A claim is tried for: by the same key each time, however late an attempt begins. `fresh` says
    /// that nothing of it can be under way.
    pub(crate) fn begin(&mut self, line: &Line, nonce: Nonce, fresh: bool) {
        if self.used.contains_key(&nonce) {
            return;
        }
        let free = if fresh { self.free.remove(line.prefix()) } else { None };
        self.used.insert(nonce, free.unwrap_or(Slot { nonce, after: 0 }));
    }

    /// Whether a claim is over whose key was handed on, or may be.
    pub(crate) fn is_anothers(&self, nonce: Nonce) -> bool {
        let mut others = self.used.values().chain(self.free.values());
        !self.used.contains_key(&nonce) && others.any(|slot| slot.nonce == nonce)
    }

    /// The claim is over.
    pub(crate) fn over(&mut self, nonce: Nonce) {
        self.used.remove(&nonce);
    }

    /// The claim is over, and all that was ever sent of it was answered; at `revision` its key was
    /// not there.
    pub(crate) fn free(&mut self, line: &Line, nonce: Nonce, revision: i64) {
        let slot = self.of(nonce);
        self.over(nonce);
        if self.free.len() >= MOST {
            self.free.clear();
        }
        let after = slot.after.max(revision);
        self.free.insert(line.prefix().to_owned(), Slot { after, ..slot });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Keys;
    use sync_core::{Kind, Name, Namespace};

    fn line(name: &str) -> Line {
        let keys = Keys::new(&Namespace::parse("ns").unwrap());
        keys.line(Kind::Lock, &Name::parse(name).unwrap())
    }

    #[test]
    fn a_key_is_used_again_by_one_claim_of_its_name_at_a_time() {
        let nonces = [1, 2, 3, 4].map(|byte| Nonce::from_bytes([byte; 16]));
        let (mut slots, a, b) = (Slots::default(), line("a"), line("b"));
        slots.begin(&a, nonces[0], true);
        assert_eq!(slots.of(nonces[0]), Slot { nonce: nonces[0], after: 0 });
        slots.free(&a, nonces[0], 7);

        slots.begin(&b, nonces[1], true);
        assert_eq!(slots.of(nonces[1]).nonce, nonces[1]);
        slots.begin(&a, nonces[2], true);
        slots.begin(&a, nonces[3], true);
        assert_eq!(slots.of(nonces[2]), Slot { nonce: nonces[0], after: 7 });
        assert_eq!(slots.of(nonces[3]).nonce, nonces[3]);
        assert!(slots.is_anothers(nonces[0]), "a late end of the first is not the third's");
        assert!(!slots.is_anothers(nonces[2]) && !slots.is_anothers(Nonce::from_bytes([9; 16])));
        // A repeat finds the same key.
        slots.begin(&a, nonces[2], true);
        assert_eq!(slots.of(nonces[2]).nonce, nonces[0]);

        // One that stands in line keeps its key, though another has become free.
        slots.free(&a, nonces[2], 9);
        slots.begin(&a, nonces[3], true);
        assert_eq!(slots.of(nonces[3]).nonce, nonces[3]);
        // Nor does one get it of which an attempt may be under way.
        slots.begin(&a, nonces[2], false);
        assert_eq!(slots.of(nonces[2]).nonce, nonces[2]);
        slots.over(nonces[2]);
        slots.begin(&a, nonces[2], true);
        assert_eq!(slots.of(nonces[2]), Slot { nonce: nonces[0], after: 9 });

        slots.over(nonces[1]);
        slots.over(nonces[2]);
        slots.begin(&a, nonces[1], true);
        assert_eq!(slots.of(nonces[1]).nonce, nonces[1], "what was abandoned is not used again");
    }

    #[test]
    fn not_more_than_so_many_are_remembered() {
        let mut slots = Slots::default();
        for number in 0..10 * MOST {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&number.to_be_bytes());
            slots.free(&line(&number.to_string()), Nonce::from_bytes(bytes), 1);
        }
        assert!(slots.free.len() <= MOST && slots.used.is_empty());
    }
}
