//! Tokens grow with each acquisition, and a resource that refuses older ones is safe.

use std::time::Duration;

use sync_core::backend::{Claim, Expiry};
use sync_core::{ErrorKind, Fence, FencingToken};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::common::{claim, granted, kind, soon, told};
use crate::child::Child;
use crate::context::Context;
use crate::failed::Failed;
use crate::fault::{Fault, Verb};
use crate::store::Tamper;
use crate::suite::{Case, Need};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::new(tokens_grow_from_holder_to_holder),
        Case::new(tokens_grow_under_contention),
        Case::new(two_acquisitions_in_immediate_succession_differ),
        Case::new(a_repeated_attempt_is_told_its_first_token),
        Case::new(locks_and_elections_are_counted_apart),
        Case::new(tokens_grow_after_a_loss),
        Case::new(tokens_grow_after_the_key_was_removed).needs(&[Need::Tamper(Tamper::Delete)]),
        Case::new(tokens_grow_after_a_restart_of_the_store).needs(&[Need::KillServer]),
        Case::new(a_fence_refuses_who_was_overtaken),
        Case::new(a_register_refuses_stale_writes_and_loses_none).needs(&[Need::SecondProcess]),
    ]
}

fn grow(tokens: &[FencingToken]) -> bool {
    tokens.is_sorted_by(|earlier, later| earlier < later)
}

async fn tokens_grow_from_holder_to_holder(ctx: Context) -> Result<(), Failed> {
    let (one, two) = (ctx.coordinator().await?, ctx.coordinator().await?);
    let mut tokens = Vec::new();
    for sync in [&one, &two, &two, &one, &one, &two, &one] {
        let guard = sync.lock("x").acquire().await?;
        tokens.push(guard.token());
        // Each way to give it back.
        match tokens.len() % 2 {
            0 => guard.release().await?,
            _ => drop(guard),
        }
    }
    assert!(grow(&tokens), "{tokens:?}");
    ctx.assert_nothing_left().await
}

async fn tokens_grow_under_contention(ctx: Context) -> Result<(), Failed> {
    let mut tasks = JoinSet::new();
    for _ in 0..4 {
        let lock = ctx.coordinator().await?.lock("x");
        tasks.spawn(async move {
            for _ in 0..25 {
                lock.acquire().await?.release().await?;
            }
            Ok::<_, sync_core::Error>(())
        });
    }
    while let Some(task) = tasks.join_next().await {
        task??;
    }
    // That they grow, and that none comes twice, is what the checker looks for.
    assert_eq!(ctx.judge()?.grants, 100);
    ctx.assert_nothing_left().await
}

/// A store that counts in microseconds, or that rounds such a number when it prints it, gave two
/// acquisitions the same token. These follow each other as fast as the store can.
async fn two_acquisitions_in_immediate_succession_differ(ctx: Context) -> Result<(), Failed> {
    let backend = ctx.backend().await?;
    let session = backend.open(ctx.long()).await?;
    let ask = async |claim: &Claim| backend.try_claim(&session, claim, None, false).await;
    let end = async |claim: &Claim| backend.end(&session, claim, None, false).await;
    let by_the_clock = backend.profile().expiry == Expiry::Claim;
    let mut tokens = Vec::new();
    for _ in 0..100 {
        let claims = [claim()?, claim()?, claim()?];
        let [a, b, c] = &claims;
        if by_the_clock {
            // More than the core does: all requests are on their way together, and where one
            // connection keeps them in order each is granted in turn.
            let (first, _, second, _, third, _) =
                tokio::join!(ask(a), end(a), ask(b), end(b), ask(c), end(c));
            let attempts = [first?, second?, third?].into_iter();
            let granted = attempts.filter_map(|attempt| granted(attempt).ok());
            let mut together: Vec<_> = granted.map(|grant| grant.token).collect();
            // Where they overtake each other, any of them may come first.
            together.sort_unstable();
            tokens.append(&mut together);
            for claim in &claims {
                end(claim).await?;
            }
            continue;
        }
        tokens.push(granted(ask(a).await?)?.token);
        for (held, next) in [(a, b), (b, c)] {
            let (ended, _) = tokio::join!(end(held), ask(next));
            ended?;
            // It may have come too early.
            tokens.push(granted(ask(next).await?)?.token);
        }
        end(c).await?;
    }
    assert!(tokens.len() >= 100, "only {} grants", tokens.len());
    assert!(grow(&tokens), "{tokens:?}");
    backend.close(&session).await?;
    ctx.assert_nothing_left().await
}

