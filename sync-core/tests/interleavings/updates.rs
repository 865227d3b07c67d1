use crate::common::*;
use std::sync::Arc;
use std::time::Duration;
use sync_core::backend::Expiry;
use sync_core::*;
use tokio::sync::Notify;

/// The read-back after an unanswered update is `try_claim`: where the key has gone it makes it anew.
#[tokio::test]
async fn an_unanswered_update_takes_a_lost_leadership_back_under_another_token() {
    let w = world(Expiry::Session, false); // the store does not tell of lost keys at once
    let leader = w.sync.leader("x");
    let elected = leader.elect().await.unwrap();
    let (hold, token) = (elected.hold(), elected.token());
    w.plan.next(Verb::Update, Act::Swallow);
    let update = tokio::spawn(async move {
        let r = elected.update(Node::new("new")).await;
        (elected, r)
    });
    settle().await;
    // An operator removes the key; another leads for a term, and resigns.
    assert!(w.store.remove_key("sync/leader/x"));
    let other = w.other();
    let between = other.leader("x").try_elect().await.unwrap().unwrap();
    assert!(between.token() > token);
    between.resign().await.unwrap();
    pass(&w.clock, Duration::from_secs(30)).await;
    let (_elected, result) = update.await.unwrap();
    let stands = w.sync.leader("x").leader().await.unwrap().map(|h| h.token);
    assert!(
        hold.revocation().is_some(),
        "lost, and never told: update said {result:?}, the guard has token {token}, the store {stands:?}"
    );
}

/// Update A is never answered and given up; update B reads back, A lands, B's compare fails.
#[tokio::test]
async fn a_late_update_of_ones_own_does_not_depose_the_leader() {
    let w = world(Expiry::Session, true);
    let elected = w.sync.leader("x").elect().await.unwrap();
    let gate = Arc::new(Notify::new());
    w.plan.next(Verb::Update, Act::Ghost(gate.clone()));
    // A's retries do not get through.
    w.plan.next(Verb::Claim, Act::Refuse(ErrorKind::Denied));
    let hold = elected.hold();
    let task = tokio::spawn(async move {
        let r = elected.update(Node::new("A")).await;
        (elected, r)
    });
    pass(&w.clock, Duration::from_secs(8)).await;
    let (elected, a) = task.await.unwrap();
    let _ = a;
    // B: reads back, then A lands while B's own request is on its way.
    let slow = Arc::new(Notify::new());
    w.plan.next(Verb::Update, Act::Slow(slow.clone()));
    let task = tokio::spawn(async move {
        let r = elected.update(Node::new("B")).await;
        (elected, r)
    });
    settle().await;
    gate.notify_one();
    settle().await;
    slow.notify_one();
    settle().await;
    pass(&w.clock, Duration::from_secs(2)).await;
    let (_elected, b) = task.await.unwrap();
    assert!(hold.is_valid(), "deposed by its own late update: {b:?}, {:?}", hold.revocation());
}
