//! Giving back: only what is one's own, for certain, and whatever becomes of the caller.

use std::time::Duration;

use sync_core::backend::Loss;
use sync_core::{BootClock, Cause, Clock, Coordinator, ErrorKind, Options};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::common::{kind, on_one_thread, soon, told};
use crate::context::Context;
use crate::failed::Failed;
use crate::fault::{Fault, Faults, Verb};
use crate::store::Tamper;
use crate::suite::{Case, Need};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::new(a_release_after_the_loss_spares_the_successor),
        Case::new(a_release_after_the_key_was_removed_spares_the_successor)
            .needs(&[Need::Tamper(Tamper::Delete)]),
        Case::new(releasing_what_was_lost_says_why),
        Case::new(a_release_whose_request_is_lost_is_repeated),
        Case::new(a_repeated_release_spares_a_newer_claim_of_its_session),
        Case::new(a_guard_is_over_before_its_release_is_answered),
        Case::new(a_release_without_the_store_is_unknown_and_done_later),
        Case::new(a_release_into_a_black_hole_is_unknown_and_done_later).needs(&[Need::Proxy]),
        Case::new(a_refused_release_says_so_and_is_done_later),
        Case::new(a_release_goes_on_when_its_caller_is_gone),
        Case::new(a_release_that_nobody_answered_is_none),
        Case::new(a_resignation_is_a_release),
        Case::new(a_release_about_the_deadline_is_one_or_the_other),
        Case::new(a_dropped_guard_is_released),
        Case::new(a_drop_does_not_wait_for_the_store),
        Case::new(dropping_a_view_releases_nothing),
        Case::new(a_guard_can_be_dropped_outside_of_any_runtime),
        Case::new(a_guard_can_be_dropped_when_its_runtime_is_gone),
        Case::new(a_guard_can_be_dropped_by_its_runtimes_end),
    ]
}

async fn a_release_after_the_loss_spares_the_successor(ctx: Context) -> Result<(), Failed> {
    let (sync, faults) = ctx.faulty_with(ctx.hasty()?).await?;
    let (other, third) = (ctx.coordinator().await?, ctx.coordinator().await?);
    let lost = sync.lock("x").acquire().await?;
    faults.always(Verb::Renew, Fault::LoseRequest);
    // What is done on the loss itself comes late as well.
    faults.next(Verb::End, Fault::Delay(ctx.ttl()));
    let next = soon(&ctx, "somebody else gets it", other.lock("x").acquire()).await??;
    faults.heal();
    assert_eq!(kind(lost.release().await), Some(ErrorKind::Lost));
    sync.shutdown().await?;
    assert!(next.is_valid());
    assert!(third.lock("x").try_acquire().await?.is_none());
    next.release().await?;
    ctx.assert_nothing_left().await
}

async fn a_release_after_the_key_was_removed_spares_the_successor(
    ctx: Context,
) -> Result<(), Failed> {
    // It has not been told yet, so that its history would tell of a release and no loss: it is not
    // judged.
    let options = Options::new().namespace(ctx.namespace());
    let (sync, other) = (ctx.coordinator_with(options).await?, ctx.coordinator().await?);
    let lock = sync.lock("x");
    let removed = lock.acquire().await?;
    ctx.tamper(&lock.key()?, Tamper::Delete).await?;
    let next = soon(&ctx, "somebody else gets it", other.lock("x").acquire()).await??;
    assert_eq!(kind(removed.release().await), Some(ErrorKind::Lost));
    assert!(next.is_valid());
    assert!(ctx.coordinator().await?.lock("x").try_acquire().await?.is_none());
    next.release().await?;
    ctx.assert_nothing_left().await
}

async fn releasing_what_was_lost_says_why(ctx: Context) -> Result<(), Failed> {
    ctx.expect_outside();
    let (sync, faults) = ctx.faulty().await?;
    let (guard, elected) = (sync.lock("x").acquire().await?, sync.leader("x").elect().await?);
    faults.lose(Loss::Session);
    told(&ctx, &guard).await?;
    told(&ctx, &elected).await?;
    for outcome in [guard.release().await, elected.resign().await] {
        let Err(error) = outcome else { return Err("it was released")? };
        assert_eq!(error.kind(), ErrorKind::Lost);
        assert_eq!(error.revocation().map(|lost| lost.cause), Some(Cause::Session), "{error}");
    }
    ctx.assert_nothing_left().await
}

