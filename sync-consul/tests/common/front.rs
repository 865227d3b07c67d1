//! A small HTTP server before a real agent: it records what is asked, and may change it and what
//! is answered, as an intermediary can.
#![allow(dead_code, reason = "each test uses its part")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may")]

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sync_conformance::Server;
use sync_conformance::driver::eventually;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

/// What was asked.
#[derive(Debug, Clone, Default)]
pub(crate) struct Asked {
    pub(crate) method: String,
    /// With the query.
    pub(crate) path: String,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

/// What is answered.
#[derive(Debug, Clone, Default)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

/// What to do with a request.
pub(crate) enum Verdict {
    Pass,
    /// Something else is sent to the agent.
    Ask(Asked),
    /// The agent is not asked at all.
    Answer(Answer),
    /// Nothing is answered, ever.
    Silence,
}

type Before = Box<dyn Fn(&Asked) -> Verdict + Send + Sync>;
type After = Box<dyn Fn(&Asked, &mut Answer) + Send + Sync>;

/// The server. It ends with the value.
pub(crate) struct Front {
    address: SocketAddr,
    seen: Arc<Seen>,
    task: AbortHandle,
}

struct Seen {
    before: Mutex<Before>,
    after: Mutex<After>,
    asked: Mutex<Vec<Asked>>,
    /// Requests that have no answer yet.
    open: Mutex<Vec<String>>,
    most_open: Mutex<usize>,
    agent: SocketAddr,
}

impl Asked {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| &**value)
    }

    /// What the query says of `name`.
    pub(crate) fn query(&self, name: &str) -> Option<&str> {
        let (_, query) = self.path.split_once('?')?;
        let mut parts = query.split('&').map(|part| part.split_once('=').unwrap_or((part, "")));
        parts.find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    /// The same without what the query says of `name`.
    pub(crate) fn without(&self, name: &str) -> Self {
        let (path, query) = self.path.split_once('?').unwrap_or((&self.path, ""));
        let named = |part: &&str| part.split('=').next() != Some(name);
        let left: Vec<&str> = query.split('&').filter(named).collect();
        Self { path: format!("{path}?{}", left.join("&")), ..self.clone() }
    }

    /// Whether the agent is asked to wait for a change.
    pub(crate) fn is_poll(&self) -> bool {
        self.query("index").is_some()
    }
}

impl Answer {
    pub(crate) fn new(status: u16, body: &str) -> Self {
        Self { status, headers: Vec::new(), body: body.as_bytes().to_vec() }
    }

    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.set(name, Some(value));
        self
    }

    pub(crate) fn set(&mut self, name: &str, value: Option<&str>) {
        self.headers.retain(|(known, _)| known != name);
        self.headers.extend(value.map(|value| (name.to_owned(), value.to_owned())));
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| &**value)
    }
}

impl Front {
    pub(crate) async fn of(server: &Server) -> Self {
        Self::before(server.addresses()[0]).await
    }

