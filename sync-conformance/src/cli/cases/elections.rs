//! Candidates that hand over, lose their term, and print who leads.

use std::time::Instant;

use rustix::process::Signal;

use super::bench::{PATIENCE, SOON, ends, pause, same};
use super::{Bench, Case, Outcome};
use crate::cli::example::Example;

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new(candidates_hand_over_and_print_who_leads),
        Case::new(a_lost_term_is_followed_by_the_next),
        Case::new(an_election_whose_output_is_gone_gives_up),
    ]
}

async fn candidates_hand_over_and_print_who_leads(bench: Bench) -> Outcome {
    let one = bench.elect(&["e", "--node", "one", "--address", "h:1"])?;
    let first: u64 = one.print("leader one token=").await?.parse()?;
    same(one.event("held token=").await?, first.to_string(), &one);
    let two = bench.elect(&["e", "--node", "two"])?;
    same(two.print("leader one token=").await?, first.to_string(), &two);
    two.event("waiting").await?;
    pause(200).await;

    one.process().signal(Signal::INT)?;
    same(one.exit(SOON).await?, 130, &one);
    same(one.said().lines().last(), Some("released"), &one);
    let second: u64 = two.print("leader two token=").await?.parse()?;
    assert!(second > first, "{second} after {first}");

    // The third is stopped in its place in the line, and passed over.
    let three = bench.elect(&["e", "--node", "three"])?;
    three.event("waiting").await?;
    pause(200).await;
    let four = bench.elect(&["e", "--node", "four"])?;
    four.event("waiting").await?;
    four.print("leader two token=").await?;
    three.process().stop()?;
    two.process().kill()?;
    let fourth: u64 = four.print("leader four token=").await?.parse()?;
    assert!(fourth > second, "{fourth} after {second}");

    for run in [three, four] {
        let _ = run.process().resume();
        run.process().signal(Signal::TERM)?;
        same(run.exit(SOON).await?, 143, &run);
    }
    bench.nothing_is_left().await
}

async fn a_lost_term_is_followed_by_the_next(bench: Bench) -> Outcome {
    let (terms, finish) = (bench.note("terms"), bench.note("finish"));
    let script = format!(
        "trap '' TERM; echo $SYNC_TOKEN $$ >> {terms}; while ! test -e {finish}; do sleep 0.02; done; exit 9"
    );
    let run = bench.elect(&["e", "--node", "n", "--", "sh", "-c", &script])?;
    let first = bench.noted("terms").await?;
    bench.server().stop()?;
    run.event("revoked cause=deadline").await?;
    ends(first.split(' ').next_back().unwrap_or_default()).await?;
    bench.server().resume()?;
    let resumed = Instant::now();
    let terms = loop {
        let terms = bench.noted("terms").await?;
        assert!(resumed.elapsed() < PATIENCE, "no second term: {terms}");
        if terms.lines().count() == 2 {
            break terms;
        }
        pause(10).await;
    };
    let tokens: Vec<u64> = terms
        .lines()
        .filter_map(|line| line.split(' ').next())
        .map(str::parse)
        .collect::<Outcome<_, _>>()?;
    assert!(tokens[1] > tokens[0], "{tokens:?}");
    std::fs::write(finish, "")?;
    same(run.exit(PATIENCE).await?, 9, &run);
    same(run.said().lines().last(), Some("released"), &run);
    same(run.printed().as_str(), "", &run);
    bench.nothing_is_left().await
}

async fn an_election_whose_output_is_gone_gives_up(bench: Bench) -> Outcome {
    let (_, elect) = bench.programs()?;
    let url = bench.server().url();
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full")?;
    let run = Example::start(elect, &["e", "--url", &url, "--node", "n"], |command| {
        command.stdout(full);
    })?;
    same(run.exit(PATIENCE).await?, 1, &run);
    bench.nothing_is_left().await
}