/// A coordinator that soon repeats what was not answered.
async fn quick(ctx: &Context) -> Result<(Coordinator, Faults), Failed> {
    ctx.faulty_with(ctx.options()?.request_timeout(Duration::from_millis(300))).await
}

async fn a_release_whose_request_is_lost_is_repeated(ctx: Context) -> Result<(), Failed> {
    let (sync, faults) = quick(&ctx).await?;
    for fault in [Fault::LoseRequest, Fault::Hang, Fault::Unsent] {
        let guard = sync.lock("x").acquire().await?;
        faults.next(Verb::End, fault);
        faults.next(Verb::End, fault);
        guard.release().await?;
        ctx.assert_nothing_left().await?;
    }
    Ok(())
}

/// What the store has freed is somebody else's, whether the answer has come or not.
async fn a_guard_is_over_before_its_release_is_answered(ctx: Context) -> Result<(), Failed> {
    let (sync, faults) = ctx.faulty().await?;
    let guard = sync.lock("x").acquire().await?;
    let hold = guard.hold();
    faults.next(Verb::End, Fault::LateAnswer);
    let releasing = tokio::spawn(guard.release());
    soon(&ctx, "it is released", faults.called(Verb::End, 1)).await?;
    assert!(!hold.is_valid());
    let next = soon(&ctx, "it is free", ctx.coordinator().await?.lock("x").acquire()).await??;
    faults.release();
    releasing.await??;
    next.release().await?;
    ctx.assert_nothing_left().await
}

/// The request of the first release is under way while its repeat is answered, and arrives when the
/// same session has taken the lock again.
async fn a_repeated_release_spares_a_newer_claim_of_its_session(
    ctx: Context,
) -> Result<(), Failed> {
    let (sync, faults) = quick(&ctx).await?;
    let lock = sync.lock("x");
    let guard = lock.acquire().await?;
    faults.next(Verb::End, Fault::Late);
    guard.release().await?;
    let newer = lock.acquire().await?;
    assert_eq!(faults.calls(Verb::Open), 1);
    faults.release();
    sleep(Duration::from_millis(300)).await;
    assert!(ctx.coordinator().await?.lock("x").try_acquire().await?.is_none());
    assert!(newer.is_valid());
    newer.release().await?;
    ctx.assert_nothing_left().await
}

async fn a_release_without_the_store_is_unknown_and_done_later(ctx: Context) -> Result<(), Failed> {
    let options = ctx.options()?.request_timeout(Duration::from_millis(200));
    let (sync, faults) = ctx.faulty_with(options.release_timeout(Duration::from_secs(1))).await?;
    for fault in [Fault::LoseRequest, Fault::Hang, Fault::Unsent] {
        let guard = sync.lock("x").acquire().await?;
        let hold = guard.hold();
        faults.always(Verb::End, fault);
        let began = Instant::now();
        assert_eq!(kind(guard.release().await), Some(ErrorKind::Unknown));
        assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        assert!(!hold.is_valid());
        faults.heal();
        ctx.assert_nothing_left().await?;
    }
    Ok(())
}

async fn a_release_into_a_black_hole_is_unknown_and_done_later(ctx: Context) -> Result<(), Failed> {
    let route = ctx.route().await?;
    let options = ctx.options()?.request_timeout(Duration::from_millis(500));
    let options = options.release_timeout(Duration::from_secs(1));
    let sync = ctx.coordinator_at(route.url(), options).await?;
    let guard = sync.lock("x").acquire().await?;
    route.black_hole();
    let released = soon(&ctx, "it gives up", guard.release()).await?;
    assert_eq!(kind(released), Some(ErrorKind::Unknown));
    route.heal();
    ctx.assert_nothing_left().await
}

async fn a_refused_release_says_so_and_is_done_later(ctx: Context) -> Result<(), Failed> {
    let (sync, faults) =
        ctx.faulty_with(ctx.options()?.release_timeout(Duration::from_secs(1))).await?;
    let guard = sync.lock("x").acquire().await?;
    faults.always(Verb::End, Fault::Refuse(ErrorKind::Denied));
    assert_eq!(kind(guard.release().await), Some(ErrorKind::Denied));
    faults.heal();
    ctx.assert_nothing_left().await
}

