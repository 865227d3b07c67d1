//! What a lock and an election have in common: a name that is wanted, and how.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::acquire::Acquisition;
use crate::carried::Carried;
use crate::claim::Claimed;
use crate::coordinator::{Inner, SessionSlot};
use crate::error::{Error, ErrorKind};
use crate::name::{Kind, Name};
use crate::node::{self, Holder, Node};
use crate::options::check_ttl;
use crate::queue::Turn;

/// A name that is wanted, and how. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Wanting {
    pub(crate) inner: Arc<Inner>,
    kind: Kind,
    id: String,
    ttl: Duration,
    wait: Option<Duration>,
    node: Option<Node>,
    /// The place of the session that is used.
    slot: Arc<SessionSlot>,
    /// Whether this handle and its clones have that session for themselves.
    dedicated: bool,
}

impl Wanting {
    pub(crate) fn new(inner: Arc<Inner>, kind: Kind, id: String) -> Self {
        let ttl = inner.shared.options.ttl;
        let slot = inner.slot(ttl);
        Self { inner, kind, id, ttl, wait: None, node: None, slot, dedicated: false }
    }

    pub(crate) fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        if !self.dedicated {
            self.slot = self.inner.slot(ttl);
        }
        self
    }

    pub(crate) fn wait(mut self, wait: Duration) -> Self {
        self.wait = Some(wait);
        self
    }

    pub(crate) fn node(mut self, node: Node) -> Self {
        self.node = Some(node);
        self
    }

    pub(crate) fn dedicated_session(mut self) -> Self {
        (self.slot, self.dedicated) = (Arc::default(), true);
        self
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn key(&self) -> Result<String, Error> {
        Ok(self.inner.shared.backend.key(self.kind, &self.name("name the key of")?))
    }

    /// Who holds the name now.
    pub(crate) async fn holder(&self) -> Result<Option<Holder>, Error> {
        const VERB: &str = "read the holder of";
        let shared = &self.inner.shared;
        let name = self.name(VERB)?;
        if shared.closing.is_cancelled() {
            return Err(self.closed_to(VERB));
        }
        let call = shared.backend.holder(self.kind, &name);
        let sighting = shared
            .request(shared.options.request_timeout, call)
            .await
            .map_err(|error| Error::from_store(self.what(VERB), error))?;
        Ok(sighting.holder.map(|seen| node::decode(&seen.record, seen.token)))
    }

    /// Waits for the name for as long as this handle allows.
    pub(crate) async fn claim(&self) -> Result<Claimed, Error> {
        let wait = self.wait.or(self.inner.shared.options.wait);
        if wait.is_some_and(|wait| wait.is_zero()) {
            return self.try_claim().await?.ok_or_else(|| self.used_up(Duration::ZERO));
        }
        let acquisition = self.acquisition(true)?;
        let shared = &self.inner.shared;
        let progress = Arc::clone(&acquisition.progress);
        // Pinned where it is made: a future that is moved is laid out once for each place it is in.
        let work = pin!(async {
            let turn = tokio::select! {
                biased;
                () = shared.closing.cancelled() => return Err(self.closed()),
                turn = self.inner.queue.enter(self.kind, &acquisition.name) => turn,
            };
            self.carry(acquisition, turn).await
        });
        let work = pin!(self.spanned(work));
        let claimed = match wait {
            None => work.await,
            Some(wait) => match shared.within(wait, work).await {
                Some(outcome) => outcome,
                None => Err(match progress.trouble(shared.now()) {
                    Some(error) => Error::from_store(self.what(self.verb()), error),
                    None if !progress.had_its_turn() && self.is_being_given_back() => {
                        self.not_given_back()
                    }
                    None => self.used_up(wait),
                }),
            },
        };
        claimed?.ok_or_else(|| self.used_up(wait.unwrap_or_default()))
    }

    /// Takes the name if it is free, and leaves nothing behind if not.
    pub(crate) async fn try_claim(&self) -> Result<Option<Claimed>, Error> {
        let acquisition = self.acquisition(false)?;
        let Inner { shared, queue, .. } = &*self.inner;
        if shared.closing.is_cancelled() {
            return Err(self.closed());
        }
        let work = pin!(async {
            let name = &acquisition.name;
            let mut turn = queue.try_enter(self.kind, name);
            if turn.is_none() && queue.is_about_to_be_free(self.kind, name) {
                let entering = queue.enter(self.kind, name);
                turn = shared.within(shared.options.request_timeout, entering).await;
            }
            match turn {
                Some(turn) => self.carry(acquisition, turn).await,
                None if queue.is_about_to_be_free(self.kind, name) => Err(self.not_given_back()),
                None => Ok(None),
            }
        });
        self.spanned(work).await
    }

    pub(crate) fn what(&self, verb: &str) -> String {
        self.inner.shared.subject(verb, self.kind, &self.id)
    }

    pub(crate) fn closed(&self) -> Error {
        self.closed_to(self.verb())
    }

    fn closed_to(&self, verb: &str) -> Error {
        Error::new(ErrorKind::Closed, self.what(verb), "the coordinator was shut down")
    }

    pub(crate) fn name(&self, verb: &str) -> Result<Name, Error> {
        Name::parse(&self.id)
            .map_err(|why| Error::new(ErrorKind::Invalid, self.what(verb), why.to_string()))
    }

    pub(crate) fn verb(&self) -> &'static str {
        match self.kind {
            Kind::Lock => "acquire",
            Kind::Leader => "campaign for",
        }
    }

    fn used_up(&self, wait: Duration) -> Error {
        let why = match wait {
            Duration::ZERO => "it is held".to_owned(),
            wait => format!("it could not be had within {wait:?}"),
        };
        Error::new(ErrorKind::Timeout, self.what(self.verb()), why).advise(
            "`holder` or `leader` tells who has it, which may be this very process; where nobody \
             has, somebody before this one in the line has died, and makes room when the session ends",
        )
    }

    /// Whether this process itself has not got an answer yet to giving the name back.
    fn is_being_given_back(&self) -> bool {
        let name = Name::parse(&self.id);
        name.is_ok_and(|name| self.inner.queue.is_ending(self.kind, &name))
    }

    fn not_given_back(&self) -> Error {
        let why =
            "this process is still giving back what it held before: the store has not confirmed it";
        Error::new(ErrorKind::Unknown, self.what(self.verb()), why)
    }

    /// Everything that can be refused before anything is sent.
    fn acquisition(&self, queue: bool) -> Result<Acquisition, Error> {
        let Inner { shared, .. } = &*self.inner;
        if !self.inner.is_driven() {
            let why = "the runtime on which its coordinator was made has ended";
            return Err(Error::new(ErrorKind::Closed, self.what(self.verb()), why)
                .advise("make a coordinator on each runtime"));
        }
        let invalid = |why| Error::new(ErrorKind::Invalid, self.what(self.verb()), why);
        check_ttl(self.ttl, shared.margin, &shared.profile).map_err(invalid)?;
        let name = self.name(self.verb())?;
        let default = || shared.options.node.clone().unwrap_or_default();
        let node = self.node.clone().unwrap_or_else(default);
        node::check(&node).map_err(invalid)?;
        Ok(Acquisition {
            inner: Arc::clone(&self.inner),
            slot: Arc::clone(&self.slot),
            kind: self.kind,
            name,
            node,
            ttl: self.ttl,
            queue,
            progress: Arc::default(),
        })
    }

    /// The part that talks to the store: carried on if the caller goes away.
    async fn carry(&self, acquisition: Acquisition, turn: Turn) -> Result<Option<Claimed>, Error> {
        let shared = Arc::clone(&self.inner.shared);
        let gone = CancellationToken::new();
        let work = acquisition.run(turn, gone.clone());
        let span = tracing::Span::current();
        match Carried::new(shared.runtime.clone(), gone, work.instrument(span)).await {
            Ok(claimed) => Ok(claimed),
            Err(None) => Err(self.closed()),
            Err(Some(error)) => Err(Error::from_store(self.what(self.verb()), error)),
        }
    }

    async fn spanned(
        &self,
        work: impl Future<Output = Result<Option<Claimed>, Error>>,
    ) -> Result<Option<Claimed>, Error> {
        let span = match self.kind {
            Kind::Lock => tracing::debug_span!(
                "acquire", name = %self.id, waited_ms = tracing::field::Empty, token = tracing::field::Empty
            ),
            Kind::Leader => tracing::debug_span!(
                "campaign", name = %self.id, waited_ms = tracing::field::Empty, token = tracing::field::Empty
            ),
        };
        if span.is_disabled() {
            return work.await;
        }
        let clock = &self.inner.shared.environment.clock;
        let began = clock.now();
        let outcome = work.instrument(span.clone()).await;
        let waited = clock.now().since(began);
        span.record("waited_ms", u64::try_from(waited.as_millis()).unwrap_or(u64::MAX));
        if let Ok(Some(claimed)) = &outcome {
            span.record("token", claimed.entry.hold.token().get());
        }
        outcome
    }
}
