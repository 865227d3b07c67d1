//! Waiting: for how long, what it says when that is used up, and what it costs.

use std::time::Duration;

use sync_core::backend::Loss;
use sync_core::{BootClock, Clock, Coordinator, ErrorKind, Kind};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::wants::{BOTH, SOON, Taking, Want};
use crate::context::Context;
use crate::failed::Failed;
use crate::fault::{Fault, Faults, Verb};
use crate::store::Tamper;
use crate::suite::{Case, Need};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::new(a_wait_is_used_up_when_it_is_and_not_before),
        Case::new(a_wait_of_zero_tries_once),
        Case::new(a_try_gets_over_one_failure),
        Case::new(a_wait_counts_behind_a_task_of_the_same_process),
        Case::new(a_wait_that_is_used_up_leaves_no_place_in_line),
        Case::new(taken_and_lost_and_down_do_not_look_the_same),
        Case::new(a_release_wakes_the_next_at_once),
        Case::new(a_release_before_the_wait_has_begun_wakes_too),
        Case::new(a_place_that_was_removed_is_not_granted).needs(&[Need::Tamper(Tamper::Delete)]),
        Case::new(a_waiter_whose_session_died_starts_anew),
        Case::new(a_wait_that_ends_unanswered_does_not_look_taken),
        Case::new(a_wait_that_ends_without_a_session_does_not_look_taken),
        Case::new(a_waiter_whose_session_was_ended_starts_anew)
            .needs(&[Need::Tamper(Tamper::EndSession)]),
        Case::new(a_waiter_does_not_ask_all_the_time),
        Case::new(hints_in_vain_are_not_followed_all_the_time),
        Case::new(one_task_asks_for_all_who_wait_in_its_process),
        Case::new(who_waits_for_a_store_that_is_down_does_not_ask_all_the_time),
        Case::new(a_waiter_outlives_a_restart_of_the_store).needs(&[Need::KillServer]),
    ]
}

/// A wait that is shorter than anything that could end it early.
const WAIT: Duration = Duration::from_millis(700);

async fn a_wait_is_used_up_when_it_is_and_not_before(ctx: Context) -> Result<(), Failed> {
    let (one, two) = (ctx.coordinator().await?, ctx.coordinator().await?);
    for kind in BOTH {
        let held = Want::new(&one, kind, "x").take().await?;
        used_up(&ctx, &Want::new(&two, kind, "x").wait(WAIT)).await?;
        // The coordinator's own wait counts where the handle says nothing.
        let hasty = ctx.coordinator_with(ctx.options()?.wait(WAIT)).await?;
        used_up(&ctx, &Want::new(&hasty, kind, "x")).await?;
        // And not where it says something.
        for other in [Duration::ZERO, ctx.long() * 10] {
            let other = ctx.coordinator_with(ctx.options()?.wait(other)).await?;
            used_up(&ctx, &Want::new(&other, kind, "x").wait(WAIT)).await?;
        }
        held.give_back().await?;
    }
    ctx.assert_nothing_left().await
}

/// Takes in vain for as long as [`WAIT`].
async fn used_up(ctx: &Context, want: &Want) -> Result<(), Failed> {
    let clock = BootClock::new();
    let began = clock.now();
    let error = want.take().await.err().ok_or("two holders")?;
    let waited = clock.now().since(began);
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert!(waited >= WAIT, "gave up after {waited:?}");
    assert!(waited < WAIT + ctx.long(), "took {waited:?}");
    Ok(())
}

async fn a_wait_of_zero_tries_once(ctx: Context) -> Result<(), Failed> {
    let other = ctx.coordinator().await?;
    for kind in BOTH {
        let want = Want::new(&other, kind, "x").wait(Duration::ZERO);
        want.take().await?.give_back().await?;
        let held = want.take().await?;
        // One that had the name before might find, and clear away, what it left.
        let (sync, faults) = ctx.faulty().await?;
        let refused = Want::new(&sync, kind, "x").wait(Duration::ZERO).take().await;
        let error = refused.err().ok_or("two holders")?;
        assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
        assert_eq!((faults.calls(Verb::TryClaim), faults.calls(Verb::Wait)), (1, 0));
        held.give_back().await?;
        ctx.assert_nothing_left().await?;
    }
    Ok(())
}

