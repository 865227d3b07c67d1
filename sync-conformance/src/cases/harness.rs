//! What the other cases stand on: that the [`Store`](crate::Store) which a backend's author wrote
//! does what it says. A list of leftovers that is always empty would let everything pass.

use std::time::Duration;

use sync_core::Kind;
use tokio::time::{sleep, timeout};

use crate::context::Context;
use crate::failed::Failed;
use crate::fault::{Fault, Verb};
use crate::store::{FOREIGN, Tamper};
use crate::suite::{Case, Need};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::new(leftovers_tell_what_is_held_and_who_waits),
        Case::new(leftovers_keep_to_their_namespace),
        Case::new(a_deleted_key_is_held_by_nobody).needs(&[Need::Tamper(Tamper::Delete)]),
        Case::new(an_overwritten_key_shows_what_was_written)
            .needs(&[Need::Tamper(Tamper::Overwrite)]),
        Case::new(an_ended_session_holds_nothing).needs(&[Need::Tamper(Tamper::EndSession)]),
        Case::new(a_child_holds_and_does_as_it_is_told).needs(&[Need::SecondProcess]),
        Case::new(a_killed_child_has_told_its_grant).needs(&[Need::SecondProcess]),
        Case::new(a_stopped_child_goes_on_where_it_was).needs(&[Need::SecondProcess]),
        Case::new(a_route_leads_to_the_server_until_it_is_cut).needs(&[Need::Proxy]),
        Case::new(a_stopped_server_answers_nobody).needs(&[Need::KillServer]),
        Case::new(a_killed_server_comes_back_on_its_address).needs(&[Need::KillServer]),
    ]
}

async fn leftovers_tell_what_is_held_and_who_waits(ctx: Context) -> Result<(), Failed> {
    let left = || async {
        let url = ctx.server().url();
        Ok::<_, Failed>(ctx.store().leftovers(&url, ctx.namespace()).await?.len())
    };
    assert_eq!(left().await?, 0);
    let (one, two) = (ctx.coordinator().await?, ctx.coordinator().await?);
    let guard = one.lock("x").acquire().await?;
    let held = left().await?;
    assert!(held > 0);
    let waiter = tokio::spawn(async move { two.lock("x").acquire().await });
    ctx.eventually(ctx.long(), || async { Ok(left().await? > held) }).await?;
    guard.release().await?;
    waiter.await??.release().await?;
    ctx.assert_nothing_left().await
}

async fn leftovers_keep_to_their_namespace(ctx: Context) -> Result<(), Failed> {
    let beside = format!("{}x", ctx.namespace());
    let sync = ctx.coordinator_with(ctx.options_in(&beside)?).await?;
    let guard = sync.lock("x").acquire().await?;
    assert!(!ctx.store().leftovers(&ctx.server().url(), &beside).await?.is_empty());
    ctx.assert_nothing_left().await?;
    Ok(guard.release().await?)
}

async fn a_deleted_key_is_held_by_nobody(ctx: Context) -> Result<(), Failed> {
    for kind in [Kind::Lock, Kind::Leader] {
        tampered(&ctx, kind, Tamper::Delete, None).await?;
    }
    Ok(())
}

async fn an_overwritten_key_shows_what_was_written(ctx: Context) -> Result<(), Failed> {
    for kind in [Kind::Lock, Kind::Leader] {
        tampered(&ctx, kind, Tamper::Overwrite, Some(FOREIGN)).await?;
    }
    Ok(())
}

async fn an_ended_session_holds_nothing(ctx: Context) -> Result<(), Failed> {
    for kind in [Kind::Lock, Kind::Leader] {
        tampered(&ctx, kind, Tamper::EndSession, None).await?;
    }
    Ok(())
}

