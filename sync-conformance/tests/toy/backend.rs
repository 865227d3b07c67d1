//! The toy's backend: a key for each claim, the oldest under the name's prefix holds.

use std::time::Duration;

use async_trait::async_trait;
use sync_core::backend::{
    Attempt, Backend, Claim, Ended, Expiry, Grant, Held, Losses, Profile, Renewal, Renewed,
    Session, Sighted, Sighting, Ticket, Updated, Version,
};
use sync_core::{Environment, Error, FencingToken, Kind, Name, Options, StoreError};

use crate::link::{Entry, Link, first, hex};

/// How often those who wait look.
const LOOK: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub(crate) struct Toy {
    pub(crate) link: Link,
    namespace: String,
    profile: Profile,
    environment: Environment,
}

impl Toy {
    pub(crate) async fn connect(url: &str, options: &Options) -> Result<Self, Error> {
        // What comes before an `@` would be a secret, elsewhere.
        let address = url.trim_start_matches("toy://").rsplit('@').next().unwrap_or_default();
        let toy = Self {
            link: Link::new(address),
            namespace: options.parsed_namespace()?.joined('/'),
            profile: Profile::new("toy", address, Expiry::Session),
            environment: options.to_environment(),
        };
        let give_up = toy.environment.clock.now() + options.within();
        tokio::select! {
            biased;
            answer = toy.link.ask("hello") => answer,
            () = toy.environment.clock.sleep_until(give_up) => Err(StoreError::unsent("no answer")),
        }
        .map_err(|error| Error::from_store(format!("connect to toy at {address}"), error))?;
        Ok(toy)
    }

    /// Until the next look of who waits or watches: nobody tells.
    async fn pause(&self) {
        let (clock, look) = (&self.environment.clock, self.environment.jitter(LOOK));
        clock.sleep_until(clock.now() + look).await;
    }

    fn claim(&self, session: &Session, claim: &Claim) -> String {
        let (key, nonce) = (self.key(claim.kind, &claim.name), claim.nonce.to_hex());
        format!("{key}/{}-{nonce}", session.id)
    }

    fn void(&self, session: &Session, claim: &Claim) -> String {
        format!("{}/void/{}-{}", self.namespace, session.id, claim.nonce.to_hex())
    }
}

#[async_trait]
impl Backend for Toy {
    fn profile(&self) -> &Profile {
        &self.profile
    }

    fn key(&self, kind: Kind, name: &Name) -> String {
        format!("{}/{kind}/{}", self.namespace, name.encoded())
    }

    async fn open(&self, ttl: Duration) -> Result<Session, StoreError> {
        let id = self.link.ask(&format!("open {}", ttl.as_millis())).await?;
        Ok(Session::new(id, ttl))
    }

    async fn close(&self, session: &Session) -> Result<(), StoreError> {
        self.link.ask(&format!("close {}", session.id)).await.map(drop)
    }

    async fn renew(&self, session: &Session, held: &[Held]) -> Result<Renewal, StoreError> {
        let answer = self.link.ask(&format!("renew {}", session.id)).await?;
        let mut lines = answer.lines();
        if lines.next() != Some("alive") {
            return Ok(Renewal::Ended);
        }
        let keys: std::collections::BTreeSet<&str> = lines.collect();
        let outcome = |held: &Held| match keys.contains(&*self.claim(session, &held.claim)) {
            true => (held.claim.nonce, Renewed::Extended(session.ttl)),
            false => (held.claim.nonce, Renewed::Lost),
        };
        Ok(Renewal::Alive { ttl: session.ttl, claims: held.iter().map(outcome).collect() })
    }

    async fn try_claim(
        &self,
        session: &Session,
        claim: &Claim,
        _ticket: Option<&Ticket>,
        _unanswered: bool,
    ) -> Result<Attempt, StoreError> {
        let (key, void) = (self.claim(session, claim), self.void(session, claim));
        let verb = if claim.queue { "add" } else { "first" };
        let record = hex(&claim.record);
        let answer = self.link.ask(&format!("{verb} {} {key} {record} {void}", session.id)).await?;
        match &*answer {
            "gone" => return Ok(Attempt::SessionEnded),
            "refused" => return Ok(Attempt::Anew),
            _ => {}
        }
        Ok(match first(&answer) {
            Some(first) if first.key == key => Attempt::Held(Grant {
                token: FencingToken::new(first.number),
                version: first.version,
                ttl: None,
            }),
            _ => Attempt::Blocked(Ticket { look_after: Some(LOOK * 20), ..Ticket::default() }),
        })
    }

    async fn wait(&self, session: &Session, claim: &Claim, _ticket: &Ticket) {
        let (ours, key) = (self.claim(session, claim), self.key(claim.kind, &claim.name));
        loop {
            self.pause().await;
            let answer = self.link.ask(&format!("list {key}")).await;
            if answer.is_ok_and(|answer| first(&answer).is_none_or(|first| first.key == ours)) {
                return;
            }
        }
    }

    async fn update(
        &self,
        session: &Session,
        claim: &Claim,
        grant: &Grant,
    ) -> Result<Updated, StoreError> {
        let (key, record) = (self.claim(session, claim), hex(&claim.record));
        let known = String::from_utf8_lossy(grant.version.as_bytes());
        match self.link.ask(&format!("set {key} {known} {record}")).await? {
            other if other == "other" => Ok(Updated::NotOurs),
            version => Ok(Updated::Done(Version::new(version.into_bytes()))),
        }
    }

    async fn end(
        &self,
        session: &Session,
        claim: &Claim,
        _grant: Option<&Grant>,
        unanswered: bool,
    ) -> Result<Ended, StoreError> {
        if unanswered {
            // First the marker, so that no late `add` comes after the deletion.
            let void = self.void(session, claim);
            self.link.ask(&format!("add {} {void} - -", session.id)).await?;
        }
        // The key names session and nonce, so it is nobody else's.
        match &*self.link.ask(&format!("delete {}", self.claim(session, claim))).await? {
            "deleted" => Ok(Ended::Released),
            _ => Ok(Ended::NotOurs),
        }
    }

    fn losses(&self, _session: &Session) -> Losses {
        Box::pin(tokio_stream::pending())
    }

    async fn holder(&self, kind: Kind, name: &Name) -> Result<Sighting, StoreError> {
        let answer = self.link.ask(&format!("list {}", self.key(kind, name))).await?;
        let Some(Entry { number, version, record, .. }) = first(&answer) else {
            return Ok(Sighting::default());
        };
        let token = Some(FencingToken::new(number));
        Ok(Sighting { version, holder: Some(Sighted { record, token }) })
    }

    async fn watch(&self, kind: Kind, name: &Name, seen: &Version) -> Result<Sighting, StoreError> {
        loop {
            let sighting = self.holder(kind, name).await?;
            if sighting.version != *seen {
                return Ok(sighting);
            }
            self.pause().await;
        }
    }
}
