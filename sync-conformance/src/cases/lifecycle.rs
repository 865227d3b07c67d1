//! From connecting to shutting down, and who keeps what alive in between.

use std::net::TcpListener;
use std::time::Duration;

use sync_core::{Cause, ErrorKind, Hold};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::StreamExt;

use super::common::{kind, now, soon, told};
use crate::context::Context;
use crate::failed::Failed;
use crate::fault::{Fault, Faults, Verb};
use crate::store::Tamper;
use crate::suite::{Case, Need};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::new(connecting_to_nothing_fails_in_time).needs(&[Need::Proxy]),
        Case::new(connecting_to_silence_fails_in_time).needs(&[Need::Proxy]),
        Case::new(a_handle_sends_nothing),
        Case::new(a_shutdown_releases_everything_once),
        Case::new(a_shutdown_wakes_who_waits),
        Case::new(use_after_a_shutdown_is_closed),
        Case::new(a_shutdown_ends_an_acquire_that_tries_in_vain),
        Case::new(a_grant_that_comes_after_a_shutdown_is_given_back),
        Case::new(a_session_that_opens_during_a_shutdown_is_closed_by_it),
        Case::new(a_shutdown_without_the_store_ends_in_time),
        Case::new(a_shutdown_goes_on_when_its_caller_is_gone),
        Case::new(guards_outlive_their_last_coordinator),
        Case::new(a_handle_outlives_its_last_coordinator),
        Case::new(many_locks_share_one_session_and_one_renewal),
        Case::new(those_who_come_at_once_share_one_session),
        Case::new(the_ttl_of_a_handle_is_its_own),
        Case::new(a_dedicated_session_is_its_handles_own),
        Case::new(an_acquire_that_failed_leaks_no_session),
        Case::new(a_dedicated_session_has_a_fate_of_its_own)
            .needs(&[Need::Tamper(Tamper::EndSession)]),
    ]
}

async fn connecting_to_nothing_fails_in_time(ctx: Context) -> Result<(), Failed> {
    // Ports that were just free, and where nobody listens.
    let listeners = ctx.server().addresses().iter().map(|_| TcpListener::bind("127.0.0.1:0"));
    let listeners = listeners.collect::<Result<Vec<_>, _>>()?;
    let addresses = listeners.iter().map(TcpListener::local_addr).collect::<Result<Vec<_>, _>>()?;
    drop(listeners);
    let url = ctx.server().url_through(&addresses);
    let began = Instant::now();
    let options = ctx.options()?.connect_timeout(Duration::from_secs(2));
    let Err(error) = ctx.store().connect(&url, &options).await else {
        return Err("it is connected to nothing")?;
    };
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    Ok(())
}

async fn connecting_to_silence_fails_in_time(ctx: Context) -> Result<(), Failed> {
    let route = ctx.route().await?;
    route.black_hole();
    let began = Instant::now();
    let options = ctx.options()?.connect_timeout(Duration::from_secs(1));
    let Err(error) = ctx.store().connect(route.url(), &options).await else {
        return Err("it is connected to silence")?;
    };
    let silent = matches!(error.kind(), ErrorKind::Unreachable | ErrorKind::Unknown);
    assert!(silent, "{error}");
    assert!(began.elapsed() < Duration::from_secs(7), "{:?}", began.elapsed());
    Ok(())
}

async fn a_handle_sends_nothing(ctx: Context) -> Result<(), Failed> {
    let (sync, faults) = ctx.faulty().await?;
    let (lock, leader) = (sync.lock("x"), sync.leader("x").dedicated_session());
    drop((lock.key()?, lock.clone(), leader.clone(), leader.status()));
    drop((lock, leader));
    sleep(Duration::from_millis(100)).await;
    let all = [Verb::Open, Verb::Close, Verb::Renew, Verb::TryClaim, Verb::Wait, Verb::End];
    for verb in all.into_iter().chain([Verb::Holder, Verb::Watch, Verb::Update]) {
        assert_eq!(faults.calls(verb), 0, "{verb:?}");
    }
    Ok(())
}

