//! What the server's refusals and the client library's errors mean.

use redis::{RedisError, ServerError, ServerErrorKind};
use sync_core::{ErrorKind, StoreError, tls};

/// What a user needs, as the documentation shows it and a test uses it.
const LEAST_PRIVILEGE: &str = include_str!("acl.txt");

/// What a server must speak, and which do.
const RESP3: &str = "RESP3 (the command HELLO) is needed: Redis 6.2 or later, any Valkey";

/// Whether the server has forgotten a script.
pub(crate) fn is_no_script(error: &ServerError) -> bool {
    error.kind() == Some(ServerErrorKind::NoScript)
}

/// Whether this server will not take writes on this connection again.
pub(crate) fn wants_another_server(text: &str) -> bool {
    matches!(code(text), "READONLY" | "MASTERDOWN")
}

/// A server's error as it stood on the wire.
pub(crate) fn text(error: &ServerError) -> String {
    match error.details() {
        Some(details) => format!("{} {details}", error.code()),
        None => error.code().to_owned(),
    }
}

/// A server's text without the arguments of a command that it does not know: HELLO's are user and
/// password.
fn without_arguments(text: &str) -> &str {
    text.split_once(", with args beginning with").map_or(text, |(before, _)| before)
}

/// An error reply. Settled, unless a running script raised it: that may be half applied.
pub(crate) fn replied(text: &str) -> StoreError {
    let text = without_arguments(text);
    if code(text) == "HALFDONE" || text.contains("user_script") {
        return StoreError::unknown(format!("a script broke while it ran: {text}"));
    }
    refused(text)
}

/// A refusal before anything was written.
pub(crate) fn refused(text: &str) -> StoreError {
    let text = without_arguments(text);
    let refuse = |kind| StoreError::refused(kind, text.to_owned());
    // Inside scripts before 7.2, and for SELECT in the client library, the code is lost.
    let denied = ["no permissions", "user executing the script", "ACL failure in script"];
    match code(text) {
        "NOPERM" => refuse(ErrorKind::Denied).advise(permissions()),
        _ if denied.iter().any(|words| text.contains(words)) => {
            refuse(ErrorKind::Denied).advise(permissions())
        }
        "NOAUTH" => refuse(ErrorKind::Denied).advise("put user and password into the URL"),
        "WRONGPASS" => refuse(ErrorKind::Denied).advise("check user and password in the URL"),
        "DENIED" => refuse(ErrorKind::Denied),
        "WRONGTYPE" => refuse(ErrorKind::Foreign).advise(
            "another program's data stands under one of this name's keys: it was left alone",
        ),
        "OOM" => refuse(ErrorKind::Unreachable).advise("the server is out of memory"),
        "READONLY" => refuse(ErrorKind::Unreachable)
            .advise("this server is a replica now: connect to what leads to the master"),
        "MISCONF" | "NOREPLICAS" | "LOADING" | "BUSY" | "MASTERDOWN" | "TRYAGAIN" => {
            refuse(ErrorKind::Unreachable)
        }
        "CLUSTERDOWN" | "MOVED" | "ASK" | "CROSSSLOT" => refuse(ErrorKind::Unsupported)
            .advise("this is a node of a Redis Cluster; this crate drives a single server"),
        "ERR" if text.contains("max number of clients") => refuse(ErrorKind::Unreachable),
        "ERR" if text.contains("unknown command") && text.contains("HELLO") => {
            refuse(ErrorKind::Unsupported).advise(RESP3)
        }
        "ERR" if text.contains("unknown command") => refuse(ErrorKind::Unsupported).advise(
            "every operation is a script: the server must allow EVAL, EVALSHA and SCRIPT LOAD",
        ),
        _ => refuse(ErrorKind::Unsupported),
    }
}

/// A connection could not be made. Nothing that matters was sent.
pub(crate) fn unconnected(error: RedisError) -> StoreError {
    use redis::ErrorKind as Kind;
    if let Some(code) = error.code() {
        // Not as its cause: that repeats the text.
        return refused(&format!("{code} {}", error.detail().unwrap_or_default()));
    }
    let whole = error.to_string();
    let text = without_arguments(&whole).to_owned();
    let refuse = |kind| StoreError::refused(kind, text.clone());
    let found = match error.kind() {
        Kind::AuthenticationFailed => {
            refuse(ErrorKind::Denied).advise("check user and password in the URL")
        }
        Kind::RESP3NotSupported => refuse(ErrorKind::Unsupported).advise(RESP3),
        Kind::InvalidClientConfig => match tls::advice(&text, "redis://") {
            Some(advice) => refuse(ErrorKind::Invalid).advise(advice),
            None => refuse(ErrorKind::Invalid),
        },
        _ => match tls::advice(&text, "redis://") {
            Some(advice) => refuse(ErrorKind::Unreachable).advise(advice),
            None => StoreError::unsent(text.clone()),
        },
    };
    if text == whole { found.caused_by(error) } else { found }
}

pub(crate) fn permissions() -> String {
    format!("what is needed: {}", LEAST_PRIVILEGE.trim())
}

fn code(text: &str) -> &str {
    text.split(' ').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_command_was_given_is_shown_nowhere() {
        let text =
            "ERR unknown command 'HELLO', with args beginning with: '3' 'AUTH' 'me' 'sesame'";
        for error in [replied(text), refused(text), replied(&format!("HALFDONE {text}"))] {
            let shown = format!("{error} {error:?}");
            assert!(shown.contains("HELLO") && !shown.contains("sesame"), "{shown}");
        }
        let error = unconnected(redis::RedisError::from((
            redis::ErrorKind::RESP3NotSupported,
            "Redis Server doesn't support HELLO command therefore resp3 cannot be used",
            text.to_owned(),
        )));
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains("sesame"), "{shown}");
    }

    #[test]
    fn only_what_was_surely_not_applied_is_settled() {
        for (text, kind) in [
            ("NOPERM this user has no permissions to run the 'evalsha' command", ErrorKind::Denied),
            ("NOAUTH Authentication required.", ErrorKind::Denied),
            ("WRONGPASS invalid username-password pair", ErrorKind::Denied),
            ("WRONGTYPE Operation against a key", ErrorKind::Foreign),
            ("READONLY You can't write against a read only replica.", ErrorKind::Unreachable),
            ("LOADING Redis is loading the dataset in memory", ErrorKind::Unreachable),
            ("OOM command not allowed", ErrorKind::Unreachable),
            ("MOVED 3999 127.0.0.1:6381", ErrorKind::Unsupported),
            ("ERR unknown command 'EVALSHA'", ErrorKind::Unsupported),
            ("ERR max number of clients reached", ErrorKind::Unreachable),
        ] {
            let error = replied(text);
            assert!(error.settled(), "{text}");
            assert_eq!(error.kind(), kind, "{text}");
        }
        for text in [
            "HALFDONE WRONGTYPE Operation against a key",
            "WRONGTYPE Operation against a key script: 1a2b, on @user_script:7.",
            "ERR Error running script (call to f_1a2b): @user_script:1: Script killed by user",
        ] {
            assert!(!replied(text).settled(), "{text}");
        }
    }
}
