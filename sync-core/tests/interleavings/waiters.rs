use crate::common::*;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use sync_core::backend::{Expiry, Loss};
use sync_core::*;
use tokio::sync::Notify;

/// "A session with less than ttl/3 left is renewed before anything is granted on it."
#[tokio::test]
async fn a_waiter_is_not_granted_on_a_session_that_is_nearly_over() {
    let w = world(Expiry::Session, true);
    let other = w.other();
    let first = other.lock("x").acquire().await.unwrap();
    let lock = w.sync.lock("x");
    let waiter = tokio::spawn(async move { lock.acquire().await });
    settle().await;
    w.plan.always(Verb::Renew, Act::Unknown);
    pass(&w.clock, Duration::from_millis(14_700)).await; // deadline of the session: 14.840
    drop(first);
    settle().await;
    if waiter.is_finished() {
        let guard = waiter.await.unwrap().unwrap();
        let left = guard.deadline().since(w.clock.now());
        assert!(left >= Duration::from_secs(5), "granted with {left:?} left of 15 s");
    }
}

/// try_acquire waits for nobody.
#[tokio::test]
async fn try_acquire_does_not_stand_behind_local_waiters() {
    let w = world(Expiry::Session, true);
    let a = w.sync.lock("x").acquire().await.unwrap();
    let lock = w.sync.lock("x");
    let b = tokio::spawn(async move { lock.acquire().await });
    settle().await;
    let gate = Arc::new(Notify::new());
    w.plan.next(Verb::End, Act::Slow(gate.clone()));
    drop(a);
    settle().await;
    let lock = w.sync.lock("x");
    let c = tokio::spawn(async move { lock.try_acquire().await });
    settle().await;
    gate.notify_one();
    settle().await;
    let _b = b.await.unwrap().unwrap(); // b has it now
    pass(&w.clock, Duration::from_millis(500)).await;
    assert!(c.is_finished(), "try_acquire still waits behind b, who holds it");
}

/// `shutdown`: "Unknown when the store has not confirmed all of it".
#[tokio::test]
async fn shutdown_does_not_say_ok_when_the_store_refused() {
    let w = world(Expiry::Session, true);
    let _g = w.sync.lock("x").acquire().await.unwrap();
    w.plan.always(Verb::End, Act::Refuse(ErrorKind::Denied));
    w.plan.always(Verb::Close, Act::Refuse(ErrorKind::Denied));
    let sync = w.sync.clone();
    let down = tokio::spawn(async move { sync.shutdown().await });
    pass(&w.clock, Duration::from_secs(8)).await;
    assert!(down.is_finished(), "shutdown goes on past its limit");
    let result = down.await.unwrap();
    assert!(result.is_err(), "Ok, with {:?} left in the store", w.store.keys());
}

/// `shutdown`: a session that is being opened is not waited for.
#[tokio::test]
async fn shutdown_waits_for_a_session_that_is_being_opened() {
    let w = world(Expiry::Session, true);
    let gate = Arc::new(Notify::new());
    w.plan.next(Verb::Open, Act::Slow(gate.clone()));
    let lock = w.sync.lock("x");
    let task = tokio::spawn(async move { lock.acquire().await });
    settle().await;
    let sync = w.sync.clone();
    let down = tokio::spawn(async move { sync.shutdown().await });
    settle().await;
    let early = down.is_finished();
    let waiter_told = task.is_finished();
    gate.notify_one();
    settle().await;
    assert!(
        !early,
        "shutdown said {:?} while a session was being opened (waiter told: {waiter_told}), closes: {}",
        down.await.unwrap(),
        w.plan.count(Verb::Close)
    );
}

/// Expiry::Claim: a session that has ended under a waiter
#[test]
fn a_waiter_on_an_ended_session_does_not_spin() {
    let rt =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let n = rt.block_on(async {
        let store = memory::Store::new();
        let (plan, f) = faulty(&store, Expiry::Claim, true);
        let sync = Coordinator::new(Arc::new(f), &Options::new()).unwrap();
        let other = store.connect(&Options::new()).unwrap();
        let _g = other.lock("x").acquire().await.unwrap();
        tokio::spawn(async move {
            let _ = sync.lock("x").acquire().await;
        });
        tokio::time::sleep(Duration::from_millis(50)).await;
        plan.tell(Loss::Session);
        let before = plan.count(Verb::Claim);
        tokio::time::sleep(Duration::from_millis(300)).await;
        plan.count(Verb::Claim) - before
    });
    rt.shutdown_background();
    assert!(n < 20, "{n} attempts in 300 ms");
}

