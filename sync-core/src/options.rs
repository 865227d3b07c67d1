//! What is the same to configure for every store.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::backend::{Nonce, Profile};
use crate::clock::{BootClock, Clock};
use crate::error::{Error, ErrorKind};
use crate::lease::Margin;
use crate::name::{InvalidName, Namespace, shown};
use crate::node::{NO_ID, Node};
use crate::observer::{NoObserver, Observer};
use crate::random::{OsRng, Rng};

/// What a coordinator is handed from outside: time, randomness, and who is told of what happens.
///
/// The default is the running program's: [`BootClock`], [`OsRng`], and nobody.
///
/// ```
/// use std::sync::Arc;
/// use sync_core::{Environment, HeldClock, SeededRng};
///
/// let held = Environment::default().clock(Arc::new(HeldClock::new())).rng(Arc::new(SeededRng::new(1)));
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub struct Environment {
    /// Where the time comes from.
    pub clock: Arc<dyn Clock>,
    /// Where randomness comes from.
    pub rng: Arc<dyn Rng>,
    /// Who is told.
    pub observer: Arc<dyn Observer>,
}

impl Environment {
    /// Sets where the time comes from.
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Sets where randomness comes from.
    #[must_use]
    pub fn rng(mut self, rng: Arc<dyn Rng>) -> Self {
        self.rng = rng;
        self
    }

    /// Sets who is told of grants, extensions, losses and releases.
    #[must_use]
    pub fn observer(mut self, observer: Arc<dyn Observer>) -> Self {
        self.observer = observer;
        self
    }

    /// 128 fresh random bits.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] where there is no randomness.
    pub fn nonce(&self) -> Result<Nonce, Error> {
        let mut bytes = [0; 16];
        self.rng.fill(&mut bytes).map_err(|e| {
            Error::new(ErrorKind::Unsupported, "make a nonce", format!("no randomness: {e}"))
        })?;
        Ok(Nonce::from_bytes(bytes))
    }

    /// A random part of `longest`, from half of it to the whole: what spreads retries.
    #[must_use]
    pub fn jitter(&self, longest: Duration) -> Duration {
        let mut bytes = [0; 4];
        if self.rng.fill(&mut bytes).is_err() {
            return longest;
        }
        let part = f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX);
        longest.mul_f64(0.5 + part / 2.0)
    }
}

impl Default for Environment {
    fn default() -> Self {
        Self {
            clock: Arc::new(BootClock::new()),
            rng: Arc::new(OsRng::new()),
            observer: Arc::new(NoObserver),
        }
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Environment").field("clock", &self.clock).finish_non_exhaustive()
    }
}

/// What is the same to configure for every store. Each has a default that suits most services.
///
/// Nothing is checked before a coordinator is made of it; then all of it is, and the first fault is
/// told.
///
/// ```
/// use std::time::Duration;
/// use sync_core::{Node, Options};
///
/// let options = Options::new()
///     .namespace("billing")
///     .ttl(Duration::from_secs(10))
///     .wait(Duration::from_secs(30))
///     .node(Node::new("billing-1"));
/// ```
#[derive(Debug, Clone)]
pub struct Options {
    namespace: String,
    pub(crate) ttl: Duration,
    pub(crate) wait: Option<Duration>,
    pub(crate) node: Option<Node>,
    pub(crate) connect_timeout: Duration,
    pub(crate) request_timeout: Duration,
    pub(crate) release_timeout: Duration,
    pub(crate) drift: f64,
    pub(crate) slack: Duration,
    pub(crate) environment: Environment,
}

impl Options {
    /// The defaults.
    #[must_use]
    pub fn new() -> Self {
        Self {
            namespace: Namespace::default().as_str().to_owned(),
            ttl: Duration::from_secs(15),
            wait: None,
            node: None,
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(2),
            release_timeout: Duration::from_secs(5),
            drift: 0.01,
            slack: Duration::from_millis(10),
            environment: Environment::default(),
        }
    }