/// Such as a connection that had gone stale.
async fn a_try_gets_over_one_failure(ctx: Context) -> Result<(), Failed> {
    let (sync, faults) = ctx.faulty().await?;
    for kind in BOTH {
        let want = Want::new(&sync, kind, "x");
        for fault in [Fault::Unsent, Fault::LoseRequest, Fault::LoseAnswer] {
            faults.next(Verb::TryClaim, fault);
            want.try_take().await?.ok_or("it is free")?.give_back().await?;
            faults.next(Verb::TryClaim, fault);
            want.clone().wait(Duration::ZERO).take().await?.give_back().await?;
            faults.next(Verb::Open, fault);
            let apart = want.clone().dedicated_session();
            apart.try_take().await?.ok_or("it is free")?.give_back().await?;
        }
    }
    ctx.assert_nothing_left().await
}

async fn a_wait_counts_behind_a_task_of_the_same_process(ctx: Context) -> Result<(), Failed> {
    let sync = ctx.coordinator().await?;
    for kind in BOTH {
        let want = Want::new(&sync, kind, "x");
        let held = want.take().await?;
        used_up(&ctx, &want.clone().wait(WAIT)).await?;
        let error = want.clone().wait(Duration::ZERO).take().await.err().ok_or("two holders")?;
        assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
        assert!(held.is_valid());
        held.give_back().await?;
        want.try_take().await?.ok_or("not free")?.give_back().await?;
    }
    ctx.assert_nothing_left().await
}

async fn a_wait_that_is_used_up_leaves_no_place_in_line(ctx: Context) -> Result<(), Failed> {
    let (holder, other) = (ctx.coordinator().await?, ctx.coordinator().await?);
    let (sync, faults) = ctx.faulty().await?;
    for kind in BOTH {
        let (left, ended) = (faults.calls(Verb::Wait), faults.done(Verb::End));
        let held = Want::new(&holder, kind, "x").take().await?;
        used_up(&ctx, &Want::new(&sync, kind, "x").wait(WAIT)).await?;
        assert!(faults.calls(Verb::Wait) > left, "it never stood in line");
        timeout(ctx.long(), faults.did(Verb::End, ended + 1)).await?;
        held.give_back().await?;
        // Who has gone is not waited for.
        let taken = Want::new(&other, kind, "x").try_take().await?;
        taken.ok_or("a place was left")?.give_back().await?;
        ctx.assert_nothing_left().await?;
    }
    assert_eq!(faults.abandons(), 0);
    Ok(())
}

/// What users of others cannot tell apart.
async fn taken_and_lost_and_down_do_not_look_the_same(ctx: Context) -> Result<(), Failed> {
    let (sync, faults) = ctx.faulty_with(ctx.hasty()?).await?;
    let other = ctx.coordinator().await?;
    for kind in BOTH {
        let want = Want::new(&sync, kind, "x");
        let brief = want.clone().wait(WAIT);

        let held = Want::new(&other, kind, "x").take().await?;
        assert!(want.try_take().await?.is_none());
        let taken = brief.take().await.err().ok_or("two holders")?;
        held.give_back().await?;

        let held = want.take().await?;
        faults.always(Verb::Renew, Fault::LoseRequest);
        held.revoked().await;
        let lost = held.give_back().await.err().ok_or("released what was lost")?;
        faults.heal();

        faults.always(Verb::TryClaim, Fault::Unsent);
        faults.always(Verb::Open, Fault::Unsent);
        let down = brief.take().await.err().ok_or("held without a store")?;
        faults.always(Verb::TryClaim, Fault::LoseRequest);
        faults.always(Verb::Open, Fault::LoseRequest);
        let silent = brief.take().await.err().ok_or("held without an answer")?;
        faults.heal();

        let kinds = [taken, lost, down, silent].map(|error| error.kind());
        let [timeout, lost, unreachable, unknown] =
            [ErrorKind::Timeout, ErrorKind::Lost, ErrorKind::Unreachable, ErrorKind::Unknown];
        assert_eq!(kinds, [timeout, lost, unreachable, unknown]);
    }
    ctx.assert_nothing_left_within(ctx.long()).await
}

