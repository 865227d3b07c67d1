//! The shared suite against a real Redis or Valkey.

use std::process::ExitCode;
use std::sync::Arc;

use async_trait::async_trait;
use redis::{AsyncCommands, Client};
use sync_conformance::{Failed, Server, Store, Tamper, server, store};
use sync_core::{Backend, Error, Options};
use sync_redis::Config;

pub(crate) struct Redis;

#[async_trait]
impl Store for Redis {
    fn name(&self) -> &str {
        "redis"
    }

    async fn start(&self) -> Result<Server, Failed> {
        match server::external("SYNC_TEST_REDIS")? {
            Some(server) => Ok(server),
            None => {
                let role = role();
                let mut arguments =
                    vec!["--appendonly", "yes", "--appendfsync", "always", "--user"];
                arguments.extend(role.iter().map(String::as_str));
                server::redis(&arguments).start().await
            }
        }
    }

    async fn connect(&self, url: &str, options: &Options) -> Result<Arc<dyn Backend>, Error> {
        // A server of our own knows the role that the documentation asks for.
        let url = match std::env::var_os("SYNC_TEST_REDIS") {
            Some(_) => url.to_owned(),
            None => url.replacen("redis://", "redis://suite:secret@", 1),
        };
        Ok(Arc::new(Config::new(url).options(options.clone()).backend().await?))
    }

    async fn leftovers(&self, url: &str, namespace: &str) -> Result<Vec<String>, Failed> {
        let mut redis = Client::open(url)?.get_multiplexed_async_connection().await?;
        let keys: Vec<String> = redis.keys(format!("{}:*", namespace.replace('/', ":"))).await?;
        let stays = |key: &str| key.ends_with(":token") || key.contains(":void:");
        Ok(keys.into_iter().filter(|key| !stays(key)).collect())
    }

    async fn version(&self, url: &str) -> Result<String, Failed> {
        let mut redis = Client::open(url)?.get_multiplexed_async_connection().await?;
        let info: redis::InfoDict =
            redis::cmd("INFO").arg("server").query_async(&mut redis).await?;
        let version = |key: &str| info.get::<String>(key);
        Ok(match version("valkey_version") {
            Some(valkey) => format!("Valkey {valkey}"),
            None => format!("Redis {}", version("redis_version").ok_or("no version")?),
        })
    }

    fn tampers(&self) -> &[Tamper] {
        &[Tamper::Delete, Tamper::Overwrite]
    }

    async fn tamper(&self, url: &str, key: &str, how: Tamper) -> Result<(), Failed> {
        let mut redis = Client::open(url)?.get_multiplexed_async_connection().await?;
        match how {
            Tamper::Delete => redis.del::<_, ()>(key).await?,
            Tamper::Overwrite => redis.set_ex::<_, _, ()>(key, store::FOREIGN, 60).await?,
            _ => Err(format!("not possible here: {how:?}"))?,
        }
        Ok(())
    }
}

/// The least privilege, for the namespaces of cases and soaks.
fn role() -> Vec<String> {
    let role = include_str!("../src/acl.txt").trim().trim_start_matches("ACL SETUSER ");
    let role = role.replace("NAME ", "suite ").replace("PASSWORD", "secret");
    let words = role.split(' ').flat_map(|word| match word.split_once("NAMESPACE") {
        Some((kind, rest)) => vec![format!("{kind}case*{rest}"), format!("{kind}soak*{rest}")],
        None => vec![word.to_owned()],
    });
    words.collect()
}

fn main() -> ExitCode {
    sync_conformance::main(Redis)
}