async fn a_shutdown_releases_everything_once(ctx: Context) -> Result<(), Failed> {
    let (sync, faults) = ctx.faulty().await?;
    let held = [
        sync.lock("a").acquire().await?,
        sync.lock("b").ttl(ctx.long() * 2).acquire().await?,
        sync.lock("c").dedicated_session().acquire().await?,
    ];
    let elected = sync.leader("a").elect().await?;
    assert_eq!(faults.calls(Verb::Open), 3);
    let clone = sync.clone();
    let (first, second) = tokio::join!(sync.shutdown(), clone.shutdown());
    first.and(second)?;
    for hold in held.iter().map(|guard| guard.hold()).chain([elected.hold()]) {
        assert_eq!(hold.revocation().map(|lost| lost.cause), Some(Cause::Closed));
    }
    assert_eq!(faults.calls(Verb::Close), 3);
    // By now, not later: the claims and their sessions are gone.
    ctx.assert_nothing_left_within(Duration::from_millis(500)).await?;
    sync.shutdown().await?;
    for guard in held {
        assert_eq!(kind(guard.release().await), Some(ErrorKind::Closed));
    }
    assert_eq!(kind(elected.resign().await), Some(ErrorKind::Closed));
    let other = ctx.coordinator().await?;
    assert!(other.lock("a").try_acquire().await?.is_some());
    Ok(())
}

async fn a_shutdown_wakes_who_waits(ctx: Context) -> Result<(), Failed> {
    let (other, (sync, faults)) = (ctx.coordinator().await?, ctx.faulty().await?);
    let taken = [other.lock("x").acquire().await?, sync.lock("y").acquire().await?];
    let leads = other.leader("x").elect().await?;
    // In line in the store, in line in the process, and in line behind the one in the store.
    let locks = [sync.lock("x"), sync.lock("y"), sync.lock("x").wait(ctx.long())];
    let mut waiting: Vec<_> = locks
        .into_iter()
        .map(|lock| tokio::spawn(async move { kind(lock.acquire().await) }))
        .collect();
    let leader = sync.leader("x");
    waiting.push(tokio::spawn(async move { kind(leader.elect().await) }));
    soon(&ctx, "two of them stand in the store's lines", faults.called(Verb::Wait, 2)).await?;
    assert!(waiting.iter().all(|waiter| !waiter.is_finished()));
    sync.shutdown().await?;
    for waiter in waiting {
        let outcome = soon(&ctx, "each waiter ends", waiter).await??;
        assert_eq!(outcome, Some(ErrorKind::Closed));
    }
    let [x, y] = taken;
    assert_eq!(kind(y.release().await), Some(ErrorKind::Closed));
    x.release().await?;
    leads.resign().await?;
    ctx.assert_nothing_left().await
}

async fn use_after_a_shutdown_is_closed(ctx: Context) -> Result<(), Failed> {
    let (sync, faults) = ctx.faulty().await?;
    let (lock, leader) = (sync.lock("x"), sync.leader("x"));
    sync.shutdown().await?;
    let outcomes = async {
        [
            kind(lock.acquire().await),
            kind(lock.try_acquire().await),
            kind(lock.run(|_| async {}).await),
            kind(leader.elect().await),
            kind(leader.try_elect().await),
            kind(leader.run(|_| async {}).await),
            kind(lock.holder().await),
            kind(leader.leader().await),
            kind(sync.lock("y").wait(Duration::ZERO).acquire().await),
            kind(sync.lock("y").dedicated_session().acquire().await),
        ]
    };
    let outcomes = soon(&ctx, "all of it ends", outcomes).await?;
    assert_eq!(outcomes, [Some(ErrorKind::Closed); 10]);
    let mut changes = leader.changes()?;
    assert_eq!(soon(&ctx, "the stream ends", changes.next()).await?, None);
    assert_eq!((faults.calls(Verb::Open), faults.calls(Verb::TryClaim)), (0, 0));
    assert_eq!(faults.calls(Verb::Holder), 0);
    ctx.assert_nothing_left().await
}

