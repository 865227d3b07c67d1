use crate::common::*;
use std::sync::Arc;
use std::time::Duration;
use sync_core::backend::Expiry;
use sync_core::*;
use tokio::sync::Notify;

fn quick(w: &World) -> Lock {
    w.sync.lock("x").ttl(Duration::from_secs(1))
}

/// late grant, then a settled refusal: `left_nothing` forgets the grant
#[tokio::test]
async fn a_late_grant_followed_by_a_refusal_is_given_back() {
    let w = world(Expiry::Claim, true);
    let gate = Arc::new(Notify::new());
    w.plan.next(Verb::Claim, Act::Slow(gate.clone()));
    w.plan.next(Verb::Claim, Act::Refuse(ErrorKind::Unreachable));
    let lock = quick(&w);
    let task = tokio::spawn(async move { lock.try_acquire().await });
    settle().await;
    // SIGSTOP, or a busy machine: answer and time limit are both there at the next poll.
    gate.notify_one();
    w.clock.advance(Duration::from_millis(995));
    settle().await;
    pass(&w.clock, Duration::from_secs(5)).await;
    let result = task.await.unwrap();
    assert!(result.is_err(), "{result:?}");
    assert_eq!(
        w.store.keys(),
        Vec::<String>::new(),
        "left behind ({} ends)",
        w.plan.count(Verb::End)
    );
}

/// late grant, the next attempt on its way, shutdown: `end` runs beside `try_claim`
#[tokio::test]
async fn shutdown_during_the_second_ask_leaves_nothing() {
    let w = world(Expiry::Claim, true);
    let (gate, second) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    w.plan.next(Verb::Claim, Act::Slow(gate.clone()));
    w.plan.next(Verb::Claim, Act::Slow(second.clone()));
    let lock = quick(&w);
    let task = tokio::spawn(async move { lock.acquire().await });
    settle().await;
    gate.notify_one();
    w.clock.advance(Duration::from_millis(995));
    settle().await;
    assert_eq!(w.plan.count(Verb::Claim), 2);
    let sync = w.sync.clone();
    let down = tokio::spawn(async move { sync.shutdown().await });
    settle().await;
    second.notify_one();
    settle().await;
    pass(&w.clock, Duration::from_secs(5)).await;
    let result = task.await.unwrap();
    down.await.unwrap().unwrap();
    assert!(result.is_err());
    let overlaps = w.plan.overlaps.lock().unwrap().clone();
    assert!(
        w.store.keys().is_empty() && overlaps.is_empty(),
        "keys {:?}, calls beside each other {overlaps:?}",
        w.store.keys()
    );
}
