use crate::common::*;
use std::sync::Arc;
use std::time::Duration;
use sync_core::backend::Expiry;
use sync_core::*;
use tokio::sync::Notify;

/// The session's close would free the name, and is never sent since an end is refused for ever.
#[tokio::test]
async fn shutdown_closes_the_session_although_an_end_is_refused() {
    let w = world(Expiry::Session, true);
    let _g = w.sync.lock("x").acquire().await.unwrap();
    w.plan.always(Verb::End, Act::Refuse(ErrorKind::Denied));
    let sync = w.sync.clone();
    let down = tokio::spawn(async move { sync.shutdown().await });
    pass(&w.clock, Duration::from_secs(300)).await;
    assert!(down.is_finished());
    assert!(
        w.store.keys().is_empty(),
        "5 minutes after the shutdown: {:?}, {} renewals, {} closes",
        w.store.keys(),
        w.plan.count(Verb::Renew),
        w.plan.count(Verb::Close)
    );
}

#[tokio::test]
async fn the_last_handle_gone_closes_the_session_although_an_end_is_refused() {
    let w = world(Expiry::Session, true);
    let g = w.sync.lock("x").acquire().await.unwrap();
    w.plan.always(Verb::End, Act::Refuse(ErrorKind::Denied));
    let World { clock, store, plan, sync } = w;
    drop((g, sync));
    pass(&clock, Duration::from_secs(300)).await;
    assert!(
        store.keys().is_empty(),
        "{:?}, {} renewals, {} closes",
        store.keys(),
        plan.count(Verb::Renew),
        plan.count(Verb::Close)
    );
}

/// Two wait for a session; shutdown; the second opens one afterwards.
#[tokio::test]
async fn nothing_is_opened_after_shutdown_has_said_ok() {
    let w = world(Expiry::Session, true);
    let gate = Arc::new(Notify::new());
    w.plan.next(Verb::Open, Act::Slow(gate.clone()));
    for name in ["a", "b"] {
        let lock = w.sync.lock(name);
        tokio::spawn(async move { lock.acquire().await });
    }
    settle().await;
    let sync = w.sync.clone();
    let down = tokio::spawn(async move { sync.shutdown().await });
    settle().await;
    w.plan.always(Verb::Open, Act::Slow(Arc::new(Notify::new()))); // whatever opens later shows
    gate.notify_one();
    settle().await;
    pass(&w.clock, Duration::from_secs(1)).await;
    assert!(down.is_finished());
    let said = down.await.unwrap();
    assert_eq!(
        w.plan.count(Verb::Open),
        1,
        "shutdown said {said:?}, and another session is being opened"
    );
}

/// One session that cannot be closed does not make shutdown return before the others are.
#[tokio::test]
async fn shutdown_waits_for_all_sessions() {
    let w = world(Expiry::Session, true);
    let _a = w.sync.lock("a").acquire().await.unwrap();
    let _b = w.sync.lock("b").ttl(Duration::from_secs(30)).acquire().await.unwrap();
    let gate = Arc::new(Notify::new());
    w.plan.next(Verb::Close, Act::Refuse(ErrorKind::Denied));
    w.plan.next(Verb::Close, Act::Slow(gate.clone()));
    let sync = w.sync.clone();
    let down = tokio::spawn(async move { sync.shutdown().await });
    settle().await;
    assert!(
        !down.is_finished(),
        "said {:?} while the other session is still being closed",
        down.await.unwrap()
    );
}
