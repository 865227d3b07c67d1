//! What happens to a session and its claims from outside.

use std::sync::Arc;
use std::time::Duration;

use sync_core::backend::{Loss, Losses, Nonce, Session};
use sync_core::{Environment, FencingToken, StoreError};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::api::Api;
use crate::backend::Driver;
use crate::pair::Pair;
use crate::polls::{Following, State, Subject, Why};
use crate::sessions::Watch;

/// A claim that has ended by then is not worth a poll.
const SHORT_HOLD: Duration = Duration::from_millis(100);

/// How long to wait before what could not be read is read again.
const AGAIN: Duration = Duration::from_millis(500);

/// What is watched, and who is told.
struct Watcher {
    api: Api,
    environment: Environment,
    session: Arc<str>,
    losses: UnboundedSender<Loss>,
}

impl Driver {
    pub(crate) fn losses(&self, session: &Session) -> Losses {
        let (losses, told) = unbounded_channel();
        let watcher = self.watcher(session, losses.clone());
        let states = self.polls.follow(Subject::Session(session.id.to_string()), Why::Session);
        // One beyond the limit is known by its claims' keys, and by its renewals.
        let task = self.runtime.spawn(async move {
            if let Some(states) = states {
                watcher.session(states).await;
            }
        });
        self.sessions.listen(&session.id, losses, Watch::new(task.abort_handle()));
        Box::pin(UnboundedReceiverStream::new(told))
    }

    /// Watches the key of a claim that is held from now on, with this token.
    pub(crate) fn watch_held(
        self: &Arc<Self>,
        session: &Session,
        nonce: Nonce,
        key: &str,
        token: FencingToken,
    ) {
        let clock = &self.environment.clock;
        let due = clock.now() + SHORT_HOLD;
        // Not kept: the polls end with the backend.
        let (driver, watched) = (Arc::downgrade(self), session.clone());
        let key = key.to_owned();
        let watch = move |losses| async move {
            let watch = driver.upgrade().and_then(|driver| {
                let states = driver.polls.follow(Subject::Key(key.clone()), Why::Held)?;
                Some((driver.watcher(&watched, losses), states))
            });
            if let Some((watcher, states)) = watch {
                watcher.claim(states, &key, (nonce, token)).await;
            }
        };
        self.sessions.held(&session.id, nonce, |watches, losses| {
            watches.begin(&self.runtime, clock, due, nonce, || watch(losses));
        });
    }

    fn watcher(&self, session: &Session, losses: UnboundedSender<Loss>) -> Watcher {
        Watcher {
            api: self.api.clone(),
            environment: self.environment.clone(),
            session: Arc::clone(&session.id),
            losses,
        }
    }
}

impl Watcher {
    /// Tells when the session has ended.
    async fn session(self, mut states: Following) {
        loop {
            // Somebody who may not read sessions is shown none: asked in another way.
            if let State::Is(None) = states.next().await {
                match self.has_ended().await {
                    Ok(true) => return self.tell(Loss::Session),
                    Ok(false) => {
                        tracing::warn!(
                            "the agent does not show our session: is session:read missing?"
                        );
                        return;
                    }
                    Err(_) => self.pause(AGAIN).await,
                }
            }
        }
    }

    /// Tells when the key is no longer this acquisition's. One that was deleted and made anew, by a
    /// request of the same claim that came late, is not: somebody may have held it in between.
    async fn claim(self, mut states: Following, key: &str, (nonce, token): (Nonce, FencingToken)) {
        let ours =
            |pair: &Pair| pair.is_of(&self.session, nonce) && pair.create_index == token.get();
        loop {
            let State::Is(pair) = states.next().await else { continue };
            if pair.as_deref().is_some_and(ours) {
                continue;
            }
            // What a poll shows may be what was so before the claim was held.
            let lost = loop {
                match self.api.read(key).await {
                    Ok(pair) => break !pair.as_ref().is_some_and(ours),
                    Err(_) => self.pause(AGAIN).await,
                }
            };
            if lost {
                // The key goes with the session, whose end is the better reason.
                let ended = self.has_ended().await.unwrap_or(false);
                return self.tell(if ended { Loss::Session } else { Loss::Claim(nonce) });
            }
        }
    }

    async fn has_ended(&self) -> Result<bool, StoreError> {
        let renewed = self.api.renew_session(&self.session);
        let clock = &self.environment.clock;
        tokio::select! {
            biased;
            alive = renewed => alive.map(|alive| !alive),
            () = clock.sleep_until(clock.now() + self.api.read_limit) => {
                Err(StoreError::unsent("no answer"))
            }
        }
    }

    fn tell(&self, loss: Loss) {
        // Nobody listens any more: the session is being closed.
        let _ = self.losses.send(loss);
    }

    async fn pause(&self, time: Duration) {
        let clock = &self.environment.clock;
        clock.sleep_until(clock.now() + time).await;
    }
}
