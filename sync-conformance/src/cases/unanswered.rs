//! The answer that never comes, and the request that arrives after its sender has given it up.
//!
//! Each of the late requests is tried twice: kept back on the wire, where there is one, and kept
//! back in front of the backend, which needs none.

mod scene;

use std::sync::Arc;
use std::time::Duration;

use sync_core::{Coordinator, ErrorKind, Kind, Node, SeededRng};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use self::scene::{PATIENCE, Scene};
use super::wants::{BOTH, Taken, Want, below};
use crate::context::Context;
use crate::failed::Failed;
use crate::fault::{Fault, Verb};
use crate::proxy::{Flow, Toward};
use crate::suite::{Case, Need};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::new(a_late_attempt_past_the_abandon),
        Case::new(a_late_attempt_past_the_abandon_on_the_wire).needs(&[Need::Proxy]),
        Case::new(a_late_attempt_past_the_release),
        Case::new(a_late_attempt_past_the_release_on_the_wire).needs(&[Need::Proxy]),
        Case::new(a_late_attempt_into_a_later_claim),
        Case::new(a_late_attempt_into_a_later_claim_on_the_wire).needs(&[Need::Proxy]),
        Case::new(a_late_attempt_of_a_try_in_vain),
        Case::new(a_late_attempt_of_a_try_in_vain_on_the_wire).needs(&[Need::Proxy]),
        Case::new(a_late_place_of_somebody_who_has_gone),
        Case::new(a_late_place_of_somebody_who_has_gone_on_the_wire).needs(&[Need::Proxy]),
        Case::new(a_late_place_of_somebody_who_waits),
        Case::new(a_late_place_of_somebody_who_waits_on_the_wire).needs(&[Need::Proxy]),
        Case::new(a_caller_who_goes_meanwhile_leaves_no_marker),
        Case::new(a_caller_who_goes_meanwhile_leaves_no_marker_on_the_wire).needs(&[Need::Proxy]),
        Case::new(a_lost_answer_is_one_grant_not_two),
        Case::new(a_lost_answer_is_one_grant_not_two_on_the_wire).needs(&[Need::Proxy]),
        Case::new(a_late_release_spares_a_newer_claim),
        Case::new(a_late_release_spares_a_newer_claim_on_the_wire).needs(&[Need::Proxy]),
        Case::new(a_release_whose_answer_was_lost_is_a_release),
        Case::new(a_try_without_an_answer_says_so_and_leaves_nothing),
        Case::new(a_wait_without_an_answer_says_so_and_leaves_nothing),
        Case::new(an_opening_without_an_answer_is_repeated),
        Case::new(an_update_whose_answer_was_lost_is_done),
        Case::new(a_late_update_undoes_no_later_one),
        Case::new(a_late_update_undoes_no_later_one_on_the_wire).needs(&[Need::Proxy]),
        Case::new(a_late_update_undoes_no_return_to_what_was),
        Case::new(many_lost_and_late_requests_leave_nothing),
    ]
}

async fn a_late_attempt_past_the_abandon(ctx: Context) -> Result<(), Failed> {
    past_the_abandon(ctx, false).await
}

async fn a_late_attempt_past_the_abandon_on_the_wire(ctx: Context) -> Result<(), Failed> {
    past_the_abandon(ctx, true).await
}

async fn past_the_abandon(ctx: Context, wire: bool) -> Result<(), Failed> {
    for kind in BOTH {
        let scene = Scene::new(&ctx, kind, wire).await?;
        let taking = scene.with_a_late_attempt(Some(Fault::LoseRequest)).await?;
        scene.go_away(taking).await?;
        assert!(scene.faults.abandons() > 0);
        scene.let_through().await?;
        scene.is_as_before().await?;
    }
    Ok(())
}

async fn a_late_attempt_past_the_release(ctx: Context) -> Result<(), Failed> {
    past_the_release(ctx, false).await
}

async fn a_late_attempt_past_the_release_on_the_wire(ctx: Context) -> Result<(), Failed> {
    past_the_release(ctx, true).await
}

async fn past_the_release(ctx: Context, wire: bool) -> Result<(), Failed> {
    for kind in BOTH {
        let scene = Scene::new(&ctx, kind, wire).await?;
        let taken = scene.with_a_late_attempt(None).await?.await??;
        assert!(taken.is_valid());
        taken.give_back().await?;
        scene.let_through().await?;
        scene.is_as_before().await?;
    }
    Ok(())
}

