//! Whoever goes away leaves nothing behind, at whatever point.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use sync_core::{Coordinator, Kind, Node, SeededRng};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::wants::{BOTH, SOON, Taken, Want, below, polled};
use crate::context::Context;
use crate::failed::Failed;
use crate::fault::{Fault, Faults, Verb};
use crate::suite::{Case, Need};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::new(dropped_at_every_await_point_of_a_free_name),
        Case::new(dropped_at_every_await_point_while_the_session_opens),
        Case::new(dropped_at_every_await_point_of_a_taken_name),
        Case::new(dropped_at_every_await_point_behind_a_task_of_the_same_process),
        Case::new(a_release_dropped_at_every_await_point_goes_on),
        Case::new(an_update_dropped_at_every_await_point_goes_on),
        Case::new(a_shutdown_dropped_at_every_await_point_goes_on),
        Case::new(a_run_dropped_at_every_await_point_ends_its_body_first),
        Case::new(whoever_tries_again_is_not_in_the_way_of_itself),
        Case::new(dropped_while_its_request_is_under_way_it_leaves_no_marker),
        Case::new(an_aborted_task_gives_back_what_it_holds),
        Case::new(those_who_leave_the_line_do_not_block_it),
        Case::new(many_who_come_and_go_at_random),
        Case::new(dropped_while_the_store_is_down),
        Case::new(dropped_behind_a_black_hole).needs(&[Need::Proxy]),
    ]
}

/// More polls than any future here needs.
const MANY: usize = 500;

/// How long requests and answers are under way on a slow store, so that every step of the core
/// is an await point.
const UNDER_WAY: Duration = Duration::from_millis(2);

fn slow_down(faults: &Faults) {
    for verb in [Verb::Open, Verb::Close, Verb::TryClaim, Verb::Update, Verb::End] {
        faults.always(verb, Fault::Slow(UNDER_WAY));
    }
}

/// How often a future is polled before it is dropped: once, then twice, until it came to its end.
#[derive(Default)]
struct Points {
    polls: usize,
    done: bool,
}

impl Points {
    fn next(&mut self) -> Option<usize> {
        if self.done {
            assert!(self.polls > 1, "there was no await point");
            return None;
        }
        self.polls += 1;
        assert!(self.polls < MANY, "it never comes to its end");
        Some(self.polls)
    }
}

/// Whether nothing keeps `by` from what it wants. What is left behind would, for longer than a
/// case may take: its session is renewed.
async fn is_free(ctx: &Context, by: &Want) -> Result<(), Failed> {
    let taken = by.clone().wait(ctx.long()).take().await?;
    taken.give_back().await?;
    ctx.assert_nothing_left_within(SOON).await
}

/// [`is_free`] once all requests that are under way have come to their answers.
async fn is_free_after(ctx: &Context, faults: &Faults, by: &Want) -> Result<(), Failed> {
    let answered = || async {
        let verbs = [Verb::Open, Verb::TryClaim, Verb::Update, Verb::End];
        Ok(verbs.into_iter().all(|verb| faults.done(verb) == faults.calls(verb)))
    };
    ctx.eventually(ctx.long(), answered).await?;
    ctx.assert_nothing_left_within(SOON).await?;
    is_free(ctx, by).await
}

async fn dropped_at_every_await_point_of_a_free_name(ctx: Context) -> Result<(), Failed> {
    let (sync, faults) = ctx.faulty().await?;
    let other = ctx.coordinator().await?;
    sync.lock("x").acquire().await?.release().await?;
    slow_down(&faults);
    for kind in BOTH {
        let (want, other) = (Want::new(&sync, kind, "x"), Want::new(&other, kind, "x"));
        let mut points = Points::default();
        while let Some(polls) = points.next() {
            if let Ok(taken) = polled(polls, want.take()).await {
                taken?.give_back().await?;
                points.done = true;
            }
            is_free_after(&ctx, &faults, &other).await?;
        }
        let mut points = Points::default();
        while let Some(polls) = points.next() {
            if let Ok(taken) = polled(polls, want.try_take()).await {
                taken?.ok_or("not free")?.give_back().await?;
                points.done = true;
            }
            is_free_after(&ctx, &faults, &other).await?;
        }
    }
    // Every request was answered, so no marker was needed.
    assert_eq!(faults.abandons(), 0);
    Ok(())
}

