//! Names, namespaces and what else is refused before anything is sent.

use std::collections::BTreeMap;
use std::time::Duration;

use sync_core::{
    Backend, Coordinator, Error, ErrorKind, Kind, LONGEST_NAME, LONGEST_RECORD, Name, Node,
    Options, SeededRng,
};

use super::wants::{BOTH, Taken, Want, below};
use crate::context::Context;
use crate::failed::Failed;
use crate::fault::{Faults, Verb};
use crate::suite::Case;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::new(names_disturb_one_another_never),
        Case::new(a_name_and_what_lies_below_it_disturb_one_another_never),
        Case::new(a_lock_and_an_election_of_one_name_are_different_things),
        Case::new(hostile_names_wait_and_are_woken_like_any_other),
        Case::new(keys_are_injective_and_keep_to_their_namespace),
        Case::new(two_namespaces_disturb_one_another_never),
        Case::new(a_name_that_cannot_be_one_is_refused_before_anything_is_sent),
        Case::new(a_namespace_that_cannot_be_one_is_refused),
        Case::new(a_ttl_that_the_store_cannot_keep_is_refused_before_anything_is_sent),
        Case::new(a_node_that_cannot_be_recorded_is_refused_before_anything_is_sent),
    ]
}

/// Each means something to some store, protocol, shell or screen.
const HOSTILE: &[&str] = &[
    "a",
    "A",
    "a/b",
    "a/b/",
    "/a",
    "a//b",
    "/",
    "//",
    ".",
    "..",
    "../a",
    "a/../b",
    "./a",
    "a/.",
    "%2f",
    "%2F",
    "a%2fb",
    "a%00",
    "%",
    "=",
    "=2F",
    "a=2Fb",
    "a=2fb",
    "?",
    "a?b=c",
    "#",
    "a#b",
    "&",
    "{}",
    "{a}",
    "}{",
    "{",
    "a}b",
    "[a-z]",
    "*",
    "a*",
    "\\",
    "\\n",
    "\\x00",
    "'",
    "\"",
    "`",
    "$(a)",
    "$a",
    ";",
    "a;b",
    "|",
    "<a>",
    "!",
    "~",
    "^",
    "-",
    "--",
    "-a",
    "_",
    "+",
    ",",
    "@",
    ":",
    "a:b",
    " ",
    "a ",
    " a",
    "a b",
    "lock",
    "leader",
    "line",
    "void",
    "wake",
    ".lock",
    "a/.lock",
    "a:token",
    "a:line",
    "a:holder",
    "sync",
    "null",
    "0",
    "00",
    "é",
    "e\u{301}",
    "ß",
    "SS",
    "İ",
    "ı",
    "Ａ",
    "а",
    "\u{202e}a",
    "a\u{202c}",
    "\u{200b}",
    "\u{200d}",
    "\u{feff}a",
    "\u{a0}",
    "日本語",
    "👩\u{200d}👩",
    "\u{10ffff}",
    "true",
    "EVAL",
    "a\u{2028}b",
];

/// Every hostile name, and some that are as long as a name may be.
fn hostile() -> Vec<String> {
    let mut names: Vec<String> = HOSTILE.iter().map(|name| (*name).to_owned()).collect();
    names.extend([
        "a".repeat(LONGEST_NAME),
        "/".repeat(LONGEST_NAME),
        "é".repeat(LONGEST_NAME / 2),
    ]);
    names.push(format!("{}b", "a".repeat(LONGEST_NAME - 1)));
    names
}

async fn names_disturb_one_another_never(ctx: Context) -> Result<(), Failed> {
    let (one, two) = (ctx.coordinator().await?, ctx.coordinator().await?);
    let mut all = Vec::new();
    // All of them at once, locks and elections: a name that met another would not be free.
    for kind in BOTH {
        for name in hostile() {
            let taken = Want::new(&one, kind, &name).try_take().await?;
            all.push((kind, taken.ok_or_else(|| format!("{kind} {name:?} meets another"))?));
        }
    }
    let mut tokens = BTreeMap::new();
    for (kind, taken) in &all {
        let want = Want::new(&two, *kind, taken.name());
        assert!(want.try_take().await?.is_none(), "{taken:?} is not held");
        let holder = want.holder().await?.ok_or_else(|| format!("nobody holds {taken:?}"))?;
        assert_eq!(holder.token, Some(taken.token()), "{taken:?}");
        tokens.insert((*kind, taken.name().to_owned()), taken.token());
    }
    assert_eq!(tokens.len(), 2 * hostile().len());
    // One after the other goes, and each time only that one.
    while let Some((kind, taken)) = all.pop() {
        let name = taken.name().to_owned();
        taken.give_back().await?;
        assert!(Want::new(&two, kind, &name).holder().await?.is_none(), "{kind} {name:?} stays");
        if let Some((_, before)) = all.last() {
            assert!(before.is_valid());
        }
    }
    ctx.assert_nothing_left().await
}