async fn a_release_wakes_the_next_at_once(ctx: Context) -> Result<(), Failed> {
    const HANDOVERS: usize = 5;
    /// Below the time between two looks of any waiter, by far.
    const AT_ONCE: Duration = Duration::from_millis(300);
    let clock = BootClock::new();
    let holder = ctx.coordinator().await?;
    let (sync, faults) = ctx.faulty().await?;
    for kind in BOTH {
        let mut took = Vec::new();
        for _ in 0..HANDOVERS {
            let held = Want::new(&holder, kind, "x").take().await?;
            let (waits, asked) = (faults.calls(Verb::Wait), faults.calls(Verb::TryClaim));
            let want = Want::new(&sync, kind, "x");
            let waiting = tokio::spawn(async move {
                let taken = want.take().await;
                (taken, BootClock::new().now())
            });
            faults.called(Verb::Wait, waits + 1).await;
            // Where a waiter looks by itself, it has just done so.
            let looked = faults.called(Verb::TryClaim, asked + 2);
            let _ = timeout(Duration::from_millis(1_200), looked).await;
            sleep(Duration::from_millis(20)).await;
            let released = clock.now();
            held.give_back().await?;
            let (taken, at) = timeout(ctx.long(), waiting).await??;
            took.push(at.since(released));
            taken?.give_back().await?;
        }
        took.sort_unstable();
        let median = took[HANDOVERS / 2];
        assert!(median < AT_ONCE, "handovers of the {kind} took {took:?}");
    }
    ctx.assert_nothing_left().await
}

/// Between the try that was in vain and the wait.
async fn a_release_before_the_wait_has_begun_wakes_too(ctx: Context) -> Result<(), Failed> {
    let holder = ctx.coordinator().await?;
    let (sync, faults) = ctx.faulty().await?;
    for kind in BOTH {
        let held = Want::new(&holder, kind, "x").take().await?;
        let waits = faults.calls(Verb::Wait);
        faults.next(Verb::Wait, Fault::Hang);
        let waiting = Want::new(&sync, kind, "x").taking();
        faults.called(Verb::Wait, waits + 1).await;
        held.give_back().await?;
        faults.release();
        timeout(SOON, waiting).await???.give_back().await?;
    }
    ctx.assert_nothing_left().await
}

/// Where those who wait have keys of their own, the next of them goes the way of the holder's.
async fn a_place_that_was_removed_is_not_granted(ctx: Context) -> Result<(), Failed> {
    let holder = ctx.coordinator().await?;
    let (sync, faults) = ctx.faulty().await?;
    for kind in BOTH {
        let (want, other) = (Want::new(&sync, kind, "x"), Want::new(&holder, kind, "x"));
        let held = other.take().await?;
        let waits = faults.calls(Verb::Wait);
        let waiting = want.taking();
        faults.called(Verb::Wait, waits + 1).await;
        let asked = faults.calls(Verb::TryClaim);
        faults.next(Verb::TryClaim, Fault::Hang);
        ctx.tamper(&want.key()?, Tamper::Delete).await?;
        timeout(ctx.long(), faults.called(Verb::TryClaim, asked + 1)).await?;
        // Elsewhere there is nothing more to remove.
        drop(ctx.tamper(&want.key()?, Tamper::Delete).await);
        faults.release();
        let taken = timeout(ctx.long(), waiting).await???;
        let seen = other.holder().await?.ok_or("nobody is there")?;
        assert_eq!(seen.token, Some(taken.token()));
        assert!(other.try_take().await?.is_none());
        taken.give_back().await?;
        timeout(ctx.long(), held.revoked()).await?;
    }
    ctx.assert_nothing_left().await
}

