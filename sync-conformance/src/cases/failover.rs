//! What happens when a holder, a waiter or the store itself dies, stops, or comes back.

use std::time::Duration;

use sync_core::{Cause, Coordinator, ErrorKind, FencingToken, LockGuard, Options};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::common::{kind, soon};
use crate::child::Child;
use crate::context::Context;
use crate::failed::Failed;
use crate::fault::Verb;
use crate::suite::{Case, Need};

pub(crate) fn cases() -> Vec<Case> {
    const PROCESS: &[Need] = &[Need::SecondProcess];
    const SERVER: &[Need] = &[Need::KillServer];
    vec![
        Case::new(a_holder_that_exits_without_release_is_followed).needs(PROCESS),
        Case::new(a_killed_holder_is_followed).needs(PROCESS),
        Case::new(a_newcomer_does_not_wait_for_a_holder_long_dead).needs(PROCESS),
        Case::new(a_stopped_holder_is_lost_at_its_first_look).needs(PROCESS),
        Case::new(a_stopped_leader_is_lost_at_its_first_look).needs(PROCESS),
        Case::new(a_holder_stopped_for_a_moment_holds_on).needs(PROCESS),
        Case::new(killed_leaders_are_followed_by_those_who_campaign).needs(PROCESS),
        Case::new(a_killed_waiter_blocks_nobody).needs(PROCESS),
        Case::new(a_stopped_waiter_blocks_nobody_and_waits_on).needs(PROCESS),
        Case::new(a_holder_outlives_a_restart_of_the_store).needs(SERVER),
        Case::new(a_store_that_forgets_what_was_held_is_told_of).needs(SERVER),
        Case::new(a_stopped_server_makes_nobody_wait_beyond_the_limit).needs(SERVER),
        Case::new(a_waiter_outlives_a_stopped_server).needs(SERVER),
    ]
}

/// A child that holds the lock `x`, or leads in the election `x`.
async fn holding(ctx: &Context, role: &str) -> Result<(Child, FencingToken), Failed> {
    let orders = ctx.child(role).with("name", "x").with("register", ctx.register().display());
    let mut child = orders.start()?;
    child.expect("waiting").await?;
    let token = held(&mut child).await?;
    Ok((child, token))
}

/// Waits until the child says that it holds; the token.
async fn held(child: &mut Child) -> Result<FencingToken, Failed> {
    let line = child.expect("held").await?;
    let token = line.split_whitespace().next().ok_or("it does not say its token")?;
    Ok(FencingToken::new(token.parse()?))
}

/// A child that stands in line for the lock `x`.
async fn queued(ctx: &Context) -> Result<Child, Failed> {
    let mut child = ctx.child("hold").with("name", "x").with("queue", true).start()?;
    child.expect("waiting").await?;
    child.expect("in line").await?;
    Ok(child)
}

/// A task that stands in line for the lock `x` when this returns.
async fn queue_up(ctx: &Context, options: &Options) -> Result<Acquiring, Failed> {
    Ok(queue_up_beside(ctx, options).await?.0)
}

/// The same, and its coordinator: whoever acquires by that comes after it in any case.
async fn queue_up_beside(
    ctx: &Context,
    options: &Options,
) -> Result<(Acquiring, Coordinator), Failed> {
    let (sync, faults) = ctx.faulty_with(options.clone()).await?;
    let waiting = acquiring(&sync);
    soon(ctx, "it stands in line", faults.called(Verb::Wait, 1)).await?;
    Ok((waiting, sync))
}

type Acquiring = JoinHandle<Result<LockGuard, sync_core::Error>>;

/// Acquires the lock `x` in a task.
fn acquiring(sync: &Coordinator) -> Acquiring {
    let lock = sync.lock("x");
    tokio::spawn(async move { lock.acquire().await })
}

async fn a_holder_that_exits_without_release_is_followed(ctx: Context) -> Result<(), Failed> {
    let (mut holder, first) = holding(&ctx, "hold").await?;
    let waiting = acquiring(&ctx.coordinator().await?);
    holder.tell("leave").await?;
    assert!(holder.ended().await?.success());
    let guard = soon(&ctx, "the waiter gets it", waiting).await???;
    assert!(guard.token() > first);
    guard.release().await?;
    ctx.assert_nothing_left().await
}

