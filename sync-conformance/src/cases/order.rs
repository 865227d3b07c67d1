//! The order of service, where the store keeps one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sync_core::{BootClock, Clock, Kind};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::wants::{BOTH, SOON, Want, polled};
use crate::context::Context;
use crate::failed::Failed;
use crate::fault::{Fault, Verb};
use crate::suite::{Case, Need};

pub(crate) fn cases() -> Vec<Case> {
    let fair = |case: Case| case.needs(&[Need::Fair]);
    vec![
        fair(Case::new(coordinators_are_served_in_the_order_they_came)),
        fair(Case::new(who_goes_on_waiting_keeps_its_place_when_others_leave)),
        fair(Case::new(who_asks_without_waiting_passes_nobody)),
        fair(Case::new(whoever_stood_before_one_and_is_back_stands_behind)),
        Case::new(tasks_of_one_process_are_served_in_the_order_they_came),
        Case::new(tasks_keep_their_order_when_one_leaves),
        Case::new(a_killed_waiter_is_passed_over).needs(&[Need::SecondProcess]),
        fair(Case::new(nobody_is_served_much_less_than_others)),
    ]
}

/// Who was served, in order.
#[derive(Clone, Default)]
struct Served(Arc<Mutex<Vec<usize>>>);

impl Served {
    fn note(&self, who: usize) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(who);
    }

    fn so_far(&self) -> Vec<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// One after another, each with a coordinator of its own, stands in line for `x`.
async fn stand_in_line(
    ctx: &Context,
    kind: Kind,
    count: usize,
    served: &Served,
) -> Result<Vec<tokio::task::JoinHandle<Result<(), Failed>>>, Failed> {
    let mut line = Vec::new();
    for who in 0..count {
        let (sync, faults) = ctx.faulty().await?;
        let (want, served) = (Want::new(&sync, kind, "x"), served.clone());
        line.push(tokio::spawn(async move {
            let taken = want.take().await?;
            served.note(who);
            Ok(taken.give_back().await?)
        }));
        timeout(ctx.long(), faults.called(Verb::Wait, 1)).await?;
    }
    Ok(line)
}

async fn coordinators_are_served_in_the_order_they_came(ctx: Context) -> Result<(), Failed> {
    let holder = ctx.coordinator().await?;
    for kind in BOTH {
        let served = Served::default();
        let held = Want::new(&holder, kind, "x").take().await?;
        let line = stand_in_line(&ctx, kind, 8, &served).await?;
        held.give_back().await?;
        for waiter in line {
            timeout(ctx.long(), waiter).await???;
        }
        assert_eq!(served.so_far(), [0, 1, 2, 3, 4, 5, 6, 7], "of a {kind}");
    }
    ctx.assert_nothing_left().await
}

async fn who_goes_on_waiting_keeps_its_place_when_others_leave(ctx: Context) -> Result<(), Failed> {
    let holder = ctx.coordinator().await?;
    for kind in BOTH {
        let served = Served::default();
        let held = Want::new(&holder, kind, "x").take().await?;
        let line = stand_in_line(&ctx, kind, 6, &served).await?;
        for (who, waiter) in line.into_iter().enumerate() {
            if [0, 2, 3].contains(&who) {
                waiter.abort();
                assert!(waiter.await.is_err());
            }
        }
        // Who comes now comes last, though places were left.
        let (sync, faults) = ctx.faulty().await?;
        let last = Want::new(&sync, kind, "x").taking();
        timeout(ctx.long(), faults.called(Verb::Wait, 1)).await?;
        held.give_back().await?;
        timeout(ctx.long(), last).await???.give_back().await?;
        assert_eq!(served.so_far(), [1, 4, 5], "of a {kind}");
        ctx.assert_nothing_left_within(SOON).await?;
    }
    Ok(())
}

/// Whoever waits may learn of the one before only after that one is back.
async fn whoever_stood_before_one_and_is_back_stands_behind(ctx: Context) -> Result<(), Failed> {
    let holder = ctx.coordinator().await?;
    let ((quick, steps), (slow, faults)) = (ctx.faulty().await?, ctx.faulty().await?);
    for kind in BOTH {
        let held = Want::new(&holder, kind, "x").take().await?;
        let (waits, want) = (steps.calls(Verb::Wait), Want::new(&quick, kind, "x"));
        let before = want.taking();
        timeout(ctx.long(), steps.called(Verb::Wait, waits + 1)).await?;
        let waits = faults.calls(Verb::Wait);
        faults.next(Verb::Wait, Fault::Hang);
        let waiting = Want::new(&slow, kind, "x").taking();
        timeout(ctx.long(), faults.called(Verb::Wait, waits + 1)).await?;

        held.give_back().await?;
        timeout(ctx.long(), before).await???.give_back().await?;
        let waits = steps.calls(Verb::Wait);
        let behind = want.taking();
        timeout(ctx.long(), steps.called(Verb::Wait, waits + 1)).await?;
        faults.release();
        timeout(SOON, waiting).await???.give_back().await?;
        timeout(ctx.long(), behind).await???.give_back().await?;
    }
    ctx.assert_nothing_left_within(SOON).await
}

