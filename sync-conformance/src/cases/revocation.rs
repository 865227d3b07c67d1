//! The signal of a loss: for each cause, in time, once, and to everybody who asks.

use std::time::Duration;

use sync_core::backend::{Expiry, Loss};
use sync_core::{Cause, ErrorKind, Hold};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::common::{kind, now, on_one_thread, soon, told};
use crate::context::Context;
use crate::failed::Failed;
use crate::fault::{Fault, Verb};
use crate::proxy::{Flow, Toward};
use crate::store::Tamper;
use crate::suite::{Case, Need};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::new(a_partitioned_holder_is_told).needs(&[Need::Proxy]),
        Case::new(a_holder_that_hears_no_answers_is_told).needs(&[Need::Proxy]),
        Case::new(a_holder_whose_connections_are_refused_is_told).needs(&[Need::Proxy]),
        Case::new(a_holder_on_a_stopped_server_is_told).needs(&[Need::KillServer]),
        Case::new(it_is_told_while_a_renewal_hangs),
        Case::new(a_failed_extension_is_not_taken_for_held),
        Case::new(an_extension_whose_answer_is_lost_is_not_taken_for_held),
        Case::new(renewals_that_fail_once_or_twice_take_nothing_away),
        Case::new(a_removed_key_is_told).needs(&[Need::Tamper(Tamper::Delete)]),
        Case::new(a_removed_key_is_told_though_who_acquired_it_has_gone)
            .needs(&[Need::Tamper(Tamper::Delete)]),
        Case::new(an_overwritten_key_is_told).needs(&[Need::Tamper(Tamper::Overwrite)]),
        Case::new(an_ended_session_is_told).needs(&[Need::Tamper(Tamper::EndSession)]),
        Case::new(a_lost_session_takes_all_its_claims_along),
        Case::new(a_release_is_told_and_its_news_outlive_the_guard),
        Case::new(a_shutdown_is_told),
        Case::new(it_is_told_once_to_everybody),
        Case::new(a_cancellation_token_is_cancelled_though_nobody_else_waits),
        Case::new(cancelling_a_token_oneself_takes_nothing_away),
        Case::new(a_program_that_slept_sees_the_loss_at_its_first_look),
        Case::new(it_is_told_though_the_coordinators_runtime_is_gone),
        Case::new(a_late_reply_revives_nothing),
        Case::new(an_answer_after_its_deadline_grants_nothing),
        Case::new(nothing_is_granted_on_a_dying_session),
        Case::new(the_deadline_of_a_grant_counts_from_its_sending),
        Case::new(the_deadline_of_a_session_counts_from_its_sending),
        Case::new(the_deadline_of_a_renewal_counts_from_its_sending),
        Case::new(a_renewal_extends_what_it_named_alone),
        Case::new(what_is_taken_off_a_ttl_is_left_to_the_holder),
        Case::new(after_a_loss_a_handle_can_acquire_again_at_once),
    ]
}

/// Sees to it that somebody else comes to hold the lock `x`, and that its holder is told by then.
async fn is_followed(ctx: &Context, hold: Hold) -> Result<(), Failed> {
    let waiting = hold.clone();
    let told = tokio::spawn(async move { waiting.revoked().await });
    let other = ctx.coordinator_with(ctx.hasty()?).await?;
    let successor = soon(ctx, "somebody else gets it", other.lock("x").acquire()).await??;
    // Whatever is delayed on a busy machine: by now a look at the clock tells.
    assert!(!hold.is_valid());
    let lost = soon(ctx, "the holder is told", told).await??;
    assert_eq!((lost.cause, lost.at), (Cause::Deadline, hold.deadline()));
    assert!(successor.token() > hold.token());
    successor.release().await?;
    Ok(other.shutdown().await?)
}

