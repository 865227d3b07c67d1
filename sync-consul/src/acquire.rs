//! One try to take a claim. What each step is for stands in `docs/DESIGN.md`.

use std::time::Duration;

use sync_core::backend::{Attempt, Claim, Grant, Session, Ticket};
use sync_core::{ErrorKind, Kind, StoreError};

use crate::backend::Driver;
use crate::end::freeing;
use crate::http::IntoUnsent as _;
use crate::keys::{is_ticket_of, ticket};
use crate::line::{Before, Line};
use crate::mutant;
use crate::pair::{LOCK_FLAGS, Pair};
use crate::sessions::Place;
use crate::txn::{Op, Seen, off_by_one};

/// The first pause where nobody tells when the name can be had, and the longest. The first is short:
/// where many take turns, the name was given back a moment ago more often than it is delayed.
const FIRST: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_secs(1);

/// The pause while another claim of this session is about to end.
const SOON: Duration = Duration::from_millis(100);

/// How often the key may change under one try.
const ROUNDS: u32 = 4;

/// A claim with all the keys that belong to it.
#[derive(Debug)]
pub(crate) struct Spot<'a> {
    pub(crate) session: &'a str,
    pub(crate) claim: &'a Claim,
    /// K, T and V of `docs/DESIGN.md`.
    pub(crate) key: String,
    pub(crate) ticket: String,
    /// The claim is over, and another has its ticket, or may have it next.
    pub(crate) handed_on: bool,
    pub(crate) void: String,
    pub(crate) line: String,
}

impl Spot<'_> {
    /// For an answer that is to be searched for the key and the line.
    pub(crate) fn seen(&self, created: Option<u64>) -> Seen<'_> {
        Seen::new(&self.key, Line::new(self.line.clone(), self.ticket.clone(), created))
    }

    /// Whether a session still stands in the line by the ticket that was seen before the own one.
    /// By one of that name that was made later it stands behind.
    pub(crate) fn stands(&self, pair: &Pair, before: &Before) -> bool {
        let later = pair.create_index > before.created && !mutant::on(mutant::TICKETS_ALIKE);
        self.is_of(&pair.key, &pair.session) && !later
    }

    /// Whether the session that holds the key stood in the line by this ticket: it has one claim at a
    /// time there.
    pub(crate) fn has_entered(&self, pair: &Pair, by: &str) -> bool {
        self.is_of(by, &pair.session)
    }

    fn is_of(&self, ticket: &str, session: &str) -> bool {
        let segment = ticket.strip_prefix(&*self.line);
        segment.is_some_and(|segment| is_ticket_of(segment, session))
    }

    pub(crate) fn is_ours(&self, pair: &Pair) -> bool {
        pair.key == self.key && pair.is_of(self.session, self.claim.nonce)
    }

    /// What an answer grants that names this key, session and nonce.
    fn grant(&self, seen: &Seen<'_>) -> Result<Grant, StoreError> {
        match &seen.pair {
            Some(pair) if self.is_ours(pair) => Ok(pair.grant()),
            _ => Err(off_by_one()),
        }
    }
}

/// What a ticket of the core notes of a place: `<when the ticket was made>/<refusals>`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Note {
    /// Zero: there is no ticket in the line.
    pub(crate) created: u64,
    refusals: u32,
}

impl Note {
    pub(crate) fn read(ticket: Option<&Ticket>) -> Self {
        let read = |ticket: &Ticket| {
            let (created, refusals) = ticket.place.split_once('/')?;
            Some(Self { created: created.parse().ok()?, refusals: refusals.parse().ok()? })
        };
        ticket.and_then(read).unwrap_or_default()
    }

    fn blocked(self, pause: Option<Duration>) -> Attempt {
        Attempt::Blocked(Ticket {
            not_before: pause.unwrap_or_default(),
            look_after: pause,
            place: format!("{}/{}", self.created, self.refusals).into(),
        })
    }
}