/// Tampers with a claim that is held, and expects to find this holder's id or none.
async fn tampered(
    ctx: &Context,
    kind: Kind,
    how: Tamper,
    expected: Option<&str>,
) -> Result<(), Failed> {
    let (sync, faults) = ctx.faulty().await?;
    // What is done on the loss would remove the value on some stores.
    faults.always(Verb::End, Fault::Hang);
    let (lock, leader) = (sync.lock("x"), sync.leader("x"));
    let (key, guard, elected) = match kind {
        Kind::Lock => (lock.key()?, Some(lock.acquire().await?), None),
        Kind::Leader => (leader.key()?, None, Some(leader.elect().await?)),
    };
    ctx.tamper(&key, how).await?;
    let found = || async {
        let holder = match kind {
            Kind::Lock => lock.holder().await?,
            Kind::Leader => leader.leader().await?,
        };
        Ok(holder.map(|holder| holder.node.id).as_deref() == expected)
    };
    ctx.eventually(ctx.long(), found).await?;
    drop((guard, elected));
    Ok(())
}

async fn a_child_holds_and_does_as_it_is_told(ctx: Context) -> Result<(), Failed> {
    let sync = ctx.coordinator().await?;
    let mut holder = ctx.child("hold").with("name", "x").start()?;
    holder.expect("waiting").await?;
    holder.expect("held").await?;
    assert!(sync.lock("x").try_acquire().await?.is_none());
    holder.tell("look").await?;
    holder.expect("valid").await?;
    holder.tell("release").await?;
    holder.expect("released").await?;
    assert!(holder.ended().await?.success());
    assert!(sync.lock("x").try_acquire().await?.is_some());

    let mut leader = ctx.child("lead").with("name", "x").with("node", "n").start()?;
    leader.expect("waiting").await?;
    leader.expect("held").await?;
    let seen = sync.leader("x").leader().await?.ok_or("nobody leads")?;
    assert_eq!(seen.node.id, "n");
    leader.tell("resign").await?;
    leader.expect("resigned").await?;
    leader.ended().await?;
    ctx.assert_nothing_left().await
}

async fn a_killed_child_has_told_its_grant(ctx: Context) -> Result<(), Failed> {
    let mut holder = ctx.child("hold").with("name", "x").start()?;
    holder.expect("waiting").await?;
    holder.expect("held").await?;
    holder.process().kill()?;
    assert!(!holder.process().is_running());
    assert_eq!(ctx.judge()?.grants, 1);
    assert!(holder.line().await.is_err());
    Ok(())
}

async fn a_stopped_child_goes_on_where_it_was(ctx: Context) -> Result<(), Failed> {
    let mut holder = ctx.child("hold").with("name", "x").ttl(Duration::from_secs(30)).start()?;
    holder.expect("waiting").await?;
    holder.expect("held").await?;
    holder.process().stop()?;
    holder.tell("look").await?;
    assert!(timeout(Duration::from_millis(300), holder.line()).await.is_err());
    holder.process().resume()?;
    holder.expect("valid").await?;
    holder.tell("release").await?;
    holder.expect("released").await?;
    Ok(())
}

async fn a_route_leads_to_the_server_until_it_is_cut(ctx: Context) -> Result<(), Failed> {
    let route = ctx.route().await?;
    let sync = ctx.coordinator_at(route.url(), ctx.options()?).await?;
    assert!(route.proxies().iter().any(|proxy| proxy.accepted() > 0));
    let answers = || async { Ok(sync.lock("x").holder().await.is_ok()) };
    assert!(answers().await?);
    route.cut();
    assert!(!answers().await?);
    route.heal();
    ctx.eventually(ctx.long(), answers).await?;
    route.black_hole();
    assert!(!answers().await?);
    route.heal();
    ctx.eventually(ctx.long(), answers).await
}

async fn a_stopped_server_answers_nobody(ctx: Context) -> Result<(), Failed> {
    let sync = ctx.coordinator().await?;
    let answers = || async { Ok(sync.lock("x").holder().await.is_ok()) };
    assert!(answers().await?);
    ctx.server().stop()?;
    assert!(!answers().await?);
    ctx.server().resume()?;
    ctx.eventually(ctx.long(), answers).await
}

async fn a_killed_server_comes_back_on_its_address(ctx: Context) -> Result<(), Failed> {
    let sync = ctx.coordinator().await?;
    let answers = || async { Ok(sync.lock("x").holder().await.is_ok()) };
    ctx.server().kill()?;
    assert!(!answers().await?);
    sleep(Duration::from_millis(200)).await;
    ctx.server().restart().await?;
    ctx.eventually(ctx.long(), answers).await
}
