//! Time as the core sees it: a clock that goes on while the machine sleeps, and one that tests hold.

use std::fmt;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use tokio::sync::watch;

/// An instant on a [`Clock`]: nanoseconds since an origin that only that clock knows.
///
/// ```
/// use std::time::Duration;
/// use sync_core::Moment;
///
/// let sent = Moment::from_nanos(1_000);
/// let deadline = sent + Duration::from_nanos(500);
/// assert_eq!(deadline.since(sent), Duration::from_nanos(500));
/// assert_eq!(sent.since(deadline), Duration::ZERO);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(u64);

impl Moment {
    /// The moment `nanos` nanoseconds after the clock's origin.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the clock's origin.
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Time elapsed from `earlier` to here, zero if `earlier` is later.
    #[must_use]
    pub const fn since(self, earlier: Moment) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// This moment moved back by `by`, not before the clock's origin.
    #[must_use]
    pub fn before(self, by: Duration) -> Moment {
        Moment(self.0.saturating_sub(nanos(by)))
    }
}

impl std::ops::Add<Duration> for Moment {
    type Output = Moment;

    fn add(self, by: Duration) -> Moment {
        Moment(self.0.saturating_add(nanos(by)))
    }
}

impl fmt::Debug for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", Duration::from_nanos(self.0))
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Where the core gets the time from.
///
/// An implementation must never go back, and must count the time that the machine spends
/// suspended: a guard that sleeps through its lease would otherwise look held on waking.
///
/// ```
/// use std::time::Duration;
/// use sync_core::{Clock, Moment};
///
/// fn is_overdue(clock: &dyn Clock, sent: Moment) -> bool {
///     clock.now().since(sent) > Duration::from_secs(2)
/// }
/// # assert!(!is_overdue(&sync_core::BootClock::new(), sync_core::BootClock::new().now()));
/// ```
#[async_trait]
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// The present moment. Called on every [`is_valid`](crate::Hold::is_valid): keep it cheap.
    fn now(&self) -> Moment;

    /// The wall clock, for what people read (`since` in a holder's record). Nothing is decided by it.
    fn wall(&self) -> SystemTime;

    /// Resolves once `now() >= at`, at most about a second late after a suspend.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    async fn sleep_until(&self, at: Moment);
}

/// The clock of a running program.
///
/// On Linux and Android it is `CLOCK_BOOTTIME`, which goes on while the machine sleeps. On macOS
/// it is `CLOCK_MONOTONIC`, which does so there too. Elsewhere it is [`std::time::Instant`], of
/// which the platform says whether it counts sleep; those platforms are unverified.
///
/// Its timers need a tokio runtime with time enabled.
///
/// ```
/// use sync_core::{BootClock, Clock};
///
/// let clock = BootClock::new();
/// let earlier = clock.now();
/// assert!(clock.now() >= earlier);
/// ```
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct BootClock;

impl BootClock {
    /// The clock of this machine.
    #[must_use]
    pub const fn new() -> Self {
        Self
    }
}

/// tokio's timers stop while the machine sleeps, so no single wait is longer than this.
const LONGEST_LOOK: Duration = Duration::from_secs(1);

#[async_trait]
impl Clock for BootClock {
    #[cfg(unix)]
    fn now(&self) -> Moment {
        use rustix::time::{ClockId, clock_gettime};
        #[cfg(any(target_os = "linux", target_os = "android"))]
        const CLOCK: ClockId = ClockId::Boottime;
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        const CLOCK: ClockId = ClockId::Monotonic;
        let time = clock_gettime(CLOCK);
        let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
        let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
        Moment(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
    }

    #[cfg(not(unix))]
    fn now(&self) -> Moment {
        use std::sync::OnceLock;
        use std::time::Instant;
        static ORIGIN: OnceLock<Instant> = OnceLock::new();
        Moment(nanos(ORIGIN.get_or_init(Instant::now).elapsed()))
    }

    fn wall(&self) -> SystemTime {
        SystemTime::now()
    }

    async fn sleep_until(&self, at: Moment) {
        loop {
            let left = at.since(self.now());
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left.min(LONGEST_LOOK)).await;
        }
    }
}

/// A clock that stands still until it is told to move: for tests and for examples whose output
/// must be the same each time.
///
/// ```
/// use std::time::Duration;
/// use sync_core::{Clock, HeldClock};
///
/// let clock = HeldClock::new();
/// let start = clock.now();
/// clock.advance(Duration::from_secs(5));
/// assert_eq!(clock.now().since(start), Duration::from_secs(5));
/// ```
#[derive(Debug)]
pub struct HeldClock {
    now: watch::Sender<Moment>,
}

impl HeldClock {
    /// A clock that stands one hour after its origin (and its wall clock one hour after 1970).
    #[must_use]
    pub fn new() -> Self {
        Self { now: watch::Sender::new(Moment::from_nanos(3_600_000_000_000)) }
    }

    /// Moves the clock on; sleepers whose moment has come wake.
    pub fn advance(&self, by: Duration) {
        self.now.send_modify(|now| *now = *now + by);
    }
}

impl Default for HeldClock {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl Clock for HeldClock {
    fn now(&self) -> Moment {
        *self.now.borrow()
    }

    fn wall(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_nanos(self.now().as_nanos())
    }

    async fn sleep_until(&self, at: Moment) {
        // The sender lives as long as `self`, so the only way out is the moment itself.
        let _ = self.now.subscribe().wait_for(|now| *now >= at).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_held_clock_wakes_its_sleepers_when_their_moment_has_come() {
        let clock = std::sync::Arc::new(HeldClock::new());
        let at = clock.now() + Duration::from_secs(10);
        let sleeper = tokio::spawn({
            let clock = std::sync::Arc::clone(&clock);
            async move { clock.sleep_until(at).await }
        });
        clock.advance(Duration::from_secs(9));
        tokio::task::yield_now().await;
        assert!(!sleeper.is_finished());
        clock.advance(Duration::from_secs(1));
        sleeper.await.unwrap();
    }

    #[tokio::test]
    async fn the_boot_clock_sleeps_as_long_as_it_was_asked() {
        let clock = BootClock::new();
        let at = clock.now() + Duration::from_millis(20);
        clock.sleep_until(at).await;
        assert!(clock.now() >= at);
    }

    #[test]
    fn moments_saturate() {
        assert_eq!(Moment::from_nanos(u64::MAX) + Duration::MAX, Moment::from_nanos(u64::MAX));
        assert_eq!(Moment::from_nanos(5).before(Duration::MAX), Moment::from_nanos(0));
    }
}
