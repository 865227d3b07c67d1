//! A TCP proxy between a client and its store, whose faults are chosen while it runs.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

/// One direction of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Toward {
    /// Requests.
    Server,
    /// Answers.
    Client,
}

/// What happens to the bytes of one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// They go through.
    Pass,
    /// They go through this much later.
    Delay(Duration),
    /// They vanish, like a closed connection's end: a black hole.
    Swallow,
    /// They are kept back, also when their sender has gone, until they may pass.
    Hold,
    /// They go through twice: answers that nobody asked for, so that later ones are taken for the
    /// answers to something else.
    Double,
}

/// A proxy on a port of its own. When it is dropped its connections are reset.
///
/// ```no_run
/// # async fn example() -> std::io::Result<()> {
/// use sync_conformance::proxy::{Flow, Proxy, Toward};
///
/// let proxy = Proxy::start("127.0.0.1:6379".parse().unwrap()).await?;
/// // … a client connects to proxy.address() …
/// proxy.set(Toward::Client, Flow::Swallow); // requests arrive, answers are lost
/// proxy.heal();
/// # Ok(()) }
/// ```
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

struct Shared {
    target: SocketAddr,
    accepted: AtomicUsize,
    state: Mutex<State>,
}

struct State {
    refuse: bool,
    /// For connections to come: toward the server, toward the client.
    flows: [Flow; 2],
    links: Vec<Arc<Link>>,
}

/// One connection.
struct Link {
    ways: [Way; 2],
    kill: CancellationToken,
}

/// One direction of a connection.
struct Way {
    flow: watch::Sender<Flow>,
    /// How many bytes may still pass before the connection is cut.
    left: AtomicU64,
    /// How many bytes have come and not gone.
    held: AtomicUsize,
    /// Whether bytes have vanished: going on after that would be no TCP.
    torn: AtomicBool,
}

impl Proxy {
    /// A proxy in front of `target`, through which everything passes at first.
    ///
    /// # Errors
    /// When there is no port to listen on.
    pub async fn start(target: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let state = State { refuse: false, flows: [Flow::Pass; 2], links: Vec::new() };
        let accepted = AtomicUsize::new(0);
        let shared = Arc::new(Shared { target, accepted, state: Mutex::new(state) });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Ok(Self { address, shared, accepting })
    }

    /// Where clients connect to.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections were made so far.
    #[must_use]
    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    /// Chooses what happens to the bytes of one direction, on present and future connections.
    pub fn set(&self, toward: Toward, flow: Flow) {
        let mut state = self.shared.lock();
        state.flows[toward as usize] = flow;
        for link in &state.links {
            link.set(toward, flow);
        }
    }

    /// Resets all connections, and each new one at once.
    pub fn cut(&self) {
        let mut state = self.shared.lock();
        state.refuse = true;
        for link in state.links.drain(..) {
            link.kill.cancel();
        }
    }

    /// Resets all connections. New ones are welcome.
    pub fn reset(&self) {
        for link in self.shared.lock().links.drain(..) {
            link.kill.cancel();
        }
    }

    /// Lets this many bytes more pass in this direction of each present connection, then resets it.
    pub fn cut_after(&self, toward: Toward, bytes: u64) {
        for link in &self.shared.lock().links {
            link.ways[toward as usize].left.store(bytes, Ordering::Release);
        }
    }

    /// Keeps back all requests on the present connections. On new ones they pass: so a client
    /// that gives up and connects again overtakes its own request.
    pub fn hold(&self) {
        for link in &self.shared.lock().links {
            link.set(Toward::Server, Flow::Hold);
        }
    }

    /// How many bytes are kept back, toward the server.
    #[must_use]
    pub fn held(&self) -> usize {
        let links = &self.shared.lock().links;
        links.iter().map(|link| link.ways[0].held.load(Ordering::Acquire)).sum()
    }

    /// Delivers what is kept back, late, also if its sender has gone; holding ends.
    pub fn let_through(&self) {
        let mut state = self.shared.lock();
        for flow in &mut state.flows {
            if *flow == Flow::Hold {
                *flow = Flow::Pass;
            }
        }
        for link in &state.links {
            for toward in [Toward::Server, Toward::Client] {
                if *link.ways[toward as usize].flow.borrow() == Flow::Hold {
                    link.set(toward, Flow::Pass);
                }
            }
        }
    }