async fn a_partitioned_holder_is_told(ctx: Context) -> Result<(), Failed> {
    let route = ctx.route().await?;
    let sync = ctx.coordinator_at(route.url(), ctx.hasty()?).await?;
    let guard = sync.lock("x").acquire().await?;
    let elected = sync.leader("x").elect().await?;
    route.black_hole();
    is_followed(&ctx, guard.hold()).await?;
    assert_eq!(told(&ctx, &elected).await?, Cause::Deadline);
    drop((guard, elected));
    route.heal();
    ctx.assert_nothing_left_within(ctx.long()).await
}

/// Its requests arrive, so that the store goes on extending what the holder cannot know of.
async fn a_holder_that_hears_no_answers_is_told(ctx: Context) -> Result<(), Failed> {
    let route = ctx.route().await?;
    let sync = ctx.coordinator_at(route.url(), ctx.hasty()?).await?;
    let guard = sync.lock("x").acquire().await?;
    route.set(Toward::Client, Flow::Swallow);
    is_followed(&ctx, guard.hold()).await?;
    drop(guard);
    route.heal();
    ctx.assert_nothing_left_within(ctx.long()).await
}

async fn a_holder_whose_connections_are_refused_is_told(ctx: Context) -> Result<(), Failed> {
    let route = ctx.route().await?;
    let sync = ctx.coordinator_at(route.url(), ctx.hasty()?).await?;
    let guard = sync.lock("x").acquire().await?;
    route.cut();
    is_followed(&ctx, guard.hold()).await?;
    drop(guard);
    route.heal();
    ctx.assert_nothing_left_within(ctx.long()).await
}

async fn a_holder_on_a_stopped_server_is_told(ctx: Context) -> Result<(), Failed> {
    let sync = ctx.coordinator_with(ctx.hasty()?).await?;
    let guard = sync.lock("x").acquire().await?;
    ctx.server().stop()?;
    let lost = soon(&ctx, "the holder is told", guard.revoked()).await;
    ctx.server().resume()?;
    assert_eq!(lost?.cause, Cause::Deadline);
    is_followed(&ctx, guard.hold()).await?;
    drop(guard);
    ctx.assert_nothing_left_within(ctx.long()).await
}

async fn it_is_told_while_a_renewal_hangs(ctx: Context) -> Result<(), Failed> {
    let (sync, faults) = ctx.faulty_with(ctx.hasty()?).await?;
    let guard = sync.lock("x").acquire().await?;
    faults.always(Verb::Renew, Fault::Hang);
    is_followed(&ctx, guard.hold()).await
}

async fn a_failed_extension_is_not_taken_for_held(ctx: Context) -> Result<(), Failed> {
    let (sync, faults) = ctx.faulty_with(ctx.hasty()?).await?;
    let guard = sync.lock("x").acquire().await?;
    faults.always(Verb::Renew, Fault::Refuse(ErrorKind::Unreachable));
    is_followed(&ctx, guard.hold()).await
}

/// The store extends the claim each time, and the holder has to let it go all the same.
async fn an_extension_whose_answer_is_lost_is_not_taken_for_held(
    ctx: Context,
) -> Result<(), Failed> {
    let (sync, faults) = ctx.faulty_with(ctx.hasty()?).await?;
    let guard = sync.lock("x").acquire().await?;
    faults.always(Verb::Renew, Fault::LoseAnswer);
    is_followed(&ctx, guard.hold()).await
}

async fn renewals_that_fail_once_or_twice_take_nothing_away(ctx: Context) -> Result<(), Failed> {
    let (sync, faults) = ctx.faulty_with(ctx.hasty()?.ttl(ctx.ttl() * 2)).await?;
    for failure in [Fault::LoseRequest, Fault::Unsent] {
        faults.next(Verb::Renew, failure);
    }
    let guard = sync.lock("x").acquire().await?;
    let first = guard.deadline();
    soon(&ctx, "it is renewed again and again", faults.called(Verb::Renew, 5)).await?;
    assert!(guard.is_valid());
    assert!(guard.deadline() > first);
    assert!(ctx.coordinator().await?.lock("x").try_acquire().await?.is_none());
    guard.release().await?;
    ctx.assert_nothing_left().await
}