/// Why the key could not be taken, once it was read.
#[derive(Debug)]
enum Refused {
    /// An earlier attempt of this nonce has it.
    Ours(Grant),
    /// It stands there without a session since this index.
    Left(u64),
    /// What stood there is gone: at once again.
    Cleared,
    /// Another session has it.
    Taken,
    /// This session has it, for a claim that is about to end.
    Soon,
    /// Nobody has it: it was given back just now, which the next try shows, or it is lock-delay, of
    /// which nobody tells.
    Delayed,
    SessionEnded,
}

impl Driver {
    pub(crate) fn spot<'a>(&self, session: &'a Session, claim: &'a Claim) -> Spot<'a> {
        let line = self.keys.line(claim.kind, &claim.name);
        let slot = self.sessions.slot(&session.id, claim.nonce);
        Spot {
            session: &session.id,
            claim,
            key: self.keys.claim(claim.kind, &claim.name),
            ticket: [&line, &*ticket(&session.id, slot.nonce)].concat(),
            void: self.keys.void(&session.id, claim.nonce),
            handed_on: self.sessions.is_anothers(&session.id, claim.nonce),
            line,
        }
    }

    pub(crate) async fn attempt(
        &self,
        at: &Spot<'_>,
        note: Note,
        unanswered: bool,
    ) -> Result<Attempt, StoreError> {
        if unanswered && at.claim.queue {
            return self.settle(at).await;
        }
        let newcomer = note.created == 0;
        let crowded = || self.crowds.is_crowded(&at.key, self.environment.clock.now());
        match at.claim.kind {
            Kind::Lock if newcomer && at.claim.queue && crowded() => {
                // Also to leave the first in line the time of one read: that is what he needs to ask for
                // the key, and he would have to wait until the leader has written the place of whoever
                // has given it back and is back at once.
                let taken = self.is_taken(at).await;
                self.join(at, !taken).await
            }
            Kind::Lock if newcomer => self.take_free(at, note).await,
            Kind::Leader if newcomer && mutant::on(mutant::ELECTIONS_TRY_FIRST) => {
                self.take_free(at, note).await
            }
            Kind::Leader if newcomer => self.join(at, true).await,
            _ => self.in_line(at, note).await,
        }
    }

    /// Whether somebody else is seen to have the key.
    async fn is_taken(&self, at: &Spot<'_>) -> bool {
        let found = self.api.glance(&at.key).await;
        matches!(found, Ok(Some(pair)) if !pair.session.is_empty() && pair.session != at.session)
    }

    /// Takes a lock without standing in line, unless there is one.
    async fn take_free(&self, at: &Spot<'_>, note: Note) -> Result<Attempt, StoreError> {
        let (mut left, mut again) = (None, true);
        for _ in 0..ROUNDS {
            let mut seen = at.seen(None);
            let mut ops = taking(at, left);
            ops.push(Op::get_tree(&at.line));
            if self.api.commit(&ops, &mut seen).await? {
                let grant = at.grant(&seen)?;
                self.name_strange(&seen.line);
                if seen.line.is_empty() || mutant::on(mutant::NEWCOMERS_FIRST) {
                    return Ok(Attempt::Held(grant));
                }
                return self.give_way(at, &grant).await.map_err(StoreError::unsettled);
            }
            match self.why_refused(at, left).await? {
                Refused::Ours(grant) => return Ok(Attempt::Held(grant)),
                Refused::Left(index) => left = Some(index),
                Refused::Cleared => left = None,
                Refused::Taken if at.claim.queue => return self.join(at, false).await,
                Refused::Taken => return Ok(note.blocked(None)),
                Refused::Soon => return Ok(note.blocked(Some(SOON))),
                Refused::Delayed if left.is_none() && std::mem::take(&mut again) => {}
                Refused::Delayed if at.claim.queue => return self.join(at, true).await,
                Refused::Delayed => return Ok(note.blocked(None)),
                Refused::SessionEnded => return Ok(Attempt::SessionEnded),
            }
        }
        Err(busy())
    }

