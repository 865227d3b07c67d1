//! Standing in line: the transactions that take a name or a place, and waiting for one's turn.

use std::time::Duration;

use etcd_client::{Compare, CompareOp, KeyValue, Txn};
use sync_core::StoreError;
use sync_core::backend::{Attempt, Grant, Ticket};

use crate::backend::Etcd;
use crate::dial::{Link, look};
use crate::error::Failure;
use crate::line::{SCAN, found, key_only, newest};
use crate::mutant;
use crate::place::{Note, Place, absent, blocked, held, not_asked_for, token_of, version_of};
use crate::watcher::{Change, Range};

/// Whoever waits for longer watches the own key, too: before, that would cost more than the wait.
const LONG: Duration = Duration::from_millis(100);

impl Etcd {
    /// Puts the key at the end of the line, if it is nowhere yet.
    pub(crate) async fn join(&self, place: &Place<'_>) -> Result<Attempt, StoreError> {
        let txn = || {
            Txn::new()
                .when([absent(&place.key), place.is_not_void()])
                .and_then([place.put(), newest(&place.line, None, 2)])
        };
        let answer = match self.commit(txn).await {
            Err(failure) if failure.is_lease_gone() => return Ok(Attempt::SessionEnded),
            other => other.map_err(Failure::into_store)?,
        };
        if !answer.succeeded() {
            // Rare, so not asked in the same breath: all that is sent there is written to the log.
            let read = || Txn::new().and_then([key_only(&place.void()), key_only(&place.key)]);
            let answer = self.commit(read).await;
            let mut found = found(answer.map_err(|failure| failure.into_store().unsettled())?);
            return self.stands(place, found.next(), found.next()).await;
        }
        let mut found = found(answer);
        let found = found.nth(1).unwrap_or_default();
        let Some(own) = found.first().filter(|own| place.is(own)) else {
            return Err(not_asked_for());
        };
        match found.get(1).filter(|_| !mutant::on(mutant::EVERYBODY_FIRST)) {
            None => Ok(held(place, own)),
            Some(before) if place.line.is_claim(before) => Ok(blocked(place, own, before)),
            Some(_) => self.look_around(place, own.create_revision(), SCAN).await,
        }
    }

    /// Takes the name if nobody has it or waits for it, and leaves nothing behind otherwise.
    pub(crate) async fn take(&self, place: &Place<'_>) -> Result<Attempt, StoreError> {
        if place.lease.is_leaving(place.claim.nonce) {
            // The request by which an earlier try left was never answered, and may arrive yet.
            return self.abandon(place).await;
        }
        let nobody =
            || Compare::create_revision(place.line.prefix(), CompareOp::Equal, 0).with_prefix();
        let txn = || {
            let look =
                [key_only(&place.void()), key_only(&place.key), newest(&place.line, None, 2)];
            Txn::new()
                .when([nobody(), place.is_not_void()])
                .and_then([place.put(), key_only(&place.key)])
                .or_else(look)
        };
        let answer = match self.commit(txn).await {
            Err(failure) if failure.is_lease_gone() => return Ok(Attempt::SessionEnded),
            other => other.map_err(Failure::into_store)?,
        };
        let succeeded = answer.succeeded();
        let mut found = found(answer);
        if succeeded {
            let own = found.nth(1).unwrap_or_default();
            let own = own.first().filter(|own| place.is(own));
            return own.map(|own| held(place, own)).ok_or_else(not_asked_for);
        }
        let (void, own) = (found.next().unwrap_or_default(), found.next().unwrap_or_default());
        let attempt = if void.is_empty() && own.is_empty() {
            let others = found.next().unwrap_or_default();
            if others.iter().any(|other| place.line.is_claim(other)) {
                return Ok(Attempt::Blocked(Ticket::default()));
            }
            // Keys that nobody can hold by, at least at the end: only in the line can be seen
            // whether somebody stands before them.
            self.join(place).await?
        } else {
            self.stands(place, Some(void), Some(own)).await?
        };
        if let Attempt::Blocked(_) = attempt {
            place.lease.leaving(place.claim.nonce);
            let left = self.commit(|| Txn::new().and_then([place.delete()])).await;
            left.map_err(|failure| failure.into_store().unsettled())?;
            place.lease.left(place.claim.nonce);
            return Ok(Attempt::Blocked(Ticket::default()));
        }
        Ok(attempt)
    }

    /// What it means that marker or key stood there already.
    async fn stands(
        &self,
        place: &Place<'_>,
        void: Option<Vec<KeyValue>>,
        own: Option<Vec<KeyValue>>,
    ) -> Result<Attempt, StoreError> {
        if void.is_some_and(|void| !void.is_empty()) {
            return Ok(Attempt::Anew);
        }
        match own.unwrap_or_default().first() {
            Some(own) => self.look_around(place, own.create_revision(), 1).await,
            // Taken away since.
            None => Box::pin(self.join(place)).await,
        }
    }