/// The request's context is cancelled, and with it whoever releases.
async fn a_release_goes_on_when_its_caller_is_gone(ctx: Context) -> Result<(), Failed> {
    let (sync, faults) = ctx.faulty().await?;
    // Whoever drops this call takes it back: so nobody does.
    faults.next(Verb::End, Fault::Hang);
    let guard = sync.lock("x").acquire().await?;
    let releasing = tokio::spawn(guard.release());
    soon(&ctx, "it is released", faults.called(Verb::End, 1)).await?;
    releasing.abort();
    assert!(releasing.await.is_err_and(|gone| gone.is_cancelled()));
    faults.release();
    ctx.assert_nothing_left().await?;
    assert_eq!(faults.calls(Verb::End), 1);

    // Dropped before its first poll it is a dropped guard.
    drop(sync.lock("x").acquire().await?.release());
    ctx.assert_nothing_left().await
}

/// Some of these come just in time, some are just too late, and none disturbs who comes next.
async fn a_release_about_the_deadline_is_one_or_the_other(ctx: Context) -> Result<(), Failed> {
    let (sync, faults) = ctx.faulty_with(ctx.hasty()?).await?;
    faults.always(Verb::Renew, Fault::LoseRequest);
    let other = ctx.coordinator().await?;
    let mut tasks = JoinSet::new();
    for number in 0..16 {
        let name = format!("x{number}");
        let (lock, next) = (sync.lock(&name), other.lock(&name));
        let guard = lock.acquire().await?;
        let ahead = Duration::from_millis(8).saturating_sub(Duration::from_millis(number));
        let behind = Duration::from_millis(number.saturating_sub(8));
        tasks.spawn(async move {
            let next = tokio::spawn(async move { next.acquire().await });
            let (hold, due) = (guard.hold(), guard.deadline().before(ahead) + behind);
            BootClock::new().sleep_until(due).await;
            match kind(guard.release().await) {
                None => assert_eq!(hold.revoked().await.cause, Cause::Released),
                // On a busy machine it may begin in time and come too late.
                Some(ErrorKind::Lost) => {
                    let cause = hold.revoked().await.cause;
                    assert!(matches!(cause, Cause::Deadline | Cause::Released), "{cause:?}");
                }
                other => return Err(format!("{other:?}"))?,
            }
            let next = next.await??;
            assert!(next.token() > hold.token());
            Ok::<_, Failed>(next.release().await?)
        });
    }
    while let Some(outcome) = soon(&ctx, "each is followed", tasks.join_next()).await? {
        outcome??;
    }
    assert_eq!(ctx.judge()?.handovers, 16);
    ctx.assert_nothing_left_within(ctx.long()).await
}

/// Not even once its session has run out: nobody has said that it was released, nor that it was lost.
async fn a_release_that_nobody_answered_is_none(ctx: Context) -> Result<(), Failed> {
    let options = ctx.hasty()?.release_timeout(ctx.ttl() * 2);
    let (sync, faults) = ctx.faulty_with(options).await?;
    let guard = sync.lock("x").acquire().await?;
    for verb in [Verb::End, Verb::Renew] {
        faults.always(verb, Fault::LoseRequest);
    }
    let told = soon(&ctx, "the release is told", guard.release()).await?;
    assert_eq!(kind(told), Some(ErrorKind::Unknown));
    faults.heal();
    ctx.assert_nothing_left_within(ctx.long()).await
}

async fn a_resignation_is_a_release(ctx: Context) -> Result<(), Failed> {
    let (sync, faults) = quick(&ctx).await?;
    let elected = sync.leader("x").elect().await?;
    let hold = elected.hold();
    faults.next(Verb::End, Fault::LoseAnswer);
    elected.resign().await?;
    assert_eq!(told(&ctx, &hold).await?, Cause::Released);
    drop(sync.leader("x").elect().await?);
    ctx.assert_nothing_left().await
}