    /// Everything passes again. Connections that have lost bytes are reset, as TCP would.
    pub fn heal(&self) {
        let mut state = self.shared.lock();
        state.refuse = false;
        state.flows = [Flow::Pass; 2];
        for link in &state.links {
            link.set(Toward::Server, Flow::Pass);
            link.set(Toward::Client, Flow::Pass);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The link of a new connection, unless it is refused.
    fn admit(&self) -> Option<Arc<Link>> {
        let mut state = self.lock();
        if state.refuse {
            return None;
        }
        let ways = state.flows.map(Way::new);
        let link = Arc::new(Link { ways, kill: CancellationToken::new() });
        state.links.push(Arc::clone(&link));
        Some(link)
    }
}

impl Link {
    fn set(&self, toward: Toward, flow: Flow) {
        let way = &self.ways[toward as usize];
        if flow != Flow::Swallow && way.torn.load(Ordering::Acquire) {
            self.kill.cancel();
        }
        way.flow.send_replace(flow);
    }
}

impl Way {
    fn new(flow: Flow) -> Self {
        Self {
            flow: watch::Sender::new(flow),
            left: AtomicU64::new(u64::MAX),
            held: AtomicUsize::new(0),
            torn: AtomicBool::new(false),
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        shared.accepted.fetch_add(1, Ordering::Relaxed);
        let Some(link) = shared.admit() else {
            reset(&client);
            continue;
        };
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            match TcpStream::connect(shared.target).await {
                Ok(server) => carry(&link, client, server).await,
                Err(_) => reset(&client),
            }
            shared.lock().links.retain(|other| !Arc::ptr_eq(other, &link));
        });
    }
}

/// Carries bytes both ways until both are at an end, or the link is killed.
async fn carry(link: &Link, mut client: TcpStream, mut server: TcpStream) {
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let both = async {
            tokio::join!(
                pump(link, &link.ways[0], from_client, to_server),
                pump(link, &link.ways[1], from_server, to_client),
            )
        };
        tokio::select! {
            biased;
            () = link.kill.cancelled() => {}
            _ = both => return,
        }
    }
    reset(&client);
    reset(&server);
}

/// When bytes came, and which; none at the end.
type Piece = (Instant, Vec<u8>);

/// Carries bytes one way.
async fn pump(
    link: &Link,
    way: &Way,
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
) {
    let (pieces, mut coming) = mpsc::unbounded_channel::<Piece>();
    let reading = async move {
        let mut buffer = vec![0; 16 * 1024];
        loop {
            // A reset counts as an end: what came before it is still delivered.
            let read = from.read(&mut buffer).await.unwrap_or(0);
            way.held.fetch_add(read, Ordering::AcqRel);
            let _ = pieces.send((Instant::now(), buffer[..read].to_vec()));
            if read == 0 {
                return;
            }
        }
    };
    let writing = async {
        while let Some((came, mut bytes)) = coming.recv().await {
            let end = bytes.is_empty();
            let copies = leave(way, came, end).await;
            way.held.fetch_sub(bytes.len(), Ordering::AcqRel);
            match copies {
                0 => continue,
                1 => {}
                _ => bytes.extend_from_within(..),
            }
            let left = way.left.load(Ordering::Acquire);
            let cut = left <= bytes.len() as u64;
            if cut {
                bytes.truncate(usize::try_from(left).unwrap_or(usize::MAX));
            } else if left != u64::MAX {
                way.left.store(left - bytes.len() as u64, Ordering::Release);
            }
            // Whoever has closed this side does not keep the other from being served.
            let _ = if end { to.shutdown().await } else { to.write_all(&bytes).await };
            if cut && !end {
                link.kill.cancel();
            }
        }
    };
    tokio::join!(reading, writing);
}

/// Resolves once a piece may pass, with how often, or has vanished. An end does not vanish: it
/// waits until something passes again, when its connection is reset.
async fn leave(way: &Way, came: Instant, end: bool) -> usize {
    let mut flow = way.flow.subscribe();
    loop {
        let now = *flow.borrow_and_update();
        match now {
            Flow::Pass => return 1,
            Flow::Double => return 2,
            Flow::Delay(by) => tokio::select! {
                biased;
                _ = flow.changed() => {}
                () = sleep_until(came + by) => return 1,
            },
            Flow::Swallow => {
                way.torn.store(true, Ordering::Release);
                if !end {
                    return 0;
                }
                let _ = flow.changed().await;
            }
            Flow::Hold => {
                let _ = flow.changed().await;
            }
        }
    }
}

/// Makes the closing of `stream` a reset: the peer sees an error, not an orderly end.
fn reset(stream: &TcpStream) {
    let _ = rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO));
}

#[cfg(test)]
mod tests;
