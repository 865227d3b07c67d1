//! The shared workloads on a real Redis or Valkey, beside its own commands.

use std::process::ExitCode;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use async_trait::async_trait;
use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{
    AsyncConnectionConfig, Client, Cmd, IntoConnectionInfo, Pipeline, ProtocolVersion, Script, cmd,
};
use sync_conformance::bench::{self, Goals, Raw};
use sync_conformance::{Failed, Server, Store, server};
use sync_core::{Backend, Error, Options};
use sync_redis::Config;

struct Redis;

#[async_trait]
impl Store for Redis {
    fn name(&self) -> &str {
        "redis"
    }

    /// Without a file: what a disk costs is not what is measured here.
    async fn start(&self) -> Result<Server, Failed> {
        match server::external("SYNC_TEST_REDIS")? {
            Some(server) => Ok(server),
            None => server::redis(&["--appendonly", "no"]).start().await,
        }
    }

    async fn connect(&self, url: &str, options: &Options) -> Result<Arc<dyn Backend>, Error> {
        Ok(Arc::new(Config::new(url).options(options.clone()).backend().await?))
    }

    async fn leftovers(&self, _: &str, _: &str) -> Result<Vec<String>, Failed> {
        Ok(Vec::new())
    }
}

/// What everybody writes who does it by hand, and what the Redis documentation shows.
static GIVE_BACK: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end \
         return 0",
    )
});
static EXTEND: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "if redis.call('GET', KEYS[1]) == ARGV[1] then \
         return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end return 0",
    )
});

/// The value that is compared: always the same, so that it costs nothing to make.
const OWNER: &str = "5d1a6c3f9b7e4820a1c4e6f80b2d4f68";

/// As many as the backend sends at once.
const BATCH: usize = 500;

#[async_trait]
impl Raw for Redis {
    async fn client(&self, url: &str) -> Result<Arc<dyn bench::Client>, Failed> {
        let config = AsyncConnectionConfig::new().set_response_timeout(None);
        let server = url.into_connection_info()?;
        let redis = server.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        let socket = TcpSettings::default().set_nodelay(true);
        let client = Client::open(server.set_redis_settings(redis).set_tcp_settings(socket))?;
        let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
        for script in [&GIVE_BACK, &EXTEND] {
            script.load_async(&mut connection).await?;
        }
        Ok(Arc::new(Commands(connection)))
    }

    fn goals(&self) -> Goals {
        Goals::default().parallel(0.6).handover(2.0)
    }
}

struct Commands(MultiplexedConnection);

impl Commands {
    async fn ask<T: redis::FromRedisValue>(&self, command: &Cmd) -> Result<T, Failed> {
        Ok(command.query_async(&mut self.0.clone()).await?)
    }
}

fn call(script: &Script, key: &str) -> Cmd {
    let mut call = cmd("EVALSHA");
    call.arg(script.get_hash()).arg(1).arg(key).arg(OWNER);
    call
}

#[async_trait]
impl bench::Client for Commands {
    async fn version(&self) -> Result<String, Failed> {
        let text: String = self.ask(cmd("INFO").arg("server")).await?;
        let field = |name: &str| {
            text.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(':'))
        };
        Ok(match (field("valkey_version"), field("redis_version")) {
            (Some(version), _) => format!("Valkey {version}"),
            (None, version) => format!("Redis {}", version.unwrap_or("of unknown version")),
        })
    }

    async fn take(&self, key: &str, ttl: Duration) -> Result<(), Failed> {
        let mut set = cmd("SET");
        set.arg(key).arg(OWNER).arg("NX").arg("PX").arg(ttl.as_millis() as u64);
        let taken: Option<String> = self.ask(&set).await?;
        Ok(taken.map(drop).ok_or("the key was not free")?)
    }

    async fn give_back(&self, key: &str) -> Result<(), Failed> {
        match self.ask(&call(&GIVE_BACK, key)).await? {
            1 => Ok(()),
            _ => Err("the key was not held")?,
        }
    }

    async fn extend(&self, keys: &[String], ttl: Duration) -> Result<(), Failed> {
        let ttl = ttl.as_millis() as u64;
        for keys in keys.chunks(BATCH) {
            let mut batch = Pipeline::with_capacity(keys.len());
            for key in keys {
                let mut extend = call(&EXTEND, key);
                extend.arg(ttl);
                batch.add_command(extend);
            }
            let extended: Vec<u64> = batch.query_async(&mut self.0.clone()).await?;
            if extended.contains(&0) {
                Err("a key was not held")?;
            }
        }
        Ok(())
    }

    /// The scripts: nothing else is sent once a connection is up. (What they call is counted by
    /// itself.)
    async fn requests(&self) -> Result<u64, Failed> {
        let text: String = self.ask(cmd("INFO").arg("commandstats")).await?;
        let calls = |line: &str| -> Option<u64> {
            let (_, rest) = line.trim().split_once("cmdstat_eval")?;
            rest.split_once("calls=")?.1.split(',').next()?.parse().ok()
        };
        Ok(text.lines().filter_map(calls).sum())
    }
}

fn main() -> ExitCode {
    bench::main(Redis, Redis)
}
