//! Many names on one coordinator cost what one does.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use sync_core::Kind;
use sync_core::backend::Expiry;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::wants::{BOTH, Want};
use crate::context::Context;
use crate::failed::Failed;
use crate::fault::{Fault, Verb};
use crate::suite::Case;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::new(a_thousand_held_names_are_renewed_together),
        Case::new(hundreds_of_waiters_share_one_coordinator),
        Case::new(hundreds_of_tasks_share_one_name),
        Case::new(what_was_abandoned_does_not_gather_on_one_session),
    ]
}

/// What comes of all of these, a few at once.
async fn all<T: Send + 'static>(
    work: impl Iterator<Item = impl Future<Output = Result<T, Failed>> + Send + 'static>,
) -> Result<Vec<T>, Failed> {
    let few = Arc::new(Semaphore::new(16));
    let mut tasks = JoinSet::new();
    for one in work {
        let few = Arc::clone(&few);
        tasks.spawn(async move {
            let _turn = few.acquire().await?;
            one.await
        });
    }
    let mut outputs = Vec::new();
    while let Some(output) = tasks.join_next().await {
        outputs.push(output??);
    }
    Ok(outputs)
}

async fn a_thousand_held_names_are_renewed_together(ctx: Context) -> Result<(), Failed> {
    const NAMES: usize = 1_000;
    let ttl = ctx.ttl() * 3;
    let (sync, faults) = ctx.faulty_with(ctx.options()?.ttl(ttl)).await?;
    let taking = (0..NAMES).map(|at| {
        let want = Want::new(&sync, BOTH[at % 2], &format!("name-{at}"));
        async move { Ok(want.take().await?) }
    });
    let held = all(taking).await?;

    let before = faults.calls(Verb::Renew);
    sleep(ttl * 2).await;
    let renewals = faults.calls(Verb::Renew) - before;
    // Six are due; one that is not answered in time is repeated sooner.
    assert!((3..=20).contains(&renewals), "{renewals} renewals in two TTLs");
    let lost: Vec<_> = held.iter().filter_map(|taken| taken.revocation()).collect();
    assert!(lost.is_empty(), "{} were lost, such as by {:?}", lost.len(), lost.first());

    all(held.into_iter().map(|taken| async move { Ok(taken.give_back().await?) })).await?;
    ctx.assert_nothing_left().await
}

/// "Unable to acquire subscription lock", for years.
async fn hundreds_of_waiters_share_one_coordinator(ctx: Context) -> Result<(), Failed> {
    const NAMES: usize = 300;
    let holder = ctx.coordinator().await?;
    let (sync, faults) = ctx.faulty().await?;
    let name = |at: usize| (BOTH[at % 2], format!("name-{at}"));
    let taking = (0..NAMES).map(|at| {
        let (kind, name) = name(at);
        let want = Want::new(&holder, kind, &name);
        async move { Ok(want.take().await?) }
    });
    let held = all(taking).await?;
    let mut waiting = JoinSet::new();
    for (kind, name) in (0..NAMES).map(name) {
        let want = Want::new(&sync, kind, &name).wait(ctx.long() * 2);
        waiting.spawn(async move { want.take().await?.give_back().await });
    }
    ctx.eventually(ctx.long(), || async { Ok(faults.calls(Verb::Wait) >= NAMES) }).await?;
    sleep(Duration::from_millis(500)).await;
    assert!(waiting.try_join_next().is_none(), "one has not waited");
    all(held.into_iter().map(|taken| async move { Ok(taken.give_back().await?) })).await?;
    while let Some(served) = waiting.join_next().await {
        served??;
    }
    ctx.assert_nothing_left().await
}

async fn hundreds_of_tasks_share_one_name(ctx: Context) -> Result<(), Failed> {
    const TASKS: usize = 300;
    let (sync, faults) = ctx.faulty().await?;
    let mut tasks = JoinSet::new();
    for _ in 0..TASKS {
        let want = Want::new(&sync, Kind::Lock, "x").wait(ctx.long() * 2);
        tasks.spawn(async move { want.take().await?.give_back().await });
    }
    while let Some(served) = tasks.join_next().await {
        served??;
    }
    assert_eq!(faults.calls(Verb::Open), 1);
    // They pass the name on inside the process: nobody was blocked by the store.
    assert_eq!((faults.calls(Verb::TryClaim), faults.calls(Verb::Wait)), (TASKS, 0));
    assert_eq!(ctx.judge()?.grants, TASKS);
    ctx.assert_nothing_left().await
}

/// What each leaves in the store is for the session's life; so that ends.
async fn what_was_abandoned_does_not_gather_on_one_session(ctx: Context) -> Result<(), Failed> {
    const NAMES: usize = 110;
    if ctx.backend().await?.profile().expiry == Expiry::Claim {
        return Err(Failed::skipped("what is left ends by itself here"));
    }
    let (sync, faults) = ctx.faulty().await?;
    let held = sync.lock("held").acquire().await?;
    faults.always(Verb::TryClaim, Fault::LoseRequest);
    let trying = (0..NAMES).map(|at| {
        let want = Want::new(&sync, BOTH[at % 2], &format!("name-{at}"));
        async move { Ok(want.try_take().await.is_err()) }
    });
    assert!(all(trying).await?.into_iter().all(|failed| failed));
    ctx.eventually(ctx.long(), || async { Ok(faults.abandons() >= NAMES) }).await?;
    faults.heal();
    sync.lock("x").acquire().await?.release().await?;
    assert_eq!(faults.calls(Verb::Open), 2);
    // What is held on the old one keeps it.
    assert!(held.is_valid());
    assert_eq!(faults.calls(Verb::Close), 0);
    held.release().await?;
    ctx.eventually(ctx.long(), || async { Ok(faults.calls(Verb::Close) == 1) }).await?;
    ctx.assert_nothing_left().await
}
