//! What a process under faults leaves behind of what it saw, though it may be killed any moment.

#![deny(clippy::missing_trait_methods)]

use std::collections::BTreeMap;
use std::fs::File;
use std::future::Future;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sync_core::backend::{
    Attempt, Claim, Ended, Grant, Held, Losses, Profile, Renewal, Session, Sighting, Ticket,
    Updated, Version,
};
use sync_core::{Backend, Kind, Name, StoreError};

/// A file in which all processes of a run count, one line for each thing.
#[derive(Debug)]
pub(super) struct Notes(File);

impl Notes {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(File::options().create(true).append(true).open(path)?))
    }

    /// Counts one of `what`.
    pub(super) fn count(&self, what: &str) {
        // In one piece, or killed before it: no line is torn.
        if let Err(e) = (&self.0).write_all(format!("{what}\n").as_bytes()) {
            eprintln!("the notes cannot be written: {e}");
            std::process::abort();
        }
    }
}

/// How often each thing was counted.
pub(super) fn read(path: &Path) -> io::Result<BTreeMap<String, usize>> {
    let mut counts = BTreeMap::new();
    for line in std::fs::read_to_string(path)?.lines() {
        *counts.entry(line.to_owned()).or_default() += 1;
    }
    Ok(counts)
}

/// A backend that counts the requests whose answer never came: `unanswered VERB`.
#[derive(Debug)]
pub(super) struct Witness {
    inner: Arc<dyn Backend>,
    notes: Arc<Notes>,
}

impl Witness {
    pub(super) fn new(inner: Arc<dyn Backend>, notes: Arc<Notes>) -> Self {
        Self { inner, notes }
    }

    async fn see<T>(
        &self,
        unanswered: &'static str,
        call: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        let mut open = Open { notes: &self.notes, unanswered, answered: false };
        let answer = call.await;
        open.answered = answer.as_ref().err().is_none_or(StoreError::settled);
        answer
    }
}

/// A request under way. The core drops those that take too long.
struct Open<'a> {
    notes: &'a Notes,
    unanswered: &'static str,
    answered: bool,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        if !self.answered {
            self.notes.count(self.unanswered);
        }
    }
}

#[async_trait]
impl Backend for Witness {
    fn profile(&self) -> &Profile {
        self.inner.profile()
    }

    fn key(&self, kind: Kind, name: &Name) -> String {
        self.inner.key(kind, name)
    }

    async fn open(&self, ttl: Duration) -> Result<Session, StoreError> {
        self.see("unanswered open", self.inner.open(ttl)).await
    }

    async fn close(&self, session: &Session) -> Result<(), StoreError> {
        self.see("unanswered close", self.inner.close(session)).await
    }

    async fn renew(&self, session: &Session, held: &[Held]) -> Result<Renewal, StoreError> {
        self.see("unanswered renew", self.inner.renew(session, held)).await
    }

    async fn try_claim(
        &self,
        session: &Session,
        claim: &Claim,
        ticket: Option<&Ticket>,
        unanswered: bool,
    ) -> Result<Attempt, StoreError> {
        let call = self.inner.try_claim(session, claim, ticket, unanswered);
        self.see("unanswered try_claim", call).await
    }

    async fn wait(&self, session: &Session, claim: &Claim, ticket: &Ticket) {
        self.inner.wait(session, claim, ticket).await;
    }

    async fn update(
        &self,
        session: &Session,
        claim: &Claim,
        grant: &Grant,
    ) -> Result<Updated, StoreError> {
        self.see("unanswered update", self.inner.update(session, claim, grant)).await
    }

    async fn end(
        &self,
        session: &Session,
        claim: &Claim,
        grant: Option<&Grant>,
        unanswered: bool,
    ) -> Result<Ended, StoreError> {
        self.see("unanswered end", self.inner.end(session, claim, grant, unanswered)).await
    }

    fn losses(&self, session: &Session) -> Losses {
        self.inner.losses(session)
    }

    async fn holder(&self, kind: Kind, name: &Name) -> Result<Sighting, StoreError> {
        self.see("unanswered holder", self.inner.holder(kind, name)).await
    }

    async fn watch(&self, kind: Kind, name: &Name, seen: &Version) -> Result<Sighting, StoreError> {
        self.inner.watch(kind, name, seen).await
    }
}

#[cfg(test)]
mod tests {
    use sync_core::memory;
    use sync_core::{BootClock, Coordinator, Environment, Options};

    use super::*;
    use crate::fault::{Fault, Faults, Faulty, Verb};

    #[tokio::test]
    async fn an_answer_that_never_came_is_counted_and_any_other_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notes");
        let notes = Arc::new(Notes::open(&path).unwrap());
        let options = Options::new()
            .request_timeout(Duration::from_millis(50))
            .environment(Environment::default());
        let memory = memory::Store::new().backend(&options.parsed_namespace().unwrap());
        let faults = Faults::new();
        let faulty = Faulty::new(Arc::new(memory), Arc::new(BootClock::new()), &faults);
        let witness = Witness::new(Arc::new(faulty), notes);
        let sync = Coordinator::new(Arc::new(witness), &options).unwrap();
        faults.next(Verb::TryClaim, Fault::LoseAnswer);
        faults.next(Verb::TryClaim, Fault::Late);
        faults.next(Verb::TryClaim, Fault::Unsent);
        sync.lock("x").acquire().await.unwrap().release().await.unwrap();
        assert_eq!(read(&path).unwrap(), BTreeMap::from([("unanswered try_claim".to_owned(), 2)]));
    }
}
