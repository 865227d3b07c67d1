use crate::common::*;
use std::time::Duration;
use sync_core::ErrorKind;
use sync_core::backend::Expiry;

async fn run(act: Act, outage: u64) {
    let w = world(Expiry::Session, true);
    let guard = w.sync.lock("x").acquire().await.unwrap();
    w.plan.always(Verb::End, act); // renewals go on: the session lives
    drop(guard);
    pass(&w.clock, Duration::from_secs(outage)).await;
    w.plan.always(Verb::End, Act::Pass); // healed
    pass(&w.clock, Duration::from_secs(300)).await;
    let other = w.other();
    let got = other.lock("x").try_acquire().await.unwrap();
    assert!(
        got.is_some(),
        "the name is blocked for as long as this process lives: {:?}",
        w.store.keys()
    );
}

#[tokio::test]
async fn a_release_denied_once_blocks_the_name_for_ever() {
    run(Act::Refuse(ErrorKind::Denied), 1).await;
}

#[tokio::test]
async fn a_release_unanswered_for_70_s_blocks_the_name_for_ever() {
    run(Act::Unknown, 70).await;
}
