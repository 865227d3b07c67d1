//! Requests to an agent, and what their answers are worth.
//!
//! Each kind of request has connections of its own. An agent serves no more than so many of one
//! client and resets what is above: so the connection by which a session is renewed is never lent
//! to others, long polls are counted (`polls`), and of all else so much is asked at once.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use reqwest::{Client, Method, Response, Url};
use sync_core::connection::{Connector, Dial, Health};
use sync_core::{Clock, ErrorKind, Moment, StoreError};
use tokio::sync::Semaphore;

use crate::error;
use crate::mutant;
use crate::token::Credentials;

/// How many requests are under way at once, besides renewals and long polls. With the 64 of those, two
/// processes beside each other find room among an agent's 200 connections.
const AT_ONCE: usize = 32;

/// As much of a refusal as is read.
const LONGEST_REFUSAL: usize = 16 * 1024;

/// What requests are sent by. Each of these has its own connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    /// All that is not among the others.
    Plain,
    /// The renewals of sessions.
    Renewals,
    /// Long polls.
    Polls,
}

/// So many connections are kept that nobody uses: the library may make more than it needs, of which an
/// agent has not as many as one likes. Those that are used at once are worth keeping: to make them anew
/// each time costs more than what is asked on them.
const SPARE: usize = AT_ONCE;
const SPARE_FOR_RENEWALS: usize = 4;
const SPARE_FOR_POLLS: usize = 16;

/// Makes the clients of the HTTP library, alike but for how many connections they keep unused.
pub(crate) type Recipe = Arc<dyn Fn(usize) -> Result<Client, StoreError> + Send + Sync>;

/// The agents, and how they are talked to.
pub(crate) struct Agents {
    pub(crate) bases: Vec<Base>,
    pub(crate) recipe: Recipe,
    pub(crate) credentials: Credentials,
    /// What each request asks for besides: data centre, enterprise namespace and partition.
    pub(crate) places: String,
    /// What a token needs, for errors.
    pub(crate) needed: Arc<str>,
}

/// Where an agent is.
#[derive(Debug, Clone)]
pub(crate) struct Base {
    /// What its URLs begin with.
    pub(crate) url: Url,
    /// What errors call it where there are others.
    pub(crate) name: Option<Arc<str>>,
}

impl Base {
    fn at(&self, path: &str, query: Option<&str>) -> Url {
        let mut url = self.url.clone();
        url.set_path(&[self.url.path().trim_end_matches('/'), path].concat());
        url.set_query(query);
        url
    }

    fn named(&self, error: StoreError) -> StoreError {
        named(self.name.as_deref(), error)
    }
}

/// Says whose error it is.
fn named(name: Option<&str>, error: StoreError) -> StoreError {
    match name {
        Some(name) => error.at(name),
        None => error,
    }
}

/// One agent with connections to it.
#[derive(Clone)]
pub(crate) struct Agent {
    base: Base,
    plain: Client,
    renewals: Client,
    polls: Client,
}

#[async_trait]
impl Dial for Agents {
    type Connection = Agent;

    /// An agent that answers and knows a leader.
    async fn dial(&self, number: u64, _: &Arc<Health>) -> Result<Agent, StoreError> {
        let number = if mutant::on(mutant::ONE_AGENT) { 1 } else { number };
        let turn = usize::try_from(number.wrapping_sub(1)).unwrap_or(0) % self.bases.len().max(1);
        let base = self.bases.get(turn).ok_or_else(|| StoreError::unsent("there is no agent"))?;
        let agent = Agent {
            base: base.clone(),
            plain: (self.recipe)(SPARE)?,
            renewals: (self.recipe)(SPARE_FOR_RENEWALS)?,
            polls: (self.recipe)(SPARE_FOR_POLLS)?,
        };
        // Answered without any permission. On the connection that renewals will need.
        let request = agent.renewals.get(base.at("/v1/status/leader", None));
        let request = request.headers(self.credentials.headers()?);
        let sent = request.send().await;
        let answer = sent.map_err(|error| base.named(error::unconnected(error)))?;
        let (status, text) = (answer.status().as_u16(), refusal(answer).await);
        match status {
            200 if text.trim() != "\"\"" => Ok(agent),
            200 => Err(base.named(StoreError::unsent(error::NO_LEADER))),
            status => Err(base.named(error::answered(status, &text, &self.needed)).into_unsent()),
        }
    }

    fn servers(&self) -> u64 {
        u64::try_from(self.bases.len()).unwrap_or(1)
    }

