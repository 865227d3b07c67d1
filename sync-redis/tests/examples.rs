//! The examples as their users run them: processes of their own against a server of their own.

use std::process::ExitCode;

use async_trait::async_trait;
use redis::aio::MultiplexedConnection;
use sync_conformance::cli::cases::{self, Examples};
use sync_conformance::{Failed, Server, server};

struct Redis;

#[async_trait]
impl Examples for Redis {
    fn name(&self) -> &str {
        "redis"
    }

    fn package(&self) -> &str {
        env!("CARGO_PKG_NAME")
    }

    async fn start(&self) -> Result<Server, Failed> {
        server::redis(&[]).start().await
    }

    async fn leftovers(&self, url: &str) -> Result<Vec<String>, Failed> {
        keys(&mut connect(url).await?).await
    }

    async fn remove_keys(&self, url: &str) -> Result<(), Failed> {
        let mut redis = connect(url).await?;
        for key in keys(&mut redis).await? {
            redis::cmd("DEL").arg(key).exec_async(&mut redis).await?;
        }
        Ok(())
    }

    fn with_password(&self, url: &str, password: &str) -> String {
        url.replacen("://", &format!("://:{password}@"), 1)
    }
}

async fn connect(url: &str) -> Result<MultiplexedConnection, Failed> {
    Ok(redis::Client::open(url)?.get_multiplexed_async_connection().await?)
}

async fn keys(redis: &mut MultiplexedConnection) -> Result<Vec<String>, Failed> {
    let keys: Vec<String> = redis::cmd("KEYS").arg("*").query_async(redis).await?;
    // What the docs except: the counter, and the marks of what was given up.
    Ok(keys.into_iter().filter(|k| !k.ends_with(":token") && !k.contains(":void:")).collect())
}

fn main() -> ExitCode {
    cases::main(Redis, Vec::new())
}
