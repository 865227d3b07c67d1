//! Renewals: they go on through failures, and nothing is granted on what is nearly over.

use std::sync::Arc;

use sync_core::backend::{Expiry, Held, Renewal};
use tokio::time::sleep;

use super::common::{claim, granted, now, soon};
use crate::context::Context;
use crate::failed::Failed;
use crate::fault::{Fault, Verb};
use crate::store::Tamper;
use crate::suite::{Case, Need};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::new(renewals_that_hang_once_or_twice_take_nothing_away),
        Case::new(nothing_is_granted_on_a_session_that_is_nearly_over),
        Case::new(a_loss_whose_clean_up_hangs_keeps_nobody_waiting),
        Case::new(a_renewal_tells_that_its_session_was_ended)
            .needs(&[Need::Tamper(Tamper::EndSession)]),
    ]
}

/// Each is given up in time for the next.
async fn renewals_that_hang_once_or_twice_take_nothing_away(ctx: Context) -> Result<(), Failed> {
    let (sync, faults) = ctx.faulty_with(ctx.hasty()?.ttl(ctx.ttl() * 4)).await?;
    for fault in [Fault::Hang, Fault::Late] {
        faults.next(Verb::Renew, fault);
    }
    let guard = sync.lock("x").acquire().await?;
    let first = guard.deadline();
    ctx.eventually(ctx.long(), || async { Ok(guard.deadline() > first) }).await?;
    assert!(faults.calls(Verb::Renew) >= 3);
    assert!(guard.is_valid());
    guard.release().await?;
    faults.release();
    ctx.assert_nothing_left().await
}

async fn nothing_is_granted_on_a_session_that_is_nearly_over(ctx: Context) -> Result<(), Failed> {
    if ctx.backend().await?.profile().expiry == Expiry::Claim {
        return Err(Failed::skipped("each claim has a TTL of its own here"));
    }
    let ttl = ctx.ttl() * 4;
    let (sync, faults) = ctx.faulty_with(ctx.hasty()?.ttl(ttl)).await?;
    let held = sync.lock("x").acquire().await?;
    faults.always(Verb::Renew, Fault::Unsent);
    // A little less than a third is left.
    sleep(held.deadline().since(now()).mul_f64(0.7)).await;
    let asked = faults.calls(Verb::TryClaim);
    let acquiring = tokio::spawn({
        let lock = sync.lock("y");
        async move { lock.acquire().await }
    });
    sleep(ttl / 40).await;
    assert_eq!(faults.calls(Verb::TryClaim), asked);
    faults.heal();
    let granted = soon(&ctx, "it is acquired", acquiring).await???;
    assert!(held.is_valid(), "the session was renewed in time");
    assert!(granted.deadline() > now() + ttl / 2);
    assert_eq!(faults.calls(Verb::Open), 1);
    held.release().await?;
    granted.release().await?;
    ctx.assert_nothing_left().await
}

/// What time has ended is free, whether or not the store has answered that it is tidied up.
async fn a_loss_whose_clean_up_hangs_keeps_nobody_waiting(ctx: Context) -> Result<(), Failed> {
    let (sync, faults) = ctx.faulty_with(ctx.hasty()?).await?;
    let lock = sync.lock("x");
    faults.always(Verb::Renew, Fault::Hang);
    faults.always(Verb::End, Fault::Hang);
    let lost = lock.acquire().await?;
    soon(&ctx, "the holder is told", lost.revoked()).await?;
    let again = soon(&ctx, "it is taken again", lock.acquire()).await??;
    assert!(again.token() > lost.token());
    faults.heal();
    again.release().await?;
    drop(lost);
    ctx.assert_nothing_left().await
}

/// Whoever misses what the store tells is told when he renews.
async fn a_renewal_tells_that_its_session_was_ended(ctx: Context) -> Result<(), Failed> {
    let backend = ctx.backend().await?;
    let session = backend.open(ctx.long()).await?;
    let claim = claim()?;
    let grant = granted(backend.try_claim(&session, &claim, None, false).await?)?;
    let held = Held { claim: Arc::clone(&claim), grant };
    let renew = || backend.renew(&session, std::slice::from_ref(&held));
    for _ in 0..2 {
        assert!(matches!(renew().await?, Renewal::Alive { .. }));
    }
    ctx.tamper(&backend.key(claim.kind, &claim.name), Tamper::EndSession).await?;
    for _ in 0..2 {
        assert!(matches!(renew().await?, Renewal::Ended));
    }
    ctx.assert_nothing_left().await
}
