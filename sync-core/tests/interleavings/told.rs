//! What a subscriber is told: a span for each acquire and campaign, and an event for what becomes
//! of a claim.

use std::fmt::{Debug, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sync_core::backend::{Backend, Expiry, Loss};
use sync_core::{Cause, HeldClock, Kind, Name, Namespace, Options, memory};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use crate::common::{Act, Verb, pass, settle, world};

/// Writes down each span, each later field of it, and each event, as `name field=value …`.
#[derive(Clone, Default)]
struct Notes {
    lines: Arc<Mutex<Vec<String>>>,
    spans: Arc<AtomicU64>,
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        match field.name() {
            "message" => write!(self.0, "{value:?}").unwrap(),
            name => write!(self.0, " {name}={value:?}").unwrap(),
        }
    }
}

impl Notes {
    fn note(&self, name: &str, record: impl FnOnce(&mut Line)) {
        let mut line = Line(name.to_owned());
        record(&mut line);
        self.lines.lock().unwrap().push(line.0);
    }

    fn has(&self, words: &[&str]) -> bool {
        let lines = self.lines.lock().unwrap();
        lines.iter().any(|line| words.iter().all(|word| line.contains(word)))
    }

    fn assert_has(&self, words: &[&str]) {
        assert!(self.has(words), "{words:?} in none of {:#?}", self.lines.lock().unwrap());
    }
}

impl Subscriber for Notes {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("sync_core")
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        self.note(span.metadata().name(), |line| span.record(line));
        Id::from_u64(self.spans.fetch_add(1, Ordering::Relaxed) + 1)
    }

    fn record(&self, _: &Id, values: &Record<'_>) {
        self.note("recorded", |line| values.record(line));
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        self.note("", |line| event.record(line));
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[tokio::test]
async fn spans_and_events_tell_what_becomes_of_a_claim() {
    let notes = Notes::default();
    let _listening = tracing::subscriber::set_default(notes.clone());
    let clock = Arc::new(HeldClock::new());
    let store = memory::Store::with_clock(Arc::clone(&clock) as _);
    let environment = sync_core::Environment::default().clock(Arc::clone(&clock) as _);
    let options = Options::new().environment(environment);
    let (sync, other) = (store.connect(&options).unwrap(), store.connect(&options).unwrap());

    let first = other.lock("report").acquire().await.unwrap();
    let waiter = tokio::spawn({
        let lock = sync.lock("report");
        async move { lock.acquire().await.unwrap() }
    });
    settle().await;
    clock.advance(Duration::from_millis(1_500));
    first.release().await.unwrap();
    let guard = waiter.await.unwrap();
    notes.assert_has(&["acquire", "name=report"]);
    notes.assert_has(&["recorded", "waited_ms=1500"]);
    notes.assert_has(&["recorded", &format!("token={}", guard.token())]);
    notes.assert_has(&["granted", "name=\"report\""]);

    clock.advance(Duration::from_secs(5));
    settle().await;
    notes.assert_has(&["renewed", "claims=1"]);

    let elected = sync.leader("report").elect().await.unwrap();
    notes.assert_has(&["campaign", "name=report"]);

    store.remove_key("sync/lock/report");
    assert_eq!(guard.revoked().await.cause, Cause::Key);
    settle().await;
    notes.assert_has(&["revoked", "cause=\"key\"", "name=\"report\""]);

    elected.resign().await.unwrap();
    notes.assert_has(&["released", "name=\"report\""]);

    // No nonce and no session id, which whoever knows them could misuse.
    let seen = store.backend(&Namespace::default());
    let name = Name::parse("report").unwrap();
    let again = sync.lock("report").acquire().await.unwrap();
    let record = seen.holder(Kind::Lock, &name).await.unwrap().holder.unwrap().record;
    let nonce = sync_core::record_nonce(&record).unwrap();
    drop(again);
    settle().await;
    assert!(!notes.has(&[&nonce.to_hex()]));
    assert!(!notes.has(&["session-1"]));
    assert!(!format!("{:?}", Loss::Claim(nonce)).contains(&nonce.to_hex()));
}

#[tokio::test]
async fn a_renewal_that_fails_is_told() {
    let notes = Notes::default();
    let _listening = tracing::subscriber::set_default(notes.clone());
    let w = world(Expiry::Session, true);
    let guard = w.sync.lock("report").acquire().await.unwrap();
    w.plan.always(Verb::Renew, Act::Unknown);
    pass(&w.clock, Duration::from_secs(6)).await;
    notes.assert_has(&["renewal failed", "error=Renew unknown"]);
    pass(&w.clock, Duration::from_secs(10)).await;
    assert_eq!(guard.revoked().await.cause, Cause::Deadline);
    notes.assert_has(&["revoked", "cause=\"deadline\"", "name=\"report\""]);
}