async fn a_repeated_attempt_is_told_its_first_token(ctx: Context) -> Result<(), Failed> {
    let backend = ctx.backend().await?;
    let session = backend.open(ctx.long()).await?;
    let claim = claim()?;
    let first = granted(backend.try_claim(&session, &claim, None, false).await?)?;
    let again = granted(backend.try_claim(&session, &claim, None, true).await?)?;
    assert_eq!(again.token, first.token);
    assert_eq!(again.version, first.version);
    backend.end(&session, &claim, Some(&again), true).await?;
    backend.close(&session).await?;

    // The same through the core: what others see is what the holder was told.
    let (sync, faults) = ctx.faulty().await?;
    faults.next(Verb::TryClaim, Fault::LoseAnswer);
    let guard = sync.lock("x").acquire().await?;
    assert!(guard.token() > first.token);
    let seen = ctx.coordinator().await?.lock("x").holder().await?.ok_or("nobody holds it")?;
    assert_eq!(seen.token, Some(guard.token()));
    guard.release().await?;
    ctx.assert_nothing_left().await
}

async fn locks_and_elections_are_counted_apart(ctx: Context) -> Result<(), Failed> {
    let sync = ctx.coordinator().await?;
    let (mut locks, mut terms) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        // Both at once: they are different things of the same name.
        let guard = sync.lock("x").acquire().await?;
        let elected = sync.leader("x").elect().await?;
        locks.push(guard.token());
        terms.push(elected.token());
        guard.release().await?;
        assert!(elected.is_valid());
        elected.resign().await?;
    }
    assert!(grow(&locks) && grow(&terms), "{locks:?} {terms:?}");
    ctx.assert_nothing_left().await
}

async fn tokens_grow_after_a_loss(ctx: Context) -> Result<(), Failed> {
    let (sync, faults) = ctx.faulty_with(ctx.hasty()?).await?;
    let other = ctx.coordinator().await?;
    let lost = sync.lock("x").acquire().await?;
    faults.always(Verb::Renew, Fault::LoseRequest);
    let next = soon(&ctx, "somebody else gets it", other.lock("x").acquire()).await??;
    faults.heal();
    let tokens = [lost.token(), next.token()];
    next.release().await?;
    let again = soon(&ctx, "the first one gets it", sync.lock("x").acquire()).await??;
    assert!(grow(&[tokens[0], tokens[1], again.token()]), "{tokens:?} {}", again.token());
    again.release().await?;
    drop(lost);
    ctx.assert_nothing_left().await
}

async fn tokens_grow_after_the_key_was_removed(ctx: Context) -> Result<(), Failed> {
    let sync = ctx.coordinator_with(ctx.hasty()?).await?;
    let lock = sync.lock("x");
    let mut tokens = Vec::new();
    for _ in 0..3 {
        let guard = soon(&ctx, "it is taken again", lock.acquire()).await??;
        tokens.push(guard.token());
        ctx.tamper(&lock.key()?, Tamper::Delete).await?;
        told(&ctx, &guard).await?;
    }
    assert!(grow(&tokens), "{tokens:?}");
    ctx.assert_nothing_left().await
}