async fn a_waiter_whose_session_died_starts_anew(ctx: Context) -> Result<(), Failed> {
    let holder = ctx.coordinator().await?;
    let (sync, faults) = ctx.faulty().await?;
    for kind in BOTH {
        let held = Want::new(&holder, kind, "x").take().await?;
        let (waits, opened) = (faults.calls(Verb::Wait), faults.calls(Verb::Open));
        let waiting = Want::new(&sync, kind, "x").taking();
        faults.called(Verb::Wait, waits + 1).await;
        let opened = opened.max(1);
        faults.lose(Loss::Session);
        timeout(ctx.long(), faults.called(Verb::Open, opened + 1)).await?;
        timeout(ctx.long(), faults.called(Verb::Wait, waits + 2)).await?;
        assert!(!waiting.is_finished());
        held.give_back().await?;
        timeout(ctx.long(), waiting).await???.give_back().await?;
        // Nor does the place that it had before block anybody.
        let next = Want::new(&holder, kind, "x").wait(ctx.long()).take().await?;
        next.give_back().await?;
        ctx.assert_nothing_left().await?;
    }
    Ok(())
}

/// A task that stands in line when this returns, and will not stand there for long.
async fn standing_in_line(sync: &Coordinator, faults: &Faults, kind: Kind) -> Taking {
    let waits = faults.calls(Verb::Wait);
    let waiting = Want::new(sync, kind, "x").wait(WAIT * 2).taking();
    faults.called(Verb::Wait, waits + 1).await;
    waiting
}

/// The store said that the name was taken, and then fell silent.
async fn a_wait_that_ends_unanswered_does_not_look_taken(ctx: Context) -> Result<(), Failed> {
    let holder = ctx.coordinator().await?;
    let (sync, faults) = ctx.faulty().await?;
    for kind in BOTH {
        let held = Want::new(&holder, kind, "x").take().await?;
        let waiting = standing_in_line(&sync, &faults, kind).await;
        faults.always(Verb::TryClaim, Fault::Hang);
        // Woken by this, it asks again.
        held.give_back().await?;
        let error = timeout(ctx.long(), waiting).await??.err().ok_or("it knows too much")?;
        assert_eq!(error.kind(), ErrorKind::Unknown, "{error}");
        faults.heal();
        faults.release();
        ctx.assert_nothing_left_within(ctx.long()).await?;
    }
    Ok(())
}

async fn a_wait_that_ends_without_a_session_does_not_look_taken(
    ctx: Context,
) -> Result<(), Failed> {
    let holder = ctx.coordinator().await?;
    let (sync, faults) = ctx.faulty().await?;
    for kind in BOTH {
        let held = Want::new(&holder, kind, "x").take().await?;
        let waiting = standing_in_line(&sync, &faults, kind).await;
        faults.always(Verb::Open, Fault::Hang);
        faults.lose(Loss::Session);
        let error = timeout(ctx.long(), waiting).await??.err().ok_or("two holders")?;
        assert_eq!(error.kind(), ErrorKind::Unknown, "{error}");
        faults.heal();
        faults.release();
        held.give_back().await?;
        ctx.assert_nothing_left_within(ctx.long()).await?;
    }
    Ok(())
}

async fn a_waiter_whose_session_was_ended_starts_anew(ctx: Context) -> Result<(), Failed> {
    let holder = ctx.coordinator().await?;
    let (sync, faults) = ctx.faulty().await?;
    for kind in BOTH {
        let held = Want::new(&holder, kind, "x").take().await?;
        let beside = sync.lock("beside").acquire().await?;
        let waits = faults.calls(Verb::Wait);
        let waiting = Want::new(&sync, kind, "x").taking();
        faults.called(Verb::Wait, waits + 1).await;
        ctx.tamper(&sync.lock("beside").key()?, Tamper::EndSession).await?;
        timeout(ctx.long(), beside.revoked()).await?;
        timeout(ctx.long(), faults.called(Verb::Wait, waits + 2)).await?;
        held.give_back().await?;
        timeout(ctx.long(), waiting).await???.give_back().await?;
        ctx.assert_nothing_left().await?;
    }
    Ok(())
}

