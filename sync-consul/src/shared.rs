//! One long poll for all that is followed beyond the limit.

use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use sync_core::{Environment, Moment, StoreError};
use tokio::sync::watch;

use crate::api::Api;
use crate::http::{Ask, Lane};
use crate::polls::{Index, Inner, State, Why, question};
use crate::txn::MOST_OPERATIONS;

/// The keys that somebody waits for are read no more often.
const PACE: Duration = Duration::from_millis(250);

/// The keys that are held are read no more often.
const HELD_PACE: Duration = Duration::from_secs(2);

/// How long nothing is read while the poll tells of no change.
const UNCHANGED: Duration = Duration::from_secs(60);

/// How long to wait before what could not be read is read again.
const AGAIN: Duration = Duration::from_millis(500);

type Asking = Pin<Box<dyn Future<Output = Result<Option<u64>, StoreError>> + Send>>;

/// The task of the shared poll.
pub(crate) struct Shared {
    inner: Weak<Inner>,
    api: Api,
    environment: Environment,
    wait: Duration,
    prefix: String,
}

/// What is to be read in a round.
#[derive(Debug, Default, Clone, Copy)]
struct Due {
    waits: bool,
    held: bool,
}

impl Shared {
    pub(crate) fn new(inner: &Arc<Inner>) -> Self {
        Self {
            inner: Arc::downgrade(inner),
            api: inner.api.clone(),
            environment: inner.environment.clone(),
            wait: inner.wait,
            prefix: inner.prefix.clone(),
        }
    }

    pub(crate) async fn run(self) {
        let clock = Arc::clone(&self.environment.clock);
        let mut index = Index::default();
        let mut asking: Option<Asking> = None;
        let mut not_before = clock.now();
        let (mut stale, mut held_at) = (false, clock.now());
        let mut changed_at = clock.now();
        let (mut due, mut again) = (Due::default(), None);
        loop {
            // Not kept: the backend may go meanwhile, which ends this task. Nor is a poll broken off
            // that is under way.
            let sharing = match self.inner.upgrade() {
                Some(inner) => inner.sharing(asking.is_none()),
                None => return,
            };
            let Some(sharing) = sharing else { return };
            if !self.read(&sharing, due).await {
                again = Some(clock.now() + self.environment.jitter(AGAIN));
            }
            drop(sharing);
            due = Due::default();
            let question = asking.get_or_insert_with(|| self.ask(&index, not_before));
            let Some(inner) = self.inner.upgrade() else { return };
            let joined = Arc::clone(&inner.joined);
            drop(inner);
            tokio::select! {
                biased;
                told = question => {
                    asking = None;
                    let changed = !matches!(&told, Ok(told) if index.is_still(*told));
                    let pause = match told {
                        Ok(told) => index.told(told),
                        Err(_) => index.failed(),
                    };
                    not_before = clock.now() + self.environment.jitter(pause.max(PACE));
                    if changed || clock.now() >= changed_at + UNCHANGED {
                        changed_at = clock.now();
                        (due.waits, stale) = (true, true);
                    }
                }
                () = joined.notified() => {}
                () = clock.sleep_until(held_at), if stale => {}
                () = clock.sleep_until(again.unwrap_or(held_at)), if again.is_some() => again = None,
            }
            if stale && clock.now() >= held_at {
                (stale, due.held) = (false, true);
                held_at = clock.now() + HELD_PACE;
            }
        }
    }

    /// The question whether anything has changed in the namespace.
    fn ask(&self, index: &Index, not_before: Moment) -> Asking {
        let (query, limit) = question(
            "keys&separator=/&consistent",
            index.query(self.environment.jitter(self.wait)),
        );
        let (http, clock) = (self.api.http.clone(), Arc::clone(&self.environment.clock));
        let path = format!("/v1/kv/{}", self.prefix);
        Box::pin(async move {
            clock.sleep_until(not_before).await;
            let ask = Ask::get(&path, &query).on(Lane::Polls).within(limit);
            let head = http.send(ask, &mut |_| true).await?;
            match head.status {
                200 | 404 => Ok(head.index),
                _ => Err(head.error()),
            }
        })
    }

    /// Reads what is due, and what was not read so far. Whether all could be read.
    async fn read(&self, sharing: &[(String, Why, watch::Sender<State>)], due: Due) -> bool {
        let mut all = true;
        let wanted: Vec<_> = sharing
            .iter()
            .filter(|(_, why, states)| {
                let due = if *why == Why::Held { due.held } else { due.waits };
                due || !matches!(*states.borrow(), State::Is(_))
            })
            .collect();
        for batch in wanted.chunks(MOST_OPERATIONS) {
            let keys: Vec<&str> = batch.iter().map(|(key, ..)| key.as_str()).collect();
            let read = self.api.read_all(&keys).await.map_err(Arc::new);
            all &= read.is_ok();
            for (key, _, states) in batch {
                let state = match &read {
                    Ok(pairs) => {
                        let pair = pairs.iter().find(|pair| pair.key == *key);
                        State::Is(pair.map(|pair| Arc::new(pair.clone())))
                    }
                    Err(error) => State::Failed(Arc::clone(error)),
                };
                states.send_replace(state);
            }
        }
        all
    }
}
