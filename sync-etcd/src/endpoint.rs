//! Where a member of the cluster is.

use std::fmt;

use tonic::transport::Uri;

/// One member's address, and what its URL said of a user.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// Scheme, host and port: what is shown, too.
    pub(crate) url: String,
    pub(crate) user: Option<(String, String)>,
}

impl Endpoint {
    /// Reads `http[s]://[user:password@]host[:port]`. The error holds nothing of the URL, since that
    /// may hold a password.
    pub(crate) fn read(url: &str) -> Result<Self, &'static str> {
        let (scheme, rest) =
            url.split_once("://").ok_or("it must begin with http:// or https://")?;
        if scheme != "http" && scheme != "https" {
            return Err("it must begin with http:// or https://");
        }
        let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        if !matches!(path, "" | "/") {
            return Err("nothing may follow host and port");
        }
        let (user, address) = match authority.rsplit_once('@') {
            Some((user, address)) => (Some(user), address),
            None => (None, authority),
        };
        let port = if address.rfind(':') > address.rfind(']') { "" } else { ":2379" };
        let url = format!("{scheme}://{address}{port}");
        let read: Uri = url.parse().map_err(|_| "its host or port cannot be read")?;
        if read.host().is_none_or(str::is_empty) || read.port_u16().is_none() {
            return Err("its host or port cannot be read");
        }
        let user = match user {
            Some(user) => {
                let (name, password) = user.split_once(':').ok_or("a user needs a password")?;
                Some((decode(name)?, decode(password)?))
            }
            None => None,
        };
        Ok(Self { url, user })
    }

    pub(crate) fn is_https(&self) -> bool {
        self.url.starts_with("https:")
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

/// Undoes `%XX`.
fn decode(text: &str) -> Result<String, &'static str> {
    percent_encoding::percent_decode_str(text)
        .decode_utf8()
        .map(Into::into)
        .map_err(|_| "user and password must be UTF-8")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read() {
        let read = |url: &str| Endpoint::read(url).map(|read| (read.url, read.user));
        let plain = |url: &str| Ok((url.to_owned(), None));
        assert_eq!(read("http://10.0.0.1:7"), plain("http://10.0.0.1:7"));
        assert_eq!(read("https://db/"), plain("https://db:2379"));
        assert_eq!(read("http://[::1]:7"), plain("http://[::1]:7"));
        assert_eq!(read("http://[::1]"), plain("http://[::1]:2379"));
        let user = Some(("me".to_owned(), "a:b@c".to_owned()));
        assert_eq!(read("http://me:a:b%40c@db:7"), Ok(("http://db:7".to_owned(), user)));
    }

    #[test]
    fn what_cannot_be_read_is_refused_without_a_word_of_it() {
        for url in [
            "",
            "db:2379",
            "ftp://sesame",
            "http://",
            "http://sesame@db",
            "http://db:sesame",
            "http://db/sesame",
            "http://db?sesame",
            "http://se same",
            "http://:7",
            "http://db:99999",
        ] {
            let refusal = Endpoint::read(url).unwrap_err();
            assert!(!refusal.contains("sesame"), "{url}: {refusal}");
        }
    }
}
