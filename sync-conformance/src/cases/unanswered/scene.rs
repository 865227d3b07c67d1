//! What the cases of late and lost requests play in.

use std::time::Duration;

use sync_core::Kind;
use tokio::time::{sleep, timeout};

use crate::cases::wants::{SOON, Taken, Taking, Want};
use crate::context::{Context, Route};
use crate::failed::Failed;
use crate::fault::{Fault, Faults, Verb};

/// After how long a request counts as unanswered here.
pub(super) const PATIENCE: Duration = Duration::from_millis(300);

/// How long what was let through may take from the proxy into the store.
const ARRIVAL: Duration = Duration::from_millis(200);

/// A coordinator whose requests can be kept back, and one beside it.
pub(super) struct Scene {
    ctx: Context,
    pub(super) want: Want,
    pub(super) faults: Faults,
    /// Where the requests are kept back; in front of the backend if there is none.
    pub(super) route: Option<Route>,
    pub(super) other: Want,
    opened: usize,
}

impl Scene {
    pub(super) async fn new(ctx: &Context, kind: Kind, wire: bool) -> Result<Self, Failed> {
        Self::with_patience(ctx, kind, wire, PATIENCE).await
    }

    pub(super) async fn with_patience(
        ctx: &Context,
        kind: Kind,
        wire: bool,
        patience: Duration,
    ) -> Result<Self, Failed> {
        let options = ctx.options()?.request_timeout(patience);
        let route = if wire { Some(ctx.route().await?) } else { None };
        let url = route.as_ref().map_or_else(|| ctx.server().url(), |route| route.url().to_owned());
        let (sync, faults) = ctx.faulty_at(&url, options).await?;
        let other = Want::new(&ctx.coordinator().await?, kind, "x");
        let want = Want::new(&sync, kind, "x");
        // The session is open, and connections are made.
        want.take().await?.give_back().await?;
        let opened = faults.calls(Verb::Open);
        Ok(Self { ctx: ctx.clone(), want, faults, route, other, opened })
    }

    /// Keeps the next request back.
    pub(super) fn keep_back(&self, verb: Verb) {
        match &self.route {
            Some(route) => route.hold(),
            None => self.faults.next(verb, Fault::Late),
        }
    }

    /// What was kept back arrives.
    pub(super) async fn let_through(&self) -> Result<(), Failed> {
        self.faults.release();
        timeout(self.ctx.long(), self.faults.landed()).await?;
        if let Some(route) = &self.route {
            assert!(route.held() > 0, "nothing was kept back");
            route.let_through();
            self.ctx.eventually(self.ctx.long(), || async { Ok(route.held() == 0) }).await?;
            sleep(ARRIVAL).await;
        }
        Ok(())
    }

    /// Begins to take the name with the first attempt kept back. It has been given up, and tried
    /// again, when this returns.
    pub(super) async fn with_a_late_attempt(&self, retry: Option<Fault>) -> Result<Taking, Failed> {
        let calls = self.faults.calls(Verb::TryClaim);
        self.keep_back(Verb::TryClaim);
        let taking = self.want.taking();
        self.faults.called(Verb::TryClaim, calls + 1).await;
        if let Some(retry) = retry {
            self.faults.always(Verb::TryClaim, retry);
        }
        timeout(self.ctx.long(), self.faults.called(Verb::TryClaim, calls + 2)).await?;
        Ok(taking)
    }

    /// The caller goes away; whatever it did is ended.
    pub(super) async fn go_away(&self, taking: Taking) -> Result<(), Failed> {
        let ended = self.faults.done(Verb::End) + 1;
        taking.abort();
        assert!(taking.await.is_err());
        Ok(timeout(self.ctx.long(), self.faults.did(Verb::End, ended)).await?)
    }

    /// The claim stands in the store as ours and under its own token, and a release finds it.
    pub(super) async fn still_holds(&self, taken: &Taken) -> Result<(), Failed> {
        let holder = self.other.holder().await?.ok_or("nobody holds it")?;
        assert_eq!(holder.token, Some(taken.token()));
        assert!(self.other.try_take().await?.is_none());
        assert!(taken.is_valid());
        Ok(())
    }

    /// Nothing is left, the name is free to all, and the session is the same as ever.
    pub(super) async fn is_as_before(&self) -> Result<(), Failed> {
        self.faults.heal();
        self.ctx.assert_nothing_left_within(SOON).await?;
        for want in [&self.other, &self.want] {
            let taken = want.try_take().await?;
            taken.ok_or("somebody holds it or stands in line")?.give_back().await?;
        }
        assert_eq!(self.faults.calls(Verb::Open), self.opened, "the session was given up");
        self.ctx.assert_nothing_left_within(SOON).await
    }
}
