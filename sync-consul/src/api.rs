//! The requests that are made, typed: transactions, reads, sessions.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use sync_core::{ErrorKind, StoreError};

use crate::error;
use crate::http::{Ask, Head, Http, IntoUnsent, Lane};
use crate::line::Line;
use crate::pair::{Pair, Pairs};
use crate::txn::{Echo, Op, Seen, body, lacking, off_by_one, refused};

/// As much of the answer to a transaction as is read: a longer one has a long line in it.
const LONGEST_ANSWER: usize = 256 * 1024;

/// As much of a line as is read: about 100,000 tickets.
const LONGEST_LINE: usize = 64 * 1024 * 1024;

/// What a session is to be like.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct NewSession<'a> {
    pub(crate) name: &'a str,
    #[serde(rename = "TTL")]
    pub(crate) ttl: String,
    pub(crate) lock_delay: String,
    pub(crate) behavior: &'static str,
    pub(crate) node_checks: &'a [String],
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) service_checks: Vec<ServiceCheck<'a>>,
}

#[derive(Debug, Serialize)]
pub(crate) struct ServiceCheck<'a> {
    #[serde(rename = "ID")]
    pub(crate) id: &'a str,
}

#[derive(Deserialize)]
struct SessionId {
    #[serde(rename = "ID")]
    id: String,
}

#[derive(Debug, Clone)]
pub(crate) struct Api {
    pub(crate) http: Http,
    /// How long a read may take that shares a call with writes.
    pub(crate) read_limit: Duration,
}

