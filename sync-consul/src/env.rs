//! The variables by which Consul's own tools are told where the agent is.

use sync_core::tls::Pem;

use crate::config::Config;
use crate::token::Token;

/// Where an agent is that nobody names.
const HERE: &str = "127.0.0.1:8500";

/// Variables that mean something which cannot be done here: better refused than passed over.
const UNSUPPORTED: [&str; 2] = ["CONSUL_CAPATH", "CONSUL_TLS_SERVER_NAME"];

/// Reads what `variable` knows by name.
pub(crate) fn read(variable: impl Fn(&str) -> Option<String>) -> Config {
    let mut invalid = None;
    let mut flag = |name: &str| {
        let value = variable(name)?;
        let read = match &*value {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
            _ => None,
        };
        if read.is_none() {
            invalid = Some(format!("{name} is neither true nor false"));
        }
        read
    };
    let ssl = flag("CONSUL_HTTP_SSL").unwrap_or(false);
    let verify = flag("CONSUL_HTTP_SSL_VERIFY").unwrap_or(true);
    let address = variable("CONSUL_HTTP_ADDR").unwrap_or_else(|| HERE.to_owned());
    let url = match address.split_once("://") {
        Some(("http", rest)) if ssl => format!("https://{rest}"),
        Some(_) => address,
        None if ssl => format!("https://{address}"),
        None => format!("http://{address}"),
    };
    let mut config = Config::new(url);
    config.called = "the URL in CONSUL_HTTP_ADDR";
    config.credentials.token =
        match (variable("CONSUL_HTTP_TOKEN_FILE"), variable("CONSUL_HTTP_TOKEN")) {
            (Some(path), _) => Token::File(path.into()),
            (None, Some(token)) => Token::Value(token.into()),
            (None, None) => Token::None,
        };
    config.credentials.basic = variable("CONSUL_HTTP_AUTH");
    config.enterprise_namespace = variable("CONSUL_NAMESPACE");
    config.enterprise_partition = variable("CONSUL_PARTITION");
    config.tls.ca = variable("CONSUL_CACERT").map(|path| Pem::File(path.into()));
    let identity = (variable("CONSUL_CLIENT_CERT"), variable("CONSUL_CLIENT_KEY"));
    config.tls.identity = match identity {
        (Some(certificate), Some(key)) => {
            Some((Pem::File(certificate.into()), Pem::File(key.into())))
        }
        (None, None) => None,
        _ => {
            invalid = Some("CONSUL_CLIENT_CERT and CONSUL_CLIENT_KEY belong together".to_owned());
            None
        }
    };
    if let Some(name) = UNSUPPORTED.iter().find(|name| variable(name).is_some()) {
        invalid = Some(format!("{name} is set, which is not supported"));
    }
    config.tls.unchecked_by_environment = !verify;
    config.invalid = invalid;
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(variables: &[(&str, &str)]) -> Config {
        let found = |name: &str| variables.iter().find(|(known, _)| *known == name);
        read(|name| found(name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn the_address_is_read_as_consul_reads_it() {
        for (variables, url) in [
            (&[][..], "http://127.0.0.1:8500"),
            (&[("CONSUL_HTTP_ADDR", "10.0.0.1:80")], "http://10.0.0.1:80"),
            (&[("CONSUL_HTTP_ADDR", "https://c:8501")], "https://c:8501"),
            (&[("CONSUL_HTTP_ADDR", "c:8501"), ("CONSUL_HTTP_SSL", "true")], "https://c:8501"),
            (&[("CONSUL_HTTP_ADDR", "http://c:8501"), ("CONSUL_HTTP_SSL", "1")], "https://c:8501"),
            (&[("CONSUL_HTTP_ADDR", "unix:///run/consul")], "unix:///run/consul"),
        ] {
            let config = config(variables);
            assert_eq!((&*config.urls, config.invalid), (url, None), "{variables:?}");
        }
    }

    #[tokio::test]
    async fn an_address_that_cannot_be_read_is_called_by_its_variable_and_not_shown() {
        let of_variable = config(&[("CONSUL_HTTP_ADDR", "ftp://sesame@c:8501")]);
        let other = of_variable.clone().url("ftp://sesame@c:8501");
        for (config, called) in [(of_variable, "the URL in CONSUL_HTTP_ADDR"), (other, "its URL")] {
            let text = config.connect().await.unwrap_err().to_string();
            assert!(text.contains(&format!("{called} cannot be read")), "{text}");
            assert!(!text.contains("sesame"), "{text}");
        }
    }

    #[test]
    fn what_means_something_else_is_refused() {
        for variable in [
            ("CONSUL_HTTP_SSL", "yes please"),
            ("CONSUL_CAPATH", "/etc/ssl"),
            ("CONSUL_TLS_SERVER_NAME", "consul"),
            ("CONSUL_CLIENT_CERT", "cert.pem"),
        ] {
            assert!(config(&[variable]).invalid.is_some(), "{variable:?}");
        }
    }

    #[test]
    fn a_file_comes_before_a_token_and_neither_is_shown() {
        let token = ("CONSUL_HTTP_TOKEN", "sesame");
        let user = ("CONSUL_HTTP_AUTH", "user:sesame");
        let both = config(&[token, user, ("CONSUL_HTTP_TOKEN_FILE", "/run/token")]);
        assert!(matches!(&both.credentials.token, Token::File(path) if path.ends_with("token")));
        let one = config(&[token, user]);
        assert!(matches!(&one.credentials.token, Token::Value(token) if &**token == "sesame"));
        assert!(!format!("{both:?}{one:?}").contains("sesame"));
    }
}
