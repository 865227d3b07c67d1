use crate::common::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use sync_core::backend::Expiry;
use sync_core::*;

async fn case(shutdown: bool) {
    let store = memory::Store::new();
    let (plan, f) = faulty(&store, Expiry::Session, true);
    let sync = Coordinator::new(
        Arc::new(f),
        &Options::new().ttl(Duration::from_secs(3)).slack(Duration::from_millis(500)),
    )
    .unwrap();
    let ended = Arc::new(AtomicBool::new(false));
    let lock = sync.lock("x");
    let e = Arc::clone(&ended);
    let began = Arc::new(tokio::sync::Notify::new());
    let b = began.clone();
    let body = tokio::spawn(async move {
        lock.run(|_| async move {
            b.notify_one();
            if !shutdown {
                tokio::time::sleep(Duration::from_millis(2200)).await;
            }
            tokio::task::block_in_place(|| std::thread::sleep(Duration::from_millis(800))); // work that cannot be stopped half-way
            e.store(true, Ordering::SeqCst);
        })
        .await
    });
    began.notified().await;
    let t = std::time::Instant::now();
    let other = store.connect(&Options::new()).unwrap();
    if shutdown {
        let s = sync.clone();
        tokio::spawn(async move { s.shutdown().await });
    } else {
        plan.always(Verb::Renew, Act::Unknown);
    }
    let _guard = other.lock("x").acquire().await.unwrap();
    let after = t.elapsed();
    let over = ended.load(Ordering::SeqCst);
    assert!(
        over || (!shutdown && after >= Duration::from_millis(2800)),
        "granted to another after {after:?}, while the body still runs and by our own release"
    );
    drop(body);
}
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn shutdown_releases_after_the_body_has_ended() {
    case(true).await;
}
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn at_the_deadline_the_margin_is_not_given_away() {
    case(false).await;
}