async fn a_late_attempt_into_a_later_claim(ctx: Context) -> Result<(), Failed> {
    into_a_later_claim(ctx, false).await
}

async fn a_late_attempt_into_a_later_claim_on_the_wire(ctx: Context) -> Result<(), Failed> {
    into_a_later_claim(ctx, true).await
}

async fn into_a_later_claim(ctx: Context, wire: bool) -> Result<(), Failed> {
    for kind in BOTH {
        let scene = Scene::new(&ctx, kind, wire).await?;
        scene.with_a_late_attempt(None).await?.await??.give_back().await?;
        let later = scene.want.take().await?;
        scene.let_through().await?;
        scene.still_holds(&later).await?;
        later.give_back().await?;
        scene.is_as_before().await?;
    }
    Ok(())
}

async fn a_late_attempt_of_a_try_in_vain(ctx: Context) -> Result<(), Failed> {
    try_in_vain(ctx, false).await
}

async fn a_late_attempt_of_a_try_in_vain_on_the_wire(ctx: Context) -> Result<(), Failed> {
    try_in_vain(ctx, true).await
}

/// The second attempt is told that the name is taken; the first one arrives when it is not.
async fn try_in_vain(ctx: Context, wire: bool) -> Result<(), Failed> {
    for kind in BOTH {
        let scene = Scene::new(&ctx, kind, wire).await?;
        let held = scene.other.take().await?;
        let ended = scene.faults.done(Verb::End) + 1;
        scene.keep_back(Verb::TryClaim);
        assert!(scene.want.try_take().await?.is_none());
        timeout(ctx.long(), scene.faults.did(Verb::End, ended)).await?;
        held.give_back().await?;
        scene.let_through().await?;
        scene.is_as_before().await?;
    }
    Ok(())
}

async fn a_late_place_of_somebody_who_has_gone(ctx: Context) -> Result<(), Failed> {
    place_of_somebody_who_has_gone(ctx, false).await
}

async fn a_late_place_of_somebody_who_has_gone_on_the_wire(ctx: Context) -> Result<(), Failed> {
    place_of_somebody_who_has_gone(ctx, true).await
}

async fn place_of_somebody_who_has_gone(ctx: Context, wire: bool) -> Result<(), Failed> {
    for kind in BOTH {
        // With the retry lost as well, or with a place that the retry has got.
        for retry in [Some(Fault::LoseRequest), None] {
            let scene = Scene::new(&ctx, kind, wire).await?;
            let held = scene.other.take().await?;
            let waits = scene.faults.calls(Verb::Wait);
            let taking = scene.with_a_late_attempt(retry).await?;
            if retry.is_none() {
                timeout(ctx.long(), scene.faults.called(Verb::Wait, waits + 1)).await?;
            }
            scene.go_away(taking).await?;
            scene.let_through().await?;
            held.give_back().await?;
            scene.is_as_before().await?;
        }
    }
    Ok(())
}

async fn a_late_place_of_somebody_who_waits(ctx: Context) -> Result<(), Failed> {
    place_of_somebody_who_waits(ctx, false).await
}

async fn a_late_place_of_somebody_who_waits_on_the_wire(ctx: Context) -> Result<(), Failed> {
    place_of_somebody_who_waits(ctx, true).await
}

async fn place_of_somebody_who_waits(ctx: Context, wire: bool) -> Result<(), Failed> {
    for kind in BOTH {
        let scene = Scene::new(&ctx, kind, wire).await?;
        let held = scene.other.take().await?;
        let waits = scene.faults.calls(Verb::Wait);
        let taking = scene.with_a_late_attempt(None).await?;
        timeout(ctx.long(), scene.faults.called(Verb::Wait, waits + 1)).await?;
        scene.let_through().await?;
        let (behind, faults) = ctx.faulty().await?;
        let next = Want::new(&behind, kind, "x").wait(ctx.long()).taking();
        timeout(ctx.long(), faults.called(Verb::Wait, 1)).await?;
        held.give_back().await?;
        // It gets the name by its one place, and nobody by a second one.
        timeout(ctx.long(), taking).await???.give_back().await?;
        next.await??.give_back().await?;
        scene.is_as_before().await?;
    }
    Ok(())
}