async fn a_killed_holder_is_followed(ctx: Context) -> Result<(), Failed> {
    let (holder, first) = holding(&ctx, "hold").await?;
    let sync = ctx.coordinator().await?;
    let waiting = acquiring(&sync);
    assert!(sync.leader("x").try_elect().await?.is_some(), "an election is another thing");
    holder.process().kill()?;
    let guard = soon(&ctx, "the waiter gets it", waiting).await???;
    assert!(guard.token() > first);
    guard.release().await?;
    ctx.assert_nothing_left().await
}

/// The store's clock decides, not how long the newcomer itself would hold.
async fn a_newcomer_does_not_wait_for_a_holder_long_dead(ctx: Context) -> Result<(), Failed> {
    let (holder, first) = holding(&ctx, "hold").await?;
    holder.process().kill()?;
    ctx.assert_nothing_left_within(ctx.long()).await?;
    let sync = ctx.coordinator_with(ctx.options()?.ttl(ctx.long() * 4)).await?;
    let guard = soon(&ctx, "the newcomer gets it", sync.lock("x").acquire()).await??;
    assert!(guard.token() > first);
    guard.release().await?;
    ctx.assert_nothing_left().await
}

async fn a_stopped_holder_is_lost_at_its_first_look(ctx: Context) -> Result<(), Failed> {
    is_lost_at_its_first_look(ctx, "hold").await
}

async fn a_stopped_leader_is_lost_at_its_first_look(ctx: Context) -> Result<(), Failed> {
    is_lost_at_its_first_look(ctx, "lead").await
}

async fn is_lost_at_its_first_look(ctx: Context, role: &str) -> Result<(), Failed> {
    let (mut stopped, first) = holding(&ctx, role).await?;
    stopped.process().stop()?;
    let sync = ctx.coordinator().await?;
    let (lock, leader) = (sync.lock("x"), sync.leader("x"));
    let (mut guard, mut elected) = (None, None);
    let hold = if role == "hold" {
        guard.insert(soon(&ctx, "somebody else gets it", lock.acquire()).await??).hold()
    } else {
        elected.insert(soon(&ctx, "somebody else is elected", leader.elect()).await??).hold()
    };
    assert!(hold.token() > first);
    let register = ctx.open_register()?;
    register.write(hold.token(), 7)??;
    // It hears this before anything else, and has not looked at its guard since it was stopped.
    stopped.tell("look").await?;
    stopped.process().resume()?;
    assert_eq!(stopped.expect("lost").await?, "deadline");
    // Who does not even look is kept out by the fence.
    stopped.tell("write 1").await?;
    stopped.expect("refused").await?;
    assert_eq!((register.contents()?.value, register.contents()?.refused), (7, 1));
    // What it does on waking takes nothing from its successor.
    stopped.tell(if role == "hold" { "release" } else { "resign" }).await?;
    assert!(stopped.expect("error").await?.starts_with("lost"));
    assert!(stopped.ended().await?.success());
    assert!(hold.is_valid());
    drop((guard, elected));
    ctx.assert_nothing_left().await
}

async fn a_holder_stopped_for_a_moment_holds_on(ctx: Context) -> Result<(), Failed> {
    let mut holder = ctx.child("hold").with("name", "x").ttl(ctx.long()).start()?;
    holder.expect("waiting").await?;
    held(&mut holder).await?;
    holder.process().stop()?;
    sleep(Duration::from_millis(500)).await;
    assert!(ctx.coordinator().await?.lock("x").try_acquire().await?.is_none());
    holder.process().resume()?;
    holder.tell("look").await?;
    holder.expect("valid").await?;
    holder.tell("release").await?;
    holder.expect("released").await?;
    ctx.assert_nothing_left().await
}

