//! What the command line takes, and what the exit status says.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::bench::{PATIENCE, SOON, pause, same};
use super::{Bench, Case, Outcome};
use crate::cli::example::Example;

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new(the_status_is_commands_own_and_nothing_is_left),
        Case::new(command_has_the_token_and_the_examples_own_group_and_input),
        Case::new(a_wait_that_is_used_up_exits_124),
        Case::new(nonsense_exits_2_and_help_says_what_protects),
        Case::new(a_store_that_does_not_answer_exits_1_and_tells_no_password),
    ]
}

async fn the_status_is_commands_own_and_nothing_is_left(bench: Bench) -> Outcome {
    let cases: [(&[&str], i32); 6] = [
        (&["true"], 0),
        (&["sh", "-c", "exit 7"], 7),
        (&["sh", "-c", "exit 125"], 125),
        (&["sh", "-c", "kill -TERM $$"], 143),
        (&["sh", "-c", "kill -KILL $$"], 137),
        (&["/no/such/program"], 127),
    ];
    let mut last = 0;
    for (command, code) in cases {
        let run = bench.lock(&[&["a", "--"], command].concat())?;
        same(run.exit(PATIENCE).await?, code, &run);
        let token: u64 = run.event("held token=").await?.parse()?;
        assert!(token > last, "{token} after {last}");
        last = token;
        same(run.said().lines().last(), Some("released"), &run);
        bench.nothing_is_left().await?;

        let run = bench.elect(&[&["a", "--node", "n", "--"], command].concat())?;
        same(run.exit(PATIENCE).await?, code, &run);
        bench.nothing_is_left().await?;
    }
    // Neither an executable nor absent: no status of its own stands for that.
    let run = bench.lock(&["a", "--", "/"])?;
    same(run.exit(PATIENCE).await?, 1, &run);
    bench.nothing_is_left().await
}

async fn command_has_the_token_and_the_examples_own_group_and_input(bench: Bench) -> Outcome {
    let script = "echo $SYNC_TOKEN; echo group $(cut -d' ' -f5 /proc/self/stat); cat; echo end";
    let run = bench.lock(&["a", "--", "sh", "-c", script])?;
    same(run.exit(PATIENCE).await?, 0, &run);
    let token = run.event("held token=").await?;
    let printed = run.printed();
    let group = rustix::process::getpgrp().as_raw_nonzero();
    same(printed, format!("{token}\ngroup {group}\nend\n"), &run);
    same(run.said(), format!("held token={token}\nreleased\n"), &run);
    Ok(())
}

async fn a_wait_that_is_used_up_exits_124(bench: Bench) -> Outcome {
    let holder = bench.lock(&["a", "--", "sleep", "60"])?;
    holder.event("held token=").await?;

    let once = bench.lock(&["a", "--wait", "0", "--", "true"])?;
    same(once.exit(PATIENCE).await?, 124, &once);
    same(once.said().as_str(), "timed out\n", &once);

    let began = Instant::now();
    let run = bench.lock(&["a", "--wait", "0.7", "--", "true"])?;
    same(run.exit(PATIENCE).await?, 124, &run);
    assert!(began.elapsed() >= Duration::from_millis(700));
    same(run.said().as_str(), "waiting\ntimed out\n", &run);

    // The store falls silent meanwhile: what is wrong is said, and the wait counts.
    let run = bench.lock(&["a", "--wait", "3", "--", "true"])?;
    run.event("waiting").await?;
    bench.server().stop()?;
    same(run.exit(PATIENCE).await?, 124, &run);
    run.event("timed out").await?;
    let complaint = bench.complaint() + "could not acquire";
    assert!(run.said().contains(&complaint), "{}", run.said());
    bench.server().resume()?;
    same(holder.exit(PATIENCE).await?, 125, &holder);

    let holder = bench.lock(&["a", "--", "sleep", "60"])?;
    holder.event("held token=").await?;
    // An election of the same name is another thing.
    let run = bench.elect(&["a", "--node", "n", "--wait", "0", "--", "true"])?;
    same(run.exit(PATIENCE).await?, 0, &run);

    holder.process().signal(Signal::TERM)?;
    same(holder.exit(SOON).await?, 143, &holder);
    bench.nothing_is_left().await
}

async fn nonsense_exits_2_and_help_says_what_protects(bench: Bench) -> Outcome {
    let (lock, elect) = bench.programs()?;
    let url = bench.server().url();
    let long = "x".repeat(201);
    let cases: [(&PathBuf, &[&str]); 14] = [
        (lock, &[]),
        (lock, &["a"]),
        (lock, &["a", "true"]),
        (lock, &["", "--", "true"]),
        (lock, &[&long, "--", "true"]),
        (lock, &["a\nb", "--", "true"]),
        (lock, &["a", "--ttl", "soon", "--", "true"]),
        (lock, &["a", "--url", &url, "--ttl", "1e-9", "--", "true"]),
        (lock, &["a", "--wait", "-1", "--", "true"]),
        (lock, &["a", "--namespace", "a//b", "--", "true"]),
        (lock, &["a", "--url", "nonsense", "--", "true"]),
        (lock, &["a", "--what", "--", "true"]),
        (elect, &["a"]),
        (elect, &["a", "--node", "", "--", "true"]),
    ];
    for (program, arguments) in cases {
        let run = Example::start(program, arguments, |_| {})?;
        assert_eq!(run.exit(PATIENCE).await?, 2, "{arguments:?}:\n{}", run.said());
        assert!(!run.said().is_empty(), "{arguments:?}: no word of what is wrong");
    }
    for program in [lock, elect] {
        let run = Example::start(program, &["--help"], |_| {})?;
        same(run.exit(PATIENCE).await?, 0, &run);
        assert!(run.printed().contains("COMMAND can outlive"), "{}", run.printed());
        assert!(run.printed().contains("Only the token protects"), "{}", run.printed());
    }
    Ok(())
}

async fn a_store_that_does_not_answer_exits_1_and_tells_no_password(bench: Bench) -> Outcome {
    let (lock, elect) = bench.programs()?;
    // Nobody listens there as long as the bench has its port and its server is dead.
    let url = bench.url_with("s3cret");
    bench.server().stop()?;
    let silent = Example::start(lock, &["a", "--url", &url, "--wait", "60", "--", "true"], |_| {})?;
    same(silent.exit(Duration::from_secs(10)).await?, 1, &silent);

    let told = Example::start(lock, &["a", "--url", &url, "--", "true"], |_| {})?;
    pause(500).await;
    told.process().signal(Signal::TERM)?;
    same(told.exit(SOON).await?, 143, &told);

    bench.server().kill()?;
    let absent = Example::start(elect, &["a", "--url", &url, "--node", "n"], |_| {})?;
    same(absent.exit(Duration::from_secs(10)).await?, 1, &absent);
    for run in [silent, told, absent] {
        assert!(!run.said().contains("s3cret"), "{}", run.said());
        assert!(!run.said().contains("held"), "{}", run.said());
    }
    Ok(())
}