    fn explain(&self, silence: StoreError) -> StoreError {
        if self.bases.iter().any(|base| base.url.scheme() == "https") {
            return silence.advise("an agent that does not speak TLS on this port may say nothing");
        }
        silence
    }
}

impl fmt::Debug for Agents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Agents").field("bases", &self.bases).finish_non_exhaustive()
    }
}

/// One request.
#[derive(Debug, Clone)]
pub(crate) struct Ask<'a> {
    pub(crate) lane: Lane,
    pub(crate) method: Method,
    /// From `/v1` on.
    pub(crate) path: &'a str,
    /// `a=b&c`, without what every request asks for.
    pub(crate) query: &'a str,
    pub(crate) body: Option<Vec<u8>>,
    /// How long it may take, if the caller does not bound it.
    pub(crate) limit: Option<Duration>,
}

impl<'a> Ask<'a> {
    pub(crate) fn get(path: &'a str, query: &'a str) -> Self {
        Self { lane: Lane::Plain, method: Method::GET, path, query, body: None, limit: None }
    }

    pub(crate) fn put(path: &'a str, body: Vec<u8>) -> Self {
        Self { method: Method::PUT, body: Some(body), ..Self::get(path, "") }
    }

    pub(crate) fn on(mut self, lane: Lane) -> Self {
        self.lane = lane;
        self
    }

    pub(crate) fn within(mut self, limit: Duration) -> Self {
        self.limit = Some(limit);
        self
    }
}

/// How an answer began, and what was said if it was a refusal.
#[derive(Debug, Default)]
pub(crate) struct Head {
    pub(crate) status: u16,
    /// `X-Consul-Index` as it stood there.
    pub(crate) index: Option<u64>,
    /// Why not, where the status is not 200.
    pub(crate) text: String,
    /// Whether all of the body was wanted.
    pub(crate) whole: bool,
    /// Whose answer it is, where there are several agents.
    pub(crate) name: Option<Arc<str>>,
    /// What a token needs.
    pub(crate) needed: Arc<str>,
}

impl Head {
    /// The error of a status that the caller has no use for.
    pub(crate) fn error(&self) -> StoreError {
        self.named(error::answered(self.status, &self.text, &self.needed))
    }

    /// The error of a refusal that says so by `said`; `what` names the permission.
    pub(crate) fn denied(&self, said: &str, what: &str) -> StoreError {
        self.named(error::denied(said, what, &self.needed))
    }

    pub(crate) fn named(&self, error: StoreError) -> StoreError {
        named(self.name.as_deref(), error)
    }
}

/// What takes a body: `false` where no more of it is wanted.
pub(crate) type Sink<'a> = &'a mut (dyn FnMut(&[u8]) -> bool + Send);

/// How long a token that was known may be unknown before that is believed: a server that has just
/// started does not know its tokens for a moment.
const FORGETFUL: Duration = Duration::from_secs(10);

/// Sends requests to the agent in use.
#[derive(Debug, Clone)]
pub(crate) struct Http {
    connector: Arc<Connector<Agents>>,
    token: Arc<Mutex<Known>>,
    at_once: Arc<Semaphore>,
}

/// Whether the agent knows the token.
#[derive(Debug, Clone, Copy)]
enum Known {
    /// It never did.
    Not,
    /// It does.
    Yes,
    /// It did, until then.
    Until(Moment),
}

impl Http {
    pub(crate) fn new(agents: Agents, clock: Arc<dyn Clock>, within: Duration) -> Self {
        let token = Arc::new(Mutex::new(Known::Not));
        let at_once = Arc::new(Semaphore::new(AT_ONCE));
        Self { connector: Connector::new(agents, clock, within), token, at_once }
    }

    pub(crate) fn connector(&self) -> &Arc<Connector<Agents>> {
        &self.connector
    }

