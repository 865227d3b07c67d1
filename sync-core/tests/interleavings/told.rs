//! What a subscriber is told: a span for each acquire and campaign, and an event for what becomes
//! of a claim.

use std::fmt::{Debug, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use sync_core::backend::{Backend, Expiry, Loss};
use sync_core::{Cause, ErrorKind, HeldClock, Kind, Name, Namespace, Node, Options, memory};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::DefaultGuard;
use tracing::{Dispatch, Event, Metadata, Subscriber};

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

fn listen() -> (Notes, DefaultGuard) {
    // Where there is but one, tracing asks the thread that comes by first whether a place in the
    // code is told of at all; and that may be another test's, which listens to nothing.
    static ANOTHER: OnceLock<Dispatch> = OnceLock::new();
    ANOTHER.get_or_init(|| Dispatch::new(Notes::default()));
    let notes = Notes::default();
    let guard = tracing::subscriber::set_default(notes.clone());
    (notes, guard)
}

#[tokio::test]
async fn spans_and_events_tell_what_becomes_of_a_claim() {
    let (notes, _listening) = listen();
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
    let (notes, _listening) = listen();
    let w = world(Expiry::Session, true);
    let guard = w.sync.lock("report").acquire().await.unwrap();
    w.plan.always(Verb::Renew, Act::Unknown);
    pass(&w.clock, Duration::from_secs(6)).await;
    notes.assert_has(&["renewal failed", "error=Renew unknown", " left=9."]);
    pass(&w.clock, Duration::from_secs(10)).await;
    assert_eq!(guard.revoked().await.cause, Cause::Deadline);
    notes.assert_has(&["revoked", "cause=\"deadline\"", "name=\"report\""]);
}

/// The log is not all: whoever is told of the loss finds the reason in the error.
#[tokio::test]
async fn the_error_of_what_was_not_renewed_says_why() {
    for expiry in [Expiry::Session, Expiry::Claim] {
        let w = world(expiry, true);
        let lock = w.sync.lock("report");
        let guard = lock.acquire().await.unwrap();
        let elected = w.sync.leader("report").elect().await.unwrap();
        let running = tokio::spawn({
            let lock = w.sync.lock("nightly");
            async move { lock.run(|_| std::future::pending::<()>()).await.unwrap_err() }
        });
        settle().await;
        w.plan.always(Verb::Renew, Act::Refuse(ErrorKind::Denied));
        pass(&w.clock, Duration::from_secs(16)).await;
        w.plan.always(Verb::Renew, Act::Pass);
        // Whatever becomes of others on the same session meanwhile.
        let other = w.sync.lock("other").acquire().await.unwrap();
        pass(&w.clock, Duration::from_secs(6)).await;
        assert!(other.is_valid());
        for error in [
            elected.update(Node::new("n")).await.unwrap_err(),
            elected.resign().await.unwrap_err(),
            guard.release().await.unwrap_err(),
            running.await.unwrap(),
        ] {
            assert_eq!(error.kind(), ErrorKind::Lost, "{error}");
            assert_eq!(error.revocation().unwrap().cause, Cause::Deadline);
            let why =
                "no renewal succeeded before the deadline: the last one failed: Renew refused";
            assert!(error.to_string().ends_with(why), "{expiry:?}: {error}");
        }
        // What is lost for another reason has nothing to do with renewals.
        w.plan.next(Verb::Renew, Act::Unknown);
        pass(&w.clock, Duration::from_secs(5)).await;
        w.plan.tell(Loss::Session);
        settle().await;
        let error = other.release().await.unwrap_err();
        assert!(!error.to_string().contains("renewal"), "{error}");
    }
}