async fn dropped_at_every_await_point_while_the_session_opens(ctx: Context) -> Result<(), Failed> {
    let (sync, faults) = ctx.faulty().await?;
    let other = ctx.coordinator().await?;
    slow_down(&faults);
    for kind in BOTH {
        let other = Want::new(&other, kind, "x");
        let mut points = Points::default();
        while let Some(polls) = points.next() {
            let want = Want::new(&sync, kind, "x").dedicated_session();
            if let Ok(taken) = polled(polls, want.take()).await {
                taken?.give_back().await?;
                points.done = true;
            }
            drop(want);
            is_free_after(&ctx, &faults, &other).await?;
        }
    }
    // No session stays once its handle has gone.
    let closed = || async { Ok(faults.done(Verb::Close) == faults.calls(Verb::Open)) };
    ctx.eventually(ctx.long(), closed).await
}

async fn dropped_at_every_await_point_of_a_taken_name(ctx: Context) -> Result<(), Failed> {
    let (sync, faults) = ctx.faulty().await?;
    let holder = ctx.coordinator().await?;
    sync.lock("x").acquire().await?.release().await?;
    slow_down(&faults);
    for kind in BOTH {
        let holder = Want::new(&holder, kind, "x");
        let mut points = Points::default();
        while let Some(polls) = points.next() {
            let held = holder.take().await?;
            let waits = faults.calls(Verb::Wait);
            let waiting = async { polled(polls, Want::new(&sync, kind, "x").take()).await.ok() };
            let releasing = async {
                // Who was dropped before it stands in line never will.
                let limit = Duration::from_millis(100);
                let _ = timeout(limit, faults.called(Verb::Wait, waits + 1)).await;
                held.give_back().await
            };
            let (taken, released) = tokio::join!(waiting, releasing);
            released?;
            if let Some(taken) = taken {
                taken?.give_back().await?;
                points.done = true;
            }
            is_free_after(&ctx, &faults, &holder).await?;
        }
    }
    assert_eq!(faults.abandons(), 0);
    Ok(())
}

async fn dropped_at_every_await_point_behind_a_task_of_the_same_process(
    ctx: Context,
) -> Result<(), Failed> {
    let (sync, faults) = ctx.faulty().await?;
    let other = ctx.coordinator().await?;
    slow_down(&faults);
    for kind in BOTH {
        let (want, other) = (Want::new(&sync, kind, "x"), Want::new(&other, kind, "x"));
        let mut points = Points::default();
        while let Some(polls) = points.next() {
            let held = want.take().await?;
            let waiting = async { polled(polls, want.take()).await.ok() };
            let (taken, released) = tokio::join!(waiting, held.give_back());
            released?;
            if let Some(taken) = taken {
                taken?.give_back().await?;
                points.done = true;
            }
            is_free_after(&ctx, &faults, &other).await?;
            // Nor does it keep the line inside the process.
            is_free(&ctx, &want).await?;
        }
    }
    Ok(())
}