async fn a_removed_key_is_told(ctx: Context) -> Result<(), Failed> {
    let sync = ctx.coordinator_with(ctx.hasty()?).await?;
    let lock = sync.lock("x");
    let (guard, beside) = (lock.acquire().await?, sync.lock("y").acquire().await?);
    ctx.tamper(&lock.key()?, Tamper::Delete).await?;
    assert_eq!(told(&ctx, &guard).await?, Cause::Key);
    assert!(!guard.is_valid());
    assert!(beside.is_valid(), "another key of the same session was not touched");
    assert_eq!(kind(guard.release().await), Some(ErrorKind::Lost));
    let again = soon(&ctx, "it is taken again", lock.acquire()).await??;
    again.release().await?;
    beside.release().await?;
    ctx.assert_nothing_left().await
}

/// On a runtime of its own, which is over since, as a blocking caller may have one.
async fn a_removed_key_is_told_though_who_acquired_it_has_gone(ctx: Context) -> Result<(), Failed> {
    let sync = ctx.coordinator_with(ctx.hasty()?).await?;
    let lock = sync.lock("x");
    let acquiring = lock.clone();
    let guard = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let guard = runtime.block_on(acquiring.acquire())?;
        runtime.shutdown_background();
        Ok::<_, Failed>(guard)
    })
    .await??;
    ctx.tamper(&lock.key()?, Tamper::Delete).await?;
    assert_eq!(told(&ctx, &guard).await?, Cause::Key);
    soon(&ctx, "it is taken again", lock.acquire()).await??.release().await?;
    ctx.assert_nothing_left().await
}

async fn an_overwritten_key_is_told(ctx: Context) -> Result<(), Failed> {
    let sync = ctx.coordinator_with(ctx.hasty()?).await?;
    let lock = sync.lock("x");
    let guard = lock.acquire().await?;
    ctx.tamper(&lock.key()?, Tamper::Overwrite).await?;
    assert_eq!(told(&ctx, &guard).await?, Cause::Key);
    assert!(!guard.is_valid());
    assert_eq!(kind(guard.release().await), Some(ErrorKind::Lost));
    Ok(())
}

async fn an_ended_session_is_told(ctx: Context) -> Result<(), Failed> {
    let sync = ctx.coordinator_with(ctx.hasty()?).await?;
    let lock = sync.lock("x");
    let (guard, beside) = (lock.acquire().await?, sync.lock("y").acquire().await?);
    ctx.tamper(&lock.key()?, Tamper::EndSession).await?;
    for hold in [guard.hold(), beside.hold()] {
        assert_eq!(told(&ctx, &hold).await?, Cause::Session);
        assert!(!hold.is_valid());
    }
    assert_eq!(kind(guard.release().await), Some(ErrorKind::Lost));
    let again = soon(&ctx, "it is taken again", lock.acquire()).await??;
    again.release().await?;
    ctx.assert_nothing_left().await
}

async fn a_lost_session_takes_all_its_claims_along(ctx: Context) -> Result<(), Failed> {
    ctx.expect_outside();
    let (sync, faults) = ctx.faulty().await?;
    let lock = sync.lock("a");
    let held = [lock.acquire().await?, sync.lock("b").acquire().await?];
    let elected = sync.leader("a").elect().await?;
    faults.lose(Loss::Session);
    for hold in held.iter().map(|guard| guard.hold()).chain([elected.hold()]) {
        assert_eq!(told(&ctx, &hold).await?, Cause::Session);
    }
    // Its guards are still there, and in nobody's way.
    let again = soon(&ctx, "it is taken again", lock.acquire()).await??;
    assert_eq!(faults.calls(Verb::Open), 2);
    again.release().await?;
    drop((held, elected));
    ctx.assert_nothing_left().await
}

