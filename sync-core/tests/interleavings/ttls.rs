use crate::common::*;
use std::sync::Arc;
use std::time::Duration;
use sync_core::backend::Expiry;
use sync_core::*;

fn case(expiry: Expiry, ttl: u64, slack: u64, verb: Verb) -> (usize, bool) {
    let rt =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (plan, finished) = rt.block_on(async {
        let store = memory::Store::new();
        let (plan, f) = faulty(&store, expiry, true);
        let o = Options::new().slack(Duration::from_millis(slack));
        let sync = Coordinator::new(Arc::new(f), &o).unwrap();
        let task = tokio::spawn(async move {
            sync.lock("x").ttl(Duration::from_millis(ttl)).acquire().await.map(drop)
        });
        tokio::time::sleep(Duration::from_millis(500)).await;
        (plan, task.is_finished())
    });
    let n = plan.count(verb);
    rt.shutdown_background();
    (n, finished)
}

#[test]
fn session_expiry_ttl_below_the_margin_opens_sessions_in_a_hot_loop() {
    let (opens, finished) = case(Expiry::Session, 10, 10, Verb::Open);
    assert!(finished && opens < 10, "{opens} sessions opened in 500 ms, finished: {finished}");
}
#[test]
fn session_expiry_ttl_near_the_margin_hangs() {
    let (opens, finished) = case(Expiry::Session, 14, 10, Verb::Open);
    assert!(finished, "acquire hangs ({opens} opens)");
}
#[test]
fn claim_expiry_ttl_below_the_margin_claims_in_a_hot_loop() {
    let (n, finished) = case(Expiry::Claim, 100, 200, Verb::Claim);
    assert!(finished && n < 10, "{n} attempts in 500 ms, finished: {finished}");
}