/// What is under way when the shutdown comes is not granted afterwards, and leaves nothing.
async fn a_shutdown_ends_an_acquire_that_tries_in_vain(ctx: Context) -> Result<(), Failed> {
    for fault in [Fault::LoseRequest, Fault::Unsent, Fault::LateAnswer, Fault::LoseAnswer] {
        let (sync, faults) =
            ctx.faulty_with(ctx.options()?.request_timeout(Duration::from_millis(300))).await?;
        faults.always(Verb::TryClaim, fault);
        let lock = sync.lock("x");
        let acquiring = tokio::spawn(async move { kind(lock.acquire().await) });
        soon(&ctx, "it tries", faults.called(Verb::TryClaim, 2)).await?;
        sync.shutdown().await?;
        let outcome = soon(&ctx, "the acquire ends", acquiring).await??;
        assert_eq!(outcome, Some(ErrorKind::Closed));
        ctx.assert_nothing_left().await?;
    }
    Ok(())
}

async fn a_grant_that_comes_after_a_shutdown_is_given_back(ctx: Context) -> Result<(), Failed> {
    let (sync, faults) = ctx.faulty().await?;
    faults.next(Verb::TryClaim, Fault::LateAnswer);
    let lock = sync.lock("x");
    let acquiring = tokio::spawn(async move { kind(lock.acquire().await) });
    soon(&ctx, "it is asked for", faults.called(Verb::TryClaim, 1)).await?;
    let closing = tokio::spawn(async move { sync.shutdown().await });
    sleep(Duration::from_millis(200)).await;
    faults.release();
    let outcome = soon(&ctx, "the acquire ends", acquiring).await??;
    assert_eq!(outcome, Some(ErrorKind::Closed));
    soon(&ctx, "the shutdown ends", closing).await???;
    ctx.assert_nothing_left().await
}

async fn a_session_that_opens_during_a_shutdown_is_closed_by_it(
    ctx: Context,
) -> Result<(), Failed> {
    let (sync, faults) = ctx.faulty().await?;
    faults.next(Verb::Open, Fault::LateAnswer);
    // The second waits for the first one's session.
    let acquiring = ["x", "y"].map(|name| {
        let lock = sync.lock(name);
        tokio::spawn(async move { kind(lock.acquire().await) })
    });
    soon(&ctx, "it is opened", faults.called(Verb::Open, 1)).await?;
    let closing = tokio::spawn(async move { sync.shutdown().await });
    sleep(Duration::from_millis(200)).await;
    assert!(!closing.is_finished());
    faults.release();
    soon(&ctx, "the shutdown ends", closing).await???;
    assert_eq!(faults.calls(Verb::Close), 1);
    for outcome in acquiring {
        let outcome = soon(&ctx, "each acquire ends", outcome).await??;
        assert_eq!(outcome, Some(ErrorKind::Closed));
    }
    assert_eq!((faults.calls(Verb::Open), faults.calls(Verb::Close)), (1, 1));
    ctx.assert_nothing_left().await
}

async fn a_shutdown_without_the_store_ends_in_time(ctx: Context) -> Result<(), Failed> {
    for (verb, fault) in [
        (Verb::End, Fault::LoseRequest),
        (Verb::Close, Fault::LoseRequest),
        (Verb::Close, Fault::Hang),
    ] {
        let options = ctx.options()?.request_timeout(Duration::from_millis(200));
        let (sync, faults) =
            ctx.faulty_with(options.release_timeout(Duration::from_secs(1))).await?;
        let guard = sync.lock("x").acquire().await?;
        faults.always(verb, fault);
        let began = Instant::now();
        assert_eq!(kind(sync.shutdown().await), Some(ErrorKind::Unknown));
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        assert!(!guard.is_valid());
        faults.heal();
        // It went on in the background; whoever calls again waits for that.
        ctx.assert_nothing_left().await?;
        sync.shutdown().await?;
    }
    Ok(())
}

