use crate::common::*;
use async_trait::async_trait;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};
use sync_core::backend::{Expiry, Loss};
use sync_core::*;

/// shutdown: "who waits gets an error of kind Closed", also between two entries
#[tokio::test]
async fn shutdown_tells_who_waits_for_an_entry_of_his_own_to_end() {
    let w = world(Expiry::Session, true);
    let other = w.other();
    let first = other.lock("x").acquire().await.unwrap();
    let lock = w.sync.lock("x");
    let waiter = tokio::spawn(async move { lock.acquire().await });
    settle().await;
    let nonce = *w.plan.nonces.lock().unwrap().last().unwrap();
    w.plan.always(Verb::End, Act::Unknown);
    w.plan.tell(Loss::Claim(nonce));
    settle().await;
    drop(first);
    settle().await;
    let sync = w.sync.clone();
    let down = tokio::spawn(async move { sync.shutdown().await });
    pass(&w.clock, Duration::from_secs(6)).await;
    assert!(down.is_finished());
    assert!(waiter.is_finished(), "still waiting 6 s after the shutdown began");
}

/// the same while the session is short and its renewal fails
#[tokio::test]
async fn shutdown_tells_who_waits_for_a_renewal() {
    let w = world(Expiry::Session, true);
    let _held = w.sync.lock("y").ttl(Duration::from_secs(60)).acquire().await.unwrap();
    w.plan.always(Verb::Renew, Act::Unknown);
    pass(&w.clock, Duration::from_secs(42)).await;
    let lock = w.sync.lock("x").ttl(Duration::from_secs(60));
    let waiter = tokio::spawn(async move { lock.acquire().await });
    settle().await;
    assert!(!waiter.is_finished());
    let sync = w.sync.clone();
    let _down = tokio::spawn(async move { sync.shutdown().await });
    w.plan.always(Verb::End, Act::Unknown); // the store cannot be reached
    w.plan.always(Verb::Close, Act::Unknown);
    pass(&w.clock, Duration::from_secs(6)).await;
    assert!(waiter.is_finished(), "still waiting 6 s after the shutdown began");
}

/// What a store grants is not to be believed without bounds.
#[tokio::test]
async fn an_absurd_ttl_does_not_panic_the_caller() {
    let store = memory::Store::new();
    let (_plan, mut f) = faulty(&store, Expiry::Session, true);
    f.grants = Some(Duration::from_secs(i64::MAX as u64)); // etcd's TTL is an i64
    let sync = Coordinator::new(Arc::new(f), &Options::new()).unwrap();
    let got = tokio::time::timeout(Duration::from_secs(2), sync.lock("x").acquire()).await;
    assert!(got.is_ok(), "acquire hangs");
}

#[test]
fn a_granted_ttl_of_zero_does_not_open_sessions_in_a_hot_loop() {
    let rt =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let n = rt.block_on(async {
        let store = memory::Store::new();
        let (plan, mut f) = faulty(&store, Expiry::Session, true);
        f.grants = Some(Duration::ZERO);
        let sync = Coordinator::new(Arc::new(f), &Options::new()).unwrap();
        tokio::spawn(async move {
            let _ = sync.lock("x").acquire().await;
        });
        tokio::time::sleep(Duration::from_millis(300)).await;
        plan.count(Verb::Open)
    });
    rt.shutdown_background();
    assert!(n < 20, "{n} sessions opened in 300 ms");
}

#[tokio::test]
async fn update_after_a_shutdown_says_closed_like_resign() {
    let w = world(Expiry::Session, true);
    let elected = w.sync.leader("x").elect().await.unwrap();
    w.sync.shutdown().await.unwrap();
    let kind = elected.update(Node::new("b")).await.unwrap_err().kind();
    assert_eq!(kind, elected.resign().await.unwrap_err().kind());
}

#[tokio::test]
async fn a_run_that_a_shutdown_ends_says_so_and_not_that_it_could_not_campaign() {
    let w = world(Expiry::Session, true);
    let leader = w.sync.leader("x");
    let running =
        tokio::spawn(
            async move { leader.run(|_| std::future::pending::<()>()).await.unwrap_err() },
        );
    settle().await;
    w.sync.shutdown().await.unwrap();
    let error = running.await.unwrap();
    assert_eq!(error.kind(), ErrorKind::Closed);
    assert_eq!(error.revocation().unwrap().cause, Cause::Closed);
    let text = "could not go on as leader \"x\" on faulty at here: the coordinator was shut down";
    assert_eq!(error.to_string(), text);
}

#[derive(Debug)]
struct Counting(BootClock, AtomicUsize);
#[async_trait]
impl Clock for Counting {
    fn now(&self) -> Moment {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.now()
    }
    fn wall(&self) -> SystemTime {
        self.0.wall()
    }
    async fn sleep_until(&self, at: Moment) {
        self.0.sleep_until(at).await;
    }
}

/// Only under `--cfg sync_mutants` with SYNC_MUTANT=late-reply-revives.
#[test]
fn the_driver_does_not_spin() {
    let rt =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let n = rt.block_on(async {
        let clock = Arc::new(Counting(BootClock::new(), AtomicUsize::new(0)));
        let store = memory::Store::new();
        let (plan, f) = faulty(&store, Expiry::Session, false);
        let o = Options::new()
            .ttl(Duration::from_millis(300))
            .environment(Environment::default().clock(clock.clone()));
        let sync = Coordinator::new(Arc::new(f), &o).unwrap();
        let _g = sync.lock("x").acquire().await.unwrap();
        plan.always(Verb::Renew, Act::Unknown);
        tokio::time::sleep(Duration::from_millis(400)).await;
        let before = clock.1.load(Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(300)).await;
        clock.1.load(Ordering::Relaxed) - before
    });
    rt.shutdown_background();
    assert!(n < 2000, "the clock was read {n} times in 300 ms");
}
