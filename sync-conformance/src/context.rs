//! What a case works with.

use std::fmt;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sync_core::{Backend, Coordinator, Environment, Namespace, Options};
use tokio::time::{sleep, timeout};

use crate::checker::{Outside, Report, check};
use crate::child::Orders;
use crate::failed::Failed;
use crate::fault::Faults;
use crate::history::{self, Journal};
use crate::proxy::{Flow, Proxy, Toward};
use crate::register::Register;
use crate::server::Server;
use crate::store::{Store, Tamper};

/// The TTL of [`Context::options`].
const LONG_TTL: Duration = Duration::from_secs(20);

/// What a case works with: a server, a namespace and a history of its own. Clones are the same.
///
/// ```no_run
/// use sync_conformance::{Context, Failed};
///
/// async fn a_second_coordinator_waits(ctx: Context) -> Result<(), Failed> {
///     let (one, two) = (ctx.coordinator().await?, ctx.coordinator().await?);
///     let guard = one.lock("x").acquire().await?;
///     assert!(two.lock("x").try_acquire().await?.is_none());
///     guard.release().await?;
///     ctx.assert_nothing_left().await
/// }
/// ```
#[derive(Clone)]
pub struct Context(Arc<Inner>);

struct Inner {
    store: Arc<dyn Store>,
    server: Arc<Server>,
    namespace: String,
    dir: PathBuf,
    outside: AtomicBool,
    panics: AtomicBool,
}

impl Context {
    pub(crate) fn new(
        store: Arc<dyn Store>,
        server: Arc<Server>,
        namespace: String,
        dir: &Path,
    ) -> Self {
        Self(Arc::new(Inner {
            store,
            server,
            namespace,
            dir: dir.to_owned(),
            outside: AtomicBool::new(false),
            panics: AtomicBool::new(false),
        }))
    }

    /// The store that the case runs against.
    #[must_use]
    pub fn store(&self) -> &dyn Store {
        &*self.0.store
    }

    /// The server: shared with other cases, unless the case
    /// [needs one of its own](crate::suite::Need::KillServer).
    #[must_use]
    pub fn server(&self) -> &Server {
        &self.0.server
    }

