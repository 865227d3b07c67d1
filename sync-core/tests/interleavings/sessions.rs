use crate::common::*;
use std::time::Duration;
use sync_core::backend::Expiry;
use sync_core::*;

/// A refusal that no repetition heals is told at once.
#[tokio::test]
async fn a_denied_release_says_so_at_once() {
    let w = world(Expiry::Session, true);
    let guard = w.sync.lock("x").acquire().await.unwrap();
    w.plan.always(Verb::End, Act::Refuse(ErrorKind::Denied));
    let began = w.clock.now();
    let task = tokio::spawn(async move { guard.release().await });
    while !task.is_finished() {
        pass(&w.clock, Duration::from_millis(100)).await;
    }
    let took = w.clock.now().since(began);
    assert_eq!(task.await.unwrap().unwrap_err().kind(), ErrorKind::Denied);
    assert!(took < Duration::from_secs(1), "told after {took:?}");
}

/// A TTL that nobody uses any more keeps no session.
#[tokio::test]
async fn sessions_of_unused_ttls_do_not_pile_up() {
    let w = world(Expiry::Session, true);
    for i in 0..50 {
        let lock = w.sync.lock("x").ttl(Duration::from_millis(15_000 + i));
        lock.acquire().await.unwrap().release().await.unwrap();
    }
    pass(&w.clock, Duration::from_secs(60)).await;
    let before = w.plan.count(Verb::Renew);
    pass(&w.clock, Duration::from_secs(15)).await;
    let n = w.plan.count(Verb::Renew) - before;
    assert!(n <= 6, "{n} renewals in 15 s, nothing is held and no handle exists");
}
