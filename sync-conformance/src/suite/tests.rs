use super::*;
use std::collections::BTreeSet;
use sync_core::{Backend, Error, Options, memory};

#[test]
fn no_two_cases_have_the_same_name() {
    let names: Vec<String> = cases::all().iter().map(|case| case.name.clone()).collect();
    let distinct: BTreeSet<&String> = names.iter().collect();
    assert_eq!(distinct.len(), names.len());
    assert!(names.contains(&"exclusion::a_second_coordinator_waits".to_owned()), "{names:?}");
}

#[test]
fn no_two_cases_have_the_same_namespace() {
    assert_ne!(namespace(1), namespace(2));
    assert!(sync_core::Namespace::parse(&namespace(1)).is_ok());
}

struct Memory(memory::Store);

#[async_trait::async_trait]
impl Store for Memory {
    fn name(&self) -> &str {
        "memory"
    }

    async fn start(&self) -> Result<Server, Failed> {
        Ok(Server::in_process("memory"))
    }

    async fn connect(&self, _: &str, options: &Options) -> Result<Arc<dyn Backend>, Error> {
        Ok(Arc::new(self.0.backend(&options.parsed_namespace()?)))
    }

    async fn leftovers(&self, _: &str, _: &str) -> Result<Vec<String>, Failed> {
        Ok(self.0.keys())
    }
}

fn run(case: &Case) -> Result<(), Failed> {
    Suite::new(Arc::new(Memory(memory::Store::new()))).unwrap().run(case)
}

/// What the case fails with; its history is removed.
fn text(case: &Case) -> String {
    let text = run(case).unwrap_err().to_text();
    if let Some((_, kept)) = text.split_once("its history is in ") {
        let kept = std::path::Path::new(kept.split_whitespace().next().unwrap());
        assert!(kept.join("history").is_file(), "{text}");
        std::fs::remove_dir_all(kept).unwrap();
    }
    text
}

#[test]
fn outcomes_are_those_of_the_cases_that_were_picked() {
    let waits = "exclusion::a_second_coordinator_waits";
    let outcomes = outcomes(Memory(memory::Store::new()), |name| name == waits).unwrap();
    assert_eq!(outcomes.len(), 1);
    assert_eq!(outcomes[0].0, waits);
    assert!(outcomes[0].1.is_ok(), "{outcomes:?}");
}

#[test]
fn a_sound_case_passes() {
    async fn sound(ctx: Context) -> Result<(), Failed> {
        let guard = ctx.coordinator().await?.lock("x").acquire().await?;
        guard.release().await?;
        assert_eq!(ctx.judge()?.grants, 1);
        ctx.assert_nothing_left().await
    }
    run(&Case::new(sound)).unwrap();
}

#[test]
fn an_error_a_panic_and_a_lack_of_end_fail_with_their_reason() {
    async fn fails(_: Context) -> Result<(), Failed> {
        Ok("x".parse::<u8>().map(drop)?)
    }
    async fn panics(_: Context) -> Result<(), Failed> {
        assert_eq!(1, 2, "out of luck");
        Ok(())
    }
    async fn hangs(_: Context) -> Result<(), Failed> {
        std::future::pending().await
    }
    let failed = text(&Case::new(fails));
    assert!(failed.contains("invalid digit") && failed.contains(file!()), "{failed}");
    let panicked = text(&Case::new(panics));
    assert!(panicked.contains("out of luck") && panicked.contains(file!()), "{panicked}");
    let hung = text(&Case::new(hangs).limit(Duration::from_millis(50)));
    assert!(hung.contains("not done within 50ms"), "{hung}");
}

#[test]
fn a_panic_of_any_task_fails_its_case_unless_it_is_expected() {
    async fn panics_aside(_: Context) -> Result<(), Failed> {
        let _ = tokio::spawn(async { panic!("aside") }).await;
        Ok(())
    }
    async fn means_to(ctx: Context) -> Result<(), Failed> {
        ctx.expect_panics();
        let _ = tokio::spawn(async { panic!("as planned") }).await;
        Ok(())
    }
    let aside = text(&Case::new(panics_aside));
    assert!(aside.contains("aside"), "{aside}");
    run(&Case::new(means_to)).unwrap();
}

#[test]
fn an_unsound_history_fails_a_case_that_saw_nothing_wrong() {
    /// Two stores, so two holders.
    async fn holds_twice(ctx: Context) -> Result<(), Failed> {
        let options = ctx.options()?;
        let one = memory::Store::new().connect(&options)?.lock("x").acquire().await?;
        let two = memory::Store::new().connect(&options)?.lock("x").acquire().await?;
        two.release().await?;
        Ok(one.release().await?)
    }
    let failed = text(&Case::new(holds_twice));
    assert!(failed.contains("two valid holders"), "{failed}");
    assert!(failed.contains("its history is in "), "{failed}");
}

#[test]
fn what_is_left_behind_fails() {
    async fn leaves(ctx: Context) -> Result<(), Failed> {
        let guard = ctx.coordinator().await?.lock("x").acquire().await?;
        let left = ctx.assert_nothing_left_within(Duration::from_millis(100)).await;
        drop(guard);
        left
    }
    let failed = text(&Case::new(leaves));
    assert!(failed.contains("left behind after 100ms") && failed.contains("/lock/x"), "{failed}");
}

#[test]
fn what_the_store_has_not_got_skips_a_case_with_the_reason() {
    async fn never(_: Context) -> Result<(), Failed> {
        Err("it ran")?
    }
    async fn finds_out(_: Context) -> Result<(), Failed> {
        Err(Failed::skipped("too old"))
    }
    for (need, reason) in [
        (Need::SecondProcess, "the store lives in this process"),
        (Need::Proxy, "the store lives in this process"),
        (Need::KillServer, "the store lives in this process"),
        (Need::Cluster, "the store has no members that could do without one of them"),
        (Need::Tamper(Tamper::Overwrite), "nobody can do this to the store from outside"),
    ] {
        let case = Case { needs: Vec::leak(vec![need]), ..Case::new(never) };
        let skipped = run(&case).unwrap_err();
        assert!(skipped.is_skipped());
        assert_eq!(skipped.reason(), reason);
    }
    assert!(run(&Case::new(finds_out)).unwrap_err().is_skipped());
    let fair = text(&Case::new(never).needs(&[Need::Fair]));
    assert!(fair.starts_with("it ran"), "{fair}");
}