async fn who_asks_without_waiting_passes_nobody(ctx: Context) -> Result<(), Failed> {
    let (holder, passer) = (ctx.coordinator().await?, ctx.coordinator().await?);
    for kind in BOTH {
        let served = Served::default();
        let held = Want::new(&holder, kind, "x").take().await?;
        let line = stand_in_line(&ctx, kind, 4, &served).await?;
        // It asks all the time while the name goes from one to the next.
        let over = Arc::new(AtomicBool::new(false));
        let (want, stop) = (Want::new(&passer, kind, "x"), Arc::clone(&over));
        let noted = served.clone();
        let asking = tokio::spawn(async move {
            while !stop.load(Ordering::Acquire) {
                if let Some(taken) = want.try_take().await? {
                    noted.note(usize::MAX);
                    taken.give_back().await?;
                }
            }
            Ok::<_, Failed>(())
        });
        held.give_back().await?;
        for waiter in line {
            timeout(ctx.long(), waiter).await???;
        }
        let order = served.so_far();
        over.store(true, Ordering::Release);
        asking.await??;
        assert_eq!(order[..4], [0, 1, 2, 3], "of a {kind}");
    }
    ctx.assert_nothing_left().await
}

async fn tasks_of_one_process_are_served_in_the_order_they_came(
    ctx: Context,
) -> Result<(), Failed> {
    tasks_in_order(ctx, &[]).await
}

async fn tasks_keep_their_order_when_one_leaves(ctx: Context) -> Result<(), Failed> {
    tasks_in_order(ctx, &[0, 4, 7]).await
}

async fn tasks_in_order(ctx: Context, leaving: &[usize]) -> Result<(), Failed> {
    let sync = ctx.coordinator().await?;
    for kind in BOTH {
        let served = Served::default();
        let want = Want::new(&sync, kind, "x");
        let held = want.take().await?;
        let mut line = Vec::new();
        for who in 0..8 {
            let (want, served) = (want.clone(), served.clone());
            let waiting = async move {
                let taken = want.take().await?;
                served.note(who);
                Ok::<_, Failed>(taken.give_back().await?)
            };
            // The first poll is what stands in line.
            let Err(waiting) = polled(1, waiting).await else { return Err("two holders")? };
            line.push(tokio::spawn(waiting));
        }
        let mut staying = Vec::new();
        for (who, waiter) in line.into_iter().enumerate() {
            if leaving.contains(&who) {
                waiter.abort();
                assert!(waiter.await.is_err());
            } else {
                staying.push(waiter);
            }
        }
        held.give_back().await?;
        for waiter in staying {
            timeout(ctx.long(), waiter).await???;
        }
        let stayed: Vec<_> = (0..8).filter(|who| !leaving.contains(who)).collect();
        assert_eq!(served.so_far(), stayed, "of a {kind}");
    }
    ctx.assert_nothing_left().await
}

async fn a_killed_waiter_is_passed_over(ctx: Context) -> Result<(), Failed> {
    let clock = BootClock::new();
    let holder = ctx.coordinator().await?;
    for (kind, role) in BOTH.into_iter().zip(["hold", "lead"]) {
        let left = || async {
            let url = ctx.server().url();
            Ok::<_, Failed>(ctx.store().leftovers(&url, ctx.namespace()).await?.len())
        };
        let held = Want::new(&holder, kind, "x").take().await?;
        let before = left().await?;
        let mut victim = ctx.child(role).with("name", "x").start()?;
        victim.expect("waiting").await?;
        ctx.eventually(ctx.long(), || async { Ok(left().await? > before) }).await?;
        let behind = Served::default();
        let line = stand_in_line(&ctx, kind, 2, &behind).await?;
        victim.process().kill()?;
        let killed = clock.now();
        held.give_back().await?;
        for waiter in line {
            timeout(ctx.long(), waiter).await???;
        }
        let took = clock.now().since(killed);
        assert!(took < ctx.long(), "a dead waiter blocked the {kind} for {took:?}");
        ctx.assert_nothing_left_within(ctx.long()).await?;
    }
    Ok(())
}

async fn nobody_is_served_much_less_than_others(ctx: Context) -> Result<(), Failed> {
    const CLIENTS: usize = 5;
    const CONTEST: Duration = Duration::from_secs(3);
    for kind in BOTH {
        let over = Arc::new(AtomicBool::new(false));
        let mut clients = JoinSet::new();
        let everybody = Arc::new(tokio::sync::Barrier::new(CLIENTS));
        for _ in 0..CLIENTS {
            let want = Want::new(&ctx.coordinator().await?, kind, "x").wait(ctx.long());
            let (over, everybody) = (Arc::clone(&over), Arc::clone(&everybody));
            clients.spawn(async move {
                everybody.wait().await;
                let mut share = 0_usize;
                while !over.load(Ordering::Acquire) {
                    let taken = want.take().await?;
                    share += 1;
                    taken.give_back().await?;
                }
                Ok::<_, Failed>(share)
            });
        }
        sleep(CONTEST).await;
        over.store(true, Ordering::Release);
        let mut shares = Vec::new();
        while let Some(share) = clients.join_next().await {
            shares.push(share??);
        }
        shares.sort_unstable();
        let (least, most) = (shares[0], shares[CLIENTS - 1]);
        assert!(least >= 2 && least * 2 >= most, "shares of the {kind}: {shares:?}");
    }
    ctx.assert_nothing_left().await
}
