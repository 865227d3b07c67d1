//! The end of a claim: released, out of the line, or abandoned.

use sync_core::StoreError;
use sync_core::backend::{Ended, Grant};

use crate::acquire::{Spot, abandoning, leaving};
use crate::backend::Driver;
use crate::http::IntoUnsent;
use crate::line::Line;
use crate::mutant;
use crate::pair::{Pair, index};
use crate::txn::{MOST_OPERATIONS, Op, Seen};

/// How often the key may change under one try.
const ROUNDS: u32 = 4;

impl Driver {
    pub(crate) async fn finish(
        &self,
        at: &Spot<'_>,
        grant: Option<&Grant>,
        unanswered: bool,
    ) -> Result<Ended, StoreError> {
        if grant.is_some() {
            self.crowds.held_until(&at.key, self.environment.clock.now());
        }
        match (grant, unanswered) {
            (Some(grant), false) => self.release(at, grant).await,
            (None, false) => self.step_out(at).await,
            (grant, true) => self.abandon(at, grant).await,
        }
    }

    /// Gives a held key back, if it is still that of this acquisition.
    async fn release(&self, at: &Spot<'_>, grant: &Grant) -> Result<Ended, StoreError> {
        let mut known = index(&grant.version);
        for _ in 0..ROUNDS {
            let ops = [Op::unchanged(&at.key, known), Op::delete(&at.key)];
            let first = usize::from(mutant::on(mutant::ENDS_UNCOMPARED));
            if self.api.done(&ops[first..]).await? {
                return Ok(Ended::Released);
            }
            match self.api.read(&at.key).await? {
                // A change of the record has moved it.
                Some(pair) if self.is_granted(at, &pair, grant) => known = pair.modify_index,
                other => return self.not_ours(at, other).await,
            }
        }
        Err(StoreError::unsent("the key changes all the time"))
    }

    fn is_granted(&self, at: &Spot<'_>, pair: &Pair, grant: &Grant) -> bool {
        at.is_ours(pair) && pair.create_index == grant.token.get()
    }

    /// The key is not this claim's any more. Our session holds it for nobody where it was written
    /// over, be it with the record of an earlier claim, as by `consul kv import`.
    async fn not_ours(&self, at: &Spot<'_>, found: Option<Pair>) -> Result<Ended, StoreError> {
        if let Some(pair) = found
            && pair.session == at.session
            && pair.nonce() != Some(at.claim.nonce)
            && !self.sessions.plays(at.session, &at.key, at.claim.nonce, pair.nonce())
        {
            self.clear(&pair).await?;
        }
        Ok(Ended::NotOurs)
    }

    /// Leaves the line.
    async fn step_out(&self, at: &Spot<'_>) -> Result<Ended, StoreError> {
        if at.handed_on {
            return self.give_up_key(at).await;
        }
        let mut seen = Seen::new("", Line::new(at.line.clone(), at.ticket.clone(), None));
        let [lock, delete] = leaving(at);
        let ops = [Op::get_tree(&at.ticket), lock, delete];
        let done = if mutant::on(mutant::KEEPS_PLACE) { 2 } else { 3 };
        if !self.api.commit(&ops[..done], &mut seen).await? {
            return self.with_its_session(at).await;
        }
        // Whoever has a ticket has not the key: they are exchanged for each other.
        match seen.line.times_seen() > 1 {
            true => Ok(Ended::Released),
            false => self.give_up_key(at).await,
        }
    }

    /// A session was refused: if it has ended, all that was made on it is gone, and nothing can be
    /// made on it any more.
    async fn with_its_session(&self, at: &Spot<'_>) -> Result<Ended, StoreError> {
        match self.api.renew_session(at.session).await? {
            false => Ok(Ended::NotOurs),
            true => Err(StoreError::unknown("the agent refused what a living session asked for")),
        }
    }

    /// Sees to it that no attempt of this nonce, however late, brings anything into being.
    async fn abandon(&self, at: &Spot<'_>, grant: Option<&Grant>) -> Result<Ended, StoreError> {
        if let Some(grant) = grant {
            let known = index(&grant.version);
            let mut ops = vec![Op::unchanged(&at.key, known), Op::delete(&at.key)];
            ops.extend(abandoning(at));
            if self.api.done(&ops).await? {
                return Ok(Ended::Released);
            }
        }
        if !self.api.done(&abandoning(at)).await? {
            return self.with_its_session(at).await;
        }
        if mutant::on(mutant::KEY_LEFT) {
            return Ok(Ended::NotOurs);
        }
        // Only now: before, an attempt could have landed after the look.
        self.give_up_key(at).await
    }

    /// Gives the key back if this claim has it, of which no grant is known.
    async fn give_up_key(&self, at: &Spot<'_>) -> Result<Ended, StoreError> {
        for _ in 0..ROUNDS {
            match self.api.read(&at.key).await? {
                Some(pair) if at.is_ours(&pair) => {
                    if self.api.done(&freeing(&pair)).await? {
                        return Ok(Ended::Released);
                    }
                }
                other => return self.not_ours(at, other).await,
            }
        }
        Err(StoreError::unsent("the key changes all the time"))
    }

    /// Frees what a session still holds: if it ended holding it, its keys could not be had for the
    /// length of the lock-delay.
    pub(crate) async fn free(&self, session: &str) -> Result<(), StoreError> {
        let claims = self.sessions.keys(session);
        for batch in claims.chunks(MOST_OPERATIONS) {
            let keys: Vec<&str> = batch.iter().map(|(key, _)| key.as_str()).collect();
            let pairs = self.api.read_all(&keys).await.map_err(StoreError::into_unsent)?;
            let held: Vec<&Pair> = pairs.iter().filter(|pair| pair.session == session).collect();
            let (ours, foreign): (Vec<&Pair>, Vec<&Pair>) =
                held.into_iter().partition(|pair| pair.nonce().is_some());
            for pair in foreign {
                self.hand_over(pair).await?;
            }
            for pairs in ours.chunks(MOST_OPERATIONS / 2) {
                if self
                    .api
                    .done(&pairs.iter().flat_map(|pair| freeing(pair)).collect::<Vec<_>>())
                    .await?
                {
                    continue;
                }
                // One of them has changed meanwhile.
                for pair in pairs {
                    self.api.done(&freeing(pair)).await?;
                }
            }
        }
        Ok(())
    }
}

pub(crate) fn freeing(pair: &Pair) -> [Op<'_>; 2] {
    [Op::unchanged(&pair.key, pair.modify_index), Op::delete(&pair.key)]
}
