//! One of the processes that contend, inside it.

use std::sync::Arc;
use std::time::Duration;

use sync_core::{
    BootClock, Clock, Coordinator, Environment, ErrorKind, LockGuard, Namespace, Options,
};
use tokio::time::{sleep, timeout};

use super::dice::Dice;
use super::witness::{Notes, Witness};
use crate::child::Victim;
use crate::failed::Failed;
use crate::history::Journal;
use crate::register::Register;
use crate::store::Store;

/// How late the signal may be on a busy machine.
const TOLD_WITHIN: Duration = Duration::from_secs(10);

/// Takes and releases the lock `name` in every way that the crates know, adding one to the register
/// at `register` each time, until its parent says anything or is gone. What it saw of faults
/// it appends to the file at `notes`; `seed` decides what it does.
///
/// With `careless` it writes without a look at its guard, as code does that knows nothing of
/// leases. Says `ready` first and `done` at the end.
pub(crate) async fn work(mut me: Victim) -> Result<(), Failed> {
    // A panic of any task, also one of the core's, is the end of the process, and so of the run.
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        print(info);
        println!("failed: a task panicked: {info}");
        std::process::exit(1);
    }));
    me.say("ready")?;
    let worker = Arc::new(Worker::new(&me)?);
    // In a task, so that many things happen at once.
    let mut rounds = tokio::spawn(Arc::clone(&worker).rounds());
    tokio::select! {
        biased;
        told = me.hear() => told.map(drop)?,
        failed = &mut rounds => return Err(failed?),
    }
    rounds.abort();
    let _ = rounds.await;
    worker.finish().await;
    me.say("done")
}

struct Worker {
    store: Arc<dyn Store>,
    url: String,
    options: Options,
    history: std::path::PathBuf,
    namespace: Namespace,
    name: String,
    register: Register,
    notes: Arc<Notes>,
    dice: Dice,
    ttl: Duration,
    careless: bool,
    sync: std::sync::Mutex<Option<Coordinator>>,
}

impl Worker {
    fn new(me: &Victim) -> Result<Self, Failed> {
        let orders = &me.orders;
        let ttl = Duration::from_millis(orders.ttl_ms);
        Ok(Self {
            store: Arc::clone(me.store()),
            url: orders.url.clone(),
            options: Options::new()
                .namespace(&orders.namespace)
                .ttl(ttl)
                .connect_timeout(ttl)
                .request_timeout(ttl / 2)
                .release_timeout(ttl),
            history: orders.history.clone(),
            namespace: Namespace::parse(&orders.namespace)?,
            name: me.order("name")?.to_owned(),
            register: Register::open(me.order("register")?.as_ref())?,
            notes: Arc::new(Notes::open(me.order("notes")?.as_ref())?),
            dice: Dice::new(me.number("seed", 0)?),
            ttl,
            careless: me.number("careless", 0)? > 0,
            sync: std::sync::Mutex::default(),
        })
    }

    /// Goes on until something fails that no fault explains.
    async fn rounds(self: Arc<Self>) -> Failed {
        loop {
            let sync = match self.connect().await {
                Ok(sync) => sync,
                Err(failed) => return failed,
            };
            for _ in 0..50 + self.dice.below(300) {
                if let Err(failed) = self.turn(&sync).await {
                    return failed;
                }
            }
            // Now and then with guards of its own still on their way back.
            self.finish().await;
        }
    }

    async fn connect(&self) -> Result<Coordinator, Failed> {
        loop {
            let journal = Journal::open(&self.history, &self.namespace)?;
            let environment = Environment::default().observer(Arc::new(journal));
            let options = self.options.clone().environment(environment);
            match self.store.connect(&self.url, &options).await {
                Ok(backend) => {
                    let witness = Witness::new(backend, Arc::clone(&self.notes));
                    let sync = Coordinator::new(Arc::new(witness), &options)?;
                    *self.slot() = Some(sync.clone());
                    return Ok(sync);
                }
                Err(e) => {
                    self.passing("connect", &e)?;
                    sleep(self.ttl / 20).await;
                }
            }
        }
    }