async fn a_release_is_told_and_its_news_outlive_the_guard(ctx: Context) -> Result<(), Failed> {
    let sync = ctx.coordinator().await?;
    let guard = sync.lock("x").acquire().await?;
    let hold = guard.hold();
    guard.release().await?;
    assert!(!hold.is_valid());
    assert_eq!(told(&ctx, &hold).await?, Cause::Released);

    let elected = sync.leader("x").elect().await?;
    let hold = elected.hold();
    drop(elected);
    assert!(!hold.is_valid(), "from when it is dropped on");
    assert_eq!(told(&ctx, &hold).await?, Cause::Released);
    ctx.assert_nothing_left().await
}

async fn a_shutdown_is_told(ctx: Context) -> Result<(), Failed> {
    let sync = ctx.coordinator().await?;
    let guard = sync.lock("x").acquire().await?;
    let hold = guard.hold();
    let told = tokio::spawn(async move { hold.revoked().await });
    sync.shutdown().await?;
    assert!(!guard.is_valid());
    assert_eq!(soon(&ctx, "the holder is told", told).await??.cause, Cause::Closed);
    ctx.assert_nothing_left().await
}

async fn it_is_told_once_to_everybody(ctx: Context) -> Result<(), Failed> {
    let (sync, faults) = ctx.faulty_with(ctx.hasty()?).await?;
    let guard = sync.lock("x").acquire().await?;
    let mut waiting = JoinSet::new();
    for _ in 0..32 {
        let hold = guard.hold();
        waiting.spawn(async move { hold.revoked().await });
    }
    let token = guard.cancellation_token();
    faults.always(Verb::Renew, Fault::Hang);
    let lost = soon(&ctx, "the holder is told", guard.revoked()).await?;
    while let Some(told) = soon(&ctx, "everybody is told", waiting.join_next()).await? {
        assert_eq!(told?, lost);
    }
    soon(&ctx, "the token is cancelled", token.cancelled()).await?;
    // After the fact it is told at once, also where it was never asked for before.
    let (after, hold) = (guard.cancellation_token(), guard.hold());
    assert!(after.is_cancelled());
    assert_eq!(kind(guard.release().await), Some(ErrorKind::Lost));
    for _ in 0..3 {
        assert_eq!(hold.revoked().await, lost);
        assert_eq!(hold.revocation(), Some(lost));
    }
    // What comes later is not told any more.
    sync.shutdown().await?;
    assert_eq!(hold.revocation(), Some(lost));
    assert_eq!(ctx.judge()?.revocations.into_iter().collect::<Vec<_>>(), [("deadline", 1)]);
    Ok(())
}

async fn a_cancellation_token_is_cancelled_though_nobody_else_waits(
    ctx: Context,
) -> Result<(), Failed> {
    let (sync, faults) = ctx.faulty_with(ctx.hasty()?).await?;
    let guard = sync.lock("x").acquire().await?;
    let token = guard.cancellation_token();
    faults.always(Verb::Renew, Fault::Hang);
    assert!(!token.is_cancelled());
    soon(&ctx, "the token is cancelled", token.cancelled()).await?;
    assert!(now() >= guard.deadline(), "not before its time");
    assert_eq!(told(&ctx, &guard).await?, Cause::Deadline);
    Ok(())
}

async fn cancelling_a_token_oneself_takes_nothing_away(ctx: Context) -> Result<(), Failed> {
    let sync = ctx.coordinator().await?;
    let guard = sync.lock("x").acquire().await?;
    guard.cancellation_token().cancel();
    assert!(guard.is_valid());
    assert!(!guard.cancellation_token().is_cancelled());
    assert!(ctx.coordinator().await?.lock("x").try_acquire().await?.is_none());
    guard.release().await?;
    ctx.assert_nothing_left().await
}

