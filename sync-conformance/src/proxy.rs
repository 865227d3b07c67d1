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
            let passes = leave(way, came, end).await;
            way.held.fetch_sub(bytes.len(), Ordering::AcqRel);
            if !passes {
                continue;
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

/// Resolves once a piece may pass (`true`) or has vanished (`false`). An end does not vanish: it
/// waits until something passes again, when its connection is reset.
async fn leave(way: &Way, came: Instant, end: bool) -> bool {
    let mut flow = way.flow.subscribe();
    loop {
        let now = *flow.borrow_and_update();
        match now {
            Flow::Pass => return true,
            Flow::Delay(by) => tokio::select! {
                biased;
                _ = flow.changed() => {}
                () = sleep_until(came + by) => return true,
            },
            Flow::Swallow => {
                way.torn.store(true, Ordering::Release);
                if !end {
                    return false;
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
mod tests {
    use super::*;
    use tokio::time::timeout;

    const LONG: Duration = Duration::from_secs(20);
    const SHORT: Duration = Duration::from_millis(150);

    /// What a server has received, piece by piece; it echoes everything.
    async fn echo() -> (SocketAddr, mpsc::UnboundedReceiver<Vec<u8>>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (seen, received) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let seen = seen.clone();
                tokio::spawn(async move {
                    let mut buffer = [0; 1024];
                    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
                        let _ = seen.send(buffer[..read].to_vec());
                        let _ = stream.write_all(&buffer[..read]).await;
                    }
                });
            }
        });
        (address, received)
    }

    async fn start() -> (Proxy, mpsc::UnboundedReceiver<Vec<u8>>) {
        let (target, received) = echo().await;
        (Proxy::start(target).await.unwrap(), received)
    }

    async fn connect(proxy: &Proxy) -> TcpStream {
        TcpStream::connect(proxy.address()).await.unwrap()
    }

    async fn exchange(stream: &mut TcpStream, text: &[u8]) -> io::Result<Vec<u8>> {
        stream.write_all(text).await?;
        hear(stream).await
    }

    async fn hear(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
        let mut buffer = [0; 1024];
        let read = timeout(LONG, stream.read(&mut buffer)).await??;
        Ok(buffer[..read].to_vec())
    }

    async fn is_silent(stream: &mut TcpStream) -> bool {
        timeout(SHORT, stream.read(&mut [0; 1])).await.is_err()
    }

    #[tokio::test]
    async fn bytes_pass_both_ways() {
        let (proxy, _received) = start().await;
        let mut client = connect(&proxy).await;
        assert_eq!(exchange(&mut client, b"hello").await.unwrap(), b"hello");
        assert_eq!((proxy.accepted(), proxy.held()), (1, 0));
        client.shutdown().await.unwrap();
        assert_eq!(hear(&mut client).await.unwrap(), b"");
    }

    #[tokio::test]
    async fn a_cut_resets_what_is_open_and_what_comes() {
        let (proxy, _received) = start().await;
        let mut client = connect(&proxy).await;
        exchange(&mut client, b"hello").await.unwrap();
        proxy.cut();
        assert_eq!(hear(&mut client).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        let mut second = connect(&proxy).await;
        assert!(exchange(&mut second, b"hello").await.is_err());
        proxy.heal();
        let mut third = connect(&proxy).await;
        assert_eq!(exchange(&mut third, b"again").await.unwrap(), b"again");
        proxy.reset();
        assert!(hear(&mut third).await.is_err());
        assert_eq!(exchange(&mut connect(&proxy).await, b"new").await.unwrap(), b"new");
    }

    #[tokio::test]
    async fn a_delay_is_kept_and_keeps_the_order() {
        let (proxy, _received) = start().await;
        let mut client = connect(&proxy).await;
        proxy.set(Toward::Client, Flow::Delay(Duration::from_millis(200)));
        let sent = Instant::now();
        client.write_all(b"one").await.unwrap();
        assert_eq!(hear(&mut client).await.unwrap(), b"one");
        assert!(sent.elapsed() >= Duration::from_millis(200));
        proxy.set(Toward::Client, Flow::Delay(LONG * 100));
        client.write_all(b"two").await.unwrap();
        assert!(is_silent(&mut client).await);
        proxy.heal();
        assert_eq!(hear(&mut client).await.unwrap(), b"two");
    }

    #[tokio::test]
    async fn answers_can_vanish_while_requests_arrive() {
        let (proxy, mut received) = start().await;
        let mut client = connect(&proxy).await;
        proxy.set(Toward::Client, Flow::Swallow);
        client.write_all(b"hello").await.unwrap();
        assert_eq!(timeout(LONG, received.recv()).await.unwrap().unwrap(), b"hello");
        assert!(is_silent(&mut client).await);
        // What has lost bytes does not go on as if it had not.
        proxy.heal();
        assert!(hear(&mut client).await.is_err());
    }

    #[tokio::test]
    async fn requests_can_vanish() {
        let (proxy, mut received) = start().await;
        let mut client = connect(&proxy).await;
        let mut idle = connect(&proxy).await;
        exchange(&mut idle, b"idle").await.unwrap();
        received.recv().await.unwrap();
        proxy.set(Toward::Server, Flow::Swallow);
        client.write_all(b"hello").await.unwrap();
        assert!(timeout(SHORT, received.recv()).await.is_err());
        proxy.heal();
        assert!(hear(&mut client).await.is_err());
        assert_eq!(exchange(&mut idle, b"whole").await.unwrap(), b"whole");
    }

    #[tokio::test]
    async fn a_held_request_arrives_late_though_its_client_has_gone() {
        let (proxy, mut received) = start().await;
        let mut first = connect(&proxy).await;
        exchange(&mut first, b"open").await.unwrap();
        assert_eq!(received.recv().await.unwrap(), b"open");
        proxy.hold();
        first.write_all(b"late").await.unwrap();
        while proxy.held() < 4 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        drop(first);

        let mut second = connect(&proxy).await;
        assert_eq!(exchange(&mut second, b"overtakes").await.unwrap(), b"overtakes");
        assert_eq!(received.recv().await.unwrap(), b"overtakes");
        assert!(timeout(SHORT, received.recv()).await.is_err());

        proxy.let_through();
        assert_eq!(timeout(LONG, received.recv()).await.unwrap().unwrap(), b"late");
        assert_eq!(proxy.held(), 0);
    }

    #[tokio::test]
    async fn a_held_request_arrives_late_though_its_client_was_reset() {
        let (proxy, mut received) = start().await;
        let mut first = connect(&proxy).await;
        exchange(&mut first, b"open").await.unwrap();
        received.recv().await.unwrap();
        proxy.hold();
        first.write_all(b"late").await.unwrap();
        while proxy.held() < 4 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        reset(&first);
        drop(first);
        tokio::time::sleep(SHORT).await;
        proxy.let_through();
        assert_eq!(timeout(LONG, received.recv()).await.unwrap().unwrap(), b"late");
    }

    #[tokio::test]
    async fn a_connection_is_cut_after_so_many_bytes() {
        let (proxy, mut received) = start().await;
        let mut client = connect(&proxy).await;
        exchange(&mut client, b"open").await.unwrap();
        received.recv().await.unwrap();
        proxy.cut_after(Toward::Server, 3);
        client.write_all(b"hello").await.unwrap();
        assert!(hear(&mut client).await.is_err() || hear(&mut client).await.is_err());
        assert_eq!(received.recv().await.unwrap(), b"hel");
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_an_error_for_the_client() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let target = listener.local_addr().unwrap();
        drop(listener);
        let proxy = Proxy::start(target).await.unwrap();
        let mut client = connect(&proxy).await;
        assert!(exchange(&mut client, b"hello").await.is_err());
        // Whoever drops the proxy drops its connections.
        drop(proxy);
        assert!(hear(&mut client).await.map_or(true, |text| text.is_empty()));
    }
}