async fn a_caller_who_goes_meanwhile_leaves_no_marker(ctx: Context) -> Result<(), Failed> {
    caller_who_goes_meanwhile(ctx, false).await
}

async fn a_caller_who_goes_meanwhile_leaves_no_marker_on_the_wire(
    ctx: Context,
) -> Result<(), Failed> {
    caller_who_goes_meanwhile(ctx, true).await
}

async fn caller_who_goes_meanwhile(ctx: Context, wire: bool) -> Result<(), Failed> {
    for kind in BOTH {
        let scene = Scene::with_patience(&ctx, kind, wire, ctx.long()).await?;
        let (calls, ended) = (scene.faults.calls(Verb::TryClaim), scene.faults.done(Verb::End));
        scene.keep_back(Verb::TryClaim);
        let taking = scene.want.taking();
        scene.faults.called(Verb::TryClaim, calls + 1).await;
        if let Some(route) = &scene.route {
            ctx.eventually(ctx.long(), || async { Ok(route.held() > 0) }).await?;
        }
        taking.abort();
        assert!(taking.await.is_err());
        scene.let_through().await?;
        timeout(ctx.long(), scene.faults.did(Verb::End, ended + 1)).await?;
        scene.is_as_before().await?;
        assert_eq!(scene.faults.abandons(), 0);
    }
    Ok(())
}

async fn a_lost_answer_is_one_grant_not_two(ctx: Context) -> Result<(), Failed> {
    lost_answer_is_one_grant(ctx, false).await
}

async fn a_lost_answer_is_one_grant_not_two_on_the_wire(ctx: Context) -> Result<(), Failed> {
    lost_answer_is_one_grant(ctx, true).await
}

async fn lost_answer_is_one_grant(ctx: Context, wire: bool) -> Result<(), Failed> {
    for kind in BOTH {
        let scene = Scene::new(&ctx, kind, wire).await?;
        match &scene.route {
            Some(route) => route.set(Toward::Client, Flow::Swallow),
            None => scene.faults.next(Verb::TryClaim, Fault::LateAnswer),
        }
        let taking = scene.want.taking();
        let (store, url) = (ctx.store(), ctx.server().url());
        // Where a store enters an election in two steps, the answer to the first is what is lost.
        let in_steps = wire && kind == Kind::Leader;
        let arrived = || async {
            let left = in_steps && !store.leftovers(&url, ctx.namespace()).await?.is_empty();
            Ok(left || scene.other.holder().await?.is_some())
        };
        ctx.eventually(ctx.long(), arrived).await?;
        let first = scene.other.holder().await?.and_then(|holder| holder.token);
        assert!(first.is_some() || in_steps, "nothing was granted");
        if let Some(route) = &scene.route {
            // Not before it was given up.
            sleep(PATIENCE).await;
            route.heal();
        }
        let taken = timeout(ctx.long(), taking).await???;
        assert!(first.is_none_or(|first| first == taken.token()));
        scene.faults.release();
        scene.still_holds(&taken).await?;
        taken.give_back().await?;
        scene.is_as_before().await?;
    }
    Ok(())
}

async fn a_late_release_spares_a_newer_claim(ctx: Context) -> Result<(), Failed> {
    late_release(ctx, false).await
}

async fn a_late_release_spares_a_newer_claim_on_the_wire(ctx: Context) -> Result<(), Failed> {
    late_release(ctx, true).await
}

async fn late_release(ctx: Context, wire: bool) -> Result<(), Failed> {
    for kind in BOTH {
        let scene = Scene::new(&ctx, kind, wire).await?;
        let ends = scene.faults.calls(Verb::End);
        let taken = scene.want.take().await?;
        scene.keep_back(Verb::End);
        taken.give_back().await?;
        assert!(scene.faults.calls(Verb::End) > ends + 1, "it was not repeated");
        let newer = scene.want.take().await?;
        scene.let_through().await?;
        scene.still_holds(&newer).await?;
        newer.give_back().await?;
        scene.is_as_before().await?;
    }
    Ok(())
}