impl Api {
    /// Does all of the operations, or nothing. Whether it was done.
    ///
    /// Every refusal that is not `false` is an error, and settled.
    pub(crate) async fn commit(
        &self,
        ops: &[Op<'_>],
        seen: &mut Seen<'_>,
    ) -> Result<bool, StoreError> {
        let (mut pairs, mut echo) = (Pairs::of_transaction(), Echo::new(ops));
        let (mut read, mut broken) = (0, false);
        let ask = Ask::put("/v1/txn", body(ops)?);
        let head = self
            .http
            .send(ask, &mut |piece| {
                read += piece.len();
                let each = |pair: Pair| {
                    echo.heard(&pair);
                    seen.add(pair);
                };
                broken |= pairs.feed(piece, each).is_err();
                !broken && read <= LONGEST_ANSWER
            })
            .await?;
        match head.status {
            200 if broken || (head.whole && !pairs.is_whole()) || !echo.is_complete() => {
                Err(off_by_one())
            }
            200 => {
                if !head.whole {
                    seen.line.cut();
                }
                Ok(true)
            }
            409 => refused(&head, ops).map(|_| false),
            _ => Err(head.error()),
        }
    }

    /// The same where nothing of the answer matters but whether it was done.
    pub(crate) async fn done(&self, ops: &[Op<'_>]) -> Result<bool, StoreError> {
        self.commit(ops, &mut Seen::new("", Line::default())).await
    }

    /// What stands at a key, missing nothing that was acknowledged before.
    ///
    /// As a transaction: its answer names the key also where nothing stands there.
    pub(crate) async fn read(&self, key: &str) -> Result<Option<Pair>, StoreError> {
        Ok(self.read_all(&[key]).await?.pop())
    }

    /// What stands at a key as far as the leader knows without asking the others or its disk.
    pub(crate) async fn glance(&self, key: &str) -> Result<Option<Pair>, StoreError> {
        let path = format!("/v1/kv/{key}");
        let ask = Ask::get(&path, "").within(self.read_limit);
        Ok(read_key(&self.http, ask, key).await?.1)
    }

    /// What stands at these keys, which are at most as many as a transaction may have operations.
    pub(crate) async fn read_all(&self, keys: &[&str]) -> Result<Vec<Pair>, StoreError> {
        let mut asked: Vec<&str> = keys.to_vec();
        // Each round leaves out those that are not there: one of them makes all of it fail.
        while !asked.is_empty() {
            let ops: Vec<Op<'_>> = asked.iter().map(|key| Op::get(key)).collect();
            let mut pairs = Pairs::of_transaction();
            let (mut found, mut broken) = (Vec::with_capacity(asked.len()), false);
            let mut echo = Echo::new(&ops);
            let ask = Ask { query: "consistent", ..Ask::put("/v1/txn", body(&ops)?) };
            let head = self
                .http
                .send(ask.within(self.read_limit), &mut |piece| {
                    let each = |pair| {
                        echo.heard(&pair);
                        found.push(pair);
                    };
                    broken |= pairs.feed(piece, each).is_err();
                    !broken
                })
                .await
                .map_err(StoreError::into_unsent)?;
            match head.status {
                200 if broken => return Err(off_by_one().into_unsent()),
                200 if !echo.is_complete() => return Err(self.why_hidden(&asked, &found).await),
                200 => return Ok(found),
                409 => {
                    let gone = refused(&head, &ops).map_err(StoreError::into_unsent)?;
                    let before = asked.len();
                    let mut place = 0..before;
                    asked.retain(|_| place.next().is_some_and(|place| !gone.contains(&place)));
                    if asked.len() == before {
                        return Err(head.error());
                    }
                }
                _ => return Err(head.error().into_unsent()),
            }
        }
        Ok(Vec::new())
    }

    /// Why a transaction did not show all that it read. What may not be read is left out of one.
    async fn why_hidden(&self, asked: &[&str], found: &[Pair]) -> StoreError {
        let hidden = |key: &&&str| !found.iter().any(|pair| pair.key == **key);
        let Some(key) = asked.iter().find(hidden) else { return off_by_one().into_unsent() };
        let path = format!("/v1/kv/{key}");
        let ask = Ask::get(&path, "consistent").within(self.read_limit);
        match read_key(&self.http, ask, key).await {
            Ok((head, _)) if head.status == 403 && error::is_denial(&head.text) => {
                head.denied(&head.text, &lacking("read", key))
            }
            _ => off_by_one().into_unsent(),
        }
    }

    /// Reads a line as far as it can be read.
    pub(crate) async fn read_line(&self, prefix: &str, line: &mut Line) -> Result<(), StoreError> {
        let path = format!("/v1/kv/{prefix}");
        let mut pairs = Pairs::of_read();
        let (mut read, mut broken) = (0, false);
        let ask = Ask::get(&path, "recurse&consistent").within(self.read_limit);
        let head = self
            .http
            .send(ask, &mut |piece| {
                read += piece.len();
                broken |= pairs.feed(piece, |pair| line.add(pair)).is_err();
                !broken && read <= LONGEST_LINE
            })
            .await
            .map_err(StoreError::into_unsent)?;
        match head.status {
            200 => {
                if broken || !head.whole {
                    line.cut();
                }
                Ok(())
            }
            404 => Ok(()),
            _ => Err(head.error().into_unsent()),
        }
    }

    /// Opens a session; its id.
    pub(crate) async fn create_session(
        &self,
        session: &NewSession<'_>,
    ) -> Result<String, StoreError> {
        let json = serde_json::to_vec(session).map_err(no_json)?;
        let mut answer = Vec::new();
        let ask = Ask::put("/v1/session/create", json).on(Lane::Renewals);
        let head = self.http.send(ask, &mut |piece| keep(&mut answer, piece)).await?;
        match head.status {
            200 => serde_json::from_slice::<SessionId>(&answer)
                .map(|session| session.id)
                .ok()
                .filter(|id| is_session_id(id))
                .ok_or_else(|| StoreError::unknown("the agent's answer names no session")),
            403 if error::is_denial(&head.text) => Err(head.denied(&head.text, "session:write")),
            // Said before anything is done. A session that is made all the same runs out by itself.
            500 if head.text.contains("Invalid Session TTL") => {
                Err(StoreError::refused(ErrorKind::Invalid, head.text.trim())
                    .advise("the agent's session_ttl_min says how short a TTL may be"))
            }
            500 if head.text.contains("Missing node registration") => {
                Err(head.named(StoreError::unsent(error::NOT_REGISTERED)))
            }
            // Both may change.
            500 if head.text.contains("Missing check") => {
                Err(head.named(StoreError::unsent(head.text.trim())).advise(
                    "Config::node_checks and Config::service_checks name checks that are on the \
                     agent's own node, by their ids: GET /v1/agent/checks shows them",
                ))
            }
            500 if head.text.contains("is in critical state") => {
                Err(head.named(StoreError::unsent(head.text.trim())).advise(
                    "a session can be made once the checks of Config::node_checks and \
                     Config::service_checks pass",
                ))
            }
            _ => Err(head.error()),
        }
    }

    /// Whether the session lives. It is renewed by this.
    pub(crate) async fn renew_session(&self, id: &str) -> Result<bool, StoreError> {
        let path = format!("/v1/session/renew/{id}");
        let mut answer = Vec::new();
        let ask = Ask::put(&path, Vec::new()).on(Lane::Renewals);
        let head = self.http.send(ask, &mut |piece| keep(&mut answer, piece)).await?;
        match head.status {
            200 => match serde_json::from_slice::<[SessionId; 1]>(&answer) {
                Ok([session]) if session.id == id => Ok(true),
                _ => Err(off_by_one()),
            },
            404 if head.text.contains(id) => Ok(false),
            403 if error::is_denial(&head.text) => Err(head.denied(&head.text, "session:write")),
            _ => Err(head.error()),
        }
    }

    /// Ends a session. That it has ended is a success.
    pub(crate) async fn destroy_session(&self, id: &str) -> Result<(), StoreError> {
        let path = format!("/v1/session/destroy/{id}");
        let head = self.http.send(Ask::put(&path, Vec::new()), &mut |_| true).await?;
        match head.status {
            200 | 404 => Ok(()),
            403 if error::is_denial(&head.text) => Err(head.denied(&head.text, "session:write")),
            _ => Err(head.error()),
        }
    }
}

/// Reads one key; the head of the answer, and what stood there.
pub(crate) async fn read_key(
    http: &Http,
    ask: Ask<'_>,
    key: &str,
) -> Result<(Head, Option<Pair>), StoreError> {
    let mut pairs = Pairs::of_read();
    let (mut found, mut broken) = (None, false);
    let head = http
        .send(ask, &mut |piece| {
            broken |= pairs.feed(piece, |pair| found = Some(pair)).is_err();
            !broken
        })
        .await?;
    match (head.status, found) {
        (200, Some(pair)) if pair.key == key => Ok((head, Some(pair))),
        (200, _) => Err(off_by_one()),
        _ => Ok((head, None)),
    }
}

/// A session's id is put into paths and keys: what is not of its form is none.
fn is_session_id(id: &str) -> bool {
    let known = |(place, byte): (usize, u8)| match place {
        8 | 13 | 18 | 23 => byte == b'-',
        _ => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
    };
    id.len() == 36 && id.bytes().enumerate().all(known)
}

#[expect(clippy::needless_pass_by_value, reason = "the form that map_err wants")]
pub(crate) fn no_json(error: serde_json::Error) -> StoreError {
    StoreError::refused(ErrorKind::Invalid, error.to_string())
}

/// Keeps a short answer.
fn keep(answer: &mut Vec<u8>, piece: &[u8]) -> bool {
    answer.extend_from_slice(piece);
    answer.len() <= LONGEST_ANSWER
}
