//! Following an election: one subscription for all who follow the same name.

use std::sync::Arc;
use std::time::Duration;

use sync_core::StoreError;
use tokio::sync::watch;

use crate::connection::{Connector, Link};

/// How long a channel stays subscribed after its last follower: between two changes there is
/// nobody for a moment.
const LINGER: Duration = Duration::from_secs(1);

/// Somebody who follows a name.
#[derive(Debug)]
pub(crate) struct Follower {
    connector: Connector,
    channel: Arc<str>,
    news: watch::Receiver<()>,
}

impl Follower {
    pub(crate) fn new(connector: &Connector, channel: &str) -> Self {
        let channel = Arc::from(channel);
        let news = connector.wakes().follow(&channel);
        Self { connector: connector.clone(), channel, news }
    }

    /// Subscribes the channel unless that was done on this connection.
    pub(crate) async fn subscribe(&self, link: &mut Link) -> Result<(), StoreError> {
        let wakes = self.connector.wakes();
        let _one = wakes.subscribing.lock().await;
        if wakes.is_subscribed(&self.channel, link.generation()) {
            return Ok(());
        }
        link.subscribe(&self.channel).await?;
        wakes.subscribed(&self.channel, link.generation());
        Ok(())
    }

    /// What has come so far is seen by the look that follows.
    pub(crate) fn caught_up(&mut self) {
        self.news.mark_unchanged();
    }

    /// Resolves with news, or once `time` has passed.
    pub(crate) async fn news_or(&mut self, time: Duration) {
        let clock = self.connector.clock();
        tokio::select! {
            biased;
            // Not an error: the channel is kept for as long as it has followers.
            _ = self.news.changed() => {}
            () = clock.sleep_until(clock.now() + time) => {}
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        if !self.connector.wakes().unfollow(&self.channel) {
            return;
        }
        let (connector, channel) = (self.connector.downgrade(), Arc::clone(&self.channel));
        let clock = Arc::clone(self.connector.clock());
        let given_up = async move {
            clock.sleep_until(clock.now() + LINGER).await;
            let Some(connector) = connector.upgrade() else { return };
            let wakes = connector.wakes();
            let _one = wakes.subscribing.lock().await;
            let link = connector.in_use();
            let generation = link.as_ref().map_or(0, Link::generation);
            if wakes.abandon(&channel, generation)
                && let Some(mut link) = link
            {
                link.unsubscribe(&channel).await;
            }
        };
        // Outside a runtime the subscription ends with its connection.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            drop(runtime.spawn(given_up));
        }
    }
}
