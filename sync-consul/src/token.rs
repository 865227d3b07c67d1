//! Whose permissions the requests have.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use sync_core::{ErrorKind, StoreError};

use crate::pair::encoded;

const TOKEN: HeaderName = HeaderName::from_static("x-consul-token");

/// What the agent is shown with each request.
#[derive(Clone, Default)]
pub(crate) struct Credentials {
    pub(crate) token: Token,
    /// `user:password` for a proxy before the agent.
    pub(crate) basic: Option<String>,
}

/// Where the ACL token comes from.
#[derive(Clone, Default)]
pub(crate) enum Token {
    /// The agent's own, or the anonymous one.
    #[default]
    None,
    Value(Arc<str>),
    /// Read for each request, since its content may change.
    File(PathBuf),
}

impl Credentials {
    /// The headers of one request.
    pub(crate) fn headers(&self) -> Result<HeaderMap, StoreError> {
        let mut headers = HeaderMap::new();
        match &self.token {
            Token::None => {}
            Token::Value(token) => {
                headers.insert(TOKEN, secret(token, "the ACL token")?);
            }
            Token::File(path) => {
                let file = path.display();
                // Both may be so for a moment only: the file is being replaced.
                let unread = |why: &str| {
                    StoreError::unsent(format!("the ACL token's file {file} {why}")).advise(
                        "Config::token_file, or CONSUL_HTTP_TOKEN_FILE with Config::from_env, \
                         names a file that this process may read and that holds the token alone",
                    )
                };
                let token = std::fs::read_to_string(path)
                    .map_err(|error| unread(&format!("cannot be read: {error}")))?;
                let token = token.trim();
                if token.is_empty() {
                    return Err(unread("is empty"));
                }
                headers.insert(TOKEN, secret(token, &format!("the content of {file}"))?);
            }
        }
        if let Some(basic) = &self.basic {
            let basic = format!("Basic {}", encoded(basic.as_bytes()));
            headers.insert(AUTHORIZATION, secret(&basic, "user and password")?);
        }
        Ok(headers)
    }
}

fn secret(text: &str, what: &str) -> Result<HeaderValue, StoreError> {
    let mut value = HeaderValue::from_str(text).map_err(|_| {
        StoreError::refused(ErrorKind::Invalid, format!("{what} holds characters that none has"))
    })?;
    value.set_sensitive(true);
    Ok(value)
}

/// Without what is secret.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let token = match &self.token {
            Token::None => "none".to_owned(),
            Token::Value(_) => "given".to_owned(),
            Token::File(path) => format!("in {}", path.display()),
        };
        f.debug_struct("Credentials")
            .field("token", &token)
            .field("basic", &self.basic.is_some())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_file_is_read_anew_each_time_and_nothing_secret_is_shown() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        let credentials =
            Credentials { token: Token::File(file.clone()), basic: Some("user:sesame".to_owned()) };
        assert_eq!(credentials.headers().unwrap_err().kind(), ErrorKind::Unreachable);
        std::fs::write(&file, "\n").unwrap();
        let empty = credentials.headers().unwrap_err();
        assert_eq!(empty.kind(), ErrorKind::Unreachable, "it may be written yet");
        assert!(empty.to_string().contains("is empty"), "{empty}");
        for token in ["first", "second\n"] {
            std::fs::write(&file, token).unwrap();
            let headers = credentials.headers().unwrap();
            assert_eq!(headers[TOKEN], token.trim());
            assert_eq!(headers[AUTHORIZATION], "Basic dXNlcjpzZXNhbWU=");
            assert!(!format!("{headers:?}{credentials:?}").contains("sesame"));
            assert!(!format!("{headers:?}").contains(token.trim()));
        }
        for none in ["", " \n"] {
            std::fs::write(&file, none).unwrap();
            let error = credentials.headers().unwrap_err();
            assert!(error.is_transient() && error.settled(), "as it is while it is written");
        }
        std::fs::write(&file, "two\nlines").unwrap();
        let error = credentials.headers().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(!error.to_string().contains("lines"));
    }
}
