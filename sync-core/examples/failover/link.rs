//! The wire between one node and the store, which can be cut.

use std::future::{Future, pending};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use sync_core::backend::{
    Attempt, Backend, Claim, Ended, Grant, Held, Losses, Profile, Renewal, Session, Sighting,
    Ticket, Updated, Version,
};
use sync_core::memory::Memory;
use sync_core::{Kind, Name, StoreError};

/// A backend that answers until it is cut, and then never again.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) store: Memory,
    pub(crate) cut: Arc<AtomicBool>,
}

impl Link {
    async fn answer<T>(&self, call: impl Future<Output = T> + Send) -> T {
        if self.cut.load(Ordering::Relaxed) {
            pending::<()>().await;
        }
        call.await
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Backend for Link {
    fn profile(&self) -> &Profile {
        self.store.profile()
    }

    fn key(&self, kind: Kind, name: &Name) -> String {
        self.store.key(kind, name)
    }

    async fn open(&self, ttl: Duration) -> Result<Session, StoreError> {
        self.answer(self.store.open(ttl)).await
    }

    async fn close(&self, session: &Session) -> Result<(), StoreError> {
        self.answer(self.store.close(session)).await
    }

    async fn renew(&self, session: &Session, held: &[Held]) -> Result<Renewal, StoreError> {
        self.answer(self.store.renew(session, held)).await
    }

    async fn try_claim(
        &self,
        session: &Session,
        claim: &Claim,
        ticket: Option<&Ticket>,
        unanswered: bool,
    ) -> Result<Attempt, StoreError> {
        self.answer(self.store.try_claim(session, claim, ticket, unanswered)).await
    }

    async fn wait(&self, session: &Session, claim: &Claim, ticket: &Ticket) {
        self.answer(self.store.wait(session, claim, ticket)).await;
    }

    async fn update(
        &self,
        session: &Session,
        claim: &Claim,
        grant: &Grant,
    ) -> Result<Updated, StoreError> {
        self.answer(self.store.update(session, claim, grant)).await
    }

    async fn end(
        &self,
        session: &Session,
        claim: &Claim,
        grant: Option<&Grant>,
        unanswered: bool,
    ) -> Result<Ended, StoreError> {
        self.answer(self.store.end(session, claim, grant, unanswered)).await
    }

    /// Never any: they tell what operators do, and there are none in this story.
    fn losses(&self, _: &Session) -> Losses {
        Box::pin(tokio_stream::pending())
    }

    async fn holder(&self, kind: Kind, name: &Name) -> Result<Sighting, StoreError> {
        self.answer(self.store.holder(kind, name)).await
    }

    async fn watch(&self, kind: Kind, name: &Name, seen: &Version) -> Result<Sighting, StoreError> {
        self.answer(self.store.watch(kind, name, seen)).await
    }
}