    /// Sends a request and gives the body of a good answer to `sink`, piece by piece.
    ///
    /// `Err` is an answer that never came, or none that was sent: every status is an `Ok`.
    pub(crate) async fn send(&self, ask: Ask<'_>, sink: Sink<'_>) -> Result<Head, StoreError> {
        let _turn = match ask.lane {
            Lane::Plain => self.at_once.acquire().await.ok(),
            Lane::Renewals | Lane::Polls => None,
        };
        let link = self.connector.link().await?;
        let agents = self.connector.dial();
        let headers = agents.credentials.headers()?;
        let Agent { base, plain, renewals, polls } = &link.connection;
        let client = match ask.lane {
            Lane::Plain => plain,
            Lane::Renewals => renewals,
            Lane::Polls => polls,
        };
        let both;
        let query = match (ask.query, &*agents.places) {
            ("", "") => None,
            ("", one) | (one, "") => Some(one),
            (one, other) => {
                both = [one, "&", other].concat();
                Some(&*both)
            }
        };
        let mut request = client.request(ask.method, base.at(ask.path, query));
        if let Some(body) = ask.body {
            request = request.body(body);
        }
        let sent = self.connector.clock().now();
        let exchange = exchange(request.headers(headers).send(), sink);
        let Some(limit) = ask.limit else {
            let trusted = mutant::on(mutant::SILENCE_TRUSTED);
            let pending = if trusted { link.look() } else { link.request() };
            return self.over(base, pending, sent, exchange.await);
        };
        let (clock, pending) = (self.connector.clock(), link.look());
        tokio::select! {
            biased;
            answer = exchange => self.over(base, pending, sent, answer),
            // Others have found out that nobody answers any more.
            () = link.health().broken() => {
                Err(base.named(StoreError::unknown("the agent has fallen silent")))
            }
            () = clock.sleep_until(clock.now() + limit) => {
                pending.given_up();
                Err(base.named(StoreError::unknown(format!("no answer within {limit:?}"))))
            }
        }
    }

    fn over(
        &self,
        base: &Base,
        pending: sync_core::connection::Pending<'_>,
        sent: Moment,
        answer: Result<Head, reqwest::Error>,
    ) -> Result<Head, StoreError> {
        match answer {
            Ok(mut head) => {
                pending.answered();
                (head.name, head.needed) =
                    (base.name.clone(), Arc::clone(&self.connector.dial().needed));
                if self.may_know_later(&head, sent) {
                    let why = format!("{}, which the agent knew before", head.text.trim());
                    return Err(head.named(StoreError::unsent(why)).advise(
                        "if the ACL token was deleted: give another to Config::token; an agent or a \
                         server that has just started knows it again in a moment",
                    ));
                }
                Ok(head)
            }
            Err(error) => {
                // One of many connections; the others may do well, and a new one may be refused
                // where too many are open. An agent that is not there is another matter.
                if error.is_connect() || self.connector.dial().servers() > 1 {
                    pending.failed();
                } else {
                    pending.answered();
                }
                let connects = error.is_connect();
                let error = if connects { error::unconnected(error) } else { error::lost(error) };
                Err(base.named(error))
            }
        }
    }
}

impl Http {
    /// Whether the token was known a moment ago and is not now.
    fn may_know_later(&self, head: &Head, sent: Moment) -> bool {
        let now = self.connector.clock().now();
        let mut token = self.token.lock().unwrap_or_else(PoisonError::into_inner);
        if !error::is_unknown_token(head.status, &head.text) {
            // A server that fails may not have looked at the token, and a long poll was let in while
            // it was known still.
            let earlier = matches!(*token, Known::Until(since) if sent <= since);
            if head.status < 500 && !earlier {
                *token = Known::Yes;
            }
            return false;
        }
        let since = match *token {
            Known::Not => return false,
            Known::Yes => now,
            Known::Until(since) => since,
        };
        *token = Known::Until(since);
        now.since(since) < FORGETFUL
    }
}

async fn exchange(
    sent: impl Future<Output = reqwest::Result<Response>>,
    sink: Sink<'_>,
) -> reqwest::Result<Head> {
    let mut answer = sent.await?;
    let status = answer.status().as_u16();
    let index = answer.headers().get("x-consul-index").and_then(|index| {
        let index = index.to_str().ok()?.parse().ok()?;
        (index > 0).then_some(index)
    });
    let mut head = Head { status, index, whole: true, ..Head::default() };
    if status != 200 {
        head.text = refusal(answer).await;
        return Ok(head);
    }
    while let Some(piece) = answer.chunk().await? {
        if !sink(&piece) {
            head.whole = false;
            break;
        }
    }
    Ok(head)
}

/// The words of a short answer. One that breaks off has said enough by its status.
async fn refusal(mut answer: Response) -> String {
    let mut text = Vec::new();
    while let Ok(Some(piece)) = answer.chunk().await {
        text.extend_from_slice(&piece);
        if text.len() >= LONGEST_REFUSAL {
            text.truncate(LONGEST_REFUSAL);
            break;
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// Says of an error that its request changes nothing, whatever becomes of it: of reads.
pub(crate) trait IntoUnsent {
    fn into_unsent(self) -> StoreError;
}

impl IntoUnsent for StoreError {
    fn into_unsent(self) -> StoreError {
        if self.settled() {
            return self;
        }
        StoreError::refused(ErrorKind::Unreachable, self.to_string())
    }
}
