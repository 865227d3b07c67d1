//! Servers that somebody else runs.

use std::net::{SocketAddr, ToSocketAddrs};

use super::Server;
use crate::failed::Failed;

/// The server that the environment's `variable` points at, if it is set: a URL with host and
/// port, or those of several members joined by commas. No case stops it.
///
/// # Errors
/// When one has no host and port that can be resolved.
pub fn external(variable: &str) -> Result<Option<Server>, Failed> {
    let Ok(urls) = std::env::var(variable) else { return Ok(None) };
    from_urls(&urls).map(Some).map_err(|e| Failed::from(format!("{variable}: {}", e.reason())))
}

fn from_urls(urls: &str) -> Result<Server, Failed> {
    let endpoints = split(urls).into_iter().map(Endpoint::parse);
    let endpoints: Vec<Endpoint> = endpoints.collect::<Result<_, _>>()?;
    let addresses: Vec<SocketAddr> = endpoints.iter().map(|endpoint| endpoint.address).collect();
    Ok(Server::external(addresses, move |at| {
        let urls = endpoints.iter().zip(at).map(|(endpoint, at)| endpoint.url_to(*at));
        urls.collect::<Vec<_>>().join(",")
    }))
}

/// The URLs in a list of them. A comma may be part of a password.
fn split(urls: &str) -> Vec<&str> {
    let of_a_password = |rest: &str| {
        rest.find('@').is_some_and(|end| rest.find("://").is_none_or(|next| end < next))
    };
    let commas = urls.match_indices(',').map(|(at, _)| at);
    let ends = commas.filter(|at| !of_a_password(&urls[at + 1..])).chain([urls.len()]);
    let mut start = 0;
    let mut cut = |end: usize| {
        let url = &urls[start..end];
        start = end + 1;
        url
    };
    ends.map(&mut cut).collect()
}

/// One URL, and where its host and port stand in it.
struct Endpoint {
    url: String,
    before: String,
    address: SocketAddr,
    after: String,
}

impl Endpoint {
    fn parse(url: &str) -> Result<Self, Failed> {
        let start = url.find("://").map_or(0, |at| at + 3);
        let end = url[start..].find(['/', '?', '#']).map_or(url.len(), |at| start + at);
        let start = url[start..end].rfind('@').map_or(start, |at| start + at + 1);
        let address = url[start..end].to_socket_addrs().ok().and_then(|mut found| found.next());
        let address = address.ok_or("the URL has no host and port that can be found")?;
        let (before, after) = (url[..start].to_owned(), url[end..].to_owned());
        Ok(Self { url: url.to_owned(), before, address, after })
    }

    fn url_to(&self, address: SocketAddr) -> String {
        // As it was given: a certificate may be for a name.
        if address == self.address {
            return self.url.clone();
        }
        format!("{}{address}{}", self.before, self.after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_external_url_keeps_its_credentials_and_its_path() {
        let server = from_urls("redis://u:p@127.0.0.1:7/3").unwrap();
        let proxy = ["127.0.0.1:9".parse().unwrap()];
        assert_eq!(server.url_through(&proxy), "redis://u:p@127.0.0.1:9/3");
        assert_eq!(from_urls("127.0.0.1:7").unwrap().url(), "127.0.0.1:7");
        let named = from_urls("rediss://u:p@localhost:7?x=1").unwrap();
        assert_eq!(named.url(), "rediss://u:p@localhost:7?x=1");
        assert_eq!(named.url_through(&proxy), "rediss://u:p@127.0.0.1:9?x=1");
        assert!(from_urls("redis://").is_err());
    }

    #[test]
    fn a_list_of_urls_has_as_many_members() {
        let urls = "http://u:p,w@127.0.0.1:7,http://u:p,w@127.0.0.1:8/x";
        let server = from_urls(urls).unwrap();
        assert_eq!(server.url(), urls);
        assert_eq!(server.addresses().len(), 2);
        let proxies = ["127.0.0.1:9".parse().unwrap(), "127.0.0.1:10".parse().unwrap()];
        let through = "http://u:p,w@127.0.0.1:9,http://u:p,w@127.0.0.1:10/x";
        assert_eq!(server.url_through(&proxies), through);
        assert_eq!(from_urls("127.0.0.1:7,127.0.0.1:8").unwrap().addresses().len(), 2);
        assert!(from_urls("http://127.0.0.1:7,").is_err());
    }
}
