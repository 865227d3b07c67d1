//! What is asked of an agent once, before anything is held on it.

use std::time::Duration;

use sync_core::StoreError;
use sync_core::backend::Nonce;

use crate::api::Api;
use crate::backend::Settings;
use crate::error;
use crate::keys::Keys;
use crate::txn::Op;

/// How long an agent that has just started is waited for.
const STARTING: Duration = Duration::from_secs(2);

/// How often it is asked meanwhile.
const AGAIN: Duration = Duration::from_millis(100);

/// Finds out whether the token may do what is needed, and whether the agent keeps the least TTL.
///
/// Keys that are not there are deleted, and a session is made and ended.
pub(crate) async fn probe(
    api: &Api,
    keys: &Keys,
    settings: &Settings,
    nonce: Nonce,
    least_ttl: Duration,
) -> Result<(), StoreError> {
    let clock = api.http.connector().clock();
    let until = clock.now() + STARTING;
    let probes = keys.probes(nonce);
    loop {
        match ask(api, &probes, settings, least_ttl).await {
            Err(error) if error::is_beginners(&error) && clock.now() < until => {
                clock.sleep_until(clock.now() + AGAIN).await;
            }
            asked => return asked,
        }
    }
}

async fn ask(
    api: &Api,
    probes: &[String],
    settings: &Settings,
    least_ttl: Duration,
) -> Result<(), StoreError> {
    let deletes: Vec<Op<'_>> = probes.iter().map(|key| Op::delete(key)).collect();
    api.done(&deletes).await?;
    let session = api.create_session(&settings.session(least_ttl)).await.map_err(|error| {
        let advice = "a TTL below the agent's session_ttl_min, which the words before give (in \
                      nanoseconds where they have no unit): use a longer one and a longer \
                      Config::least_ttl, or set session_ttl_min lower on the servers";
        if error.to_string().contains("Session TTL") { error.advise(advice) } else { error }
    })?;
    // Waited for: a program may end as soon as it is connected.
    if let Err(error) = api.destroy_session(&session).await {
        tracing::debug!(%error, "the session of the probe ends with its TTL");
    }
    Ok(())
}
