//! A key is used again, by its own session and by others.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Client, GetOptions, PutOptions};
use sync_conformance::{Failed, Server, server};
use sync_core::backend::{Attempt, Claim, Ended, Grant, Session, Ticket};
use sync_core::{Backend, Environment, Kind, Name};
use sync_etcd::{Config, Etcd};
use tokio::time::timeout;

const TTL: Duration = Duration::from_secs(60);

/// A server, the backend, and a client beside it.
struct Field {
    _server: Server,
    etcd: Etcd,
    client: Client,
}

impl Field {
    async fn new() -> Result<Self, Failed> {
        let server = server::etcd(1, &[]).start().await?;
        let etcd = Config::new(server.url()).backend().await?;
        let client = Client::connect([server.url()], None).await?;
        Ok(Self { _server: server, etcd, client })
    }

    /// The keys of the name's line, with what created each.
    async fn line(&self) -> Result<Vec<(String, i64)>, Failed> {
        let prefix = format!("{}/", self.etcd.key(Kind::Lock, &name()?));
        let mut client = self.client.kv_client();
        let keys = client.get(prefix, Some(GetOptions::new().with_prefix())).await?.take_kvs();
        let shown = |key: &etcd_client::KeyValue| {
            (String::from_utf8_lossy(key.key()).into_owned(), key.create_revision())
        };
        Ok(keys.iter().map(shown).collect())
    }

    async fn take(&self, session: &Session, claim: &Claim) -> Result<Grant, Failed> {
        match self.etcd.try_claim(session, claim, None, false).await? {
            Attempt::Held(grant) => Ok(grant),
            other => Err(format!("not held: {other:?}"))?,
        }
    }

    async fn join(&self, session: &Session, claim: &Claim) -> Result<Ticket, Failed> {
        match self.etcd.try_claim(session, claim, None, false).await? {
            Attempt::Blocked(ticket) => Ok(ticket),
            other => Err(format!("not blocked: {other:?}"))?,
        }
    }
}

fn name() -> Result<Name, Failed> {
    Ok(Name::parse("again")?)
}

fn claim() -> Result<Claim, Failed> {
    let nonce = Environment::default().nonce()?;
    let record = format!(r#"{{"id":"x","since":1,"nonce":"{}"}}"#, nonce.to_hex());
    Ok(Claim::new(Kind::Lock, name()?, nonce, Arc::from(record.into_bytes()), true))
}

#[tokio::test]
async fn a_name_is_taken_again_by_the_same_key() -> Result<(), Failed> {
    let field = Field::new().await?;
    let session = field.etcd.open(TTL).await?;
    let mut before: Option<(String, i64)> = None;
    for _ in 0..3 {
        let claim = claim()?;
        let grant = field.take(&session, &claim).await?;
        let [(key, created)] = &field.line().await?[..] else { return Err("one key")? };
        assert_eq!(u64::try_from(*created)?, grant.token.get());
        if let Some((earlier, revision)) = before {
            assert_eq!(*key, earlier);
            assert!(*created > revision, "its token has grown");
        }
        before = Some((key.clone(), *created));
        // While it is held, another claim of the session has a key of its own.
        let other = self::claim()?;
        field.join(&session, &other).await?;
        assert_eq!(field.line().await?.len(), 2);
        assert_eq!(field.etcd.end(&session, &other, None, false).await?, Ended::Released);
        let ended = field.etcd.end(&session, &claim, Some(&grant), false).await?;
        assert_eq!(ended, Ended::Released);
        // A late repeat of that takes nothing away from the next.
        let next = self::claim()?;
        let granted = field.take(&session, &next).await?;
        let ended = field.etcd.end(&session, &claim, Some(&grant), false).await?;
        assert_eq!((ended, field.line().await?.len()), (Ended::NotOurs, 1));
        assert_eq!(field.etcd.end(&session, &next, Some(&granted), false).await?, Ended::Released);
    }
    Ok(())
}

#[tokio::test]
async fn the_key_of_a_claim_that_was_abandoned_is_not_used_again() -> Result<(), Failed> {
    let field = Field::new().await?;
    let session = field.etcd.open(TTL).await?;
    let mut seen: Vec<String> = Vec::new();
    for unanswered in [false, true, false] {
        let claim = claim()?;
        let grant = field.take(&session, &claim).await?;
        let [(key, _)] = &field.line().await?[..] else { return Err("one key")? };
        seen.push(key.clone());
        field.etcd.end(&session, &claim, Some(&grant), unanswered).await?;
    }
    assert_eq!(seen[0], seen[1]);
    assert_ne!(seen[1], seen[2], "a late request may put it yet");
    Ok(())
}

/// Go's clients and `etcdctl` name their key by their lease alone: it is the same each time.
#[tokio::test]
async fn a_key_that_was_put_again_is_not_waited_for() -> Result<(), Failed> {
    let field = Field::new().await?;
    let mut go = field.client.clone();
    let lease = go.lease_grant(60, None).await?.id();
    let key = format!("{}/{lease:x}", field.etcd.key(Kind::Lock, &name()?));
    let put = || Some(PutOptions::new().with_lease(lease));
    go.put(key.as_str(), "", put()).await?;

    let session = field.etcd.open(TTL).await?;
    let claim = claim()?;
    let ticket = field.join(&session, &claim).await?;
    // It gives back and stands in line again before the watch is open: behind the claim.
    go.delete(key.as_str(), None).await?;
    go.put(key.as_str(), "", put()).await?;
    let waiting = field.etcd.wait(&session, &claim, &ticket);
    timeout(Duration::from_secs(10), waiting).await.map_err(|_| "it waits for who comes later")?;
    let attempt = field.etcd.try_claim(&session, &claim, Some(&ticket), false).await?;
    assert!(matches!(attempt, Attempt::Held(_)), "{attempt:?}");
    Ok(())
}