    /// Others have stood in line before this one, which gives back what it got.
    async fn give_way(&self, at: &Spot<'_>, grant: &Grant) -> Result<Attempt, StoreError> {
        let index = crate::pair::index(&grant.version);
        let mut ops = vec![Op::unchanged(&at.key, index), Op::delete(&at.key)];
        let mut seen = at.seen(None);
        if at.claim.queue {
            ops.insert(0, Op::absent(&at.void));
            ops.extend([Op::lock(&at.ticket, at.session, &[]), Op::get_tree(&at.line)]);
        }
        if !self.api.commit(&ops, &mut seen).await? {
            return Err(StoreError::unknown("the key was changed as soon as it was taken"));
        }
        if !at.claim.queue {
            return Ok(Note::default().blocked(None));
        }
        Ok(self.placed(at, &seen.line, true)?.blocked(None))
    }

    /// Takes a ticket. With `enter`, whoever is the first with it tries the key in the same call.
    async fn join(&self, at: &Spot<'_>, enter: bool) -> Result<Attempt, StoreError> {
        let mut seen = at.seen(None);
        let ops =
            [Op::absent(&at.void), Op::lock(&at.ticket, at.session, &[]), Op::get_tree(&at.line)];
        if !self.api.commit(&ops, &mut seen).await? {
            return match self.api.renew_session(at.session).await {
                Ok(false) => Ok(Attempt::SessionEnded),
                _ => Err(StoreError::unknown("the agent refused a place in the line")),
            };
        }
        let crowded = self.crowds.is_crowded(&at.key, self.environment.clock.now());
        let note = self.placed(at, &seen.line, !enter)?;
        let first = self.sessions.place(at.session, at.claim.nonce) == Place::First;
        // A read shows sooner than a write that is refused that the first in line has it by now.
        let taken = first && enter && crowded && self.is_taken(at).await;
        if taken {
            self.crowds.seen(&at.key, true, self.environment.clock.now());
        }
        let attempt = if first && enter && !taken {
            match self.enter(at, note).await {
                Ok(attempt) => attempt,
                Err(error) if error.settled() => {
                    // All was answered: without the place nothing is left that needs a marker.
                    self.api.done(&leaving(at)).await.map_err(StoreError::unsettled)?;
                    return Err(error);
                }
                Err(error) => return Err(error),
            }
        } else {
            note.blocked(None)
        };
        let leaves = !at.claim.queue && !mutant::on(mutant::ALWAYS_QUEUES);
        if leaves && matches!(attempt, Attempt::Blocked(_)) {
            self.api.done(&leaving(at)).await.map_err(StoreError::unsettled)?;
        }
        Ok(attempt)
    }

    /// Takes the key if it is this ticket's turn.
    async fn in_line(&self, at: &Spot<'_>, note: Note) -> Result<Attempt, StoreError> {
        if self.sessions.place(at.session, at.claim.nonce) != Place::First {
            let line = self.look_at_line(at, note.created).await?;
            if !line.stands() {
                // Somebody has removed the ticket: to the end of the line.
                return self.join(at, false).await;
            }
            if self.sessions.place(at.session, at.claim.nonce) != Place::First {
                return Ok(note.blocked(None));
            }
        }
        self.enter(at, note).await
    }

    /// Takes the key and gives the ticket back, in one transaction.
    async fn enter(&self, at: &Spot<'_>, note: Note) -> Result<Attempt, StoreError> {
        let (mut left, mut again) = (None, true);
        for _ in 0..ROUNDS {
            let mut seen = at.seen(None);
            let mut ops = taking(at, left);
            ops.push(Op::delete(&at.ticket));
            if self.api.commit(&ops, &mut seen).await? {
                return at.grant(&seen).map(Attempt::Held);
            }
            match self.why_refused(at, left).await? {
                Refused::Ours(grant) => return Ok(Attempt::Held(grant)),
                Refused::Left(index) => left = Some(index),
                Refused::Cleared => left = None,
                Refused::Taken => return Ok(Note { refusals: 0, ..note }.blocked(None)),
                Refused::Soon => return Ok(note.blocked(Some(SOON))),
                Refused::Delayed if left.is_none() && std::mem::take(&mut again) => {}
                Refused::Delayed => return Ok(self.delayed(note)),
                Refused::SessionEnded => return Ok(Attempt::SessionEnded),
            }
        }
        Err(busy())
    }

