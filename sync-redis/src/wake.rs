//! Who waits here for a message: claims in a line, and followers of an election.
//!
//! A message is a hint. What makes it dependable is the order of things: a claim is expected here
//! before its attempt is sent, on a connection that was subscribed before; and once another
//! connection has taken that one's place, everybody who relied on the old one looks again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redis::{PushInfo, PushKind, Value};
use sync_core::backend::Nonce;
use tokio::sync::{Mutex as AsyncMutex, Notify, watch};

/// All who wait on one coordinator's connection.
#[derive(Debug)]
pub(crate) struct Wakes {
    /// The coordinator's own channel.
    channel: String,
    inner: Mutex<Inner>,
    /// Held while a subscription is changed, so that what was asked for last counts.
    pub(crate) subscribing: AsyncMutex<()>,
}

#[derive(Debug, Default)]
struct Inner {
    /// The connection in use, counted up from 1.
    generation: u64,
    claims: BTreeMap<Nonce, Waiter>,
    channels: BTreeMap<Arc<str>, Channel>,
}

#[derive(Debug)]
struct Waiter {
    /// Keeps a message that comes before anybody waits for it.
    notify: Arc<Notify>,
    /// The connection that the latest attempt was sent on.
    generation: u64,
}

#[derive(Debug)]
struct Channel {
    news: watch::Sender<()>,
    followers: usize,
    /// The connection on which the channel is subscribed.
    subscribed: Option<u64>,
}

impl Wakes {
    pub(crate) fn new(channel: String) -> Self {
        Self { channel, inner: Mutex::default(), subscribing: AsyncMutex::default() }
    }

    /// The channel to subscribe on each connection.
    pub(crate) fn channel(&self) -> &str {
        &self.channel
    }

    /// An attempt of this claim is about to be sent: from here on no message to it is lost.
    pub(crate) fn expect(&self, nonce: Nonce, generation: u64) {
        let mut inner = self.inner();
        let notify = Arc::new(Notify::new());
        if inner.generation > generation {
            notify.notify_one();
        }
        inner.claims.insert(nonce, Waiter { notify, generation });
    }

    /// This claim waits no longer.
    pub(crate) fn forget(&self, nonce: Nonce) {
        self.inner().claims.remove(&nonce);
    }

    /// Resolves with the next message to this claim, or once its connection was replaced.
    pub(crate) async fn woken(&self, nonce: Nonce) {
        let notify = self.inner().claims.get(&nonce).map(|waiter| Arc::clone(&waiter.notify));
        match notify {
            Some(notify) => notify.notified().await,
            None => std::future::pending().await,
        }
    }

    /// A connection is in use from here on.
    pub(crate) fn connected(&self, generation: u64) {
        let mut inner = self.inner();
        inner.generation = generation;
        inner.wake_before(generation);
    }

    /// The connection has ended: whoever relied on it looks again, which brings the next one up.
    pub(crate) fn disconnected(&self, generation: u64) {
        self.inner().wake_before(generation + 1);
    }

    /// What the server sent without being asked.
    pub(crate) fn pushed(&self, push: &PushInfo) {
        let (PushKind::Message, [Value::BulkString(channel), Value::BulkString(message)]) =
            (&push.kind, push.data.as_slice())
        else {
            return;
        };
        let Ok(channel) = std::str::from_utf8(channel) else { return };
        let inner = self.inner();
        if channel == self.channel {
            // `<nonce> <key>`: the key is for people who listen.
            let nonce = message.get(..32).and_then(|hex| std::str::from_utf8(hex).ok());
            if let Some(nonce) = nonce.and_then(Nonce::from_hex)
                && let Some(waiter) = inner.claims.get(&nonce)
            {
                waiter.notify.notify_one();
            }
        } else if let Some(channel) = inner.channels.get(channel) {
            channel.news.send_replace(());
        }
    }

    /// Follows a channel: what comes on it, once it is subscribed, and the loss of a connection.
    pub(crate) fn follow(&self, channel: &Arc<str>) -> watch::Receiver<()> {
        let mut inner = self.inner();
        let entry = inner.channels.entry(Arc::clone(channel)).or_insert_with(|| Channel {
            news: watch::Sender::new(()),
            followers: 0,
            subscribed: None,
        });
        entry.followers += 1;
        entry.news.subscribe()
    }

