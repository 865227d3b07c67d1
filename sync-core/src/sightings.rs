//! Who holds a name, followed through reconnects: one watch for each name, however many follow it.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_core::Stream;
use tokio::sync::watch;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::WatchStream;

use crate::backend::Sighting;
use crate::backoff::Backoff;
use crate::coordinator::Shared;
use crate::name::{Kind, Name};
use crate::node::{self, Holder};
use crate::trouble::Trouble;

/// A watch that has said nothing for this long is begun anew, should it have died unnoticed.
const LONGEST_WATCH: Duration = Duration::from_secs(60);

pub(crate) type States = Pin<Box<dyn Stream<Item = Option<Holder>> + Send>>;

/// `None` until the store has been asked for the first time.
type State = Option<Option<Holder>>;
type Key = (Kind, Name);

/// The names that are followed.
pub(crate) struct Sightings {
    shared: Arc<Shared>,
    followed: Arc<Mutex<BTreeMap<Key, watch::Sender<State>>>>,
}

impl Sightings {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, followed: Arc::default() }
    }

    /// The present state of the name and each that follows; ends when the coordinator is shut down.
    pub(crate) fn follow(&self, kind: Kind, name: &Name) -> States {
        let key = (kind, name.clone());
        let mut followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        let states = match followed.get(&key) {
            Some(sender) => sender.subscribe(),
            None => {
                let (sender, states) = watch::channel(None);
                followed.insert(key.clone(), sender.clone());
                let follower = Follower {
                    shared: Arc::clone(&self.shared),
                    followed: Arc::clone(&self.followed),
                    key,
                    sender,
                };
                self.shared.runtime.spawn(follower.follow());
                states
            }
        };
        Box::pin(WatchStream::new(states).filter_map(|state| state))
    }
}

struct Follower {
    shared: Arc<Shared>,
    followed: Arc<Mutex<BTreeMap<Key, watch::Sender<State>>>>,
    key: Key,
    sender: watch::Sender<State>,
}

impl Follower {
    async fn follow(self) {
        loop {
            tokio::select! {
                biased;
                () = self.shared.closing.cancelled() => {
                    self.lock().remove(&self.key);
                    return;
                }
                () = self.sender.closed() => {
                    let mut followed = self.lock();
                    // Somebody may have joined between the last one's leaving and the lock.
                    if self.sender.receiver_count() == 0 {
                        followed.remove(&self.key);
                        return;
                    }
                }
                () = self.watch() => {}
            }
        }
    }

    async fn watch(&self) {
        let (shared, (kind, name)) = (&self.shared, &self.key);
        let clock = &*shared.environment.clock;
        let mut backoff = Backoff::new();
        let mut trouble = Trouble::default();
        let mut seen: Option<Sighting> = None;
        loop {
            let sighting = match &seen {
                None => {
                    let call = shared.backend.holder(*kind, name);
                    shared.request(shared.options.request_timeout, call).await.map(Some)
                }
                Some(seen) => {
                    let call = shared.backend.watch(*kind, name, &seen.version);
                    shared.within(LONGEST_WATCH, call).await.transpose()
                }
            };
            match sighting {
                Ok(Some(sighting)) => {
                    backoff.reset();
                    if let Some(lasted) = trouble.over(shared.now()) {
                        tracing::info!(%kind, %name, ?lasted, "the store shows it again");
                    }
                    self.show(&sighting);
                    seen = Some(sighting);
                }
                Ok(None) => {}
                Err(error) => {
                    if trouble.again(shared.now()) {
                        let place = shared.place();
                        tracing::warn!(%kind, %name, place, %error, "cannot see who holds it");
                    }
                    clock.sleep_until(clock.now() + backoff.next(&shared.environment)).await;
                }
            }
        }
    }

    fn show(&self, sighting: &Sighting) {
        let holder = sighting.holder.as_ref().map(|seen| node::decode(&seen.record, seen.token));
        self.sender.send_if_modified(|state| {
            let changed = state.as_ref() != Some(&holder);
            *state = Some(holder);
            changed
        });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Key, watch::Sender<State>>> {
        self.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