async fn a_shutdown_goes_on_when_its_caller_is_gone(ctx: Context) -> Result<(), Failed> {
    let (sync, faults) = ctx.faulty().await?;
    let guard = sync.lock("x").acquire().await?;
    faults.next(Verb::End, Fault::Hang);
    assert!(timeout(Duration::from_millis(200), sync.shutdown()).await.is_err());
    assert!(!guard.is_valid());
    faults.release();
    ctx.eventually(ctx.long(), || async { Ok(faults.calls(Verb::Close) == 1) }).await?;
    ctx.assert_nothing_left().await
}

/// Sees to it that a lock goes on being renewed, and is nobody else's.
async fn lives_on(ctx: &Context, hold: &Hold) -> Result<(), Failed> {
    let later = hold.deadline() + ctx.ttl();
    ctx.eventually(ctx.long(), || async { Ok(hold.deadline() > later) }).await?;
    assert!(hold.is_valid());
    assert!(ctx.coordinator().await?.lock(hold.name()).try_acquire().await?.is_none());
    Ok(())
}

async fn guards_outlive_their_last_coordinator(ctx: Context) -> Result<(), Failed> {
    let (sync, faults) = ctx.faulty_with(ctx.hasty()?).await?;
    let guard = sync.lock("x").acquire().await?;
    let hold = guard.hold();
    drop(sync);
    lives_on(&ctx, &guard).await?;
    guard.release().await?;
    // A view keeps nothing alive.
    ctx.eventually(ctx.long(), || async { Ok(faults.calls(Verb::Close) == 1) }).await?;
    assert_eq!(told(&ctx, &hold).await?, Cause::Released);
    ctx.assert_nothing_left().await?;
    stays_quiet(&ctx, &faults).await
}

async fn a_handle_outlives_its_last_coordinator(ctx: Context) -> Result<(), Failed> {
    let (sync, faults) = ctx.faulty_with(ctx.hasty()?).await?;
    let (lock, leader) = (sync.lock("x"), sync.leader("x"));
    drop(sync);
    lock.acquire().await?.release().await?;
    drop(leader.elect().await?);
    let guard = lock.acquire().await?;
    lives_on(&ctx, &guard).await?;
    drop(guard);
    assert_eq!((faults.calls(Verb::Open), faults.calls(Verb::Close)), (1, 0));
    drop((lock, leader));
    ctx.eventually(ctx.long(), || async { Ok(faults.calls(Verb::Close) == 1) }).await?;
    ctx.assert_nothing_left().await?;
    stays_quiet(&ctx, &faults).await
}

/// Nothing renews what is no longer there.
async fn stays_quiet(ctx: &Context, faults: &Faults) -> Result<(), Failed> {
    let before = faults.calls(Verb::Renew);
    sleep(ctx.ttl()).await;
    assert_eq!(faults.calls(Verb::Renew), before);
    Ok(())
}

async fn many_locks_share_one_session_and_one_renewal(ctx: Context) -> Result<(), Failed> {
    let (sync, faults) = ctx.faulty_with(ctx.hasty()?).await?;
    let mut guards = Vec::new();
    for number in 0..40 {
        guards.push(sync.lock(format!("x{number}")).acquire().await?);
    }
    let elected = sync.leader("x0").elect().await?;
    let (before, began) = (faults.calls(Verb::Renew), Instant::now());
    lives_on(&ctx, &guards[0]).await?;
    let (renewals, took) = (faults.calls(Verb::Renew) - before, began.elapsed());
    let intervals = took.as_secs_f64() / (ctx.ttl() / 3).as_secs_f64();
    assert!(renewals as f64 <= intervals + 3.0, "{renewals} renewals in {intervals} intervals");
    assert!(guards.iter().all(|guard| guard.is_valid()));
    assert_eq!(faults.calls(Verb::Open), 1);
    for guard in guards {
        guard.release().await?;
    }
    elected.resign().await?;
    ctx.assert_nothing_left().await
}

async fn those_who_come_at_once_share_one_session(ctx: Context) -> Result<(), Failed> {
    let (sync, faults) = ctx.faulty().await?;
    faults.always(Verb::Open, Fault::Delay(Duration::from_millis(200)));
    let mut tasks = JoinSet::new();
    for number in 0..20 {
        let lock = sync.lock(format!("x{number}"));
        tasks.spawn(async move { lock.acquire().await?.release().await });
    }
    while let Some(task) = tasks.join_next().await {
        task??;
    }
    assert_eq!(faults.calls(Verb::Open), 1);
    ctx.assert_nothing_left().await
}

