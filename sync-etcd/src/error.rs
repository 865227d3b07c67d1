//! What the server's refusals and the client library's errors mean.

use std::error::Error as _;

use etcd_client::Error;
use sync_core::{ErrorKind, StoreError, tls};
use tonic::{Code, Status};

use crate::mutant;

/// What every text of the server's own begins with.
const SERVERS_OWN: &str = "etcdserver: ";

/// What was told instead of an answer.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The server's own refusal.
    Answer(Status),
    /// There was no connection.
    Unsent(StoreError),
    /// Anything else: nobody knows what became of the request.
    Lost(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::GRpcStatus(status) if status.message().starts_with(SERVERS_OWN) => {
                Self::Answer(status)
            }
            other => Self::Lost(other),
        }
    }
}

impl Failure {
    fn message(&self) -> &str {
        match self {
            Self::Answer(status) => &status.message()[SERVERS_OWN.len()..],
            Self::Unsent(_) | Self::Lost(_) => "",
        }
    }

    /// Whether the lease is gone, and all that was attached to it.
    pub(crate) fn is_lease_gone(&self) -> bool {
        self.message() == "requested lease not found"
    }

    /// Whether the same request may do with a fresh token.
    pub(crate) fn wants_fresh_token(&self) -> bool {
        is_about_token(self.message()) && !mutant::on(mutant::TOKEN_KEPT)
    }

    /// Whether this user may not do this.
    pub(crate) fn is_permission(&self) -> bool {
        is_about_permission(self.message())
    }

    pub(crate) fn is_without_auth(&self) -> bool {
        self.message() == "authentication is not enabled"
    }

    /// Whether the store takes no writes for want of room.
    pub(crate) fn is_full(&self) -> bool {
        self.message().contains("space exceeded")
    }

    /// Whether another member may do better than the one that was asked.
    pub(crate) fn wants_another_member(&self) -> bool {
        match self {
            Self::Lost(error) if is_too_large(error) => false,
            Self::Unsent(_) | Self::Lost(_) => true,
            Self::Answer(_) => {
                let message = self.message();
                let cut_off = ["no leader", "request timed out", "server stopped", "not capable"];
                message.starts_with("rpc not supported")
                    || cut_off.iter().any(|words| message.starts_with(words))
            }
        }
    }

    pub(crate) fn into_store(self) -> StoreError {
        match self {
            Self::Answer(status) => answered(&status),
            Self::Unsent(error) => error,
            Self::Lost(error) => lost(error),
        }
    }
}

/// Whether the server says, in a reason or a refusal, that this user may not do this.
pub(crate) fn is_about_permission(message: &str) -> bool {
    message.contains("permission denied")
}

/// Whether the server says, in a reason or a refusal, that it does not take the token, or wants one
/// since users were turned on.
pub(crate) fn is_about_token(message: &str) -> bool {
    ["invalid auth token", "revision of auth store is old", "user name is empty"]
        .iter()
        .any(|words| message.contains(words))
}

/// The refusals that are surely not applied later. To call one unknown is always safe.
fn answered(status: &Status) -> StoreError {
    let text = status.message();
    let refuse = |kind| StoreError::refused(kind, text);
    let message = &text[SERVERS_OWN.len()..];
    let credentials = "give user and password of an etcd user: Config::user";
    match (status.code(), message) {
        (Code::PermissionDenied, _) => refuse(ErrorKind::Denied).advise(some_permissions()),
        (Code::Unauthenticated, _) => refuse(ErrorKind::Denied).advise(credentials),
        (Code::InvalidArgument, "user name is empty") => {
            refuse(ErrorKind::Denied).advise(credentials)
        }
        (Code::InvalidArgument, _) if message.starts_with("authentication failed") => {
            refuse(ErrorKind::Denied).advise("check user and password")
        }
        // Somebody changes users or roles at this moment.
        (Code::InvalidArgument, _) if is_about_token(message) => refuse(ErrorKind::Unreachable),
        (Code::InvalidArgument | Code::FailedPrecondition | Code::NotFound, _) => {
            refuse(ErrorKind::Unsupported)
        }
        (Code::ResourceExhausted, _) if message.contains("space exceeded") => {
            StoreError::unknown(text)
                .advise("compact and defragment the store, then disarm its alarm: etcdctl alarm")
        }
        _ => StoreError::unknown(text),
    }
}

/// Whether the answer came, and was not read for its size.
fn is_too_large(error: &Error) -> bool {
    let Error::GRpcStatus(status) = error else { return false };
    status.code() == Code::OutOfRange && status.message().contains("message length too large")
}

fn lost(error: Error) -> StoreError {
    let text = chain(&error);
    if is_too_large(&error) {
        // Whatever was asked for may have been done.
        return StoreError::refused(ErrorKind::Foreign, text)
            .unsettled()
            .advise("remove what another program has put under the name: it was left alone");
    }
    // Nothing leaves the process before there is a connection.
    let unsent = match &error {
        Error::GRpcStatus(status) => is_unconnected(status),
        Error::TransportError(_) | Error::InvalidArgs(_) | Error::InvalidUri(_) => true,
        _ => false,
    };
    let found = if unsent { StoreError::unsent(text) } else { StoreError::unknown(text) };
    found.caused_by(error)
}