async fn a_release_dropped_at_every_await_point_goes_on(ctx: Context) -> Result<(), Failed> {
    let (sync, faults) = ctx.faulty().await?;
    let other = ctx.coordinator().await?;
    slow_down(&faults);
    for kind in BOTH {
        let (want, other) = (Want::new(&sync, kind, "x"), Want::new(&other, kind, "x"));
        // Never polled, it is dropped as its guard is.
        drop(want.take().await?.give_back());
        is_free_after(&ctx, &faults, &other).await?;
        let mut points = Points::default();
        while let Some(polls) = points.next() {
            let taken = want.take().await?;
            let hold = match &taken {
                Taken::Lock(guard) => guard.hold(),
                Taken::Leader(elected) => elected.hold(),
            };
            if let Ok(released) = polled(polls, taken.give_back()).await {
                released?;
                points.done = true;
            }
            assert!(!hold.is_valid(), "it is over from the first poll on");
            is_free_after(&ctx, &faults, &other).await?;
        }
    }
    Ok(())
}

async fn an_update_dropped_at_every_await_point_goes_on(ctx: Context) -> Result<(), Failed> {
    let (sync, faults) = ctx.faulty().await?;
    let other = Want::new(&ctx.coordinator().await?, Kind::Leader, "x");
    slow_down(&faults);
    let mut points = Points::default();
    while let Some(polls) = points.next() {
        let elected = sync.leader("x").elect().await?;
        let id = format!("changed-{polls}");
        if let Ok(updated) = polled(polls, elected.update(Node::new(&id))).await {
            updated?;
            points.done = true;
        }
        let token = elected.token();
        // Every other time it meets its own resignation.
        if polls % 2 == 1 {
            let changed = || async {
                let holder = other.holder().await?.ok_or("nobody leads")?;
                assert_eq!(holder.token, Some(token));
                Ok(holder.node.id == id)
            };
            ctx.eventually(ctx.long(), changed).await?;
            assert!(elected.is_valid());
        }
        elected.resign().await?;
        is_free_after(&ctx, &faults, &other).await?;
    }
    Ok(())
}

async fn a_shutdown_dropped_at_every_await_point_goes_on(ctx: Context) -> Result<(), Failed> {
    let other = ctx.coordinator().await?;
    let mut points = Points::default();
    while let Some(polls) = points.next() {
        let (sync, faults) = ctx.faulty().await?;
        slow_down(&faults);
        let (lock, leader) = (sync.lock("x").acquire().await?, sync.leader("x").elect().await?);
        points.done = polled(polls, sync.shutdown()).await.is_ok_and(|done| done.is_ok());
        assert!(!lock.is_valid() && !leader.is_valid());
        for kind in BOTH {
            is_free(&ctx, &Want::new(&other, kind, "x")).await?;
        }
        timeout(ctx.long(), faults.did(Verb::Close, faults.calls(Verb::Open))).await?;
    }
    Ok(())
}

async fn a_run_dropped_at_every_await_point_ends_its_body_first(
    ctx: Context,
) -> Result<(), Failed> {
    /// Says when the body is gone.
    struct Inside<'a>(&'a AtomicUsize);
    impl Drop for Inside<'_> {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }

    let (sync, faults) = ctx.faulty().await?;
    let other = ctx.coordinator().await?;
    slow_down(&faults);
    let inside = AtomicUsize::new(0);
    let mut points = Points::default();
    while let Some(polls) = points.next() {
        let lock = sync.lock("x");
        let run = lock.run(|hold| async {
            inside.fetch_add(1, Ordering::SeqCst);
            let inside = Inside(&inside);
            let hold = hold;
            for _ in 0..5 {
                sleep(UNDER_WAY).await;
                assert!(hold.is_valid());
            }
            drop(inside);
        });
        if let Ok(ran) = polled(polls, run).await {
            ran?;
            points.done = true;
        }
        let guard = other.lock("x").wait(ctx.long()).acquire().await?;
        assert_eq!(inside.load(Ordering::SeqCst), 0);
        guard.release().await?;
        ctx.assert_nothing_left().await?;
    }
    Ok(())
}