    pub(crate) async fn before(agent: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Seen {
            before: Mutex::new(Box::new(|_| Verdict::Pass)),
            after: Mutex::new(Box::new(|_, _| {})),
            asked: Mutex::default(),
            open: Mutex::default(),
            most_open: Mutex::default(),
            agent,
        });
        let serving = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            // Those of the connections end with this one.
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let seen = Arc::clone(&serving);
                connections.spawn(async move {
                    let _ = seen.serve(stream).await;
                });
            }
        });
        Self { address, seen, task: task.abort_handle() }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Decides about each request from now on.
    pub(crate) fn decide(&self, before: impl Fn(&Asked) -> Verdict + Send + Sync + 'static) {
        *self.seen.before.lock().unwrap() = Box::new(before);
    }

    /// Changes each answer of the agent from now on.
    pub(crate) fn change(&self, after: impl Fn(&Asked, &mut Answer) + Send + Sync + 'static) {
        *self.seen.after.lock().unwrap() = Box::new(after);
    }

    /// All that was asked so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.seen.asked.lock().unwrap().clone()
    }

    /// Forgets what was asked.
    pub(crate) fn forget(&self) {
        self.seen.asked.lock().unwrap().clear();
        *self.seen.most_open.lock().unwrap() = self.open_polls().len();
    }

    /// The long polls that are under way.
    pub(crate) fn open_polls(&self) -> Vec<String> {
        self.seen.open.lock().unwrap().clone()
    }

    /// Waits until there is one of which the path holds `part`.
    pub(crate) async fn polled(&self, part: &str) {
        eventually(Duration::from_secs(10), async || {
            let open = self.open_polls();
            if open.iter().any(|path| path.contains(part)) { Ok(()) } else { Err(open) }
        })
        .await;
    }

    /// How many there were at once, at the most.
    pub(crate) fn most_open_polls(&self) -> usize {
        *self.seen.most_open.lock().unwrap()
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Seen {
    async fn serve(&self, mut stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut buffer = Vec::new();
        while let Some(asked) = read_request(&mut stream, &mut buffer).await? {
            self.asked.lock().unwrap().push(asked.clone());
            let verdict = (self.before.lock().unwrap())(&asked);
            let mut answer = match verdict {
                Verdict::Silence => return std::future::pending().await,
                Verdict::Answer(answer) => answer,
                Verdict::Pass => self.pass(&asked, &mut stream).await?,
                Verdict::Ask(instead) => self.pass(&instead, &mut stream).await?,
            };
            (self.after.lock().unwrap())(&asked, &mut answer);
            let mut head = format!("HTTP/1.1 {} Said\r\n", answer.status);
            for (name, value) in &answer.headers {
                head += &format!("{name}: {value}\r\n");
            }
            head += &format!("content-length: {}\r\n\r\n", answer.body.len());
            stream.write_all(&[head.as_bytes(), &answer.body].concat()).await?;
            if asked.header("connection") == Some("close") {
                break;
            }
        }
        Ok(())
    }

    async fn pass(&self, asked: &Asked, client: &mut TcpStream) -> io::Result<Answer> {
        let Some(_open) = asked.is_poll().then(|| Open::new(self, asked)) else {
            return self.ask(asked).await;
        };
        // A client that hangs up wants no answer any more.
        let mut byte = [0];
        tokio::select! {
            answer = self.ask(asked) => answer,
            _ = client.peek(&mut byte) => Err(io::ErrorKind::ConnectionReset.into()),
        }
    }

    async fn ask(&self, asked: &Asked) -> io::Result<Answer> {
        let mut stream = TcpStream::connect(self.agent).await?;
        let Asked { method, path, headers, body } = asked;
        let mut head = format!("{method} {path} HTTP/1.0\r\n");
        for (name, value) in headers.iter().filter(|(name, _)| name != "connection") {
            head += &format!("{name}: {value}\r\n");
        }
        stream.write_all(&[head.as_bytes(), b"\r\n", body].concat()).await?;
        let mut text = Vec::new();
        stream.read_to_end(&mut text).await?;
        let end = head_of(&text).ok_or(io::ErrorKind::UnexpectedEof)?;
        let (first, headers) = parse(&text[..end]);
        let status = first.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap();
        let kept =
            |(name, _): &(String, String)| !["content-length", "connection"].contains(&&**name);
        let headers = headers.into_iter().filter(kept).collect();
        Ok(Answer { status, headers, body: text[end + 4..].to_vec() })
    }
}

/// A long poll that is under way.
struct Open<'a>(&'a Seen, String);

impl<'a> Open<'a> {
    fn new(seen: &'a Seen, asked: &Asked) -> Self {
        let mut open = seen.open.lock().unwrap();
        open.push(asked.path.clone());
        let mut most = seen.most_open.lock().unwrap();
        *most = (*most).max(open.len());
        Self(seen, asked.path.clone())
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        let mut open = self.0.open.lock().unwrap();
        let place = open.iter().position(|path| *path == self.1).unwrap();
        open.remove(place);
    }
}

/// What of a client's requests creates something: those that a network may bring too late.
pub(crate) fn creating(asked: Vec<Asked>) -> Vec<Asked> {
    let creates = |asked: &Asked| {
        asked.path.starts_with("/v1/txn")
            && String::from_utf8_lossy(&asked.body).contains("\"lock\"")
    };
    asked.into_iter().filter(creates).collect()
}

/// Reads the next request; `None` at the end.
async fn read_request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<Option<Asked>> {
    loop {
        if let Some(end) = head_of(buffer) {
            let (first, headers) = parse(&buffer[..end]);
            let mut words = first.split(' ').map(ToOwned::to_owned);
            let (method, path) = (words.next().unwrap(), words.next().unwrap());
            let mut asked = Asked { method, path, headers, body: Vec::new() };
            let length = asked.header("content-length").map_or(0, |text| text.parse().unwrap());
            if buffer.len() >= end + 4 + length {
                asked.body = buffer[end + 4..end + 4 + length].to_vec();
                buffer.drain(..end + 4 + length);
                return Ok(Some(asked));
            }
        }
        let mut piece = [0; 16 * 1024];
        match stream.read(&mut piece).await? {
            0 => return Ok(None),
            read => buffer.extend_from_slice(&piece[..read]),
        }
    }
}

fn head_of(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|end| end == b"\r\n\r\n")
}

fn parse(head: &[u8]) -> (String, Vec<(String, String)>) {
    let text = String::from_utf8_lossy(head).into_owned();
    let mut lines = text.lines();
    let first = lines.next().unwrap_or_default().to_owned();
    let header = |line: &str| {
        let (name, value) = line.split_once(':')?;
        Some((name.trim().to_lowercase(), value.trim().to_owned()))
    };
    (first, lines.filter_map(header).collect())
}
