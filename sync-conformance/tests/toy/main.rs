//! The suite against a toy: the example of `docs/writing-a-backend.md`.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use async_trait::async_trait;
use sync_conformance::server::{self, Launch};
use sync_conformance::{Failed, Server, Store, Tamper};
use sync_core::{Backend, Error, Options};

mod backend;
mod keys;
mod link;

use backend::Toy;

struct ToyStore;

#[async_trait]
impl Store for ToyStore {
    fn name(&self) -> &str {
        "toy"
    }

    async fn start(&self) -> Result<Server, Failed> {
        if let Some(server) = server::external("SYNC_TEST_TOY")? {
            return Ok(server);
        }
        // This very program serves too. Elsewhere the name of the server's program stands here.
        let program = std::env::current_exe()?.display().to_string();
        Launch::new(program, "TOY_SERVER", "cargo test")
            .arguments(|places, me| {
                let (port, dir) = (places[me].port(0), places[me].dir());
                vec!["serve".to_owned(), port.to_string(), dir.display().to_string()]
            })
            .probe("0 hello\n", "0 toy")
            .url(|at| format!("toy://{}", at[0]))
            .start()
            .await
    }

    async fn connect(&self, url: &str, options: &Options) -> Result<Arc<dyn Backend>, Error> {
        Ok(Arc::new(Toy::connect(url, options).await?))
    }

    async fn leftovers(&self, url: &str, namespace: &str) -> Result<Vec<String>, Failed> {
        let toy = Toy::connect(url, &Options::new()).await?;
        let answer = toy.link.ask(&format!("list {namespace}")).await?;
        let keys = answer.lines().skip(1).map(ToOwned::to_owned);
        Ok(keys.filter(|key| !key.contains("/void/")).collect())
    }

    fn tampers(&self) -> &[Tamper] {
        &[Tamper::Delete, Tamper::EndSession]
    }

    async fn tamper(&self, url: &str, key: &str, how: Tamper) -> Result<(), Failed> {
        let toy = Toy::connect(url, &Options::new()).await?;
        let answer = toy.link.ask(&format!("list {key}")).await?;
        let claim = answer.lines().nth(1).and_then(|line| line.split(' ').next());
        let claim = claim.ok_or("nobody holds it")?;
        let session = claim.rsplit(['/', '-']).nth(1).ok_or("no session")?;
        match how {
            Tamper::Delete => toy.link.ask(&format!("delete {claim}")).await?,
            Tamper::EndSession => toy.link.ask(&format!("close {session}")).await?,
            _ => Err(format!("not possible here: {how:?}"))?,
        };
        Ok(())
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, verb, port, folder] = &arguments[..]
        && verb == "serve"
    {
        return match port.parse().map(|port| keys::serve(port, Path::new(folder))) {
            Ok(Ok(())) => ExitCode::SUCCESS,
            failed => {
                eprintln!("{failed:?}");
                ExitCode::FAILURE
            }
        };
    }
    sync_conformance::main(ToyStore)
}