async fn a_name_and_what_lies_below_it_disturb_one_another_never(
    ctx: Context,
) -> Result<(), Failed> {
    const NESTED: [&str; 4] = ["a/b/c", "a", "a/b", "a/"];
    let (one, two) = (ctx.coordinator().await?, ctx.coordinator().await?);
    for kind in BOTH {
        for held in NESTED {
            let guard = Want::new(&one, kind, held).take().await?;
            for other in NESTED.into_iter().filter(|other| *other != held) {
                // Neither held, nor in line, nor woken by one another.
                let free = Want::new(&two, kind, other).wait(ctx.long());
                free.take().await?.give_back().await?;
            }
            guard.give_back().await?;
        }
    }
    ctx.assert_nothing_left().await
}

async fn a_lock_and_an_election_of_one_name_are_different_things(
    ctx: Context,
) -> Result<(), Failed> {
    let (one, two) = (ctx.coordinator().await?, ctx.coordinator().await?);
    for name in ["x", "lock", "leader", "lock/x", "leader/x"] {
        let lock = one.lock(name).acquire().await?;
        assert!(two.leader(name).leader().await?.is_none());
        let elected = two.leader(name).try_elect().await?.ok_or("the lock keeps the election")?;
        let (holder, leader) = (two.lock(name).holder().await?, one.leader(name).leader().await?);
        assert_eq!(holder.ok_or("nobody")?.token, Some(lock.token()));
        assert_eq!(leader.ok_or("nobody")?.token, Some(elected.token()));
        assert_ne!(one.lock(name).key()?, one.leader(name).key()?);
        lock.release().await?;
        assert!(elected.is_valid());
        assert!(two.lock(name).holder().await?.is_none());
        assert!(one.leader(name).leader().await?.is_some());
        elected.resign().await?;
    }
    ctx.assert_nothing_left().await
}

async fn hostile_names_wait_and_are_woken_like_any_other(ctx: Context) -> Result<(), Failed> {
    let one = ctx.coordinator().await?;
    let (two, faults) = ctx.faulty().await?;
    for kind in BOTH {
        let mut held = Vec::new();
        let mut waiting = Vec::new();
        for name in hostile() {
            held.push(Want::new(&one, kind, &name).take().await?);
            waiting.push(Want::new(&two, kind, &name).wait(ctx.long() * 2).taking());
        }
        let count = waiting.len();
        ctx.eventually(ctx.long(), || async { Ok(faults.calls(Verb::Wait) >= count) }).await?;
        for taken in held {
            taken.give_back().await?;
        }
        for task in waiting {
            task.await??.give_back().await?;
        }
    }
    ctx.assert_nothing_left().await
}

async fn keys_are_injective_and_keep_to_their_namespace(ctx: Context) -> Result<(), Failed> {
    const GENERATED: usize = 5_000;
    let random = SeededRng::new(4);
    let mut names: Vec<String> = hostile();
    names.extend((0..GENERATED).map(|_| generated(&random)));
    let inside = format!("{}/inside", ctx.namespace());
    let backends = [
        (ctx.namespace().to_owned(), ctx.backend().await?),
        (inside.clone(), backend_in(&ctx, &inside).await?),
    ];
    let mut keys: BTreeMap<String, (String, Kind, String)> = BTreeMap::new();
    for (namespace, backend) in &backends {
        let parts: Vec<&str> = namespace.split('/').collect();
        let prefixes = ["/", ":"].map(|separator| parts.join(separator) + separator);
        for name in &names {
            for kind in BOTH {
                let key = backend.key(kind, &Name::parse(name)?);
                let below = prefixes.iter().any(|prefix| key.starts_with(prefix));
                assert!(below, "{key:?} is not below {namespace:?}");
                assert!(key.chars().all(|c| c.is_ascii_graphic()), "{key:?} of {name:?}");
                assert_eq!(key, backend.key(kind, &Name::parse(name)?));
                let this = (namespace.clone(), kind, name.clone());
                let other = keys.insert(key.clone(), this.clone());
                assert!(other.is_none_or(|other| other == this), "{this:?} is not alone at {key}");
            }
        }
    }
    // Nor is any the folder of another: a listing of the one would show the other.
    for key in keys.keys() {
        for separator in ["/", ":"] {
            let folder = format!("{key}{separator}");
            let below = keys.range(folder.clone()..).next();
            assert!(below.is_none_or(|(other, _)| !other.starts_with(&folder)), "{folder} is one");
        }
    }
    Ok(())
}

