//! Mutual exclusion: among tasks, coordinators and processes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use sync_core::backend::Attempt;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::common::{claim, granted};
use crate::context::Context;
use crate::failed::Failed;
use crate::suite::{Case, Need};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::new(a_second_coordinator_waits),
        Case::new(an_owner_who_asks_again_waits_like_any_other),
        Case::new(many_tasks_of_one_coordinator),
        Case::new(many_coordinators),
        Case::new(many_processes).needs(&[Need::SecondProcess]),
        Case::new(two_claims_of_one_session_exclude_each_other),
    ]
}

async fn a_second_coordinator_waits(ctx: Context) -> Result<(), Failed> {
    let (one, two) = (ctx.coordinator().await?, ctx.coordinator().await?);
    let guard = one.lock("x").acquire().await?;
    assert!(two.lock("x").try_acquire().await?.is_none());
    let waiter = tokio::spawn(async move { two.lock("x").acquire().await });
    sleep(Duration::from_millis(300)).await;
    assert!(!waiter.is_finished());
    assert!(guard.is_valid());
    let first = guard.token();
    guard.release().await?;
    let second = waiter.await??;
    assert!(second.token() > first);
    second.release().await?;
    ctx.assert_nothing_left().await
}

async fn an_owner_who_asks_again_waits_like_any_other(ctx: Context) -> Result<(), Failed> {
    let sync = ctx.coordinator().await?;
    let guard = sync.lock("x").acquire().await?;
    assert!(sync.lock("x").try_acquire().await?.is_none());
    assert!(sync.lock("x").wait(Duration::from_millis(100)).acquire().await.is_err());
    assert!(guard.is_valid());
    guard.release().await?;
    sync.lock("x").acquire().await?.release().await?;
    ctx.assert_nothing_left().await
}

async fn many_tasks_of_one_coordinator(ctx: Context) -> Result<(), Failed> {
    let sync = ctx.coordinator().await?;
    let inside = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..16 {
        tasks.spawn(take_turns(sync.clone(), Arc::clone(&inside), 5));
    }
    while let Some(task) = tasks.join_next().await {
        task??;
    }
    assert_eq!(ctx.judge()?.grants, 80);
    ctx.assert_nothing_left().await
}

async fn many_coordinators(ctx: Context) -> Result<(), Failed> {
    let inside = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..8 {
        let sync = ctx.coordinator().await?;
        tasks.spawn(take_turns(sync, Arc::clone(&inside), 10));
    }
    while let Some(task) = tasks.join_next().await {
        task??;
    }
    let report = ctx.judge()?;
    assert_eq!(report.grants, 80);
    assert!(report.handovers >= 7, "{report}");
    ctx.assert_nothing_left().await
}

/// Takes `x` so many times and sees to it that nobody else is inside.
async fn take_turns(
    sync: sync_core::Coordinator,
    inside: Arc<AtomicUsize>,
    turns: usize,
) -> Result<(), Failed> {
    for _ in 0..turns {
        let guard = sync.lock("x").acquire().await?;
        let others = inside.fetch_add(1, Ordering::SeqCst);
        tokio::task::yield_now().await;
        inside.fetch_sub(1, Ordering::SeqCst);
        if others > 0 {
            return Err(format!("{others} others inside"))?;
        }
        guard.release().await?;
    }
    Ok(())
}

async fn many_processes(ctx: Context) -> Result<(), Failed> {
    let mut children = Vec::new();
    for _ in 0..4 {
        let orders = ctx.child("contend").with("name", "x");
        let orders = orders.with("register", ctx.register().display()).with("hold_ms", 2);
        children.push(orders.start()?);
    }
    for child in &mut children {
        child.expect("ready").await?;
    }
    ctx.eventually(ctx.long(), || async { Ok(ctx.judge()?.handovers >= 40) }).await?;
    for child in &mut children {
        child.tell("stop").await?;
        child.expect("grants").await?;
        assert!(child.ended().await?.success());
    }
    // Every write was one more than what it had read: none was lost, and none was stale.
    let register = ctx.open_register()?.contents()?;
    assert_eq!(register.value, register.accepted);
    assert_eq!(register.refused, 0);
    ctx.assert_nothing_left().await
}

/// Where a session has one key for a name, it gets the same lock twice.
async fn two_claims_of_one_session_exclude_each_other(ctx: Context) -> Result<(), Failed> {
    let backend = ctx.backend().await?;
    let session = backend.open(ctx.long()).await?;
    let (first, second) = (claim()?, claim()?);
    let grant = granted(backend.try_claim(&session, &first, None, false).await?)?;
    for _ in 0..2 {
        let attempt = backend.try_claim(&session, &second, None, false).await?;
        assert!(matches!(attempt, Attempt::Blocked(_)), "{attempt:?}");
    }
    backend.end(&session, &first, Some(&grant), false).await?;
    let next = granted(backend.try_claim(&session, &second, None, false).await?)?;
    assert!(next.token > grant.token);
    backend.end(&session, &second, Some(&next), false).await?;
    backend.close(&session).await?;
    ctx.assert_nothing_left().await
}