async fn the_ttl_of_a_handle_is_its_own(ctx: Context) -> Result<(), Failed> {
    let (short, usual, long) = (ctx.long(), ctx.long() * 2, ctx.long() * 4);
    let (sync, faults) = ctx.faulty_with(ctx.options()?.ttl(usual)).await?;
    let own = sync.lock("x").dedicated_session();
    let handles = [sync.lock("x").ttl(short), own.clone().ttl(long), own.clone().ttl(short), own];
    for (lock, ttl) in handles.into_iter().zip([short, long, short, usual]) {
        let before = now();
        let guard = lock.acquire().await?;
        let deadline = guard.deadline();
        assert!(deadline > before + ttl.mul_f64(0.9) && deadline < now() + ttl, "{deadline:?}");
        guard.release().await?;
    }
    // With the handles go their sessions; the coordinator's own was never needed.
    assert_eq!(faults.calls(Verb::Open), 4);
    ctx.eventually(ctx.long(), || async { Ok(faults.calls(Verb::Close) == 4) }).await?;
    ctx.assert_nothing_left().await
}

async fn a_dedicated_session_is_its_handles_own(ctx: Context) -> Result<(), Failed> {
    let (sync, faults) = ctx.faulty().await?;
    let shared = sync.lock("shared").acquire().await?;
    let lock = sync.lock("x").dedicated_session();
    let twin = lock.clone();
    lock.acquire().await?.release().await?;
    let guard = twin.acquire().await?;
    assert_eq!(faults.calls(Verb::Open), 2, "one for all, one for this handle and its clones");
    drop((lock, twin));
    sleep(Duration::from_millis(200)).await;
    assert_eq!(faults.calls(Verb::Close), 0);
    assert!(guard.is_valid());
    guard.release().await?;
    ctx.eventually(ctx.long(), || async { Ok(faults.calls(Verb::Close) == 1) }).await?;
    assert!(shared.is_valid());
    shared.release().await?;
    ctx.assert_nothing_left().await
}

async fn an_acquire_that_failed_leaks_no_session(ctx: Context) -> Result<(), Failed> {
    let taken = ctx.coordinator().await?.lock("x").acquire().await?;
    let (sync, faults) = ctx.faulty().await?;
    let lock = || sync.lock("x").dedicated_session();
    assert!(lock().try_acquire().await?.is_none());
    let impatient = lock().wait(Duration::from_millis(300)).acquire().await;
    assert_eq!(kind(impatient), Some(ErrorKind::Timeout));
    faults.next(Verb::TryClaim, Fault::Refuse(ErrorKind::Denied));
    assert_eq!(kind(lock().acquire().await), Some(ErrorKind::Denied));
    faults.next(Verb::TryClaim, Fault::LoseAnswer);
    faults.next(Verb::TryClaim, Fault::Refuse(ErrorKind::Denied));
    assert_eq!(kind(lock().acquire().await), Some(ErrorKind::Denied));
    assert_eq!(faults.calls(Verb::Open), 4);
    ctx.eventually(ctx.long(), || async { Ok(faults.calls(Verb::Close) == 4) }).await?;
    taken.release().await?;
    ctx.assert_nothing_left().await
}

async fn a_dedicated_session_has_a_fate_of_its_own(ctx: Context) -> Result<(), Failed> {
    let sync = ctx.coordinator_with(ctx.hasty()?).await?;
    let (shared, beside) = (sync.lock("shared"), sync.lock("beside").acquire().await?);
    let lost = shared.acquire().await?;
    let own = sync.lock("own").dedicated_session().acquire().await?;
    ctx.tamper(&shared.key()?, Tamper::EndSession).await?;
    told(&ctx, &lost).await?;
    told(&ctx, &beside).await?;
    lives_on(&ctx, &own).await?;
    own.release().await?;
    drop((lost, beside));
    ctx.assert_nothing_left().await
}
