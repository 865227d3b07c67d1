//! What is remembered of sessions: which acquisitions are in play on each, from their first attempt
//! to their answered end.
//!
//! Nothing of it decides who holds a name. It says which keys to look at, whether what stands there
//! is a claim of this process or nobody's any more, and who is first in a line, which the first
//! stays.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sync_core::backend::{Loss, Nonce};
use sync_core::reuse::{Slot, Slots};
use sync_core::watches::Watches;
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::AbortHandle;

use crate::line::Before;

/// All sessions of one backend.
#[derive(Debug, Default)]
pub(crate) struct Sessions(Mutex<BTreeMap<Arc<str>, Remembered>>);

#[derive(Debug, Default)]
struct Remembered {
    claims: BTreeMap<Nonce, Playing>,
    losses: Option<UnboundedSender<Loss>>,
    watch: Option<Watch>,
    /// Of the claims' keys.
    watches: Watches,
    /// Of the claims' tickets.
    slots: Slots,
}

#[derive(Debug)]
struct Playing {
    /// The claim's key and its ticket's.
    key: String,
    ticket: String,
    place: Place,
}

/// Where a claim stands in its line.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum Place {
    #[default]
    Unknown,
    /// Behind this ticket.
    After(Before),
    First,
}

/// A task that ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Watch(AbortHandle);

impl Watch {
    pub(crate) fn new(task: AbortHandle) -> Self {
        Self(task)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Sessions {
    pub(crate) fn opened(&self, session: &Arc<str>) {
        self.all().insert(Arc::clone(session), Remembered::default());
    }

    /// Forgets a session and ends all that watches it.
    pub(crate) fn closed(&self, session: &str) {
        self.all().remove(session);
    }

    /// Ends all that watches a session, of which nobody is told any more.
    pub(crate) fn unwatched(&self, session: &str) {
        if let Some(remembered) = self.all().get_mut(session) {
            (remembered.losses, remembered.watch) = (None, None);
            remembered.watches.end();
        }
    }

    /// Who is told of the losses of a session, and what finds them out.
    pub(crate) fn listen(&self, session: &str, losses: UnboundedSender<Loss>, watch: Watch) {
        if let Some(remembered) = self.all().get_mut(session) {
            (remembered.losses, remembered.watch) = (Some(losses), Some(watch));
        }
    }

    /// By which ticket of this line a claim is tried for. `fresh` says that nothing of it can be under
    /// way.
    pub(crate) fn begin(&self, session: &Arc<str>, line: &str, nonce: Nonce, fresh: bool) {
        self.all().entry(Arc::clone(session)).or_default().slots.begin(line, nonce, fresh);
    }

    /// Which ticket is the claim's.
    pub(crate) fn slot(&self, session: &str, nonce: Nonce) -> Slot {
        self.all().get(session).map_or(Slots::new().of(nonce), |own| own.slots.of(nonce))
    }

    /// Whether a claim is over whose ticket another may have.
    pub(crate) fn is_anothers(&self, session: &str, nonce: Nonce) -> bool {
        self.all().get(session).is_some_and(|own| own.slots.is_anothers(nonce))
    }

    /// Whether a claim in play has this ticket.
    pub(crate) fn is_in_play(&self, session: &str, ticket: &str) -> bool {
        let all = self.all();
        let mut claims = all.get(session).into_iter().flat_map(|own| own.claims.values());
        claims.any(|playing| playing.ticket == ticket)
    }

    /// An attempt is about to be made.
    pub(crate) fn enter(&self, session: &Arc<str>, nonce: Nonce, key: &str, ticket: &str) {
        let mut all = self.all();
        let remembered = all.entry(Arc::clone(session)).or_default();
        remembered.claims.entry(nonce).or_insert_with(|| Playing {
            key: key.to_owned(),
            ticket: ticket.to_owned(),
            place: Place::Unknown,
        });
    }

    /// It neither holds nor queues any more.
    pub(crate) fn leave(&self, session: &str, nonce: Nonce) {
        if let Some(remembered) = self.all().get_mut(session) {
            remembered.claims.remove(&nonce);
            remembered.watches.over(nonce);
            remembered.slots.over(nonce);
        }
    }

    /// The same where all that was ever sent of it was answered: another may have its ticket.
    pub(crate) fn answered(&self, session: &str, nonce: Nonce, line: &str) {
        if let Some(remembered) = self.all().get_mut(session) {
            // Tickets are told apart by their indexes where they are looked at.
            remembered.slots.free(line, nonce, 0);
        }
        self.leave(session, nonce);
    }

    /// It holds: its key can be watched, if somebody is told of losses.
    pub(crate) fn held(
        &self,
        session: &str,
        nonce: Nonce,
        watch: impl FnOnce(&Watches, UnboundedSender<Loss>),
    ) {
        if let Some(remembered) = self.all().get(session)
            && let Some(losses) = remembered.losses.clone()
            && remembered.claims.contains_key(&nonce)
        {
            watch(&remembered.watches, losses);
        }
    }

    pub(crate) fn place(&self, session: &str, nonce: Nonce) -> Place {
        let all = self.all();
        let playing = all.get(session).and_then(|remembered| remembered.claims.get(&nonce));
        playing.map(|playing| playing.place.clone()).unwrap_or_default()
    }

    pub(crate) fn stands(&self, session: &str, nonce: Nonce, place: Place) {
        if let Some(remembered) = self.all().get_mut(session)
            && let Some(playing) = remembered.claims.get_mut(&nonce)
        {
            playing.place = place;
        }
    }

    /// Whether another acquisition than `nonce` may hold this key for the session: `which`, or any.
    pub(crate) fn plays(
        &self,
        session: &str,
        key: &str,
        nonce: Nonce,
        which: Option<Nonce>,
    ) -> bool {
        let all = self.all();
        let Some(remembered) = all.get(session) else { return false };
        remembered.claims.iter().any(|(playing, claim)| {
            *playing != nonce && claim.key == key && which.is_none_or(|which| which == *playing)
        })
    }

    /// The keys of all claims in play on a session, each with its ticket's.
    pub(crate) fn keys(&self, session: &str) -> Vec<(String, String)> {
        let all = self.all();
        let claims = all.get(session).map(|remembered| remembered.claims.values());
        let keys = |playing: &Playing| (playing.key.clone(), playing.ticket.clone());
        claims.map(|claims| claims.map(keys).collect()).unwrap_or_default()
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, Remembered>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_hold_a_key_for_a_session() {
        let (sessions, session): (_, Arc<str>) = (Sessions::default(), "s".into());
        let [mine, other] = [1, 2].map(|byte| Nonce::from_bytes([byte; 16]));
        sessions.opened(&session);
        sessions.enter(&session, mine, "k", "t");
        assert!(!sessions.plays("s", "k", mine, None), "oneself is nobody else");
        sessions.enter(&session, other, "k", "u");
        assert!(sessions.plays("s", "k", mine, None));
        assert!(sessions.plays("s", "k", mine, Some(other)));
        assert!(!sessions.plays("s", "k", other, Some(other)));
        assert!(!sessions.plays("s", "l", mine, None) && !sessions.plays("t", "k", mine, None));
        sessions.stands("s", mine, Place::First);
        sessions.enter(&session, mine, "k", "t");
        assert_eq!(sessions.place("s", mine), Place::First, "a repeat forgets nothing");
        sessions.leave("s", other);
        assert!(!sessions.plays("s", "k", mine, None));
        assert_eq!(sessions.keys("s"), [("k".to_owned(), "t".to_owned())]);
        sessions.closed("s");
        assert!(sessions.keys("s").is_empty());
    }
}