async fn a_release_whose_answer_was_lost_is_a_release(ctx: Context) -> Result<(), Failed> {
    for kind in BOTH {
        let scene = Scene::new(&ctx, kind, false).await?;
        let taken = scene.want.take().await?;
        scene.faults.next(Verb::End, Fault::LoseAnswer);
        scene.faults.next(Verb::End, Fault::LoseAnswer);
        taken.give_back().await?;
        scene.is_as_before().await?;
        assert_eq!(scene.faults.abandons(), 0);
    }
    Ok(())
}

async fn a_try_without_an_answer_says_so_and_leaves_nothing(ctx: Context) -> Result<(), Failed> {
    for kind in BOTH {
        let scene = Scene::new(&ctx, kind, false).await?;
        for (fault, says) in [
            (Fault::Unsent, ErrorKind::Unreachable),
            (Fault::LoseRequest, ErrorKind::Unknown),
            (Fault::LoseAnswer, ErrorKind::Unknown),
        ] {
            scene.faults.always(Verb::TryClaim, fault);
            let error = scene.want.try_take().await.err().ok_or("it knows what it cannot know")?;
            assert_eq!(error.kind(), says, "{error}");
            let error = scene.want.clone().wait(Duration::ZERO).take().await.err();
            assert_eq!(error.map(|error| error.kind()), Some(says));
            scene.is_as_before().await?;
        }
    }
    Ok(())
}

async fn a_wait_without_an_answer_says_so_and_leaves_nothing(ctx: Context) -> Result<(), Failed> {
    for kind in BOTH {
        let scene = Scene::new(&ctx, kind, false).await?;
        for (fault, says) in [
            (Fault::Unsent, ErrorKind::Unreachable),
            (Fault::LoseRequest, ErrorKind::Unknown),
            (Fault::LoseAnswer, ErrorKind::Unknown),
        ] {
            scene.faults.always(Verb::TryClaim, fault);
            let want = scene.want.clone().wait(Duration::from_millis(400));
            let error = want.take().await.err().ok_or("it holds what it was not told of")?;
            assert_eq!(error.kind(), says, "{error}");
            scene.is_as_before().await?;
        }
    }
    Ok(())
}

async fn an_opening_without_an_answer_is_repeated(ctx: Context) -> Result<(), Failed> {
    let options = ctx.options()?.request_timeout(PATIENCE);
    for fault in [Fault::Unsent, Fault::LoseRequest, Fault::LoseAnswer, Fault::Late] {
        let (sync, faults) = ctx.faulty_with(options.clone()).await?;
        faults.next(Verb::Open, fault);
        let guard = sync.lock("x").acquire().await?;
        assert_eq!(faults.calls(Verb::Open), 2);
        faults.release();
        timeout(ctx.long(), faults.landed()).await?;
        assert!(guard.is_valid());
        guard.release().await?;
        sync.shutdown().await?;
        ctx.assert_nothing_left().await?;
    }
    Ok(())
}

/// Who leads, as others see it.
async fn leader(want: &Want) -> Result<(String, Option<sync_core::FencingToken>), Failed> {
    let leader = want.holder().await?.ok_or("nobody leads")?;
    Ok((leader.node.id, leader.token))
}

/// A scene with a leader in it, whose record can be changed.
async fn with_a_leader(ctx: &Context, wire: bool) -> Result<(Scene, Taken), Failed> {
    let scene = Scene::new(ctx, Kind::Leader, wire).await?;
    let elected = scene.want.take().await?;
    Ok((scene, elected))
}

impl Taken {
    async fn update(&self, id: &str) -> Result<(), sync_core::Error> {
        match self {
            Self::Leader(elected) => elected.update(Node::new(id)).await,
            Self::Lock(_) => unreachable!("a lock has no record to change"),
        }
    }
}

async fn an_update_whose_answer_was_lost_is_done(ctx: Context) -> Result<(), Failed> {
    let (scene, elected) = with_a_leader(&ctx, false).await?;
    for (at, fault) in [Fault::LoseAnswer, Fault::LoseRequest, Fault::Unsent].iter().enumerate() {
        let id = format!("changed-{at}");
        scene.faults.next(Verb::Update, *fault);
        elected.update(&id).await?;
        assert_eq!(leader(&scene.other).await?, (id, Some(elected.token())));
    }
    elected.give_back().await?;
    scene.is_as_before().await
}

async fn a_late_update_undoes_no_later_one(ctx: Context) -> Result<(), Failed> {
    late_update(ctx, false).await
}

