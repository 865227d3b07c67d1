//! Keys that are used again: for backends whose claims have keys of their own.
//!
//! A store may go on walking over every key that ever stood under a prefix: etcd until it is
//! compacted, Consul until its tombstones are reaped. If each acquisition left a key behind, taking a
//! name would cost more each time. So a session takes a name again by the key by which it had it last.
//!
//! Only by one whose every request was answered: nothing of it can arrive late.

use std::collections::BTreeMap;

use crate::backend::Nonce;

/// For how many names a session remembers a key.
const MOST: usize = 1000;

/// Which key a claim has.
///
/// ```
/// use sync_core::backend::Nonce;
/// use sync_core::reuse::{Slot, Slots};
///
/// let slot: Slot = Slots::new().of(Nonce::from_bytes([7; 16]));
/// assert_eq!(format!("line/report/{}", slot.nonce.to_hex()), format!("line/report/{}", "07".repeat(16)));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Slot {
    /// The nonce of the first acquisition by the key, which its name has.
    pub nonce: Nonce,
    /// What the store made at this revision or before was another acquisition's.
    pub after: u64,
}

impl Slot {
    fn own(nonce: Nonce) -> Self {
        Self { nonce, after: 0 }
    }
}

/// The keys of one session.
///
/// ```
/// use sync_core::backend::Nonce;
/// use sync_core::reuse::Slots;
///
/// let [first, second] = [1, 2].map(|byte| Nonce::from_bytes([byte; 16]));
/// let mut slots = Slots::new();
/// slots.begin("line/report/", first, true);
/// slots.free("line/report/", first, 7);
/// slots.begin("line/report/", second, true);
/// assert_eq!(slots.of(second).nonce, first, "by the same key again");
/// assert!(slots.is_anothers(first), "which a late end of the first must not touch");
/// ```
#[derive(Debug, Default)]
pub struct Slots {
    /// Each deleted, by its prefix.
    free: BTreeMap<String, Slot>,
    /// Those in use.
    used: BTreeMap<Nonce, Slot>,
}

impl Slots {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// By which key a claim is made.
    #[must_use]
    pub fn of(&self, nonce: Nonce) -> Slot {
        self.used.get(&nonce).copied().unwrap_or(Slot::own(nonce))
    }

    /// A claim under this prefix is tried for: by the same key each time, however late an attempt
    /// begins. `fresh` says that nothing of it can be under way.
    pub fn begin(&mut self, prefix: &str, nonce: Nonce, fresh: bool) {
        if self.used.contains_key(&nonce) {
            return;
        }
        let free = if fresh { self.free.remove(prefix) } else { None };
        self.used.insert(nonce, free.unwrap_or(Slot::own(nonce)));
    }

    /// Whether a claim is over whose key was handed on, or may be.
    #[must_use]
    pub fn is_anothers(&self, nonce: Nonce) -> bool {
        let mut others = self.used.values().chain(self.free.values());
        !self.used.contains_key(&nonce) && others.any(|slot| slot.nonce == nonce)
    }

    /// The claim is over.
    pub fn over(&mut self, nonce: Nonce) {
        self.used.remove(&nonce);
    }

    /// The claim is over, and all that was ever sent of it was answered; at `revision` its key was
    /// not there.
    pub fn free(&mut self, prefix: &str, nonce: Nonce, revision: u64) {
        let slot = self.of(nonce);
        self.over(nonce);
        if self.free.len() >= MOST {
            self.free.clear();
        }
        let after = slot.after.max(revision);
        self.free.insert(prefix.to_owned(), Slot { after, ..slot });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_used_again_by_one_claim_of_its_name_at_a_time() {
        let nonces = [1, 2, 3, 4].map(|byte| Nonce::from_bytes([byte; 16]));
        let (mut slots, a, b) = (Slots::new(), "ns/a/", "ns/b/");
        slots.begin(a, nonces[0], true);
        assert_eq!(slots.of(nonces[0]), Slot::own(nonces[0]));
        slots.free(a, nonces[0], 7);

        slots.begin(b, nonces[1], true);
        assert_eq!(slots.of(nonces[1]).nonce, nonces[1]);
        slots.begin(a, nonces[2], true);
        slots.begin(a, nonces[3], true);
        assert_eq!(slots.of(nonces[2]), Slot { nonce: nonces[0], after: 7 });
        assert_eq!(slots.of(nonces[3]).nonce, nonces[3]);
        assert!(slots.is_anothers(nonces[0]), "a late end of the first is not the third's");
        assert!(!slots.is_anothers(nonces[2]) && !slots.is_anothers(Nonce::from_bytes([9; 16])));
        // A repeat finds the same key.
        slots.begin(a, nonces[2], true);
        assert_eq!(slots.of(nonces[2]).nonce, nonces[0]);

        // One that stands in line keeps its key, though another has become free.
        slots.free(a, nonces[2], 9);
        slots.begin(a, nonces[3], true);
        assert_eq!(slots.of(nonces[3]).nonce, nonces[3]);
        // Nor does one get it of which an attempt may be under way.
        slots.begin(a, nonces[2], false);
        assert_eq!(slots.of(nonces[2]).nonce, nonces[2]);
        slots.over(nonces[2]);
        slots.begin(a, nonces[2], true);
        assert_eq!(slots.of(nonces[2]), Slot { nonce: nonces[0], after: 9 });

        slots.over(nonces[1]);
        slots.over(nonces[2]);
        slots.begin(a, nonces[1], true);
        assert_eq!(slots.of(nonces[1]).nonce, nonces[1], "what was abandoned is not used again");
    }

    #[test]
    fn not_more_than_so_many_are_remembered() {
        let mut slots = Slots::new();
        for number in 0..10 * MOST {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&number.to_be_bytes());
            slots.free(&number.to_string(), Nonce::from_bytes(bytes), 1);
        }
        assert!(slots.free.len() <= MOST && slots.used.is_empty());
    }
}