/// How often may be asked in [`WATCHED`].
const SELDOM: usize = 14;
const WATCHED: Duration = Duration::from_secs(3);

async fn a_waiter_does_not_ask_all_the_time(ctx: Context) -> Result<(), Failed> {
    let holder = ctx.coordinator().await?;
    for kind in BOTH {
        let (sync, faults) = ctx.faulty().await?;
        let held = Want::new(&holder, kind, "x").take().await?;
        let waiting = Want::new(&sync, kind, "x").taking();
        let asked = asked(&faults).await;
        assert!((1..SELDOM).contains(&asked), "asked {asked} times in {WATCHED:?}");
        held.give_back().await?;
        waiting.await??.give_back().await?;
    }
    ctx.assert_nothing_left().await
}

/// How often the name was asked for, after a while.
async fn asked(faults: &Faults) -> usize {
    sleep(WATCHED).await;
    faults.calls(Verb::TryClaim)
}

/// Wake-ups that come to nothing, one after the other: each is a request, and none is worth it.
async fn hints_in_vain_are_not_followed_all_the_time(ctx: Context) -> Result<(), Failed> {
    let holder = ctx.coordinator().await?;
    for kind in BOTH {
        let (sync, faults) = ctx.faulty().await?;
        let held = Want::new(&holder, kind, "x").take().await?;
        faults.always(Verb::Wait, Fault::Unsent);
        let waiting = Want::new(&sync, kind, "x").taking();
        let asked = asked(&faults).await;
        assert!((3..2 * SELDOM).contains(&asked), "asked {asked} times in {WATCHED:?}");
        held.give_back().await?;
        timeout(ctx.long(), waiting).await???.give_back().await?;
    }
    ctx.assert_nothing_left().await
}

async fn one_task_asks_for_all_who_wait_in_its_process(ctx: Context) -> Result<(), Failed> {
    let holder = ctx.coordinator().await?;
    let (sync, faults) = ctx.faulty().await?;
    let held = holder.lock("x").acquire().await?;
    let mut waiting = JoinSet::new();
    for _ in 0..30 {
        let want = Want::new(&sync, Kind::Lock, "x").wait(ctx.long() * 2);
        waiting.spawn(async move { want.take().await?.give_back().await });
    }
    let asked = asked(&faults).await;
    assert!((1..SELDOM).contains(&asked), "asked {asked} times in {WATCHED:?}");
    held.release().await?;
    while let Some(served) = waiting.join_next().await {
        served??;
    }
    ctx.assert_nothing_left().await
}

async fn who_waits_for_a_store_that_is_down_does_not_ask_all_the_time(
    ctx: Context,
) -> Result<(), Failed> {
    for kind in BOTH {
        let (sync, faults) = ctx.faulty().await?;
        faults.always(Verb::TryClaim, Fault::Unsent);
        let waiting = Want::new(&sync, kind, "x").taking();
        let asked = asked(&faults).await;
        assert!((3..SELDOM).contains(&asked), "asked {asked} times in {WATCHED:?}");
        faults.heal();
        timeout(ctx.long(), waiting).await???.give_back().await?;
    }
    ctx.assert_nothing_left().await
}

async fn a_waiter_outlives_a_restart_of_the_store(ctx: Context) -> Result<(), Failed> {
    // A store that forgets takes the holder's claim away.
    ctx.expect_outside();
    let holder = ctx.coordinator().await?;
    for kind in BOTH {
        let (sync, faults) = ctx.faulty().await?;
        let held = Want::new(&holder, kind, "x").take().await?;
        let waiting = Want::new(&sync, kind, "x").taking();
        faults.called(Verb::Wait, 1).await;
        ctx.server().kill()?;
        sleep(Duration::from_millis(500)).await;
        ctx.server().restart().await?;
        // How the release goes hangs on what the store remembers.
        drop(held.give_back().await);
        timeout(ctx.long(), waiting).await???.give_back().await?;
    }
    ctx.assert_nothing_left().await
}
