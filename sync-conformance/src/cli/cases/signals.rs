//! SIGINT and SIGTERM, while it waits and while COMMAND runs.

use rustix::process::Signal;

use super::bench::{SOON, is_alive, pause, same};
use super::{Bench, Case, Outcome};
use crate::cli::example::Example;

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new(a_signal_ends_the_waiting_and_leaves_nothing),
        Case::new(a_signal_ends_command_and_releases),
        Case::new(a_signal_is_obeyed_though_the_store_is_silent_and_nobody_reads),
    ]
}

async fn a_signal_ends_the_waiting_and_leaves_nothing(bench: Bench) -> Outcome {
    let holder = bench.lock(&["a", "--", "sleep", "60"])?;
    holder.event("held token=").await?;
    let before = bench.leftovers().await?;
    assert!(!before.is_empty());
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let run = bench.lock(&["a", "--", "true"])?;
        run.event("waiting").await?;
        pause(200).await;
        run.process().signal(signal)?;
        same(run.exit(SOON).await?, code, &run);
        same(run.said().as_str(), "waiting\n", &run);
        assert_eq!(bench.leftovers().await?, before, "only what is the holder's stays");
    }
    holder.process().signal(Signal::INT)?;
    same(holder.exit(SOON).await?, 130, &holder);
    bench.nothing_is_left().await
}

async fn a_signal_ends_command_and_releases(bench: Bench) -> Outcome {
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
    let run = bench.lock(&["a", "--", "sh", "-c", &bench.stubborn("pid", "term")])?;
    let pid = bench.noted("pid").await?;
    run.process().signal(Signal::TERM)?;
    same(run.exit(SOON).await?, 143, &run);
    assert_eq!(bench.noted("term").await?, "term");
    assert!(!is_alive(&pid));
    same(run.said().lines().last(), Some("released"), &run);
    bench.nothing_is_left().await
}

async fn a_signal_is_obeyed_though_the_store_is_silent_and_nobody_reads(bench: Bench) -> Outcome {
    let (reader, writer) = std::io::pipe()?;
    let (lock, _) = bench.programs()?;
    let (url, script) = (bench.server().url(), bench.stubborn("pid", "term"));
    let run = Example::start(lock, &["a", "--url", &url, "--", "sh", "-c", &script], |command| {
        command.stderr(writer);
    })?;
    let pid = bench.noted("pid").await?;
    fill(&reader)?;
    bench.server().stop()?;
    run.process().signal(Signal::TERM)?;
    same(run.exit(SOON).await?, 143, &run);
    assert!(!is_alive(&pid));
    Ok(())
}

/// Fills the pipe of which this is the reading end.
fn fill(reader: &std::io::PipeReader) -> Outcome {
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