/// A laptop's lid, a stopped virtual machine, a garbage collector: no timer has run on waking.
async fn a_program_that_slept_sees_the_loss_at_its_first_look(ctx: Context) -> Result<(), Failed> {
    on_one_thread(move || async move {
        let sync = ctx.coordinator_with(ctx.hasty()?).await?;
        let lock = sync.lock("x");
        let guard = lock.acquire().await?;
        let token = guard.cancellation_token();
        std::thread::sleep(ctx.ttl() + Duration::from_millis(200));
        assert!(!guard.is_valid());
        assert!(token.is_cancelled(), "the look has told it to everybody");
        let lost = soon(&ctx, "the holder is told", guard.revoked()).await?;
        assert_eq!((lost.cause, lost.at), (Cause::Deadline, guard.deadline()));
        // Nobody competed, and it can be taken again at once.
        let again = soon(&ctx, "it is taken again", lock.acquire()).await??;
        assert!(again.token() > guard.token());
        assert!(again.is_valid() && !guard.is_valid());
        again.release().await?;
        drop(guard);
        ctx.assert_nothing_left_within(ctx.long()).await
    })
    .await
}

async fn it_is_told_though_the_coordinators_runtime_is_gone(ctx: Context) -> Result<(), Failed> {
    let asking = ctx.clone();
    let guard = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let guard = runtime.block_on(async {
            let sync = asking.coordinator_with(asking.hasty()?).await?;
            Ok::<_, Failed>(sync.lock("x").acquire().await?)
        })?;
        runtime.shutdown_background();
        Ok::<_, Failed>(guard)
    })
    .await??;
    assert!(guard.is_valid());
    is_followed(&ctx, guard.hold()).await
}

/// The answer to a renewal is there when the program wakes, and would extend the claim beyond now.
async fn a_late_reply_revives_nothing(ctx: Context) -> Result<(), Failed> {
    on_one_thread(move || async move {
        let (sync, faults) = ctx.faulty_with(ctx.hasty()?).await?;
        faults.next(Verb::Renew, Fault::LateAnswer);
        faults.always(Verb::Renew, Fault::Hang);
        let looked_at = sync.lock("x").acquire().await?;
        let unlooked_at = sync.lock("y").acquire().await?;
        soon(&ctx, "it is renewed", faults.answered_late(1)).await?;
        let deadline = looked_at.deadline().max(unlooked_at.deadline());
        std::thread::sleep(deadline.since(now()) + Duration::from_millis(20));
        assert!(!looked_at.is_valid());
        faults.release();
        soon(&ctx, "the answer comes", faults.did(Verb::Renew, 1)).await?;
        for guard in [looked_at, unlooked_at] {
            assert!(!guard.is_valid());
            assert_eq!(told(&ctx, &guard).await?, Cause::Deadline);
            assert!(guard.deadline() <= deadline);
        }
        assert_eq!(ctx.judge()?.extensions, 0);
        ctx.assert_nothing_left_within(ctx.long()).await
    })
    .await
}

async fn an_answer_after_its_deadline_grants_nothing(ctx: Context) -> Result<(), Failed> {
    // So much is taken off the TTL that an answer can come after the deadline and in time.
    let options = ctx.hasty()?.drift(0.4).request_timeout(ctx.ttl());
    let (sync, faults) = ctx.faulty_with(options).await?;
    faults.next(Verb::TryClaim, Fault::LateAnswer);
    faults.always(Verb::Renew, Fault::Hang);
    let acquiring = tokio::spawn({
        let lock = sync.lock("x");
        async move { lock.acquire().await }
    });
    soon(&ctx, "it is asked for", faults.called(Verb::TryClaim, 1)).await?;
    sleep(ctx.ttl().mul_f64(0.75)).await;
    assert_eq!(ctx.judge()?.grants, 0);
    faults.heal();
    faults.release();
    let guard = soon(&ctx, "it is acquired", acquiring).await???;
    assert!(guard.is_valid());
    assert_eq!(ctx.judge()?.grants, 1);
    guard.release().await?;
    ctx.assert_nothing_left_within(ctx.long()).await
}