async fn killed_leaders_are_followed_by_those_who_campaign(ctx: Context) -> Result<(), Failed> {
    let candidate = |node: &str| ctx.child("lead").with("name", "x").with("node", node).start();
    let (mut a, mut b, mut c) = (candidate("a")?, candidate("b")?, candidate("c")?);
    let leader = ctx.coordinator().await?.leader("x");
    let mut last = FencingToken::new(0);
    for candidate in [&mut a, &mut b, &mut c] {
        candidate.expect("waiting").await?;
    }
    let mut alive = vec![("a", a), ("b", b), ("c", c)];
    while !alive.is_empty() {
        // Whoever it is: exactly one of them is elected, and everybody sees who.
        let token = soon(&ctx, "one of them leads", async {
            loop {
                match leader
                    .leader()
                    .await?
                    .and_then(|holder| Some((holder.node.id, holder.token?)))
                {
                    Some((id, token)) if token > last => return Ok::<_, Failed>((id, token)),
                    _ => sleep(Duration::from_millis(20)).await,
                }
            }
        });
        let (id, token) = token.await??;
        let at = alive.iter().position(|(node, _)| *node == id).ok_or("who is that?")?;
        let (_, mut elected) = alive.swap_remove(at);
        assert_eq!(held(&mut elected).await?, token);
        elected.tell("look").await?;
        elected.expect("valid").await?;
        elected.process().kill()?;
        last = token;
    }
    assert_eq!(ctx.judge()?.grants, 3);
    ctx.assert_nothing_left_within(ctx.long()).await?;
    assert_eq!(leader.leader().await?, None);
    Ok(())
}

async fn a_killed_waiter_blocks_nobody(ctx: Context) -> Result<(), Failed> {
    let sync = ctx.coordinator().await?;
    let guard = sync.lock("x").acquire().await?;
    let dead = queued(&ctx).await?;
    let waiting = queue_up(&ctx, &ctx.options()?).await?;
    dead.process().kill()?;
    guard.release().await?;
    let next = soon(&ctx, "the waiter behind it gets it", waiting).await???;
    next.release().await?;
    ctx.assert_nothing_left_within(ctx.long()).await
}

async fn a_stopped_waiter_blocks_nobody_and_waits_on(ctx: Context) -> Result<(), Failed> {
    let sync = ctx.coordinator().await?;
    let guard = sync.lock("x").acquire().await?;
    let mut stopped = queued(&ctx).await?;
    stopped.process().stop()?;
    let waiting = queue_up(&ctx, &ctx.options()?).await?;
    guard.release().await?;
    let next = soon(&ctx, "the waiter behind it gets it", waiting).await???;
    // Its place is gone, and perhaps its session too. It must neither hold beside the other one nor
    // wait for ever.
    stopped.process().resume()?;
    sleep(Duration::from_millis(500)).await;
    assert!(next.is_valid());
    next.release().await?;
    held(&mut stopped).await?;
    stopped.tell("release").await?;
    stopped.expect("released").await?;
    ctx.assert_nothing_left_within(ctx.long()).await
}

/// A coordinator on a server that may be gone for a while: the TTL outlasts that.
async fn patient(ctx: &Context) -> Result<Coordinator, Failed> {
    ctx.coordinator_with(ctx.options()?.ttl(ctx.ttl() * 5)).await
}

async fn a_holder_outlives_a_restart_of_the_store(ctx: Context) -> Result<(), Failed> {
    let sync = patient(&ctx).await?;
    let guard = sync.lock("x").acquire().await?;
    let elected = sync.leader("x").elect().await?;
    ctx.server().restart().await?;
    let other = ctx.coordinator().await?;
    if other.lock("x").holder().await?.is_none() {
        ctx.expect_outside();
        return Err(Failed::skipped("the store keeps no data over a kill"));
    }
    let first = guard.deadline().max(elected.deadline());
    let renewed = || async { Ok(guard.deadline() > first && elected.deadline() > first) };
    ctx.eventually(ctx.long(), renewed).await?;
    assert!(guard.is_valid() && elected.is_valid());
    assert!(other.lock("x").try_acquire().await?.is_none());
    guard.release().await?;
    elected.resign().await?;
    ctx.assert_nothing_left().await
}