    /// One follower less. Whether it was the last, and the channel is to be given up.
    pub(crate) fn unfollow(&self, channel: &str) -> bool {
        let mut inner = self.inner();
        let Some(entry) = inner.channels.get_mut(channel) else { return false };
        entry.followers = entry.followers.saturating_sub(1);
        entry.followers == 0
    }

    /// Whether the channel is subscribed on this connection.
    pub(crate) fn is_subscribed(&self, channel: &str, generation: u64) -> bool {
        let inner = self.inner();
        inner.channels.get(channel).is_some_and(|entry| entry.subscribed == Some(generation))
    }

    /// The channel is subscribed on this connection from here on.
    pub(crate) fn subscribed(&self, channel: &str, generation: u64) {
        if let Some(entry) = self.inner().channels.get_mut(channel) {
            entry.subscribed = Some(generation);
        }
    }

    /// Forgets a channel that nobody follows. Whether it is to be unsubscribed on this connection.
    pub(crate) fn abandon(&self, channel: &str, generation: u64) -> bool {
        let mut inner = self.inner();
        match inner.channels.get(channel) {
            Some(entry) if entry.followers == 0 => {
                let subscribed = entry.subscribed == Some(generation);
                inner.channels.remove(channel);
                subscribed
            }
            _ => false,
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn wake_before(&self, generation: u64) {
        for waiter in self.claims.values().filter(|waiter| waiter.generation < generation) {
            waiter.notify.notify_one();
        }
        for channel in self.channels.values().filter(|c| c.subscribed < Some(generation)) {
            channel.news.send_replace(());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const NONCE: Nonce = Nonce::from_bytes([7; 16]);

    fn message(channel: &str, text: String) -> PushInfo {
        let data = vec![Value::BulkString(channel.into()), Value::BulkString(text.into_bytes())];
        PushInfo { kind: PushKind::Message, data }
    }

    async fn resolves(wakes: &Wakes) -> bool {
        tokio::time::timeout(Duration::from_millis(20), wakes.woken(NONCE)).await.is_ok()
    }

    #[tokio::test]
    async fn a_message_between_the_answer_and_the_wait_is_kept() {
        let wakes = Wakes::new("sync:wake:c".to_owned());
        wakes.connected(1);
        wakes.expect(NONCE, 1);
        wakes.pushed(&message("sync:wake:c", format!("{} sync:lock:{{a}}", NONCE.to_hex())));
        assert!(resolves(&wakes).await);
        assert!(!resolves(&wakes).await, "one message wakes once");
        wakes.pushed(&message("sync:wake:c", "nonsense".to_owned()));
        wakes.pushed(&message("sync:wake:c", format!("{} k", "0".repeat(32))));
        assert!(!resolves(&wakes).await, "what names somebody else wakes nobody");
    }

    #[tokio::test]
    async fn whoever_relied_on_a_lost_connection_looks_again_once() {
        let wakes = Wakes::new("sync:wake:c".to_owned());
        wakes.connected(1);
        wakes.expect(NONCE, 1);
        wakes.connected(2);
        assert!(resolves(&wakes).await);
        wakes.expect(NONCE, 1);
        assert!(
            resolves(&wakes).await,
            "an attempt on the old connection, after the new one is up"
        );
        wakes.expect(NONCE, 2);
        assert!(!resolves(&wakes).await);
        wakes.disconnected(2);
        assert!(resolves(&wakes).await);
    }

    #[tokio::test]
    async fn a_channel_is_subscribed_once_per_connection_and_given_up_by_its_last_follower() {
        let wakes = Wakes::new("sync:wake:c".to_owned());
        let channel: Arc<str> = "sync:leader:{a}".into();
        let mut first = wakes.follow(&channel);
        let second = wakes.follow(&channel);
        wakes.subscribed(&channel, 1);
        assert!(wakes.is_subscribed(&channel, 1) && !wakes.is_subscribed(&channel, 2));
        wakes.subscribed(&channel, 2);
        wakes.pushed(&message(&channel, "held".to_owned()));
        assert!(first.has_changed().unwrap() && second.has_changed().unwrap());
        first.mark_unchanged();
        wakes.disconnected(2);
        assert!(first.has_changed().unwrap());
        assert!(!wakes.unfollow(&channel) && !wakes.abandon(&channel, 2));
        assert!(wakes.unfollow(&channel) && wakes.abandon(&channel, 2));
    }
}
