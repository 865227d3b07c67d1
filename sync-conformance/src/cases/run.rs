//! A body that runs under a lock or while elected: only as long as that is so, and not longer held
//! than it runs.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use sync_core::backend::Loss;
use sync_core::{Cause, ErrorKind, Hold, Leader, LeaderStatus};
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;

use super::common::{kind, on_one_thread, soon, told};
use crate::context::Context;
use crate::failed::Failed;
use crate::fault::{Fault, Faults, Verb};
use crate::suite::Case;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::new(a_run_releases_after_its_body),
        Case::new(a_run_stops_its_body_on_a_loss),
        Case::new(a_run_whose_body_outlasts_the_loss_fails),
        Case::new(a_run_releases_when_its_body_panics),
        Case::new(a_run_ends_with_a_shutdown),
        Case::new(a_leaders_run_campaigns_again_after_a_loss),
        Case::new(a_leaders_run_stops_when_told),
        Case::new(a_leaders_run_ends_with_a_shutdown),
    ]
}

/// Lives in a body, and tells on its end how many claims have been ended by then.
struct Body {
    faults: Faults,
    ended: mpsc::UnboundedSender<usize>,
}

impl Body {
    fn new(faults: &Faults) -> (Self, mpsc::UnboundedReceiver<usize>) {
        let (ended, end) = mpsc::unbounded_channel();
        (Self { faults: faults.clone(), ended }, end)
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        let _ = self.ended.send(self.faults.calls(Verb::End));
    }
}

async fn a_run_releases_after_its_body(ctx: Context) -> Result<(), Failed> {
    let (sync, faults) = ctx.faulty().await?;
    let other = ctx.coordinator().await?;
    let (body, mut end) = Body::new(&faults);
    let work = async |hold: Hold| {
        let _body = body;
        sleep(Duration::from_millis(300)).await;
        assert!(hold.is_valid());
        assert!(other.lock("x").try_acquire().await?.is_none());
        Ok::<_, Failed>(hold)
    };
    let hold = sync.lock("x").run(work).await??;
    assert_eq!(end.recv().await, Some(0), "nothing had been ended yet");
    assert_eq!(told(&ctx, &hold).await?, Cause::Released);
    ctx.assert_nothing_left_within(Duration::from_millis(500)).await
}

async fn a_run_stops_its_body_on_a_loss(ctx: Context) -> Result<(), Failed> {
    ctx.expect_outside();
    for by_deadline in [true, false] {
        let (sync, faults) = ctx.faulty_with(ctx.hasty()?).await?;
        let (body, mut end) = Body::new(&faults);
        let (begins, begun) = oneshot::channel();
        let lock = sync.lock("x");
        let running = tokio::spawn(async move {
            let work = |_| async move {
                let _body = body;
                let _ = begins.send(());
                pending::<()>().await;
            };
            lock.run(work).await
        });
        soon(&ctx, "the body begins", begun).await??;
        let cause = if by_deadline {
            faults.always(Verb::Renew, Fault::LoseRequest);
            Cause::Deadline
        } else {
            faults.lose(Loss::Session);
            Cause::Session
        };
        let Err(error) = soon(&ctx, "the run ends", running).await?? else {
            return Err("the body has ended by itself")?;
        };
        assert_eq!(error.kind(), ErrorKind::Lost);
        assert_eq!(error.revocation().map(|lost| lost.cause), Some(cause), "{error}");
        assert_eq!(end.recv().await, Some(0), "nothing had been ended yet");
        ctx.assert_nothing_left().await?;
    }
    Ok(())
}

/// Its work was done, and not under the lock: who takes it for done takes it for exclusive.
async fn a_run_whose_body_outlasts_the_loss_fails(ctx: Context) -> Result<(), Failed> {
    on_one_thread(move || async move {
        let sync = ctx.coordinator_with(ctx.hasty()?).await?;
        let work = |_| async {
            // Code that cannot be stopped.
            std::thread::sleep(ctx.ttl() + Duration::from_millis(200));
        };
        assert_eq!(kind(sync.lock("x").run(work).await), Some(ErrorKind::Lost));
        ctx.assert_nothing_left_within(ctx.long()).await
    })
    .await
}

async fn a_run_releases_when_its_body_panics(ctx: Context) -> Result<(), Failed> {
    let (sync, faults) = ctx.faulty().await?;
    for leads in [false, true] {
        let (body, mut end) = Body::new(&faults);
        let ended = faults.calls(Verb::End);
        let (lock, leader) = (sync.lock("x"), sync.leader("x"));
        let mut body = Some(body);
        let mut work = move |_| {
            let body = body.take();
            async move {
                let _body = body;
                sleep(Duration::from_millis(50)).await;
                // A panic without its noise.
                std::panic::resume_unwind(Box::new("as planned"));
            }
        };
        let running = tokio::spawn(async move {
            if leads { leader.run(work).await } else { lock.run(&mut work).await }
        });
        let outcome = soon(&ctx, "the run ends", running).await?;
        assert!(outcome.is_err_and(|error| error.is_panic()));
        assert_eq!(end.recv().await, Some(ended), "nothing had been ended yet");
        ctx.assert_nothing_left().await?;
    }
    Ok(())
}