    /// The case's own namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.0.namespace
    }

    /// A folder for the case's files.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.0.dir
    }

    /// A TTL that is short for this store: for cases that wait for a deadline or an expiry.
    #[must_use]
    pub fn ttl(&self) -> Duration {
        self.0.store.ttl()
    }

    /// Longer than any failover or expiry of this store should take, on a busy machine too.
    #[must_use]
    pub fn long(&self) -> Duration {
        self.ttl() * 4 + Duration::from_secs(10)
    }

    /// Options with the case's namespace, an observer that writes its history, and a TTL that is
    /// long: on a busy machine nothing is lost by accident, and what a case leaves behind is not
    /// taken away by time before it is seen. See [`Context::hasty`] for the other kind.
    ///
    /// For one coordinator: the history takes those with the same observer for the same holder.
    ///
    /// # Errors
    /// When the history cannot be written.
    pub fn options(&self) -> Result<Options, Failed> {
        self.options_in(&self.0.namespace)
    }

    /// [`Context::options`] with the short [`Context::ttl`].
    ///
    /// # Errors
    /// When the history cannot be written.
    pub fn hasty(&self) -> Result<Options, Failed> {
        Ok(self.options()?.ttl(self.ttl()))
    }

    /// [`Context::options`] in another namespace, whose claims the checker judges apart. It should
    /// begin with the case's own.
    ///
    /// # Errors
    /// When the namespace cannot be one, or the history cannot be written.
    pub fn options_in(&self, namespace: &str) -> Result<Options, Failed> {
        let journal = Journal::open(&self.history(), &Namespace::parse(namespace)?)?;
        let environment = Environment::default().observer(Arc::new(journal));
        Ok(Options::new().namespace(namespace).ttl(LONG_TTL).environment(environment))
    }

    /// A coordinator with connections of its own.
    ///
    /// # Errors
    /// When the server cannot be reached.
    pub async fn coordinator(&self) -> Result<Coordinator, Failed> {
        self.coordinator_with(self.options()?).await
    }

    /// A coordinator with these options, which should come from [`Context::options`].
    ///
    /// # Errors
    /// When the server cannot be reached, or the options cannot be used.
    pub async fn coordinator_with(&self, options: Options) -> Result<Coordinator, Failed> {
        self.coordinator_at(&self.0.server.url(), options).await
    }

    /// A coordinator on the store at `url`, such as behind a proxy.
    ///
    /// # Errors
    /// When the server cannot be reached, or the options cannot be used.
    pub async fn coordinator_at(&self, url: &str, options: Options) -> Result<Coordinator, Failed> {
        let backend = self.0.store.connect(url, &options).await?;
        Ok(Coordinator::new(backend, &options)?)
    }

    /// A coordinator whose calls to the store fail as the handle says.
    ///
    /// # Errors
    /// When the server cannot be reached.
    pub async fn faulty(&self) -> Result<(Coordinator, Faults), Failed> {
        self.faulty_with(self.options()?).await
    }

    /// [`Context::faulty`] with these options.
    ///
    /// # Errors
    /// When the server cannot be reached, or the options cannot be used.
    pub async fn faulty_with(&self, options: Options) -> Result<(Coordinator, Faults), Failed> {
        self.faulty_at(&self.0.server.url(), options).await
    }

    /// [`Context::faulty`] on the store at `url`, such as behind a proxy.
    ///
    /// # Errors
    /// When the server cannot be reached, or the options cannot be used.
    pub async fn faulty_at(
        &self,
        url: &str,
        options: Options,
    ) -> Result<(Coordinator, Faults), Failed> {
        let faults = Faults::new();
        let backend = self.0.store.connect(url, &options).await?;
        Ok((faults.coordinator(backend, &options)?, faults))
    }

    /// A backend without the core in front of it.
    ///
    /// # Errors
    /// When the server cannot be reached.
    pub async fn backend(&self) -> Result<Arc<dyn Backend>, Failed> {
        Ok(self.0.store.connect(&self.0.server.url(), &self.options()?).await?)
    }

    /// A proxy in front of each member of the server.
    ///
    /// # Errors
    /// When there is no port to listen on.
    pub async fn route(&self) -> Result<Route, Failed> {
        Route::to(&self.0.server).await
    }

    /// Orders for a process of its own, in the case's namespace and history, with the short
    /// [`Context::ttl`]. The [`roles`](crate::child) are `hold`, `lead` and `contend`.
    ///
    /// ```no_run
    /// # async fn example(ctx: sync_conformance::Context) -> Result<(), sync_conformance::Failed> {
    /// let mut holder = ctx.child("hold").with("name", "x").start()?;
    /// holder.expect("waiting").await?;
    /// let token = holder.expect("held").await?;
    /// holder.process().kill()?;
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn child(&self, role: &str) -> Orders {
        let Inner { server, namespace, .. } = &*self.0;
        Orders::new(role, server.url(), namespace, self.ttl(), self.history())
    }

    /// The path of a register that the case's processes share.
    #[must_use]
    pub fn register(&self) -> PathBuf {
        self.0.dir.join("register")
    }

    /// The register at [`Context::register`].
    ///
    /// # Errors
    /// Those of the file system.
    pub fn open_register(&self) -> Result<Register, Failed> {
        Ok(Register::open(&self.register())?)
    }

    /// Does to the claim at `key` what an operator could do. The checker then expects a loss from
    /// outside.
    ///
    /// # Errors
    /// When the store cannot do it.
    pub async fn tamper(&self, key: &str, how: Tamper) -> Result<(), Failed> {
        self.expect_outside();
        self.0.store.tamper(&self.0.server.url(), key, how).await
    }

    /// Tells the checker that this case itself makes claims go away from outside, such as by
    /// restarting a server that forgets.
    pub fn expect_outside(&self) {
        self.0.outside.store(true, Ordering::Relaxed);
    }

    /// Tells that this case makes a task of its own panic. Otherwise a panic of any task is a
    /// failure of the case.
    pub fn expect_panics(&self) {
        self.0.panics.store(true, Ordering::Relaxed);
    }

    /// Tries again until `condition` is true.
    ///
    /// # Errors
    /// When it is not within `limit`.
    pub async fn eventually<F>(
        &self,
        limit: Duration,
        mut condition: impl FnMut() -> F,
    ) -> Result<(), Failed>
    where
        F: Future<Output = Result<bool, Failed>>,
    {
        let tries = async {
            while !condition().await? {
                sleep(Duration::from_millis(20)).await;
            }
            Ok(())
        };
        match timeout(limit, tries).await {
            Ok(outcome) => outcome,
            Err(_) => Err(format!("still not so after {limit:?}"))?,
        }
    }

    /// Asserts that the case's namespace holds no claim and no place in a line: at once, or as
    /// soon as what is under way in the background is done. The TTL of [`Context::options`] has
    /// not passed by then.
    ///
    /// # Errors
    /// What is left.
    pub async fn assert_nothing_left(&self) -> Result<(), Failed> {
        self.assert_nothing_left_within(LONG_TTL / 3).await
    }

    /// [`Context::assert_nothing_left`] for what only time removes.
    ///
    /// # Errors
    /// What is left.
    pub async fn assert_nothing_left_within(&self, limit: Duration) -> Result<(), Failed> {
        let mut left = Vec::new();
        let look = async {
            loop {
                match self.0.store.leftovers(&self.0.server.url(), &self.0.namespace).await {
                    Ok(found) if found.is_empty() => return,
                    Ok(found) => left = found,
                    // A busy store is asked again.
                    Err(failed) => left = vec![failed.to_text()],
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        match timeout(limit, look).await {
            Ok(()) => Ok(()),
            Err(_) => Err(format!("left behind after {limit:?}: {}", left.join(", ")))?,
        }
    }

    /// What the checker says of the case's history so far. It is asked at the end anyway.
    ///
    /// # Errors
    /// When the history cannot be read.
    pub fn judge(&self) -> Result<Report, Failed> {
        let expected = self.0.outside.load(Ordering::Relaxed);
        let outside = if expected { Outside::Expected } else { Outside::Forbidden };
        Ok(check(&history::read(&self.history())?, outside))
    }

    pub(crate) fn expects_panics(&self) -> bool {
        self.0.panics.load(Ordering::Relaxed)
    }

    fn history(&self) -> PathBuf {
        self.0.dir.join("history")
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("namespace", &self.0.namespace).finish_non_exhaustive()
    }
}

/// A way to the server that faults can be put on: a [`Proxy`] for each of its members.
#[derive(Debug)]
pub struct Route {
    url: String,
    proxies: Vec<Proxy>,
}

impl Route {
    pub(crate) async fn to(server: &Server) -> Result<Self, Failed> {
        let mut proxies = Vec::new();
        for address in server.addresses() {
            proxies.push(Proxy::start(*address).await?);
        }
        let addresses: Vec<_> = proxies.iter().map(Proxy::address).collect();
        Ok(Self { url: server.url_through(&addresses), proxies })
    }

    /// The URL that leads this way.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The proxies, one for each member.
    #[must_use]
    pub fn proxies(&self) -> &[Proxy] {
        &self.proxies
    }

    /// [`Proxy::set`]
    pub fn set(&self, toward: Toward, flow: Flow) {
        self.proxies.iter().for_each(|proxy| proxy.set(toward, flow));
    }

    /// Both directions swallow everything: a network that drops packets without a word.
    pub fn black_hole(&self) {
        self.set(Toward::Server, Flow::Swallow);
        self.set(Toward::Client, Flow::Swallow);
    }

    /// [`Proxy::cut`]
    pub fn cut(&self) {
        self.proxies.iter().for_each(Proxy::cut);
    }

    /// [`Proxy::reset`]
    pub fn reset(&self) {
        self.proxies.iter().for_each(Proxy::reset);
    }

    /// [`Proxy::hold`]
    pub fn hold(&self) {
        self.proxies.iter().for_each(Proxy::hold);
    }

    /// [`Proxy::held`], of all members together.
    #[must_use]
    pub fn held(&self) -> usize {
        self.proxies.iter().map(Proxy::held).sum()
    }

    /// [`Proxy::let_through`]
    pub fn let_through(&self) {
        self.proxies.iter().for_each(Proxy::let_through);
    }

    /// [`Proxy::heal`]
    pub fn heal(&self) {
        self.proxies.iter().for_each(Proxy::heal);
    }
}