async fn whoever_tries_again_is_not_in_the_way_of_itself(ctx: Context) -> Result<(), Failed> {
    let (sync, faults) = ctx.faulty().await?;
    slow_down(&faults);
    for kind in BOTH {
        let want = Want::new(&sync, kind, "x");
        let mut points = Points::default();
        while let Some(polls) = points.next() {
            match polled(polls, want.take()).await {
                Ok(taken) => {
                    drop(taken?);
                    points.done = true;
                }
                Err(left) => drop(left),
            }
            let again = want.try_take().await?;
            again.ok_or_else(|| format!("in its own way after {polls} polls"))?.give_back().await?;
        }
    }
    ctx.assert_nothing_left().await
}

async fn dropped_while_its_request_is_under_way_it_leaves_no_marker(
    ctx: Context,
) -> Result<(), Failed> {
    let (sync, faults) = ctx.faulty().await?;
    let other = ctx.coordinator().await?;
    sync.lock("x").acquire().await?.release().await?;
    for kind in BOTH {
        let (want, other) = (Want::new(&sync, kind, "x"), Want::new(&other, kind, "x"));
        for fault in [Fault::Late, Fault::LateAnswer, Fault::Hang] {
            let (calls, ends) = (faults.calls(Verb::TryClaim), faults.calls(Verb::End));
            faults.next(Verb::TryClaim, fault);
            let caller = want.taking();
            faults.called(Verb::TryClaim, calls + 1).await;
            caller.abort();
            assert!(caller.await.is_err());
            faults.release();
            timeout(ctx.long(), faults.did(Verb::End, ends + 1)).await?;
            is_free(&ctx, &other).await?;
            // The request itself was not dropped, so what it won is simply given back.
            assert_eq!(faults.calls(Verb::TryClaim), calls + 1);
            assert_eq!(faults.calls(Verb::End), ends + 1);
        }
    }
    assert_eq!(faults.abandons(), 0);
    Ok(())
}

async fn an_aborted_task_gives_back_what_it_holds(ctx: Context) -> Result<(), Failed> {
    let (sync, other) = (ctx.coordinator().await?, ctx.coordinator().await?);
    for kind in BOTH {
        let (want, other) = (Want::new(&sync, kind, "x"), Want::new(&other, kind, "x"));
        let (held, is_held) = tokio::sync::oneshot::channel();
        let task = tokio::spawn(async move {
            let taken = want.take().await;
            let _ = held.send(taken.is_ok());
            std::future::pending::<()>().await;
            drop(taken);
        });
        assert!(is_held.await?);
        task.abort();
        is_free(&ctx, &other).await?;
    }
    Ok(())
}

async fn those_who_leave_the_line_do_not_block_it(ctx: Context) -> Result<(), Failed> {
    let holder = ctx.coordinator().await?;
    for kind in BOTH {
        let held = Want::new(&holder, kind, "x").take().await?;
        let mut waiting = Vec::new();
        for _ in 0..6 {
            let (sync, faults) = ctx.faulty().await?;
            waiting.push((Want::new(&sync, kind, "x").taking(), faults.clone()));
            faults.called(Verb::Wait, 1).await;
        }
        // The first, one in the middle, the last.
        for leaving in [5, 2, 0] {
            let (task, faults) = waiting.remove(leaving);
            task.abort();
            assert!(task.await.is_err());
            timeout(ctx.long(), faults.did(Verb::End, 1)).await?;
        }
        held.give_back().await?;
        let mut served = JoinSet::new();
        for (task, _) in waiting {
            served.spawn(async move { Ok::<_, Failed>(task.await??.give_back().await?) });
        }
        while let Some(task) = timeout(SOON, served.join_next()).await? {
            task??;
        }
        ctx.assert_nothing_left_within(SOON).await?;
    }
    Ok(())
}