async fn a_run_ends_with_a_shutdown(ctx: Context) -> Result<(), Failed> {
    let (sync, faults) = ctx.faulty().await?;
    let (body, mut end) = Body::new(&faults);
    let lock = sync.lock("x");
    let running = tokio::spawn(async move {
        let work = |_| async move {
            let _body = body;
            pending::<()>().await;
        };
        lock.run(work).await
    });
    ctx.eventually(ctx.long(), || async { Ok(sync.lock("x").holder().await?.is_some()) }).await?;
    sync.shutdown().await?;
    let outcome = soon(&ctx, "the run ends", running).await??;
    assert_eq!(kind(outcome), Some(ErrorKind::Closed));
    assert_eq!(end.recv().await, Some(0), "nothing had been ended yet");
    ctx.assert_nothing_left().await
}

async fn a_leaders_run_campaigns_again_after_a_loss(ctx: Context) -> Result<(), Failed> {
    ctx.expect_outside();
    let (sync, faults) = ctx.faulty_with(ctx.hasty()?).await?;
    let leader = sync.leader("x");
    let (begin, mut terms) = mpsc::unbounded_channel();
    let running = tokio::spawn({
        let leader = leader.clone();
        async move {
            let mut last = 3;
            leader
                .run(move |hold| {
                    let _ = begin.send(hold);
                    last -= 1;
                    async move {
                        if last > 0 {
                            pending::<()>().await;
                        }
                        "done"
                    }
                })
                .await
        }
    });
    let first = soon(&ctx, "it leads", terms.recv()).await?.ok_or("it does not lead")?;
    assert_eq!(leader.status(), LeaderStatus::Elected);
    faults.always(Verb::Renew, Fault::LoseRequest);
    told(&ctx, &first).await?;
    faults.heal();
    let second = soon(&ctx, "it leads again", terms.recv()).await?.ok_or("it has ended")?;
    faults.lose(Loss::Session);
    let third = soon(&ctx, "it leads again", terms.recv()).await?.ok_or("it has ended")?;
    assert_eq!(soon(&ctx, "the run ends", running).await???, "done");
    assert!(first.token() < second.token() && second.token() < third.token());
    assert_eq!(told(&ctx, &third).await?, Cause::Released);
    assert_eq!(leader.status(), LeaderStatus::Follower);
    ctx.assert_nothing_left().await
}

async fn a_leaders_run_stops_when_told(ctx: Context) -> Result<(), Failed> {
    // While it campaigns:
    let (sync, faults) = ctx.faulty().await?;
    let other = ctx.coordinator().await?;
    let elected = other.leader("x").elect().await?;
    let terms = AtomicUsize::new(0);
    let stop = faults.called(Verb::Wait, 1);
    let work = |_| {
        terms.fetch_add(1, Ordering::Relaxed);
        pending::<()>()
    };
    let leader = sync.leader("x");
    let stopped = soon(&ctx, "the run stops", leader.run_until(stop, work)).await?;
    assert_eq!((stopped?, terms.load(Ordering::Relaxed)), (None, 0));
    assert_eq!(leader.status(), LeaderStatus::Follower);
    elected.resign().await?;
    ctx.assert_nothing_left().await?;

    // While it leads:
    let (body, mut end) = Body::new(&faults);
    let (body, ended) = (Arc::new(body), faults.calls(Verb::End));
    let stop = async {
        while leader.status() != LeaderStatus::Elected {
            sleep(Duration::from_millis(5)).await;
        }
        sleep(Duration::from_millis(50)).await;
    };
    let work = |_| {
        let body = Arc::clone(&body);
        async move {
            let _body = body;
            pending::<()>().await;
        }
    };
    let stopped = async {
        let stopped = leader.run_until(stop, work).await;
        assert_eq!(Arc::strong_count(&body), 1, "its body is gone");
        stopped
    };
    assert_eq!(soon(&ctx, "the run stops", stopped).await??, None);
    drop(body);
    assert_eq!(end.recv().await, Some(ended + 1));
    assert_eq!(leader.status(), LeaderStatus::Follower);
    ctx.assert_nothing_left_within(Duration::from_millis(500)).await
}

async fn a_leaders_run_ends_with_a_shutdown(ctx: Context) -> Result<(), Failed> {
    let (sync, other) = (ctx.coordinator().await?, ctx.coordinator().await?);
    let (leads, campaigns) = (sync.leader("x"), other.leader("x"));
    let run =
        |leader: Leader| tokio::spawn(async move { kind(leader.run(|_| pending::<()>()).await) });
    let leading = run(leads.clone());
    ctx.eventually(ctx.long(), || async { Ok(leads.status() == LeaderStatus::Elected) }).await?;
    let campaigning = run(campaigns.clone());
    ctx.eventually(ctx.long(), || async { Ok(campaigns.status() == LeaderStatus::Candidate) })
        .await?;
    other.shutdown().await?;
    let outcome = soon(&ctx, "the candidate's run ends", campaigning).await??;
    assert_eq!(outcome, Some(ErrorKind::Closed));
    sync.shutdown().await?;
    let outcome = soon(&ctx, "the leader's run ends", leading).await??;
    assert_eq!(outcome, Some(ErrorKind::Closed));
    ctx.assert_nothing_left().await
}
