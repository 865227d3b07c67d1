//! What stands on the command line.

use std::ffi::OsString;
use std::fmt;
use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, CommandFactory, FromArgMatches};
use sync_core::{InvalidName, Kind, Name, Namespace, Node, Options};

/// Which store an example is for.
///
/// ```
/// use sync_conformance::cli::About;
///
/// let url = "redis://HOST[:PORT] [default: redis://127.0.0.1:6379]";
/// let about = About { name: "redis", title: "Redis or Valkey", url };
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct About {
    /// What its programs' names begin with: `redis` makes `redis-lock` and `redis-elect`.
    pub name: &'static str,
    /// What it is called in a sentence.
    pub title: &'static str,
    /// What `--url` looks like, and what counts where it is missing.
    pub url: &'static str,
}

/// What an example connects to, and how.
///
/// ```
/// use sync_conformance::cli::Target;
/// use sync_core::{Coordinator, Error, memory};
///
/// async fn connect(target: Target) -> Result<Coordinator, Error> {
///     memory::Store::new().connect(&target.options)
/// }
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub struct Target {
    /// `--url`, if it was given. May hold a password.
    pub url: Option<String>,
    /// `--ttl`, if it was given. It is in the options too.
    pub ttl: Option<Duration>,
    /// Namespace, TTL and node, as given.
    pub options: Options,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target").field("options", &self.options).finish_non_exhaustive()
    }
}

/// How long a release may take once COMMAND has ended by itself, and the shutdown after it.
const RELEASE_WITHIN: Duration = Duration::from_millis(2_500);

/// Everything that an example is to do.
pub(super) struct Plan {
    /// The name it calls itself.
    pub(super) program: String,
    pub(super) kind: Kind,
    pub(super) name: String,
    pub(super) wait: Option<Duration>,
    /// Empty: none.
    pub(super) command: Vec<OsString>,
    target: Target,
}

impl Plan {
    pub(super) fn lock(
        about: &About,
        arguments: impl IntoIterator<Item = OsString>,
    ) -> Result<Self, clap::Error> {
        let program = format!("{}-lock", about.name);
        let summary = format!(
            "Runs COMMAND while it holds a lock on {}, with its fencing token in SYNC_TOKEN.",
            about.title
        );
        let LockLine { claim, command } = parse(&program, summary, about, arguments)?;
        Ok(Self::new(program, Kind::Lock, claim, Options::new(), command))
    }

    pub(super) fn elect(
        about: &About,
        arguments: impl IntoIterator<Item = OsString>,
    ) -> Result<Self, clap::Error> {
        let program = format!("{}-elect", about.name);
        let summary = format!(
            "Campaigns on {} and runs COMMAND while elected, with the term's fencing token in SYNC_TOKEN.\n\
             After a loss it stops COMMAND, campaigns again, and starts COMMAND in the next term.\n\
             Without COMMAND it campaigns too, holds the leadership doing nothing, and prints\n\
             `leader ID token=N` or `leader none` at each change.",
            about.title
        );
        let ElectLine { claim, node, address, command } =
            parse(&program, summary, about, arguments)?;
        let node = Node::new(node).address(address.unwrap_or_default());
        Ok(Self::new(program, Kind::Leader, claim, Options::new().node(node), command))
    }

    fn new(
        program: String,
        kind: Kind,
        claim: ClaimLine,
        options: Options,
        command: Vec<OsString>,
    ) -> Self {
        let ClaimLine { name, url, namespace, ttl, wait } = claim;
        let mut options = options.release_timeout(RELEASE_WITHIN);
        if let Some(namespace) = namespace {
            options = options.namespace(namespace);
        }
        if let Some(ttl) = ttl {
            options = options.ttl(ttl);
        }
        Self { program, kind, name, wait, command, target: Target { url, ttl, options } }
    }

    pub(super) fn target(&self) -> Target {
        self.target.clone()
    }

    /// How long before the deadline COMMAND is asked to end if no renewal has come.
    pub(super) fn margin(&self) -> Duration {
        const LONGEST: Duration = Duration::from_secs(1);
        self.target.ttl.map_or(LONGEST, |ttl| LONGEST.min(ttl / 6))
    }
}

// No `Debug` on these: a URL may hold a password.
#[derive(Args)]
struct ClaimLine {
    /// What is wanted: 1 to 200 bytes, no control characters
    #[arg(value_name = "NAME", value_parser = name)]
    name: String,
    /// Where the store is
    #[arg(long, value_name = "U")]
    url: Option<String>,
    /// The prefix of all keys [default: sync]
    #[arg(long, value_name = "S", value_parser = namespace)]
    namespace: Option<String>,
    /// How long a dead holder blocks others [default: 15]
    #[arg(long, value_name = "SECS", value_parser = ttl)]
    ttl: Option<Duration>,
    /// How long to wait for a name that is taken; 0 tries once [default: without limit]
    #[arg(long, value_name = "SECS", value_parser = seconds)]
    wait: Option<Duration>,
}