/// A short name of what could be mistaken for something else.
fn generated(random: &SeededRng) -> String {
    const PIECES: &[&str] = &[
        "a",
        "A",
        "b",
        "/",
        "/",
        "=",
        "=2F",
        "%",
        "%2F",
        ":",
        ".",
        "..",
        "-",
        "_",
        "{",
        "}",
        " ",
        "é",
        "e\u{301}",
        "\u{202e}",
        "日",
        "2F",
        "2",
        "F",
        "\\",
        "\"",
        "lock",
        "void",
        "\u{10ffff}",
    ];
    let pieces = 1 + below(random, 8);
    (0..pieces).map(|_| PIECES[below(random, PIECES.len())]).collect()
}

async fn backend_in(ctx: &Context, namespace: &str) -> Result<std::sync::Arc<dyn Backend>, Failed> {
    let options = ctx.options_in(namespace)?;
    Ok(ctx.store().connect(&ctx.server().url(), &options).await?)
}

async fn two_namespaces_disturb_one_another_never(ctx: Context) -> Result<(), Failed> {
    let own = ctx.namespace().to_owned();
    let beside = |more: &str| format!("{own}{more}");
    let namespaces =
        [own.clone(), beside("/a"), beside("/a/b"), beside("a"), beside("/A"), beside("/a=2Fb")];
    let mut all = Vec::new();
    for namespace in &namespaces {
        let sync = ctx.coordinator_with(ctx.options_in(namespace)?).await?;
        for name in ["x", "a", "a/x", "a/b/x", "lock/x"] {
            for kind in BOTH {
                let taken = Want::new(&sync, kind, name).try_take().await?;
                let met = || format!("{kind} {name:?} in {namespace:?} meets another");
                all.push((sync.clone(), taken.ok_or_else(met)?));
            }
        }
    }
    for (sync, taken) in &all {
        let kind = if matches!(taken, Taken::Lock(_)) { Kind::Lock } else { Kind::Leader };
        let holder = Want::new(sync, kind, taken.name()).holder().await?;
        assert_eq!(holder.ok_or("nobody")?.token, Some(taken.token()));
    }
    for (_, taken) in all {
        taken.give_back().await?;
    }
    for namespace in &namespaces {
        let left = ctx.store().leftovers(&ctx.server().url(), namespace).await?;
        assert!(left.is_empty(), "in {namespace:?}: {left:?}");
    }
    Ok(())
}

/// That nothing at all has been asked of the store.
fn assert_nothing_sent(faults: &Faults) {
    let verbs = [
        Verb::Open,
        Verb::TryClaim,
        Verb::Update,
        Verb::End,
        Verb::Holder,
        Verb::Watch,
        Verb::Wait,
    ];
    for verb in verbs {
        assert_eq!(faults.calls(verb), 0, "{verb:?}");
    }
}

async fn a_name_that_cannot_be_one_is_refused_before_anything_is_sent(
    ctx: Context,
) -> Result<(), Failed> {
    let (sync, faults) = ctx.faulty().await?;
    let too_long = [
        "a".repeat(LONGEST_NAME + 1),
        "é".repeat(LONGEST_NAME / 2 + 1),
        "é".repeat(LONGEST_NAME * 1_000),
    ];
    let refused = ["", "\0", "a\0", "a\nb", "\r", "a\r\nb", "\t", "\u{1b}[31m", "\u{7f}", "\u{85}"];
    for name in refused.into_iter().chain(too_long.iter().map(String::as_str)) {
        for kind in BOTH {
            let want = Want::new(&sync, kind, name);
            let brief = want.clone().wait(Duration::ZERO);
            let errors = [
                want.take().await.map(drop).err(),
                brief.take().await.map(drop).err(),
                want.try_take().await.map(drop).err(),
                want.holder().await.map(drop).err(),
                want.key().map(drop).err(),
            ];
            for (at, error) in errors.into_iter().enumerate() {
                let error = error.ok_or_else(|| format!("{name:?} is taken for a name ({at})"))?;
                assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
                assert!(error.to_string().len() < 1_000, "{error}");
            }
        }
        assert_eq!(sync.leader(name).changes().err().map(|e| e.kind()), Some(ErrorKind::Invalid));
        let ran = sync.lock(name).run(|_| async {}).await;
        assert_eq!(ran.err().map(|e| e.kind()), Some(ErrorKind::Invalid));
    }
    assert_nothing_sent(&faults);
    // What was refused is no obstacle, and neither is a name as long as may be.
    sync.lock("a".repeat(LONGEST_NAME)).acquire().await?.release().await?;
    ctx.assert_nothing_left().await
}