async fn a_late_update_undoes_no_later_one_on_the_wire(ctx: Context) -> Result<(), Failed> {
    late_update(ctx, true).await
}

async fn late_update(ctx: Context, wire: bool) -> Result<(), Failed> {
    let (scene, elected) = with_a_leader(&ctx, wire).await?;
    let updates = scene.faults.calls(Verb::Update);
    scene.keep_back(Verb::Update);
    elected.update("early").await?;
    assert!(scene.faults.calls(Verb::Update) > updates + 1, "it was not repeated");
    elected.update("later").await?;
    scene.let_through().await?;
    assert_eq!(leader(&scene.other).await?, ("later".into(), Some(elected.token())));
    elected.update("last").await?;
    assert_eq!(leader(&scene.other).await?, ("last".into(), Some(elected.token())));
    elected.give_back().await?;
    scene.is_as_before().await
}

async fn a_late_update_undoes_no_return_to_what_was(ctx: Context) -> Result<(), Failed> {
    let (scene, elected) = with_a_leader(&ctx, false).await?;
    elected.update("as it was").await?;
    scene.keep_back(Verb::Update);
    elected.update("early").await?;
    elected.update("as it was").await?;
    scene.let_through().await?;
    assert_eq!(leader(&scene.other).await?, ("as it was".into(), Some(elected.token())));
    elected.give_back().await?;
    scene.is_as_before().await
}

async fn many_lost_and_late_requests_leave_nothing(ctx: Context) -> Result<(), Failed> {
    const FAULTS: [Fault; 5] = [
        Fault::LoseRequest,
        Fault::LoseAnswer,
        Fault::Late,
        Fault::LateAnswer,
        Fault::Slow(Duration::from_millis(5)),
    ];
    let over = CancellationToken::new();
    let (mut contending, mut meddling) = (JoinSet::new(), JoinSet::new());
    for at in 0..3 {
        let options = ctx.options()?.request_timeout(Duration::from_millis(60));
        let (sync, faults) = ctx.faulty_with(options).await?;
        let random = Arc::new(SeededRng::new(at));
        for _ in 0..2 {
            contending.spawn(come_what_may(sync.clone(), Arc::clone(&random), over.clone()));
        }
        meddling.spawn(async move {
            let verbs = [Verb::TryClaim, Verb::TryClaim, Verb::End];
            for _ in 0..100 {
                let (verb, fault) = (verbs[below(&random, 3)], FAULTS[below(&random, 5)]);
                faults.next(verb, fault);
                sleep(Duration::from_millis(below(&random, 60) as u64)).await;
                if below(&random, 6) == 0 {
                    faults.release();
                }
            }
            faults
        });
    }
    let all = meddling.join_all().await;
    over.cancel();
    for faults in &all {
        faults.heal();
        faults.release();
    }
    let mut held = 0;
    while let Some(task) = contending.join_next().await {
        held += task??;
    }
    for faults in &all {
        faults.release();
        timeout(ctx.long(), faults.landed()).await?;
    }
    assert!(held > 0, "nothing was ever granted");
    ctx.assert_nothing_left().await?;
    let other = ctx.coordinator().await?;
    for kind in BOTH {
        let taken = Want::new(&other, kind, "x").try_take().await?.ok_or("not free")?;
        taken.give_back().await?;
    }
    ctx.assert_nothing_left().await
}

/// Takes a lock or an election, with more or less patience, for as long as there are faults.
async fn come_what_may(
    sync: Coordinator,
    random: Arc<SeededRng>,
    over: CancellationToken,
) -> Result<usize, Failed> {
    let mut held = 0;
    while !over.is_cancelled() {
        let want = Want::new(&sync, BOTH[below(&random, 2)], "x");
        let patience = Duration::from_millis(below(&random, 400) as u64);
        let taken = match below(&random, 3) {
            0 => timeout(patience, want.take()).await.ok(),
            1 => want.try_take().await.transpose(),
            _ => Some(want.wait(patience).take().await),
        };
        let Some(Ok(taken)) = taken else { continue };
        held += 1;
        sleep(Duration::from_micros(below(&random, 3_000) as u64)).await;
        if below(&random, 2) == 0 {
            // An answer that never comes is an error here, and no failure of the case.
            drop(taken.give_back().await);
        }
    }
    Ok(held)
}