/// A backend whose `wait` resolves at once while `try_claim` answers: the core has no floor.
#[test]
fn a_hint_that_always_resolves_is_paced() {
    let rt =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let n = rt.block_on(async {
        let store = memory::Store::new();
        let (plan, mut f) = faulty(&store, Expiry::Session, true);
        f.wait_at_once = true;
        let sync = Coordinator::new(Arc::new(f), &Options::new()).unwrap();
        let other = store.connect(&Options::new()).unwrap();
        let _g = other.lock("x").acquire().await.unwrap();
        tokio::spawn(async move {
            let _ = sync.lock("x").acquire().await;
        });
        tokio::time::sleep(Duration::from_millis(300)).await;
        plan.count(Verb::Claim)
    });
    rt.shutdown_background();
    assert!(n < 100, "{n} attempts in 300 ms");
}

/// Loss::Claim of a claim that waits: it goes on to be granted, is thrown away, and begins anew.
#[tokio::test]
async fn a_waiter_whose_place_was_removed_begins_anew_at_once() {
    let w = world(Expiry::Session, true);
    let other = w.other();
    let first = other.lock("x").acquire().await.unwrap();
    let lock = w.sync.lock("x");
    let waiter = tokio::spawn(async move { lock.acquire().await });
    settle().await;
    let nonce = *w.plan.nonces.lock().unwrap().last().unwrap();
    w.plan.tell(Loss::Claim(nonce));
    settle().await;
    let anew = *w.plan.nonces.lock().unwrap().last().unwrap();
    drop(first);
    settle().await;
    let _g = waiter.await.unwrap().unwrap();
    assert!(anew != nonce, "it stood in line under a nonce that cannot be granted any more");
}

/// After the runtime of the coordinator has gone nothing would renew and nothing be given back.
#[test]
fn acquire_on_another_runtime_says_that_the_first_has_ended() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (first, second) = (runtime(), runtime());
    let store = memory::Store::new();
    let sync = first.block_on(async { store.connect(&Options::new()).unwrap() });
    first.block_on(async { sync.lock("x").acquire().await.unwrap().release().await.unwrap() });
    drop(first);
    second.block_on(async {
        let lock = sync.lock("x");
        let again = tokio::time::timeout(Duration::from_secs(3), lock.acquire()).await.unwrap();
        assert_eq!(again.unwrap_err().kind(), ErrorKind::Closed);
    });
}

/// A renewal that says a claim is lost does not extend it first.
#[tokio::test]
async fn a_lost_claim_is_not_extended_by_the_answer_that_says_so() {
    let clock = Arc::new(HeldClock::new());
    let store = memory::Store::with_clock(clock.clone());
    let (_plan, f) = faulty(&store, Expiry::Session, false);
    let history = Arc::new(History::default());
    let o = Options::new()
        .environment(Environment::default().clock(clock.clone()).observer(history.clone()));
    let sync = Coordinator::new(Arc::new(f), &o).unwrap();
    let guard = sync.lock("x").acquire().await.unwrap();
    store.remove_key("sync/lock/x");
    pass(&clock, Duration::from_secs(6)).await;
    assert_eq!(guard.revocation().map(|r| r.cause), Some(Cause::Key));
    let events: Vec<_> = history.0.lock().unwrap().iter().map(|e| e.what).collect();
    assert!(!events.iter().any(|w| matches!(w, What::Extended { .. })), "{events:?}");
}

/// Void markers that the backend writes itself (`Attempt::Anew`) do not count.
#[tokio::test]
async fn shutdown_called_twice_at_once_waits_both_times() {
    let w = world(Expiry::Session, true);
    let _g = w.sync.lock("x").acquire().await.unwrap();
    let gate = Arc::new(Notify::new());
    w.plan.next(Verb::Close, Act::Slow(gate.clone()));
    let (a, b) = (w.sync.clone(), w.sync.clone());
    let a = tokio::spawn(async move { a.shutdown().await });
    let b = tokio::spawn(async move { b.shutdown().await });
    settle().await;
    assert!(!a.is_finished() && !b.is_finished());
    gate.notify_one();
    settle().await;
    assert!(a.is_finished() && b.is_finished());
    let _ = w.plan.waits.load(Ordering::SeqCst);
}