    /// Some attempt was never answered, so that this nonce must not begin to wait: abandons it, and
    /// takes what it has won by then.
    async fn settle(&self, at: &Spot<'_>) -> Result<Attempt, StoreError> {
        if !self.api.done(&abandoning(at)).await? {
            return match self.api.renew_session(at.session).await {
                Ok(false) => Ok(Attempt::SessionEnded),
                _ => Err(StoreError::unknown("the agent refused a marker")),
            };
        }
        // In this order: nothing earlier can move the key any more.
        match self.api.read(&at.key).await.map_err(StoreError::unsettled)? {
            Some(pair) if at.is_ours(&pair) => Ok(Attempt::Held(pair.grant())),
            _ => Ok(Attempt::Anew),
        }
    }

    /// Reads the key after a refusal, whose words say nothing that counts. `left`: it was tried as
    /// one that stands there without a session since this index.
    async fn why_refused(&self, at: &Spot<'_>, left: Option<u64>) -> Result<Refused, StoreError> {
        let Some(pair) = self.api.read(&at.key).await? else {
            return match left {
                Some(_) => Ok(Refused::Cleared),
                None => self.why_not_free(at).await,
            };
        };
        if pair.session.is_empty() {
            return match pair.flags {
                LOCK_FLAGS if left == Some(pair.modify_index) => self.why_not_free(at).await,
                LOCK_FLAGS => Ok(Refused::Left(pair.modify_index)),
                _ => Err(foreign(&at.key)),
            };
        }
        if pair.session != at.session {
            return Ok(Refused::Taken);
        }
        let (session, nonce) = (at.session, at.claim.nonce);
        match pair.nonce() {
            Some(found) if found == nonce => Ok(Refused::Ours(pair.grant())),
            found if self.sessions.plays(session, &at.key, nonce, found) => Ok(Refused::Soon),
            _ => {
                self.clear(&pair).await?;
                Ok(Refused::Cleared)
            }
        }
    }

    /// The key was refused though nobody holds it. An ended session is refused in the same words as
    /// one that comes too early.
    async fn why_not_free(&self, at: &Spot<'_>) -> Result<Refused, StoreError> {
        match self.api.renew_session(at.session).await {
            Ok(true) => Ok(Refused::Delayed),
            Ok(false) => Ok(Refused::SessionEnded),
            Err(error) => Err(error.into_unsent()),
        }
    }

    /// Our session holds a key for no claim of ours.
    pub(crate) async fn clear(&self, pair: &Pair) -> Result<(), StoreError> {
        if pair.nonce().is_none() {
            return self.hand_over(pair).await;
        }
        tracing::warn!(key = pair.key, "a claim of nobody stood under our session: removed");
        self.api.done(&freeing(pair)).await.map(|_| ())
    }

    /// Somebody has written over a key that our session holds: it is theirs, without our session.
    pub(crate) async fn hand_over(&self, pair: &Pair) -> Result<(), StoreError> {
        tracing::warn!(key = pair.key, "another program has written over our key: left to it");
        let ops = [Op::unchanged(&pair.key, pair.modify_index), Op::unlock(pair)];
        self.api.done(&ops).await.map(|_| ())
    }

    /// Reads the line and takes note of the place in it.
    pub(crate) async fn look_at_line(
        &self,
        at: &Spot<'_>,
        created: u64,
    ) -> Result<Line, StoreError> {
        let mut line = Line::new(at.line.clone(), at.ticket.clone(), Some(created));
        self.api.read_line(&at.line, &mut line).await?;
        self.name_strange(&line);
        self.note_place(at, &line);
        Ok(line)
    }

