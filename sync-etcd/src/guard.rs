//! Watching what is held: whoever takes it away from outside is told of at once.

use std::sync::{Arc, Weak};
use std::time::Duration;

use etcd_client::GetOptions;
use sync_core::backend::{Loss, Nonce};
use sync_core::{Environment, FencingToken, StoreError};

use crate::dial::{Link, look};
use crate::session::Lease;
use crate::watcher::{Change, Range, Watch, Watcher};

/// What is held for a shorter time is not watched: that would cost more than holding it.
pub(crate) const SHORT: Duration = Duration::from_millis(20);

/// The longest pause before a watch that has broken off is opened again.
const PAUSE: Duration = Duration::from_millis(250);

/// How long the loss of a key may wait for the word that it was the whole lease.
const ASK_LIMIT: Duration = Duration::from_millis(100);

/// A key by which a claim is held.
#[derive(Debug)]
pub(crate) struct Watched {
    pub(crate) lease: Weak<Lease>,
    pub(crate) key: String,
    pub(crate) nonce: Nonce,
    pub(crate) token: FencingToken,
}

/// Watches it until it is lost, and tells of that.
pub(crate) async fn watch(watched: Watched, watcher: Arc<Watcher>, environment: Environment) {
    let clock = &environment.clock;
    loop {
        let Some(lease) = watched.lease.upgrade().map(|lease| lease.id) else { return };
        if watcher.may_connect(clock.now(), PAUSE)
            && let Ok(link) = watched.lost(lease, &watcher).await
        {
            let told = Box::pin(watched.ask_why(lease, &link, &environment)).await;
            if let Some(lease) = watched.lease.upgrade() {
                lease.lost(told);
            }
            return;
        }
        clock.sleep_until(clock.now() + environment.jitter(PAUSE)).await;
    }
}

impl Watched {
    /// Resolves when the key is gone or somebody else's.
    async fn lost(&self, lease: i64, watcher: &Watcher) -> Result<Link, StoreError> {
        // Boxed: thousands of these do nothing but wait for the change.
        let (link, mut watch, mut change) = Box::pin(self.open(watcher)).await?;
        while self.is_ours(lease, change) {
            change = watch.change().await?;
        }
        Ok(link)
    }

    /// Opens the watch; and what is there now.
    async fn open(&self, watcher: &Watcher) -> Result<(Link, Watch, Change), StoreError> {
        let (link, [watch]) = watcher.open([Range::Key(self.key.clone())]).await?;
        let now = look(&link, || {
            let (mut kv, key) = (link.connection.kv(), self.key.as_str());
            async move { kv.get(key, Some(GetOptions::new())).await }
        });
        let now = now.await?;
        let change = now.kvs().first().map_or(Change::Deleted, Change::from);
        Ok((link, watch, change))
    }

    fn is_ours(&self, own: i64, change: Change) -> bool {
        match change {
            Change::Deleted => false,
            Change::Put { token, lease, nonce } => {
                u64::try_from(token) == Ok(self.token.get())
                    && lease == own
                    && nonce == Some(self.nonce)
            }
        }
    }

    /// Whether the lease is gone too. Whoever holds by it must not wait long for the answer.
    async fn ask_why(&self, lease: i64, link: &Link, environment: &Environment) -> Loss {
        let clock = &environment.clock;
        let mut leases = link.connection.lease();
        let gone = tokio::select! {
            biased;
            left = leases.time_to_live(lease, None) => left.is_ok_and(|left| left.ttl() < 0),
            () = clock.sleep_until(clock.now() + ASK_LIMIT) => false,
        };
        if gone { Loss::Session } else { Loss::Claim(self.nonce) }
    }
}