/// What comes of these options with this store.
async fn made_with(ctx: &Context, options: &Options) -> Result<Coordinator, Error> {
    let backend = ctx.store().connect(&ctx.server().url(), options).await?;
    Coordinator::new(backend, options)
}

async fn a_namespace_that_cannot_be_one_is_refused(ctx: Context) -> Result<(), Failed> {
    let too_long = ["a".repeat(LONGEST_NAME + 1), "a".repeat(LONGEST_NAME * 1_000)];
    let reserved = ["lock", "leader", "line", "void", "wake", "a/lock", "lock/a", "a/void/b"];
    let refused = ["", "/", "a/", "/a", "a//b", "a\nb", "\0", &too_long[0], &too_long[1]];
    for namespace in refused.into_iter().chain(reserved) {
        let options = ctx.options()?.namespace(namespace);
        let error = made_with(&ctx, &options).await.err();
        let error = error.ok_or_else(|| format!("{namespace:?} is taken for a namespace"))?;
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        let escaped = match namespace.len() > LONGEST_NAME {
            // Enough to tell which it is.
            true => namespace[..40].to_owned(),
            false => format!("{namespace:?}"),
        };
        assert!(error.to_string().contains(&escaped), "{error} does not name {escaped}");
    }
    Ok(())
}

async fn a_ttl_that_the_store_cannot_keep_is_refused_before_anything_is_sent(
    ctx: Context,
) -> Result<(), Failed> {
    let (sync, faults) = ctx.faulty().await?;
    let profile = ctx.backend().await?.profile().clone();
    let below = profile.shortest_ttl.saturating_sub(Duration::from_nanos(1));
    let above = profile.longest_ttl + Duration::from_nanos(1);
    for (ttl, bound) in [
        (below, profile.shortest_ttl),
        (Duration::ZERO, profile.shortest_ttl),
        (above, profile.longest_ttl),
        (Duration::MAX, profile.longest_ttl),
    ] {
        for kind in BOTH {
            let want = Want::new(&sync, kind, "x").ttl(ttl);
            for error in [want.take().await.err(), want.try_take().await.err()] {
                let error = error.ok_or_else(|| format!("a TTL of {ttl:?} is taken"))?;
                assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
                let text = error.to_string();
                let both = [format!("{ttl:?}"), format!("{bound:?}")];
                assert!(both.iter().all(|value| text.contains(value)), "{text}");
            }
        }
        let error = made_with(&ctx, &ctx.options()?.ttl(ttl)).await.err();
        assert_eq!(error.map(|error| error.kind()), Some(ErrorKind::Invalid));
    }
    assert_nothing_sent(&faults);
    Ok(())
}

async fn a_node_that_cannot_be_recorded_is_refused_before_anything_is_sent(
    ctx: Context,
) -> Result<(), Failed> {
    let (sync, faults) = ctx.faulty().await?;
    let huge = Node::new("n").metadata("k", "v".repeat(LONGEST_RECORD));
    let nodes = [huge, Node::new("").address("h:1")];
    let mut errors = Vec::new();
    for node in &nodes {
        errors.extend(sync.lock("x").node(node.clone()).acquire().await.err());
        errors.extend(sync.lock("x").node(node.clone()).try_acquire().await.err());
        errors.extend(sync.leader("x").node(node.clone()).elect().await.err());
        errors.extend(sync.leader("x").node(node.clone()).try_elect().await.err());
    }
    assert_eq!(errors.len(), 8);
    assert_nothing_sent(&faults);
    let elected = sync.leader("x").node(Node::new("small")).elect().await?;
    for node in nodes {
        errors.extend(elected.update(node).await.err());
    }
    assert_eq!(errors.len(), 10);
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    }
    assert_eq!(faults.calls(Verb::Update), 0);
    assert!(elected.is_valid());
    let leader = sync.leader("x").leader().await?.ok_or("nobody leads")?;
    assert_eq!(leader.node.id, "small");
    // As long as may be, it is kept whole.
    let large = Node::new("n").metadata("k", "v".repeat(LONGEST_RECORD - 512));
    elected.update(large.clone()).await?;
    assert_eq!(sync.leader("x").leader().await?.map(|leader| leader.node), Some(large));
    elected.resign().await?;
    ctx.assert_nothing_left().await
}
