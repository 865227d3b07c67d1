//! Work that is not interrupted when its caller goes away, and limits on a clock of one's own.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::mutant;

/// A future that runs in its caller for as long as the caller wants it, and goes on in a task of
/// its own when the caller drops it: no request is ever withdrawn half-way, and the common case
/// pays for no task.
pub(crate) struct Carried<T: Send + 'static> {
    work: Option<Pin<Box<dyn Future<Output = T> + Send>>>,
    gone: CancellationToken,
    runtime: Handle,
}

impl<T: Send + 'static> Carried<T> {
    /// `work` is told by `gone` when its caller has dropped it; what it returns is dropped then.
    pub(crate) fn new(
        runtime: Handle,
        gone: CancellationToken,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Self {
        Self { work: Some(Box::pin(work)), gone, runtime }
    }
}

impl<T: Send + 'static> Future for Carried<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let Some(work) = &mut self.work else {
            return Poll::Pending;
        };
        let output = std::task::ready!(work.as_mut().poll(context));
        self.work = None;
        Poll::Ready(output)
    }
}

impl<T: Send + 'static> Drop for Carried<T> {
    fn drop(&mut self) {
        if let Some(work) = self.work.take() {
            self.gone.cancel();
            if !mutant::on(mutant::CANCEL_LEAVES_KEY) {
                self.runtime.spawn(async move { drop(work.await) });
            }
        }
    }
}

/// The output of `work`, or `None` if it has not come within `limit` on `clock`.
pub(crate) async fn within<T>(
    clock: &dyn Clock,
    limit: Duration,
    work: impl Future<Output = T>,
) -> Option<T> {
    let end = clock.now() + limit;
    tokio::select! {
        biased;
        output = work => Some(output),
        () = clock.sleep_until(end) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::BootClock;
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn work_goes_on_when_its_caller_has_gone() {
        let (go, gone_on) = oneshot::channel::<()>();
        let (done, finished) = oneshot::channel();
        let gone = CancellationToken::new();
        let work = Carried::new(Handle::current(), gone.clone(), async move {
            gone_on.await.unwrap();
            done.send(()).unwrap();
        });
        let limit = Duration::from_millis(5);
        assert!(within(&BootClock::new(), limit, work).await.is_none());
        assert!(gone.is_cancelled());
        go.send(()).unwrap();
        finished.await.unwrap();
    }

    #[test]
    fn dropping_outside_a_runtime_and_after_its_end_is_harmless() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let carried = || {
            let work = std::future::pending::<()>();
            Carried::new(runtime.handle().clone(), CancellationToken::new(), work)
        };
        let (first, second) = (carried(), carried());
        drop(first);
        drop(runtime);
        drop(second);
    }
}