async fn a_dropped_guard_is_released(ctx: Context) -> Result<(), Failed> {
    let (sync, other) = (ctx.coordinator().await?, ctx.coordinator().await?);
    let guard = sync.lock("x").acquire().await?;
    let hold = guard.hold();
    drop(guard);
    assert!(!hold.is_valid());
    let next = soon(&ctx, "it is free", other.lock("x").acquire()).await??;
    next.release().await?;
    ctx.assert_nothing_left().await
}

async fn a_drop_does_not_wait_for_the_store(ctx: Context) -> Result<(), Failed> {
    // On one thread a drop that waited would wait for ever.
    on_one_thread(move || async move {
        let (sync, faults) = ctx.faulty().await?;
        faults.next(Verb::End, Fault::Hang);
        let guard = sync.lock("x").acquire().await?;
        let began = Instant::now();
        drop(guard);
        assert!(began.elapsed() < Duration::from_millis(200), "{:?}", began.elapsed());
        soon(&ctx, "it is released", faults.called(Verb::End, 1)).await?;
        faults.release();
        ctx.assert_nothing_left().await
    })
    .await
}

async fn dropping_a_view_releases_nothing(ctx: Context) -> Result<(), Failed> {
    let sync = ctx.coordinator().await?;
    let guard = sync.lock("x").acquire().await?;
    for _ in 0..3 {
        drop((guard.hold(), guard.hold().clone(), guard.cancellation_token()));
    }
    sleep(Duration::from_millis(200)).await;
    assert!(guard.is_valid());
    assert!(ctx.coordinator().await?.lock("x").try_acquire().await?.is_none());
    guard.release().await?;
    ctx.assert_nothing_left().await
}

async fn a_guard_can_be_dropped_outside_of_any_runtime(ctx: Context) -> Result<(), Failed> {
    let sync = ctx.coordinator().await?;
    let guard = sync.lock("x").acquire().await?;
    let elected = sync.leader("x").elect().await?;
    let dropping = std::thread::spawn(move || drop((guard, elected)));
    // On the test's own thread, which the release may need.
    ctx.eventually(ctx.long(), || async { Ok(dropping.is_finished()) }).await?;
    dropping.join().map_err(|_| "the drop panicked")?;
    ctx.assert_nothing_left().await
}

/// A guard, and the runtime on which all that belongs to it runs.
async fn with_its_runtime(
    ctx: &Context,
) -> Result<(tokio::runtime::Runtime, sync_core::LockGuard), Failed> {
    let ctx = ctx.clone();
    tokio::task::spawn_blocking(move || {
        let runtime = crate::suite::runtime("aside")?;
        let guard = runtime.block_on(async {
            let sync = ctx.coordinator_with(ctx.hasty()?).await?;
            Ok::<_, Failed>(sync.lock("x").acquire().await?)
        })?;
        Ok((runtime, guard))
    })
    .await?
}

async fn a_guard_can_be_dropped_when_its_runtime_is_gone(ctx: Context) -> Result<(), Failed> {
    let (runtime, guard) = with_its_runtime(&ctx).await?;
    runtime.shutdown_background();
    let hold = guard.hold();
    let dropping = std::thread::spawn(move || drop(guard));
    ctx.eventually(ctx.long(), || async { Ok(dropping.is_finished()) }).await?;
    dropping.join().map_err(|_| "the drop panicked")?;
    assert!(!hold.is_valid());
    // Nobody can tell the store any more: its time does.
    ctx.assert_nothing_left_within(ctx.long()).await?;

    let (runtime, guard) = with_its_runtime(&ctx).await?;
    runtime.shutdown_background();
    // Whether that succeeds depends on what the store's client needs of the runtime.
    let _ = soon(&ctx, "the release ends", guard.release()).await?;
    ctx.assert_nothing_left_within(ctx.long()).await
}

async fn a_guard_can_be_dropped_by_its_runtimes_end(ctx: Context) -> Result<(), Failed> {
    let (runtime, guard) = with_its_runtime(&ctx).await?;
    let hold = guard.hold();
    runtime.spawn(async move {
        let _guard = guard;
        std::future::pending::<()>().await;
    });
    let ending = tokio::task::spawn_blocking(move || drop(runtime));
    soon(&ctx, "the runtime ends", ending).await??;
    assert!(!hold.is_valid());
    ctx.assert_nothing_left_within(ctx.long()).await
}
