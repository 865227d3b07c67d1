//! Claims that are lost: to time, to a silent store, to an operator, to a stop.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::bench::{PATIENCE, SOON, ends, is_alive, pause, same};
use super::{Bench, Case, Outcome};
use crate::cli::example::Example;

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new(a_killed_holder_is_followed_after_its_ttl),
        Case::new(a_silent_store_ends_command_by_the_deadline),
        Case::new(a_command_that_ends_when_asked_to_exits_125),
        Case::new(a_key_that_an_operator_removes_ends_command),
        Case::new(what_was_done_counts_though_it_cannot_be_given_back),
        Case::new(a_stopped_holder_finds_out_when_it_goes_on),
    ]
}

async fn a_killed_holder_is_followed_after_its_ttl(bench: Bench) -> Outcome {
    let note = bench.note("pid");
    let script = format!("echo $$ > {note}; exec sleep 60");
    let victim = bench.lock(&["a", "--", "sh", "-c", &script])?;
    let orphan = bench.noted("pid").await?;
    let first: u64 = victim.event("held token=").await?.parse()?;
    let next = bench.lock(&["a", "--", "true"])?;
    next.event("waiting").await?;
    pause(300).await;

    let killed = Instant::now();
    victim.process().kill()?;
    let second: u64 = next.event("held token=").await?.parse()?;
    let after = killed.elapsed();
    assert!(second > first, "{second} after {first}");
    // Its last renewal was at most a third of the TTL ago.
    assert!(after >= bench.ttl() / 2, "{after:?}");
    assert!(after <= bench.ttl() + SOON, "{after:?}");
    same(next.exit(PATIENCE).await?, 0, &next);
    bench.nothing_is_left().await?;

    assert!(is_alive(&orphan), "the help says that COMMAND can outlive the example");
    let orphan = rustix::process::Pid::from_raw(orphan.parse()?).ok_or("no process")?;
    Ok(rustix::process::kill_process(orphan, Signal::KILL)?)
}

async fn a_silent_store_ends_command_by_the_deadline(bench: Bench) -> Outcome {
    let run = bench.lock(&["a", "--", "sh", "-c", &bench.stubborn("pid", "term")])?;
    let pid = bench.noted("pid").await?;
    // Past a renewal or two.
    pause(1_200).await;
    assert!(is_alive(&pid));
    bench.server().stop()?;
    let silent = Instant::now();

    bench.noted("term").await?;
    assert!(is_alive(&pid), "SIGKILL came with SIGTERM, not at the deadline");
    run.event("revoked cause=deadline").await?;
    let lost = silent.elapsed();
    ends(&pid).await?;
    assert!(run.process().is_running(), "COMMAND was not killed before the example's own end");
    assert!(lost <= bench.ttl() + SOON, "{lost:?}");
    assert!(lost >= bench.ttl() / 2, "{lost:?}");
    same(run.exit(SOON).await?, 125, &run);
    assert!(!run.said().contains("released"), "{}", run.said());
    Ok(())
}

async fn a_command_that_ends_when_asked_to_exits_125(bench: Bench) -> Outcome {
    let note = bench.note("end");
    let script = format!("trap 'echo asked > {note}; exit 0' TERM; while :; do sleep 0.05; done");
    let run = bench.lock(&["a", "--", "sh", "-c", &script])?;
    run.event("held token=").await?;
    pause(300).await;
    bench.server().stop()?;
    assert_eq!(bench.noted("end").await?, "asked");
    run.event("revoked cause=deadline").await?;
    same(run.exit(SOON).await?, 125, &run);

    // The store is back before the deadline: it is told, and the name is free at once.
    let bench = bench.another().await?;
    let note = bench.note("end");
    let script = format!("trap 'echo asked > {note}; exit 0' TERM; while :; do sleep 0.05; done");
    let (lock, _) = bench.programs()?;
    let url = bench.server().url();
    let line = ["a", "--url", &url, "--ttl", "6", "--", "sh", "-c", &script];
    let run = Example::start(lock, &line, |_| {})?;
    run.event("held token=").await?;
    bench.server().stop()?;
    bench.noted("end").await?;
    bench.server().resume()?;
    same(run.exit(SOON).await?, 125, &run);
    same(run.said().lines().last(), Some("released"), &run);
    bench.nothing_is_left().await
}

async fn a_key_that_an_operator_removes_ends_command(bench: Bench) -> Outcome {
    let run = bench.lock(&["a", "--", "sh", "-c", &bench.stubborn("pid", "term")])?;
    let pid = bench.noted("pid").await?;
    bench.remove_keys().await?;
    run.event("revoked cause=key").await?;
    ends(&pid).await?;
    same(run.exit(SOON).await?, 125, &run);
    bench.nothing_is_left().await?;

    // Lost while COMMAND ran, found out when it was given back at the latest.
    let removed = bench.note("removed");
    let script = format!("while ! test -e {removed}; do sleep 0.01; done");
    let (lock, _) = bench.programs()?;
    let url = bench.server().url();
    let line = ["a", "--url", &url, "--ttl", "600", "--", "sh", "-c", &script];
    let run = Example::start(lock, &line, |_| {})?;
    run.event("held token=").await?;
    bench.remove_keys().await?;
    std::fs::write(removed, "")?;
    same(run.exit(PATIENCE).await?, 125, &run);
    same(run.said().lines().last(), Some("revoked cause=key"), &run);
    Ok(())
}

async fn what_was_done_counts_though_it_cannot_be_given_back(bench: Bench) -> Outcome {
    let (lock, _) = bench.programs()?;
    let (url, finish) = (bench.server().url(), bench.note("finish"));
    let script = format!("while ! test -e {finish}; do sleep 0.01; done; exit 4");
    for signal in [None, Some((Signal::TERM, 143))] {
        let line = ["a", "--url", &url, "--ttl", "60", "--", "sh", "-c", &script];
        let run = Example::start(lock, &line, |_| {})?;
        run.event("held token=").await?;
        bench.server().stop()?;
        std::fs::write(&finish, "")?;
        let code = match signal {
            None => 4,
            Some((signal, code)) => {
                pause(500).await;
                run.process().signal(signal)?;
                code
            }
        };
        same(run.exit(Duration::from_secs(10)).await?, code, &run);
        assert!(run.said().contains(&bench.complaint()), "no word of it: {}", run.said());
        assert!(!run.said().contains("released"), "{}", run.said());
        bench.server().resume()?;
        bench.remove_keys().await?;
        std::fs::remove_file(&finish)?;
    }
    Ok(())
}

async fn a_stopped_holder_finds_out_when_it_goes_on(bench: Bench) -> Outcome {
    let run = bench.lock(&["a", "--", "sh", "-c", &bench.stubborn("pid", "term")])?;
    let pid = bench.noted("pid").await?;
    let first: u64 = run.event("held token=").await?.parse()?;
    run.process().stop()?;
    let next = bench.lock(&["a", "--", "sleep", "60"])?;
    let second: u64 = next.event("held token=").await?.parse()?;
    assert!(second > first, "{second} after {first}");
    assert!(is_alive(&pid), "the help says that COMMAND can outlive a stopped example");

    run.process().resume()?;
    ends(&pid).await?;
    run.event("revoked cause=deadline").await?;
    same(run.exit(SOON).await?, 125, &run);

    // It has given back nothing that was not its own.
    assert!(next.process().is_running());
    next.process().signal(Signal::TERM)?;
    same(next.exit(SOON).await?, 143, &next);
    same(next.said().lines().last(), Some("released"), &next);
    bench.nothing_is_left().await
}