/// What is granted afterwards is not judged together with what was before: only who keeps its data
/// can keep its tokens growing.
async fn a_store_that_forgets_what_was_held_is_told_of(ctx: Context) -> Result<(), Failed> {
    let options = Options::new().namespace(ctx.namespace()).ttl(ctx.ttl() * 3);
    let sync = ctx.coordinator_with(options.clone()).await?;
    let (guard, elected) = (sync.lock("x").acquire().await?, sync.leader("x").elect().await?);
    ctx.server().kill()?;
    for member in ctx.server().members() {
        for entry in std::fs::read_dir(member.dir())? {
            let path = entry?.path();
            if path.is_dir() { std::fs::remove_dir_all(path)? } else { std::fs::remove_file(path)? }
        }
    }
    ctx.server().restart().await?;
    ctx.store().prepare(&ctx.server().url()).await?;
    for hold in [guard.hold(), elected.hold()] {
        let lost = soon(&ctx, "the holder is told", hold.revoked()).await?;
        assert!(matches!(lost.cause, Cause::Key | Cause::Session | Cause::Deadline), "{lost}");
    }
    assert_eq!(kind(guard.release().await), Some(ErrorKind::Lost));
    for sync in [sync, ctx.coordinator_with(options).await?] {
        let again = soon(&ctx, "it is taken again", sync.lock("x").acquire()).await??;
        assert!(again.is_valid());
        again.release().await?;
    }
    drop(elected);
    ctx.assert_nothing_left_within(ctx.long()).await
}

async fn a_stopped_server_makes_nobody_wait_beyond_the_limit(ctx: Context) -> Result<(), Failed> {
    let options = ctx.options()?.request_timeout(Duration::from_millis(500));
    let (holder, sync) = (ctx.coordinator().await?, ctx.coordinator_with(options).await?);
    let guard = holder.lock("x").acquire().await?;
    let waits = |name: &str| sync.lock(name).wait(Duration::from_secs(1));
    let waiting = tokio::spawn({
        let waits = waits("x");
        async move { waits.acquire().await }
    });
    ctx.server().stop()?;
    let began = Instant::now();
    let outcomes = async {
        let outcomes = [
            kind(waiting.await?),
            kind(waits("y").acquire().await),
            kind(sync.lock("z").try_acquire().await),
            kind(sync.lock("z").holder().await),
        ];
        Ok::<_, Failed>((outcomes, began.elapsed()))
    };
    let outcomes = soon(&ctx, "all of it fails", outcomes).await;
    ctx.server().resume()?;
    let (outcomes, took) = outcomes??;
    let [waited, rest @ ..] = outcomes;
    // It had been told that the lock is taken; the others were told nothing.
    assert!(matches!(waited, Some(ErrorKind::Timeout | ErrorKind::Unknown)), "{waited:?}");
    for outcome in rest {
        let silent = matches!(outcome, Some(ErrorKind::Unknown | ErrorKind::Unreachable));
        assert!(silent, "{rest:?}");
    }
    assert!(took < Duration::from_secs(15), "{took:?}");
    assert!(guard.is_valid());
    guard.release().await?;
    ctx.assert_nothing_left_within(ctx.long()).await
}

async fn a_waiter_outlives_a_stopped_server(ctx: Context) -> Result<(), Failed> {
    let holder = ctx.coordinator_with(ctx.hasty()?).await?;
    let guard = holder.lock("x").acquire().await?;
    let (waiting, sync) = queue_up_beside(&ctx, &ctx.hasty()?).await?;
    ctx.server().stop()?;
    let lost = soon(&ctx, "the holder is told", guard.revoked()).await;
    let newcomer = acquiring(&sync);
    // Longer than the waiter's own session lives.
    sleep(ctx.ttl()).await;
    ctx.server().resume()?;
    assert_eq!(lost?.cause, Cause::Deadline);
    let next = soon(&ctx, "the waiter gets it", waiting).await???;
    assert!(next.token() > guard.token());
    next.release().await?;
    let last = soon(&ctx, "the newcomer gets it", newcomer).await???;
    last.release().await?;
    drop(guard);
    ctx.assert_nothing_left_within(ctx.long()).await
}