    /// Who stands before the key, which was put there at `created`; one more look, at more keys, if
    /// the nearest are no claims.
    pub(crate) async fn look_around(
        &self,
        place: &Place<'_>,
        created: i64,
        limit: i64,
    ) -> Result<Attempt, StoreError> {
        let mut limit = limit;
        loop {
            let read = || {
                let read = [key_only(&place.key), newest(&place.line, Some(created), limit)];
                Txn::new().and_then(read)
            };
            let answer = self.commit(read).await;
            let answer = answer.map_err(|failure| failure.into_store().unsettled())?;
            let mut found = found(answer);
            let (own, before) = (found.next(), found.next().unwrap_or_default());
            let own = own.unwrap_or_default();
            let Some(own) = own.first().filter(|own| own.create_revision() == created) else {
                if mutant::on(mutant::GRANTS_UNREAD) {
                    let (token, version) = (token_of(created), version_of(created));
                    return Ok(Attempt::Held(Grant { token, version, ttl: None }));
                }
                // Taken away from outside: back to the end of the line.
                return Box::pin(self.join(place)).await;
            };
            if !place.is(own) {
                // Detached from the lease from outside: nobody can hold by it any more.
                return self.abandon(place).await;
            }
            match before.first().filter(|_| !mutant::on(mutant::EVERYBODY_FIRST)) {
                None => return Ok(held(place, own)),
                Some(next) if place.line.is_claim(next) => return Ok(blocked(place, own, next)),
                Some(_) if limit < SCAN => limit = SCAN,
                Some(_) => {
                    let claim = self.strangers.pass(&place.line, &before, SCAN);
                    return Ok(match claim.map_err(StoreError::unsettled)? {
                        Some(claim) => blocked(place, own, claim),
                        None => held(place, own),
                    });
                }
            }
        }
    }

    /// Sees to it that nobody ever holds by this key.
    async fn abandon(&self, place: &Place<'_>) -> Result<Attempt, StoreError> {
        match self.commit(|| place.abandon()).await {
            Err(failure) if failure.is_lease_gone() => return Ok(Attempt::SessionEnded),
            Err(failure) => return Err(failure.into_store().unsettled()),
            Ok(_) => {}
        }
        place.lease.left(place.claim.nonce);
        Ok(Attempt::Anew)
    }

    /// Resolves when the key before a place is gone, or the place itself.
    pub(crate) async fn turn(&self, place: &Place<'_>, note: &Note<'_>) -> Result<(), StoreError> {
        let before = [place.line.prefix(), note.before].concat();
        let (link, [mut other]) = self.watcher.open([Range::Key(before.clone())]).await?;
        // What happened before the watch was open.
        if !self.is_behind(place, note, &before, &link).await? {
            return Ok(());
        }
        // Other programs use a key again: it may stand behind this one by now. A holder that changes
        // its record goes on holding.
        let stands = |change: Result<Change, StoreError>, latest: i64| match change {
            Ok(Change::Put { token, lease, .. }) => lease > 0 && token <= latest,
            _ => false,
        };
        let clock = &self.environment.clock;
        let mut longer = clock.sleep_until(clock.now() + LONG);
        loop {
            tokio::select! {
                biased;
                change = other.change() => {
                    if !stands(change, note.created - 1) {
                        return Ok(());
                    }
                }
                () = &mut longer => break,
            }
        }
        let (link, [mut own]) = self.watcher.open([Range::Key(place.key.clone())]).await?;
        if !self.is_behind(place, note, &before, &link).await? {
            return Ok(());
        }
        loop {
            let stand = tokio::select! {
                biased;
                change = own.change() => stands(change, note.created),
                change = other.change() => stands(change, note.created - 1),
            };
            if !stand {
                return Ok(());
            }
        }
    }

    /// Whether both keys stand, the own one behind the other.
    async fn is_behind(
        &self,
        place: &Place<'_>,
        note: &Note<'_>,
        before: &str,
        link: &Link,
    ) -> Result<bool, StoreError> {
        if mutant::on(mutant::WATCHES_UNREAD) {
            return Ok(true);
        }
        let read = Txn::new().and_then([key_only(&place.key), key_only(before)]);
        let answer = look(link, || {
            let (mut kv, read) = (link.connection.kv(), read.clone());
            async move { kv.txn(read).await }
        });
        let mut found = found(answer.await?);
        let mut stands_by = |created: i64| {
            let key = found.next().and_then(|keys| keys.into_iter().next());
            key.is_some_and(|key| place.line.is_claim(&key) && key.create_revision() <= created)
        };
        Ok(stands_by(note.created) && stands_by(note.created - 1))
    }
}