#[derive(Args)]
struct LockLine {
    #[command(flatten)]
    claim: ClaimLine,
    /// What to run
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

#[derive(Args)]
struct ElectLine {
    #[command(flatten)]
    claim: ClaimLine,
    /// Who this candidate is to others
    #[arg(long, value_name = "ID", value_parser = NonEmptyStringValueParser::new())]
    node: String,
    /// Where this candidate can be reached
    #[arg(long, value_name = "A")]
    address: Option<String>,
    /// What to run while elected
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

#[derive(clap::Parser)]
struct Line<T: Args> {
    #[command(flatten)]
    line: T,
}

fn parse<T: Args>(
    program: &str,
    summary: String,
    about: &About,
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<T, clap::Error> {
    let url = format!("Where {} is: {}", about.title, about.url);
    let mut command = Line::<T>::command()
        .name(program.to_owned())
        .bin_name(program.to_owned())
        .about(summary)
        .after_help(after_help(program))
        .mut_arg("url", |argument| argument.help(url));
    let matches = command.try_get_matches_from_mut(arguments)?;
    Line::from_arg_matches(&matches).map(|line| line.line).map_err(|e| e.format(&mut command))
}

/// What both examples have in common; what is different between them is said in both.
fn after_help(program: &str) -> String {
    let lost = if program.ends_with("-lock") {
        "125  lost while COMMAND ran, also if COMMAND ended on our SIGTERM\n  "
    } else {
        ""
    };
    format!(
        "\
SECS may have fractions.

Events, a line each on standard error:
  waiting, held token=N, revoked cause=deadline|session|key|closed, released, timed out

COMMAND gets SIGTERM shortly before the deadline (a sixth of the TTL, at most 1 s) if no renewal
has come, and SIGKILL at the deadline; both at once if the claim is lost otherwise. SIGINT or
SIGTERM to {program} ends the waiting or COMMAND (SIGKILL follows after 1 s), and what is held is
given back.

Limits: COMMAND can outlive a {program} that was itself killed (SIGKILL) or stopped (SIGSTOP):
nobody ends it at the deadline then, and somebody else may hold the name. The same goes for what
COMMAND has itself started and left running. Only the token protects there: let whatever COMMAND
writes to refuse a token lower than one that it has seen.

Exit status:
  COMMAND's own, or 128+N if a signal N killed it
  127  COMMAND cannot be found
  124  not acquired within the wait
  {lost}130  after SIGINT; 143 after SIGTERM
  2    bad usage
  1    any other failure, such as a store that does not answer at the start"
    )
}

fn name(text: &str) -> Result<String, InvalidName> {
    Name::parse(text).map(|_| text.to_owned())
}

fn namespace(text: &str) -> Result<String, InvalidName> {
    Namespace::parse(text).map(|_| text.to_owned())
}

fn ttl(text: &str) -> Result<Duration, String> {
    match seconds(text)? {
        Duration::ZERO => Err("it must be more than 0".to_owned()),
        ttl => Ok(ttl),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds.ok_or_else(|| "not a number of seconds, such as 0 or 1.5".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::error::ErrorKind;

    const ABOUT: About = About { name: "toy", title: "the toy store", url: "toy://HOST" };

    fn lock(line: &str) -> Result<Plan, clap::Error> {
        Plan::lock(&ABOUT, format!("toy-lock {line}").split(' ').map(OsString::from))
    }

    fn elect(line: &str) -> Result<Plan, clap::Error> {
        Plan::elect(&ABOUT, format!("toy-elect {line}").split(' ').map(OsString::from))
    }

    #[test]
    fn everything_that_can_be_given_arrives() {
        let plan =
            lock("a/b --url toy://h --ttl 0.6 --wait 1.5 --namespace n -- sh -c --ttl").unwrap();
        assert_eq!((plan.kind, plan.name.as_str()), (Kind::Lock, "a/b"));
        assert_eq!(plan.command, ["sh", "-c", "--ttl"]);
        assert_eq!(plan.wait, Some(Duration::from_millis(1_500)));
        assert_eq!(plan.margin(), Duration::from_millis(100));
        let target = plan.target();
        assert_eq!(target.url.as_deref(), Some("toy://h"));
        assert_eq!(target.ttl, Some(Duration::from_millis(600)));
        assert_eq!(target.options.parsed_namespace().unwrap().as_str(), "n");

        let plan = elect("e --node n1 --address h:1").unwrap();
        assert_eq!((plan.kind, plan.command.len(), plan.wait), (Kind::Leader, 0, None));
        assert_eq!(plan.margin(), Duration::from_secs(1));
        assert!(format!("{:?}", plan.target().options).contains("h:1"));
    }

    #[test]
    fn nonsense_is_refused() {
        for line in [
            "",
            "a",
            "a --",
            "a sh",
            "-- sh",
            "a --ttl 0 -- sh",
            "a --ttl x -- sh",
            "a --ttl -1 -- sh",
            "a --wait nan -- sh",
            "a --wait inf -- sh",
            "a --wait -- sh",
            "a --wait 1 --wait 2 -- sh",
            "a --namespace lock -- sh",
            "a --node n -- sh",
            "a b -- sh",
            "a\tb -- sh",
        ] {
            let refused = lock(line).err().unwrap_or_else(|| panic!("{line:?} was taken"));
            assert!(refused.use_stderr(), "{line:?}");
        }
        assert!(elect("a").is_err() && elect("a --node  -- sh").is_err());
        let long = format!("{} -- sh", "x".repeat(201));
        assert!(lock(&long).is_err());
    }

    #[test]
    fn the_help_says_what_protects() {
        for help in [lock("--help").err().unwrap(), elect("--help").err().unwrap()] {
            assert_eq!(help.kind(), ErrorKind::DisplayHelp);
            let text = help.to_string();
            assert!(text.contains("COMMAND can outlive"), "{text}");
            assert!(text.contains("Only the token protects there"), "{text}");
            assert!(text.contains("toy://HOST"), "{text}");
        }
    }
}
