//! Claims that come back after their end.
//!
//! A proxy before the agent may send a request twice, the second time when the claim that it was
//! for has been given back already: then the key stands there again, for a session that lives and
//! for a claim of nobody. So what has ended is looked at once more, together and a while later. What
//! is not found by that ends with the session, or when the session tries the name again.

use std::collections::VecDeque;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use sync_core::StoreError;
use sync_core::backend::Nonce;

use crate::backend::Driver;
use crate::end::freeing;
use crate::txn::MOST_OPERATIONS;

/// How long after the end of a claim it is looked at.
const LATER: Duration = Duration::from_secs(1);

/// How long the looks at once may take together.
const LIMIT: Duration = Duration::from_secs(5);

/// How many are remembered.
const MOST: usize = 256;

/// What has ended lately.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    ended: VecDeque<Ended>,
    /// Somebody is about to look.
    looking: bool,
}

#[derive(Debug)]
struct Ended {
    session: Arc<str>,
    nonce: Nonce,
    key: String,
    ticket: String,
}

impl Driver {
    /// Looks later whether a claim that has ended is there again.
    pub(crate) fn look_again(
        self: &Arc<Self>,
        session: &Arc<str>,
        nonce: Nonce,
        key: String,
        ticket: String,
    ) {
        let mut recent = self.recent();
        if recent.ended.len() == MOST {
            recent.ended.pop_front();
        }
        recent.ended.push_back(Ended { session: Arc::clone(session), nonce, key, ticket });
        if std::mem::replace(&mut recent.looking, true) {
            return;
        }
        let (driver, clock) = (Arc::downgrade(self), Arc::clone(&self.environment.clock));
        self.runtime.spawn(async move {
            loop {
                clock.sleep_until(clock.now() + LATER).await;
                let Some(driver) = driver.upgrade() else { return };
                let ended = {
                    let mut recent = driver.recent();
                    recent.looking = !recent.ended.is_empty();
                    std::mem::take(&mut recent.ended)
                };
                if ended.is_empty() {
                    return;
                }
                let limit = clock.now() + LIMIT;
                tokio::select! {
                    biased;
                    looked = driver.exorcise(&ended) => if let Err(error) = looked {
                        tracing::debug!(%error, "could not look again at what has ended");
                    },
                    () = clock.sleep_until(limit) => {}
                }
            }
        });
    }

    async fn exorcise(&self, ended: &VecDeque<Ended>) -> Result<(), StoreError> {
        let mut keys: Vec<&str> = ended.iter().map(|ended| ended.key.as_str()).collect();
        keys.sort_unstable();
        keys.dedup();
        keys.extend(ended.iter().map(|ended| ended.ticket.as_str()));
        for keys in keys.chunks(MOST_OPERATIONS) {
            for pair in self.api.read_all(keys).await? {
                let ghost = ended.iter().any(|ended| {
                    let again = pair.key == ended.key && pair.is_of(&ended.session, ended.nonce);
                    let left = pair.key == ended.ticket
                        && !self.sessions.is_in_play(&ended.session, &ended.ticket);
                    again || left
                });
                if ghost {
                    tracing::warn!("a request was carried out twice, one of them late: undone");
                    self.api.done(&freeing(&pair)).await?;
                }
            }
        }
        Ok(())
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