async fn nothing_is_granted_on_a_dying_session(ctx: Context) -> Result<(), Failed> {
    ctx.expect_outside();
    let (sync, faults) = ctx.faulty().await?;
    let beside = sync.lock("y").acquire().await?;
    faults.next(Verb::TryClaim, Fault::LateAnswer);
    let acquiring = tokio::spawn({
        let lock = sync.lock("x");
        async move { lock.acquire().await }
    });
    soon(&ctx, "it is asked for", faults.called(Verb::TryClaim, 2)).await?;
    faults.lose(Loss::Session);
    assert_eq!(told(&ctx, &beside).await?, Cause::Session);
    faults.release();
    let guard = soon(&ctx, "it is acquired", acquiring).await???;
    assert!(guard.is_valid());
    assert_eq!(faults.calls(Verb::Open), 2, "not on the session that had ended");
    guard.release().await?;
    drop(beside);
    ctx.assert_nothing_left().await
}

/// How long an answer is under way where the deadline is compared with its request's sending:
/// longer than what is taken off this TTL anyway.
const UNDER_WAY: Duration = Duration::from_millis(500);

async fn the_deadline_of_a_grant_counts_from_its_sending(ctx: Context) -> Result<(), Failed> {
    let ttl = ctx.ttl() * 3;
    let (sync, faults) = ctx.faulty_with(ctx.hasty()?.ttl(ttl)).await?;
    faults.next(Verb::TryClaim, Fault::LateAnswer);
    let acquiring = tokio::spawn({
        let lock = sync.lock("x");
        async move { lock.acquire().await }
    });
    soon(&ctx, "it is asked for", faults.called(Verb::TryClaim, 1)).await?;
    let sent = now();
    sleep(UNDER_WAY).await;
    faults.release();
    let guard = soon(&ctx, "it is acquired", acquiring).await???;
    assert!(guard.deadline() <= sent + ttl.mul_f64(0.99), "{:?} {sent:?}", guard.deadline());
    guard.release().await?;
    ctx.assert_nothing_left().await
}

async fn the_deadline_of_a_session_counts_from_its_sending(ctx: Context) -> Result<(), Failed> {
    let ttl = ctx.ttl() * 3;
    let (sync, faults) = ctx.faulty_with(ctx.hasty()?.ttl(ttl)).await?;
    if ctx.backend().await?.profile().expiry == Expiry::Claim {
        return Err(Failed::skipped("sessions have no deadline here"));
    }
    faults.next(Verb::Open, Fault::LateAnswer);
    faults.always(Verb::Renew, Fault::Hang);
    let acquiring = tokio::spawn({
        let lock = sync.lock("x");
        async move { lock.acquire().await }
    });
    soon(&ctx, "a session is opened", faults.called(Verb::Open, 1)).await?;
    let sent = now();
    sleep(UNDER_WAY).await;
    faults.release();
    let guard = soon(&ctx, "it is acquired", acquiring).await???;
    assert!(guard.deadline() <= sent + ttl.mul_f64(0.99), "{:?} {sent:?}", guard.deadline());
    guard.release().await?;
    ctx.assert_nothing_left().await
}

async fn the_deadline_of_a_renewal_counts_from_its_sending(ctx: Context) -> Result<(), Failed> {
    let ttl = ctx.ttl() * 3;
    let (sync, faults) = ctx.faulty_with(ctx.hasty()?.ttl(ttl)).await?;
    faults.next(Verb::Renew, Fault::LateAnswer);
    faults.always(Verb::Renew, Fault::Hang);
    let guard = sync.lock("x").acquire().await?;
    let first = guard.deadline();
    soon(&ctx, "it is renewed", faults.called(Verb::Renew, 1)).await?;
    let sent = now();
    sleep(UNDER_WAY).await;
    faults.release();
    ctx.eventually(ctx.long(), || async { Ok(guard.deadline() > first) }).await?;
    assert!(guard.deadline() <= sent + ttl.mul_f64(0.99), "{:?} {sent:?}", guard.deadline());
    guard.release().await?;
    ctx.assert_nothing_left().await
}

