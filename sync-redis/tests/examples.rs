//! The examples as their users run them: processes of their own against a server of their own.

#[path = "examples/bench.rs"]
mod bench;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use sync_conformance::cli::example::Example;

use bench::{Bench, PATIENCE, Result, SOON, TTL, ends, is_alive, pause, programs, same, stubborn};

#[tokio::test]
async fn the_status_is_commands_own_and_nothing_is_left() -> Result {
    let bench = Bench::new().await?;
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

#[tokio::test]
async fn command_has_the_token_and_the_examples_own_group_and_input() -> Result {
    let bench = Bench::new().await?;
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

#[tokio::test]
async fn a_wait_that_is_used_up_exits_124() -> Result {
    let bench = Bench::new().await?;
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
    bench.server.stop()?;
    same(run.exit(PATIENCE).await?, 124, &run);
    run.event("timed out").await?;
    assert!(run.said().contains("redis-lock: could not acquire"), "{}", run.said());
    bench.server.resume()?;
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

#[tokio::test]
async fn nonsense_exits_2_and_help_says_what_protects() -> Result {
    let bench = Bench::new().await?;
    let (lock, elect) = programs()?;
    let url = bench.server.url();
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

#[tokio::test]
async fn a_store_that_does_not_answer_exits_1_and_tells_no_password() -> Result {
    let bench = Bench::new().await?;
    let (lock, elect) = programs()?;
    // Nobody listens there as long as the bench has its port and its server is dead.
    let url = bench.server.url().replace("redis://", "redis://:s3cret@");
    bench.server.stop()?;
    let silent = Example::start(lock, &["a", "--url", &url, "--wait", "60", "--", "true"], |_| {})?;
    same(silent.exit(Duration::from_secs(10)).await?, 1, &silent);

    let told = Example::start(lock, &["a", "--url", &url, "--", "true"], |_| {})?;
    pause(500).await;
    told.process().signal(Signal::TERM)?;
    same(told.exit(SOON).await?, 143, &told);

    bench.server.kill()?;
    let absent = Example::start(elect, &["a", "--url", &url, "--node", "n"], |_| {})?;
    same(absent.exit(Duration::from_secs(10)).await?, 1, &absent);
    for run in [silent, told, absent] {
        assert!(!run.said().contains("s3cret"), "{}", run.said());
        assert!(!run.said().contains("held"), "{}", run.said());
    }
    Ok(())
}

#[tokio::test]
async fn a_signal_ends_the_waiting_and_leaves_nothing() -> Result {
    let bench = Bench::new().await?;
    let holder = bench.lock(&["a", "--", "sleep", "60"])?;
    holder.event("held token=").await?;
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let run = bench.lock(&["a", "--", "true"])?;
        run.event("waiting").await?;
        pause(200).await;
        run.process().signal(signal)?;
        same(run.exit(SOON).await?, code, &run);
        same(run.said().as_str(), "waiting\n", &run);
        for key in bench.keys().await? {
            let of_the_waiter = key.ends_with(":line") || key.ends_with(":beat");
            assert!(!of_the_waiter, "{key} is left behind");
        }
    }
    holder.process().signal(Signal::INT)?;
    same(holder.exit(SOON).await?, 130, &holder);
    bench.nothing_is_left().await
}

#[tokio::test]
async fn a_signal_ends_command_and_releases() -> Result {
    let bench = Bench::new().await?;
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let gentle = bench.note("gentle");
        let script =
            format!("trap 'echo bye > {gentle}; exit 0' TERM; while :; do sleep 0.05; done");
        let run = bench.lock(&["a", "--", "sh", "-c", &script])?;
        run.event("held token=").await?;
        // Its trap must stand.
        pause(300).await;
        run.process().signal(signal)?;
        same(run.exit(SOON).await?, code, &run);
        same(run.said().lines().last(), Some("released"), &run);
        assert_eq!(bench.noted("gentle").await?, "bye");
        bench.nothing_is_left().await?;
        std::fs::remove_file(gentle)?;
    }
    let run = bench.lock(&["a", "--", "sh", "-c", &stubborn(&bench, "pid", "term")])?;
    let pid = bench.noted("pid").await?;
    run.process().signal(Signal::TERM)?;
    same(run.exit(SOON).await?, 143, &run);
    assert_eq!(bench.noted("term").await?, "term");
    assert!(!is_alive(&pid));
    same(run.said().lines().last(), Some("released"), &run);
    bench.nothing_is_left().await
}

#[tokio::test]
async fn a_signal_is_obeyed_though_the_store_is_silent_and_nobody_reads() -> Result {
    let bench = Bench::new().await?;
    let (reader, writer) = std::io::pipe()?;
    let (lock, _) = programs()?;
    let (url, script) = (bench.server.url(), stubborn(&bench, "pid", "term"));
    let run = Example::start(lock, &["a", "--url", &url, "--", "sh", "-c", &script], |command| {
        command.stderr(writer);
    })?;
    let pid = bench.noted("pid").await?;
    fill(&reader)?;
    bench.server.stop()?;
    run.process().signal(Signal::TERM)?;
    same(run.exit(SOON).await?, 143, &run);
    assert!(!is_alive(&pid));
    Ok(())
}

/// Fills the pipe of which this is the reading end.
fn fill(reader: &std::io::PipeReader) -> Result {
    use std::io::Write;
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", reader.as_raw_fd());
    let nonblocking = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits())?;
    let mut writer = std::os::unix::fs::OpenOptionsExt::custom_flags(
        std::fs::OpenOptions::new().write(true),
        nonblocking,
    )
    .open(path)?;
    for size in [4096, 1] {
        while writer.write(&[b'x'; 4096][..size]).is_ok() {}
    }
    Ok(())
}

#[tokio::test]
async fn a_killed_holder_is_followed_after_its_ttl() -> Result {
    let bench = Bench::new().await?;
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
    assert!(after >= Duration::from_secs_f64(TTL / 2.0), "{after:?}");
    assert!(after <= Duration::from_secs_f64(TTL) + SOON, "{after:?}");
    same(next.exit(PATIENCE).await?, 0, &next);
    bench.nothing_is_left().await?;

    assert!(is_alive(&orphan), "the help says that COMMAND can outlive the example");
    let orphan = rustix::process::Pid::from_raw(orphan.parse()?).ok_or("no process")?;
    Ok(rustix::process::kill_process(orphan, Signal::KILL)?)
}

#[tokio::test]
async fn a_silent_store_ends_command_by_the_deadline() -> Result {
    let bench = Bench::new().await?;
    let run = bench.lock(&["a", "--", "sh", "-c", &stubborn(&bench, "pid", "term")])?;
    let pid = bench.noted("pid").await?;
    // Past a renewal or two.
    pause(1_200).await;
    assert!(is_alive(&pid));
    bench.server.stop()?;
    let silent = Instant::now();

    bench.noted("term").await?;
    assert!(is_alive(&pid), "SIGKILL came with SIGTERM, not at the deadline");
    run.event("revoked cause=deadline").await?;
    let lost = silent.elapsed();
    ends(&pid).await?;
    assert!(run.process().is_running(), "COMMAND was not killed before the example's own end");
    assert!(lost <= Duration::from_secs_f64(TTL) + SOON, "{lost:?}");
    assert!(lost >= Duration::from_secs_f64(TTL / 2.0), "{lost:?}");
    same(run.exit(SOON).await?, 125, &run);
    assert!(!run.said().contains("released"), "{}", run.said());
    Ok(())
}

#[tokio::test]
async fn a_command_that_ends_when_asked_to_exits_125() -> Result {
    let bench = Bench::new().await?;
    let note = bench.note("end");
    let script = format!("trap 'echo asked > {note}; exit 0' TERM; while :; do sleep 0.05; done");
    let run = bench.lock(&["a", "--", "sh", "-c", &script])?;
    run.event("held token=").await?;
    pause(300).await;
    bench.server.stop()?;
    assert_eq!(bench.noted("end").await?, "asked");
    run.event("revoked cause=deadline").await?;
    same(run.exit(SOON).await?, 125, &run);

    // The store is back before the deadline: it is told, and the name is free at once.
    let bench = Bench::new().await?;
    let note = bench.note("end");
    let script = format!("trap 'echo asked > {note}; exit 0' TERM; while :; do sleep 0.05; done");
    let (lock, _) = programs()?;
    let url = bench.server.url();
    let line = ["a", "--url", &url, "--ttl", "6", "--", "sh", "-c", &script];
    let run = Example::start(lock, &line, |_| {})?;
    run.event("held token=").await?;
    bench.server.stop()?;
    bench.noted("end").await?;
    bench.server.resume()?;
    same(run.exit(SOON).await?, 125, &run);
    same(run.said().lines().last(), Some("released"), &run);
    bench.nothing_is_left().await
}

#[tokio::test]
async fn a_key_that_an_operator_removes_ends_command() -> Result {
    let bench = Bench::new().await?;
    let run = bench.lock(&["a", "--", "sh", "-c", &stubborn(&bench, "pid", "term")])?;
    let pid = bench.noted("pid").await?;
    bench.remove_keys().await?;
    run.event("revoked cause=key").await?;
    ends(&pid).await?;
    same(run.exit(SOON).await?, 125, &run);
    bench.nothing_is_left().await?;

    // Lost while COMMAND ran, found out when it was given back.
    let removed = bench.note("removed");
    let script = format!("while ! test -e {removed}; do sleep 0.01; done");
    let (lock, _) = programs()?;
    let url = bench.server.url();
    let line = ["a", "--url", &url, "--ttl", "600", "--", "sh", "-c", &script];
    let run = Example::start(lock, &line, |_| {})?;
    run.event("held token=").await?;
    bench.remove_keys().await?;
    std::fs::write(removed, "")?;
    same(run.exit(PATIENCE).await?, 125, &run);
    same(run.said().lines().last(), Some("revoked cause=key"), &run);
    Ok(())
}

#[tokio::test]
async fn what_was_done_counts_though_it_cannot_be_given_back() -> Result {
    let bench = Bench::new().await?;
    let (lock, _) = programs()?;
    let (url, finish) = (bench.server.url(), bench.note("finish"));
    let script = format!("while ! test -e {finish}; do sleep 0.01; done; exit 4");
    for signal in [None, Some((Signal::TERM, 143))] {
        let line = ["a", "--url", &url, "--ttl", "60", "--", "sh", "-c", &script];
        let run = Example::start(lock, &line, |_| {})?;
        run.event("held token=").await?;
        bench.server.stop()?;
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
        assert!(run.said().contains("redis-lock: "), "no word of it: {}", run.said());
        assert!(!run.said().contains("released"), "{}", run.said());
        bench.server.resume()?;
        bench.remove_keys().await?;
        std::fs::remove_file(&finish)?;
    }
    Ok(())
}

#[tokio::test]
async fn a_stopped_holder_finds_out_when_it_goes_on() -> Result {
    let bench = Bench::new().await?;
    let run = bench.lock(&["a", "--", "sh", "-c", &stubborn(&bench, "pid", "term")])?;
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

#[tokio::test]
async fn candidates_hand_over_and_print_who_leads() -> Result {
    let bench = Bench::new().await?;
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

#[tokio::test]
async fn a_lost_term_is_followed_by_the_next() -> Result {
    let bench = Bench::new().await?;
    let (terms, finish) = (bench.note("terms"), bench.note("finish"));
    let script = format!(
        "trap '' TERM; echo $SYNC_TOKEN $$ >> {terms}; while ! test -e {finish}; do sleep 0.02; done; exit 9"
    );
    let run = bench.elect(&["e", "--node", "n", "--", "sh", "-c", &script])?;
    let first = bench.noted("terms").await?;
    bench.server.stop()?;
    run.event("revoked cause=deadline").await?;
    ends(first.split(' ').next_back().unwrap_or_default()).await?;
    bench.server.resume()?;
    let terms = loop {
        let terms = bench.noted("terms").await?;
        if terms.lines().count() == 2 {
            break terms;
        }
        pause(10).await;
    };
    let tokens: Vec<u64> = terms
        .lines()
        .filter_map(|line| line.split(' ').next())
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    assert!(tokens[1] > tokens[0], "{tokens:?}");
    std::fs::write(finish, "")?;
    same(run.exit(PATIENCE).await?, 9, &run);
    same(run.said().lines().last(), Some("released"), &run);
    same(run.printed().as_str(), "", &run);
    bench.nothing_is_left().await
}

#[tokio::test]
async fn an_election_whose_output_is_gone_gives_up() -> Result {
    let bench = Bench::new().await?;
    let (_, elect) = programs()?;
    let url = bench.server.url();
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full")?;
    let run = Example::start(elect, &["e", "--url", &url, "--node", "n"], |command| {
        command.stdout(full);
    })?;
    same(run.exit(PATIENCE).await?, 1, &run);
    bench.nothing_is_left().await
}