/// What became of an attempt to connect to this member. Nothing that matters was sent.
pub(crate) fn unconnected(url: &str, failure: Failure) -> StoreError {
    let elsewhere = failure.wants_another_member();
    let error = match failure {
        Failure::Lost(error) => error,
        Failure::Answer(status) if elsewhere => Error::GRpcStatus(status),
        refused => return refused.into_store().at(url),
    };
    let text = chain(&error);
    // Of what goes wrong after the handshake the library only tells that it is over.
    let over = ["connection closed", "connection reset", "broken pipe", "http2 error"];
    let lower = text.to_lowercase();
    let is_over = over.iter().any(|words| lower.contains(words));
    let guess = || match url.starts_with("https:") {
        _ if lower.contains("keep-alive timed out") => {
            Some("the server answered no ping in time: Config::keep_alive")
        }
        _ if lower.contains("frame with invalid size") || lower.contains("grpc-status header") => {
            Some("this does not look like the client port of an etcd server")
        }
        _ if lower.contains("connection refused") => {
            Some("is an etcd server running there? It serves clients on port 2379")
        }
        _ if !is_over => None,
        true => Some("the server may want a client certificate: Config::identity"),
        false => Some("the server may speak TLS on this port: use https://"),
    };
    let advice = tls::advice(&text, "http://").or_else(|| guess().map(Into::into));
    let found = StoreError::unsent(text).at(url).caused_by(error);
    match advice {
        Some(advice) => found.advise(advice),
        None => found,
    }
}

fn is_unconnected(status: &Status) -> bool {
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// What the transport has to say.
#[cfg(any(feature = "rustls-ring", feature = "rustls-aws-lc"))]
pub(crate) fn words(error: tonic::transport::Error) -> String {
    chain(&Error::TransportError(error))
}

/// An error and all its causes, each text once.
fn chain(error: &Error) -> String {
    let mut text = match error {
        Error::GRpcStatus(status) => status.message().to_owned(),
        other => other.to_string(),
    };
    let mut cause = match error {
        Error::GRpcStatus(status) => status.source(),
        Error::TransportError(error) => error.source(),
        _ => None,
    };
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

/// What a user needs, whose namespace is this range of keys.
pub(crate) fn permissions(start: &str, end: &str) -> String {
    format!(
        "the user needs a role with readwrite on the namespace's keys: \
         etcdctl role grant-permission ROLE readwrite {start} {end}"
    )
}

/// [`permissions`] where the namespace is not at hand.
pub(crate) fn some_permissions() -> String {
    let needed = permissions("NAMESPACE/", "NAMESPACE0");
    format!("{needed}, where NAMESPACE is that of Options::namespace, as it stands in the keys")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(code: Code, text: &str) -> StoreError {
        Failure::from(Error::GRpcStatus(Status::new(code, text))).into_store()
    }

    #[test]
    fn only_what_was_surely_not_applied_is_settled() {
        for (code, text, kind) in [
            (Code::PermissionDenied, "permission denied", ErrorKind::Denied),
            (Code::Unauthenticated, "invalid auth token", ErrorKind::Denied),
            (Code::InvalidArgument, "user name is empty", ErrorKind::Denied),
            (Code::InvalidArgument, "authentication failed, invalid user ID", ErrorKind::Denied),
            (Code::InvalidArgument, "revision of auth store is old", ErrorKind::Unreachable),
            (Code::InvalidArgument, "request is too large", ErrorKind::Unsupported),
            (Code::FailedPrecondition, "lease already exists", ErrorKind::Unsupported),
            (Code::NotFound, "requested lease not found", ErrorKind::Unsupported),
        ] {
            let error = told(code, &format!("etcdserver: {text}"));
            assert_eq!((error.kind(), error.settled()), (kind, true), "{text}");
        }
        for (code, text) in [
            (Code::Unavailable, "no leader"),
            (Code::Unavailable, "leader changed"),
            (Code::Unavailable, "request timed out"),
            (Code::Unavailable, "request timed out, possibly due to previous leader failure"),
            (Code::Unavailable, "server stopped"),
            (Code::Unknown, "not a primary lessor"),
            (Code::ResourceExhausted, "too many requests"),
            (Code::ResourceExhausted, "mvcc: database space exceeded"),
            (Code::DataLoss, "corrupt cluster"),
            (Code::Internal, "anything"),
        ] {
            let error = told(code, &format!("etcdserver: {text}"));
            assert_eq!((error.kind(), error.settled()), (ErrorKind::Unknown, false), "{text}");
            assert!(error.is_transient());
        }
    }

    /// The client library makes up answers of its own, and what stands between may, too.
    #[test]
    fn what_the_server_did_not_say_itself_is_unknown() {
        let refusals =
            [Code::PermissionDenied, Code::InvalidArgument, Code::NotFound, Code::OutOfRange];
        for code in refusals {
            for text in ["", "permission denied", "grpc: etcdserver: no", "etcdserver:"] {
                assert!(!told(code, text).settled(), "{code:?} {text}");
            }
        }
        for error in [Error::WatchError("x".into()), Error::LeaseKeepAliveError("x".into())] {
            assert!(!Failure::from(error).into_store().settled());
        }
    }

    #[test]
    fn who_does_not_come_to_connect_is_told_what_to_do() {
        let closed = || Failure::from(Error::GRpcStatus(Status::unknown("connection closed")));
        let secure = unconnected("https://h:1", closed());
        assert_eq!((secure.kind(), secure.settled()), (ErrorKind::Unreachable, true));
        let text = |error| sync_core::Error::from_store("connect", error).to_string();
        assert!(text(secure).contains("Config::identity"));
        assert!(text(unconnected("http://h:1", closed())).contains("https://"));
        let refused = Error::GRpcStatus(Status::unavailable("Connection refused"));
        assert!(!text(unconnected("http://h:1", Failure::from(refused))).contains("https://"));
    }
}
