//! The variables by which Consul's own tools are told where the agent is.

use crate::config::{Config, Pem};
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
    config.credentials.token =
        match (variable("CONSUL_HTTP_TOKEN_FILE"), variable("CONSUL_HTTP_TOKEN")) {
            (Some(path), _) => Token::File(path.into()),
            (None, Some(token)) => Token::Value(token.into()),
            (None, None) => Token::None,
        };
    config.credentials.basic = variable("CONSUL_HTTP_AUTH");
    config.enterprise_namespace = variable("CONSUL_NAMESPACE");
    config.enterprise_partition = variable("CONSUL_PARTITION");
    config.ca = variable("CONSUL_CACERT").map(|path| Pem::File(path.into()));
    let identity = (variable("CONSUL_CLIENT_CERT"), variable("CONSUL_CLIENT_KEY"));
    config.identity = match identity {
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
    config.unchecked_by_environment = !verify;
    config.invalid = invalid;
    config
}