async fn many_who_come_and_go_at_random(ctx: Context) -> Result<(), Failed> {
    let inside = Arc::new([const { AtomicUsize::new(0) }; 2]);
    let mut tasks = JoinSet::new();
    for at in 0..4 {
        let (sync, faults) = ctx.faulty().await?;
        slow_down(&faults);
        for task in 0..3 {
            let random = SeededRng::new(at * 100 + task);
            tasks.spawn(come_and_go(sync.clone(), random, Arc::clone(&inside)));
        }
    }
    let mut held = 0;
    while let Some(task) = tasks.join_next().await {
        held += task??;
    }
    assert!(held > 0, "every single one went away too early");
    let other = ctx.coordinator().await?;
    for kind in BOTH {
        for name in ["x", "y"] {
            is_free(&ctx, &Want::new(&other, kind, name)).await?;
        }
    }
    Ok(())
}

/// Wants one of two locks again and again, and loses its patience at any moment.
async fn come_and_go(
    sync: Coordinator,
    random: SeededRng,
    inside: Arc<[AtomicUsize; 2]>,
) -> Result<usize, Failed> {
    let mut held = 0;
    for _ in 0..40 {
        let name = below(&random, 2);
        let want = Want::new(&sync, Kind::Lock, ["x", "y"][name]);
        let patience = Duration::from_micros(below(&random, 60_000) as u64);
        let Ok(taken) = timeout(patience, want.take()).await else { continue };
        let taken = taken?;
        held += 1;
        assert_eq!(inside[name].fetch_add(1, Ordering::SeqCst), 0, "not alone");
        sleep(Duration::from_micros(below(&random, 2_000) as u64)).await;
        inside[name].fetch_sub(1, Ordering::SeqCst);
        match below(&random, 3) {
            0 => drop(taken),
            1 => drop(polled(below(&random, 4), taken.give_back()).await),
            _ => taken.give_back().await?,
        }
    }
    Ok(held)
}

async fn dropped_while_the_store_is_down(ctx: Context) -> Result<(), Failed> {
    let options = ctx.options()?.request_timeout(Duration::from_millis(200));
    let (sync, faults) = ctx.faulty_with(options).await?;
    let other = ctx.coordinator().await?;
    for kind in BOTH {
        for down in [Fault::Unsent, Fault::LoseRequest, Fault::LoseAnswer] {
            let held = Want::new(&other, kind, "x").take().await?;
            let waits = faults.calls(Verb::Wait);
            let waiter = Want::new(&sync, kind, "x").taking();
            faults.called(Verb::Wait, waits + 1).await;
            for verb in [Verb::TryClaim, Verb::End, Verb::Renew, Verb::Open, Verb::Close] {
                faults.always(verb, down);
            }
            let ends = faults.calls(Verb::End);
            waiter.abort();
            assert!(waiter.await.is_err());
            faults.called(Verb::End, ends + 2).await;
            faults.heal();
            held.give_back().await?;
            is_free(&ctx, &Want::new(&other, kind, "x")).await?;
            is_free(&ctx, &Want::new(&sync, kind, "x")).await?;
        }
    }
    Ok(())
}

async fn dropped_behind_a_black_hole(ctx: Context) -> Result<(), Failed> {
    let route = ctx.route().await?;
    let options = ctx.options()?.request_timeout(Duration::from_millis(300));
    let (sync, faults) = ctx.faulty_at(route.url(), options).await?;
    let other = ctx.coordinator().await?;
    for kind in BOTH {
        let held = Want::new(&other, kind, "x").take().await?;
        let waits = faults.calls(Verb::Wait);
        let waiter = Want::new(&sync, kind, "x").taking();
        faults.called(Verb::Wait, waits + 1).await;
        route.black_hole();
        let ends = faults.calls(Verb::End);
        waiter.abort();
        assert!(waiter.await.is_err());
        faults.called(Verb::End, ends + 2).await;
        route.heal();
        held.give_back().await?;
        is_free(&ctx, &Want::new(&other, kind, "x")).await?;
        is_free(&ctx, &Want::new(&sync, kind, "x")).await?;
    }
    Ok(())
}