    /// The prefix of all keys, default `sync`: segments joined by `/` ([`Namespace`]).
    #[must_use]
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = namespace.into();
        self
    }

    /// How long a dead holder blocks others, default 15 s. A living holder renews each third of it.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// How long an acquire waits for a name that is taken, default without limit. Zero tries once.
    #[must_use]
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = Some(wait);
        self
    }

    /// Who this process is to others, default a node with the id `host-pid-random`.
    #[must_use]
    pub fn node(mut self, node: Node) -> Self {
        self.node = Some(node);
        self
    }

    /// Within what time `connect` must have spoken to the store, default 5 s. That nobody listens
    /// there is told at once.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// How long one request may take before it counts as unanswered, default 2 s. A renewal is
    /// bounded by a sixth of the TTL as well.
    #[must_use]
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// How long `release`, `resign` and `shutdown` wait for the store, default 5 s. What is not
    /// done by then goes on in the background.
    #[must_use]
    pub fn release_timeout(mut self, timeout: Duration) -> Self {
        self.release_timeout = timeout;
        self
    }

    /// By which part two clocks may run apart, default 0.01: that part of each TTL is not used.
    #[must_use]
    pub fn drift(mut self, part: f64) -> Self {
        self.drift = part;
        self
    }

    /// A fixed time that is taken off each deadline besides, default 10 ms.
    #[must_use]
    pub fn slack(mut self, slack: Duration) -> Self {
        self.slack = slack;
        self
    }

    /// Time, randomness and observer from outside.
    #[must_use]
    pub fn environment(mut self, environment: Environment) -> Self {
        self.environment = environment;
        self
    }

    /// For backends: the namespace, parsed.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when it cannot be one.
    pub fn parsed_namespace(&self) -> Result<Namespace, Error> {
        Namespace::parse(&self.namespace).map_err(|why: InvalidName| {
            Error::new(
                ErrorKind::Invalid,
                format!("use namespace {:?}", shown(&self.namespace)),
                why.to_string(),
            )
        })
    }

    /// For backends: the environment that everything is to be taken from.
    #[must_use]
    pub fn to_environment(&self) -> Environment {
        self.environment.clone()
    }

    /// For backends: within what time `connect` must have spoken to the store.
    #[must_use]
    pub fn within(&self) -> Duration {
        self.connect_timeout
    }

    /// For backends: how long one call may take before the core gives it up. One that reads and
    /// may write in the same call bounds its reads by less, so that a slow read is not taken for a
    /// write that was never answered.
    #[must_use]
    pub fn answered_within(&self) -> Duration {
        self.request_timeout
    }

    /// What is taken off each deadline on a store of this profile.
    pub(crate) fn margin(&self, profile: &Profile) -> Margin {
        Margin { drift: self.drift, slack: self.slack.saturating_add(profile.rounding) }
    }

    /// For backends: everything that can be wrong with these for a store of this profile.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] with both values. [`Coordinator::new`](crate::Coordinator::new) checks
    /// too; a backend that is asked to connect does so before it sends anything.
    pub fn check(&self, profile: &Profile) -> Result<(), Error> {
        let refuse = |reason: String| {
            let what = format!("use these options with {} at {}", profile.store, profile.endpoint);
            Err(Error::new(ErrorKind::Invalid, what, reason))
        };
        self.parsed_namespace()?;
        if !(0.0..0.5).contains(&self.drift) {
            return refuse(format!("a drift of {} must be from 0 to below 0.5", self.drift));
        }
        if self.node.as_ref().is_some_and(|node| node.id.is_empty()) {
            return refuse(NO_ID.to_owned());
        }
        check_ttl(self.ttl, self.margin(profile), profile).or_else(refuse)?;
        for (name, value) in [
            ("connect timeout", self.connect_timeout),
            ("request timeout", self.request_timeout),
            ("release timeout", self.release_timeout),
        ] {
            if value.is_zero() {
                return refuse(format!("the {name} is zero, and nothing can be done in no time"));
            }
        }
        Ok(())
    }
}

impl Default for Options {
    fn default() -> Self {
        Self::new()
    }
}

fn in_parentheses(advice: &str) -> String {
    if advice.is_empty() { String::new() } else { format!(" ({advice})") }
}

/// Whether the store can keep this TTL, and enough of it can be used; the reason if not.
pub(crate) fn check_ttl(ttl: Duration, margin: Margin, profile: &Profile) -> Result<(), String> {
    let Profile { shortest_ttl, longest_ttl, too_short, too_long, store, .. } = profile;
    if ttl < *shortest_ttl {
        return Err(format!(
            "a TTL of {ttl:?} is below {shortest_ttl:?}, the shortest that {store} is set to keep here\
             {}",
            in_parentheses(too_short)
        ));
    }
    if ttl > *longest_ttl {
        return Err(format!(
            "a TTL of {ttl:?} is above {longest_ttl:?}, the longest that {store} is set to keep here{}",
            in_parentheses(too_long)
        ));
    }
    let taken_off = margin.of(ttl);
    if taken_off > ttl / 2 {
        return Err(format!(
            "drift, slack and rounding take {taken_off:?} off a TTL of {ttl:?}: more than half"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Expiry;

    fn profile() -> Profile {
        let ttl = Duration::from_secs(2)..=Duration::from_secs(60);
        Profile::new("toy", "here", Expiry::Session).ttl(ttl).advise("set it lower", "")
    }

    fn refused(options: &Options) -> String {
        let error = options.check(&profile()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        error.to_string()
    }

    #[test]
    fn a_fault_is_told_with_the_advice_that_is_for_it() {
        let options = Options::new;
        let short = refused(&options().ttl(Duration::from_secs(1)));
        assert!(short.ends_with("is set to keep here (set it lower)"), "{short}");
        for other in [
            options().ttl(Duration::from_secs(61)),
            options().drift(2.0),
            options().drift(f64::NAN),
            options().request_timeout(Duration::ZERO),
            options().node(Node::new("")),
        ] {
            let text = refused(&other);
            assert!(!text.contains("set it lower"), "{text}");
        }
        assert!(options().check(&profile()).is_ok());
    }

    #[test]
    fn the_longest_durations_are_refused_or_used() {
        let slack = refused(&Options::new().slack(Duration::MAX));
        assert!(slack.contains("more than half"), "{slack}");
        refused(&Options::new().ttl(Duration::MAX));
        let longest = Options::new()
            .connect_timeout(Duration::MAX)
            .request_timeout(Duration::MAX)
            .release_timeout(Duration::MAX)
            .wait(Duration::MAX);
        assert!(longest.check(&profile()).is_ok());
    }
}