/// A claim that was granted while a renewal was under way outlived its key by it.
async fn a_renewal_extends_what_it_named_alone(ctx: Context) -> Result<(), Failed> {
    if ctx.backend().await?.profile().expiry == Expiry::Session {
        return Err(Failed::skipped("all claims of a session live as long as it does here"));
    }
    let ttl = ctx.ttl() * 3;
    let (sync, faults) = ctx.faulty_with(ctx.hasty()?.ttl(ttl).request_timeout(ctx.long())).await?;
    faults.next(Verb::Renew, Fault::Delay(UNDER_WAY));
    faults.always(Verb::Renew, Fault::Hang);
    let named = sync.lock("x").acquire().await?;
    let first = named.deadline();
    faults.next(Verb::TryClaim, Fault::LateAnswer);
    let acquiring = tokio::spawn({
        let lock = sync.lock("y");
        async move { lock.acquire().await }
    });
    soon(&ctx, "it is asked for", faults.called(Verb::TryClaim, 2)).await?;
    let sent = now();
    soon(&ctx, "the other one is renewed", faults.called(Verb::Renew, 1)).await?;
    faults.release();
    let unnamed = soon(&ctx, "it is acquired", acquiring).await???;
    ctx.eventually(ctx.long(), || async { Ok(named.deadline() > first) }).await?;
    assert!(unnamed.deadline() <= sent + ttl.mul_f64(0.99), "{:?} {sent:?}", unnamed.deadline());
    faults.heal();
    named.release().await?;
    unnamed.release().await?;
    ctx.assert_nothing_left().await
}

/// By so much the store counts longer than the holder, who needs it to stop in: cleaning up behind
/// him must not give it away.
async fn what_is_taken_off_a_ttl_is_left_to_the_holder(ctx: Context) -> Result<(), Failed> {
    const DRIFT: f64 = 0.4;
    let (sync, faults) = ctx.faulty_with(ctx.hasty()?.drift(DRIFT)).await?;
    faults.always(Verb::Renew, Fault::Hang);
    let guard = sync.lock("x").acquire().await?;
    let other = ctx.coordinator().await?;
    let next = soon(&ctx, "somebody else gets it", other.lock("x").acquire()).await??;
    let left = now().since(guard.deadline());
    assert!(left >= ctx.ttl().mul_f64(DRIFT), "only {left:?}");
    next.release().await?;
    drop(guard);
    ctx.assert_nothing_left().await
}

async fn after_a_loss_a_handle_can_acquire_again_at_once(ctx: Context) -> Result<(), Failed> {
    let (sync, faults) = ctx.faulty_with(ctx.hasty()?).await?;
    let lock = sync.lock("x");
    faults.always(Verb::Renew, Fault::Hang);
    let lost = lock.acquire().await?;
    told(&ctx, &lost).await?;
    faults.heal();
    let again = soon(&ctx, "it is taken again", lock.acquire()).await??;
    assert!(again.token() > lost.token());
    // Giving back the lost guard, which is still there, takes nothing from the new one.
    assert_eq!(kind(lost.release().await), Some(ErrorKind::Lost));
    let deadline = again.deadline();
    ctx.eventually(ctx.long(), || async { Ok(again.deadline() > deadline) }).await?;
    assert!(again.is_valid());
    assert!(ctx.coordinator().await?.lock("x").try_acquire().await?.is_none());
    again.release().await?;
    ctx.assert_nothing_left().await
}