async fn tokens_grow_after_a_restart_of_the_store(ctx: Context) -> Result<(), Failed> {
    let sync = ctx.coordinator().await?;
    let mark = sync.lock("mark").acquire().await?;
    let mut tokens = Vec::new();
    for _ in 0..2 {
        let guard = soon(&ctx, "it is taken", sync.lock("x").acquire()).await??;
        tokens.push(guard.token());
        guard.release().await?;
        ctx.server().restart().await?;
    }
    if ctx.coordinator().await?.lock("mark").holder().await?.is_none() {
        ctx.expect_outside();
        return Err(Failed::skipped("the store keeps no data over a kill"));
    }
    let other = ctx.coordinator().await?;
    for sync in [sync, other] {
        let guard = soon(&ctx, "it is taken", sync.lock("x").acquire()).await??;
        tokens.push(guard.token());
        guard.release().await?;
    }
    assert!(grow(&tokens), "{tokens:?}");
    mark.release().await?;
    ctx.assert_nothing_left().await
}

async fn a_fence_refuses_who_was_overtaken(ctx: Context) -> Result<(), Failed> {
    let (sync, faults) = ctx.faulty_with(ctx.hasty()?).await?;
    let other = ctx.coordinator().await?;
    let fence = Fence::new();
    let mut written = Vec::new();
    let overtaken = sync.lock("x").acquire().await?;
    fence.guard(overtaken.token(), || written.push("first"))?;
    faults.always(Verb::Renew, Fault::LoseRequest);
    let next = soon(&ctx, "somebody else gets it", other.lock("x").acquire()).await??;
    fence.guard(next.token(), || written.push("second"))?;
    // It has not looked at its guard.
    let stale = fence.guard(overtaken.token(), || written.push("stale"));
    assert_eq!(stale.map_err(|stale| stale.newest), Err(next.token()));
    assert_eq!(written, ["first", "second"]);
    assert_eq!(kind(overtaken.release().await), Some(ErrorKind::Lost));
    fence.guard(next.token(), || written.push("third"))?;
    next.release().await?;
    ctx.assert_nothing_left().await
}

/// Writers who look at no guard, each stopped in the middle of its work for as long as it takes
/// until somebody else has begun.
async fn a_register_refuses_stale_writes_and_loses_none(ctx: Context) -> Result<(), Failed> {
    let mut writers = Vec::new();
    for _ in 0..3 {
        let orders = ctx.child("contend").with("name", "x").with("careless", 1);
        let orders = orders.with("register", ctx.register().display()).with("hold_ms", 200);
        writers.push(orders.start()?);
    }
    for writer in &mut writers {
        writer.expect("ready").await?;
    }
    let lock = ctx.coordinator().await?.lock("x");
    let register = ctx.open_register()?;
    for stale in 1..=3 {
        while register.contents()?.refused < stale {
            let Some((writer, token)) = holding(&lock, &writers).await? else {
                sleep(Duration::from_millis(5)).await;
                continue;
            };
            writer.process().stop()?;
            ctx.eventually(ctx.long(), || async {
                Ok(FencingToken::new(register.contents()?.token) > token)
            })
            .await?;
            writer.process().resume()?;
            sleep(Duration::from_millis(50)).await;
        }
    }
    let mut refused = 0;
    for writer in &mut writers {
        writer.tell("stop").await?;
        let counts = writer.expect("grants").await?;
        let last = counts.split_whitespace().last().ok_or("no counts")?;
        refused += last.parse::<u64>()?;
        assert!(writer.ended().await?.success());
    }
    let contents = register.contents()?;
    assert_eq!(contents.value, contents.accepted, "a write was lost");
    assert_eq!(contents.refused, refused);
    ctx.assert_nothing_left_within(ctx.long()).await
}

/// Who of these children holds the lock, and under which token.
async fn holding<'a>(
    lock: &sync_core::Lock,
    children: &'a [Child],
) -> Result<Option<(&'a Child, FencingToken)>, Failed> {
    let Some(holder) = lock.holder().await? else { return Ok(None) };
    let is_it = |child: &&Child| {
        // The id of a node that was not given is `host-pid-random`.
        holder.node.id.rsplit('-').nth(1) == Some(&child.process().id().to_string())
    };
    let child = children.iter().find(is_it).ok_or(format!("who is {}?", holder.node.id))?;
    Ok(holder.token.map(|token| (child, token)))
}