    /// Shuts the coordinator down. A store that cannot be reached gets its keys back by time.
    async fn finish(&self) {
        let sync = self.slot().take();
        if let Some(sync) = sync
            && let Err(e) = sync.shutdown().await
        {
            self.notes.count(&format!("error shutdown {}", e.kind()));
        }
    }

    async fn turn(&self, sync: &Coordinator) -> Result<(), Failed> {
        let Some(guard) = self.acquire(sync).await? else { return Ok(()) };
        let Ok(before) = self.register.read(guard.token())? else {
            // Stopped right after the grant: somebody newer has been here.
            return self.give_back(guard).await;
        };
        let rest = match self.dice.below(1000) {
            0..=949 => self.dice.part(self.ttl, 0.0, 0.005),
            950..=994 => self.dice.part(self.ttl, 0.005, 0.12),
            _ => self.dice.part(self.ttl, 0.5, 2.0),
        };
        if self.careless {
            sleep(rest).await;
        } else {
            // Whoever does not look is told.
            tokio::select! {
                biased;
                _ = guard.revoked() => {}
                () = sleep(rest) => {}
            }
        }
        // The signal comes by itself, without a look at the guard.
        let over = BootClock::new().now() >= guard.deadline();
        if over && timeout(TOLD_WITHIN, guard.revoked()).await.is_err() {
            return Err(format!("the guard was over and nobody was told within {TOLD_WITHIN:?}"))?;
        }
        if self.careless || guard.is_valid() {
            // Refused ones are counted in the register.
            let _ = self.register.write(guard.token(), before + 1)?;
        }
        self.give_back(guard).await
    }

    async fn acquire(&self, sync: &Coordinator) -> Result<Option<LockGuard>, Failed> {
        let lock = sync.lock(&self.name);
        let won = match self.dice.below(100) {
            0..=79 => lock.wait(self.ttl * 30).acquire().await.map(Some),
            80..=87 => lock.wait(self.dice.part(self.ttl, 0.0, 0.1)).acquire().await.map(Some),
            88..=93 => lock.try_acquire().await,
            // Dropped under way.
            _ => match timeout(self.dice.part(self.ttl, 0.0, 0.05), lock.acquire()).await {
                Ok(won) => won.map(Some),
                Err(_) => Ok(None),
            },
        };
        match won {
            Ok(guard) => Ok(guard),
            Err(e) => {
                self.passing("acquire", &e)?;
                // Else a store that is away would be asked all the time.
                if e.kind() != ErrorKind::Timeout {
                    sleep(self.ttl / 20).await;
                }
                Ok(None)
            }
        }
    }

    async fn give_back(&self, guard: LockGuard) -> Result<(), Failed> {
        let released = match self.dice.below(100) {
            0..=7 => {
                drop(guard);
                return Ok(());
            }
            8..=11 => timeout(self.dice.part(self.ttl, 0.0, 0.002), guard.release()).await,
            _ => Ok(guard.release().await),
        };
        match released {
            Ok(Err(e)) => self.passing("release", &e),
            _ => Ok(()),
        }
    }

    /// Counts an error that a fault explains. Any other is a failure.
    fn passing(&self, verb: &str, error: &sync_core::Error) -> Result<(), Failed> {
        use ErrorKind::{Lost, Timeout, Unknown, Unreachable};
        self.notes.count(&format!("error {verb} {}", error.kind()));
        match error.kind() {
            Timeout | Unknown | Unreachable => Ok(()),
            Lost if verb == "release" => Ok(()),
            _ => Err(format!("{verb}: {error}"))?,
        }
    }

    fn slot(&self) -> std::sync::MutexGuard<'_, Option<Coordinator>> {
        self.sync.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
