//! What a failed handshake calls for, in words for who configures it.

/// What to do about an error of TLS, by rustls's words for it; `plain` is how a URL without TLS
/// begins.
///
/// ```
/// let advice = sync_core::tls::advice("invalid peer certificate: UnknownIssuer", "redis://");
/// assert!(advice.unwrap().contains("Config::ca"));
/// assert_eq!(sync_core::tls::advice("connection refused", "redis://"), None);
/// ```
#[must_use]
pub fn advice(text: &str, plain: &str) -> Option<String> {
    let no_tls = format!("the server does not speak TLS on this port: use {plain}");
    let known = [
        ("unknownissuer", "give the CA that signed the server's certificate to Config::ca"),
        ("not valid for name", "the certificate is for another host name than the URL's"),
        ("notvalidforname", "the certificate is for another host name than the URL's"),
        ("expired", "the server's certificate has expired"),
        ("certificaterequired", "give a client certificate to Config::identity"),
        (
            "unknownca",
            "the server does not trust who signed the client certificate: Config::identity",
        ),
        ("badcertificate", "the server may want a client certificate: Config::identity"),
        ("handshakefailure", "the server may want a client certificate: Config::identity"),
        ("invalidcontenttype", &no_tls),
        ("tls handshake eof", &no_tls),
    ];
    let text = text.to_lowercase();
    known.into_iter().find(|(word, _)| text.contains(word)).map(|(_, advice)| advice.to_owned())
}