    fn note_place(&self, at: &Spot<'_>, line: &Line) {
        let place = match line.before() {
            Some(_) if mutant::on(mutant::EVERYBODY_FIRST) => Place::First,
            Some(before) => Place::After(before.clone()),
            // What could not be read cannot be waited for.
            None if line.stands() => Place::First,
            None => Place::Unknown,
        };
        self.sessions.stands(at.session, at.claim.nonce, place);
    }

    /// The place of a ticket that was just made. `taken`: somebody has the key, or had it just now.
    fn placed(&self, at: &Spot<'_>, line: &Line, taken: bool) -> Result<Note, StoreError> {
        let Some(created) = line.created() else {
            return Err(off_by_one());
        };
        if line.is_known() {
            self.note_place(at, line);
        } else {
            self.sessions.stands(at.session, at.claim.nonce, Place::Unknown);
        }
        let others = taken || !line.is_empty();
        self.crowds.seen(&at.key, others, self.environment.clock.now());
        self.name_strange(line);
        Ok(Note { created, refusals: 0 })
    }

    /// Nobody tells when the time has come: after a while again.
    fn delayed(&self, note: Note) -> Attempt {
        let pause = (FIRST * (1 << note.refusals.min(7))).min(LONGEST);
        let refusals = note.refusals.saturating_add(1);
        Note { refusals, ..note }.blocked(Some(self.environment.jitter(pause)))
    }
}

/// What takes the key: made anew, so that each acquisition has a greater index.
fn taking<'a>(at: &'a Spot<'_>, left: Option<u64>) -> Vec<Op<'a>> {
    let mut ops = vec![Op::absent(&at.void)];
    if mutant::on(mutant::NO_COMPARE) {
        ops.clear();
    }
    match left {
        None if mutant::on(mutant::KEY_MAY_EXIST) => {}
        None => ops.push(Op::absent(&at.key)),
        Some(index) => ops.extend([Op::unchanged(&at.key, index), Op::delete(&at.key)]),
    }
    ops.extend([Op::lock(&at.key, at.session, &at.claim.record), Op::get(&at.key)]);
    ops
}

/// What gives the ticket back. It is locked once more, so that the answer names it in any case.
pub(crate) fn leaving<'a>(at: &'a Spot<'_>) -> [Op<'a>; 2] {
    [Op::lock(&at.ticket, at.session, &[]), Op::delete(&at.ticket)]
}

/// What keeps every earlier attempt of a nonce out.
pub(crate) fn abandoning<'a>(at: &'a Spot<'_>) -> Vec<Op<'a>> {
    let marker = match mutant::on(mutant::NO_MARKER) {
        true => Op::get_tree(&at.void),
        false => Op::lock(&at.void, at.session, &[]),
    };
    let place = (!at.handed_on).then(|| Op::delete(&at.ticket));
    [marker].into_iter().chain(place).collect()
}

fn foreign(key: &str) -> StoreError {
    StoreError::refused(ErrorKind::Foreign, format!("the key {key:?} holds another program's data"))
        .advise("it was left alone; remove it if nobody needs it")
}

fn busy() -> StoreError {
    StoreError::refused(ErrorKind::Unreachable, "the key changes all the time")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_reads_back() {
        let note = Note { created: 17, refusals: 3 };
        let Attempt::Blocked(ticket) = note.blocked(None) else { unreachable!() };
        assert_eq!((&*ticket.place, ticket.look_after), ("17/3", None));
        assert_eq!(Note::read(Some(&ticket)), note);
        assert_eq!(Note::read(None), Note::default());
        let foreign = Ticket { place: "nonsense".into(), ..Ticket::default() };
        assert_eq!(Note::read(Some(&foreign)), Note::default());
    }
}
