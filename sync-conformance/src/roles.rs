//! What the processes that a case starts can do. Each role is a plain function.

use std::pin::pin;
use std::time::Duration;

use sync_core::{Error, ErrorKind, Hold};

use crate::child::Victim;
use crate::failed::Failed;
use crate::fault::Verb;
use crate::history::Seconds;
use crate::register::Register;

/// Plays the role of this name.
pub(crate) async fn play(role: &str, victim: Victim) -> Result<(), Failed> {
    match role {
        "hold" => hold(victim).await,
        "lead" => lead(victim).await,
        "contend" => contend(victim).await,
        "soak" => crate::soak::work(victim).await,
        other => Err(format!("there is no role {other:?}"))?,
    }
}

/// Takes the lock `name` and does as it is told.
///
/// Says `waiting` before it asks for the lock, `in line` as soon as it stands there if `queue` is
/// set, and `held TOKEN DEADLINE` when it has it. Hears:
///
/// * `look`: says `valid` or `lost CAUSE`.
/// * `wait`: says `lost CAUSE` once it is revoked.
/// * `write VALUE`: writes it to the register at `register` without a look at its guard, as code
///   does that knows nothing of leases; says `written` or `refused`.
/// * `release`: releases, says `released` or `error KIND`, and ends.
/// * `leave`: ends at once, without a word to the store.
async fn hold(mut me: Victim) -> Result<(), Failed> {
    let sync = me.coordinator().await?;
    let lock = sync.lock(me.order("name")?);
    me.say("waiting")?;
    let mut acquiring = pin!(lock.acquire());
    if me.order("queue").is_ok() {
        tokio::select! {
            biased;
            acquired = &mut acquiring => Err(format!("there is no line: {acquired:?}"))?,
            () = me.calls.called(Verb::Wait, 1) => me.say("in line")?,
        }
    }
    let guard = acquiring.await?;
    say_held(&me, &guard)?;
    while let Some(line) = me.hear().await? {
        if line == "release" {
            say_outcome(&me, "released", guard.release().await)?;
            return Ok(());
        }
        obey(&me, &guard, &line).await?;
    }
    Ok(())
}

/// Campaigns in the election `name`, with the node `node` if one is given, and does as it is told
/// like [`hold`], except that it resigns (`resign`) and then says `resigned`.
async fn lead(mut me: Victim) -> Result<(), Failed> {
    let sync = me.coordinator().await?;
    let mut leader = sync.leader(me.order("name")?);
    if let Ok(node) = me.order("node") {
        leader = leader.node(sync_core::Node::new(node));
    }
    me.say("waiting")?;
    let elected = leader.elect().await?;
    say_held(&me, &elected)?;
    while let Some(line) = me.hear().await? {
        if line == "resign" {
            say_outcome(&me, "resigned", elected.resign().await)?;
            return Ok(());
        }
        obey(&me, &elected, &line).await?;
    }
    Ok(())
}

fn say_held(me: &Victim, hold: &Hold) -> Result<(), Failed> {
    me.say(format_args!("held {} {}", hold.token(), Seconds(hold.deadline())))
}

fn say_outcome(me: &Victim, done: &str, outcome: Result<(), Error>) -> Result<(), Failed> {
    match outcome {
        Ok(()) => me.say(done),
        Err(e) => me.say(format_args!("error {}: {e}", e.kind())),
    }
}

/// Does what `line` says.
async fn obey(me: &Victim, hold: &Hold, line: &str) -> Result<(), Failed> {
    match line {
        // The first thing that is looked at, before anything else can run.
        "look" => match hold.is_valid() {
            true => me.say("valid")?,
            false => me.say(format_args!("lost {}", hold.revoked().await.cause.as_str()))?,
        },
        "wait" => me.say(format_args!("lost {}", hold.revoked().await.cause.as_str()))?,
        // Before the guard is dropped, which would release it.
        "leave" => std::process::exit(0),
        other => {
            let value = other.strip_prefix("write ").ok_or(format!("{other:?} is no command"))?;
            let register = Register::open(me.order("register")?.as_ref())?;
            let outcome = register.write(hold.token(), value.parse()?)?;
            me.say(if outcome.is_ok() { "written" } else { "refused" })?;
        }
    }
    Ok(())
}

/// Takes and releases the lock `name` again and again, adding one to the register at `register`
/// each time, until its parent says anything or is gone. Waits for `wait_ms` milliseconds (10,000)
/// and holds for `hold_ms` (5).
///
/// With `careless` set it writes without a look at its guard, as code does that knows nothing of
/// leases: then only the register's fence keeps a stale write out. Either way the register's value
/// is the number of writes that it accepted: none is lost.
///
/// Says `ready` first; at the end `grants N lost N refused N`, where `lost` counts holds that were
/// revoked before their release.
async fn contend(mut me: Victim) -> Result<(), Failed> {
    let sync = me.coordinator().await?;
    let wait = Duration::from_millis(me.number("wait_ms", 10_000)?);
    let lock = sync.lock(me.order("name")?).wait(wait);
    let register = Register::open(me.order("register")?.as_ref())?;
    let rest = Duration::from_millis(me.number("hold_ms", 5)?);
    let careless = me.number("careless", 0)? > 0;
    let (mut grants, mut lost, mut refused) = (0_u64, 0_u64, 0_u64);
    me.say("ready")?;
    let rounds = async {
        loop {
            let guard = match lock.acquire().await {
                Ok(guard) => guard,
                Err(e) if is_passing(e.kind()) => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                }
                Err(e) => return Failed::from(e),
            };
            grants += 1;
            let written = async {
                let Ok(before) = register.read(guard.token())? else {
                    refused += 1;
                    return Ok(());
                };
                tokio::time::sleep(rest).await;
                if careless || guard.is_valid() {
                    let outcome = register.write(guard.token(), before + 1)?;
                    refused += u64::from(outcome.is_err());
                }
                Ok::<_, std::io::Error>(())
            };
            if let Err(e) = written.await {
                return Failed::from(e);
            }
            match guard.release().await {
                Err(e) if e.kind() == ErrorKind::Lost => lost += 1,
                Err(e) if !is_passing(e.kind()) => return Failed::from(e),
                _ => {}
            }
        }
    };
    let told = tokio::select! {
        biased;
        told = me.hear() => told.map(drop),
        failed = rounds => Err(failed),
    };
    told?;
    // A store that cannot be reached gets its keys back by time; that is no failure here.
    let _ = sync.shutdown().await;
    me.say(format_args!("grants {grants} lost {lost} refused {refused}"))
}

/// Whether trying again may help: what a run under faults has to expect.
fn is_passing(kind: ErrorKind) -> bool {
    use ErrorKind::{Lost, Timeout, Unknown, Unreachable};
    matches!(kind, Timeout | Unknown | Unreachable | Lost)
}
