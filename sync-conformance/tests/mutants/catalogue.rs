//! Which faults there are, and which cases catch them.

use std::{env, fs, iter};

use libtest_mimic::Failed;

use crate::broken::Defect;

/// What a variant is run against.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Store {
    Memory,
    Redis,
    Etcd,
    EtcdCluster,
    Consul,
    ConsulCluster,
}

impl Store {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Redis => "redis",
            Self::Etcd => "etcd",
            Self::EtcdCluster => "etcd-cluster",
            Self::Consul => "consul",
            Self::ConsulCluster => "consul-cluster",
        }
    }
}

/// What the fault is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Core,
    Store,
    Redis,
    Etcd,
    Consul,
}

impl Part {
    const ALL: [Self; 5] = [Self::Core, Self::Store, Self::Redis, Self::Etcd, Self::Consul];

    const fn name(self) -> &'static str {
        match self {
            Self::Core => "core",
            Self::Store => "store",
            Self::Redis => "redis",
            Self::Etcd => "etcd",
            Self::Consul => "consul",
        }
    }

    const fn title(self) -> &'static str {
        match self {
            Self::Core => "The core",
            Self::Store => "A store and its backend",
            Self::Redis => "The scripts of sync-redis",
            Self::Etcd => "The protocol of sync-etcd",
            Self::Consul => "The protocol of sync-consul",
        }
    }
}

/// A deliberate fault.
#[derive(Debug, Clone)]
pub(crate) struct Variant {
    part: Part,
    /// Its name within its part.
    fault: &'static str,
    what: &'static str,
    /// What `SYNC_MUTANT` is set to.
    pub(crate) chosen: String,
    store: Store,
    /// Each of these must fail.
    pub(crate) cases: &'static [&'static str],
}

impl Variant {
    fn new(part: Part, fault: &'static str, what: &'static str) -> Self {
        let (store, cases) = caught_by(part, fault);
        let chosen = match part {
            Part::Core => fault.to_owned(),
            part => format!("{}:{fault}", part.name()),
        };
        Self { part, fault, what, chosen, store, cases }
    }

    pub(crate) fn name(&self) -> String {
        format!("{}::{}", self.part.name(), self.fault)
    }

    pub(crate) fn cases(&self) -> impl Iterator<Item = (Store, &'static str)> + use<> {
        let store = self.store;
        self.cases.iter().map(move |case| (store, *case))
    }
}

/// The faults of a crate, which has none in a build that is not made for them.
macro_rules! faults {
    ($part:expr, $krate:ident) => {{
        #[cfg(sync_mutants)]
        let all = $krate::mutant::ALL;
        #[cfg(not(sync_mutants))]
        let all: &[(&str, &str)] = &[];
        all.iter().map(|(fault, what)| Variant::new($part, fault, what))
    }};
}

pub(crate) fn all() -> Vec<Variant> {
    let store = Defect::ALL.iter();
    let store = store.map(|defect| Variant::new(Part::Store, defect.name(), defect.what()));
    faults!(Part::Core, sync_core)
        .chain(store)
        .chain(faults!(Part::Redis, sync_redis))
        .chain(faults!(Part::Etcd, sync_etcd))
        .chain(faults!(Part::Consul, sync_consul))
        .collect()
}

/// The cases that must fail, and the store against which they are run.
fn caught_by(part: Part, fault: &str) -> (Store, &'static [&'static str]) {
    match part {
        Part::Core => by_core(fault),
        Part::Store => (Store::Memory, by_store(fault)),
        Part::Redis => (Store::Redis, by_redis(fault)),
        Part::Etcd => by_etcd(fault),
        Part::Consul => by_consul(fault),
    }
}

fn by_core(fault: &str) -> (Store, &'static [&'static str]) {
    let on_redis: &[&str] = match fault {
        "renewal-loss-ignored" => &["revocation::a_removed_key_is_told"],
        "unnamed-extended" => &["revocation::a_renewal_extends_what_it_named_alone"],
        "alike-records" => &["unanswered::a_late_update_undoes_no_return_to_what_was"],
        "unfenced" => &[
            "fencing::a_fence_refuses_who_was_overtaken",
            "failover::a_stopped_holder_is_lost_at_its_first_look",
        ],
        _ => &[],
    };
    if !on_redis.is_empty() {
        return (Store::Redis, on_redis);
    }
    let cases: &[&str] = match fault {
        "deadline-from-answer" => {
            &["revocation::the_deadline_of_a_renewal_counts_from_its_sending"]
        }
        "flag-only" => &[
            "revocation::a_program_that_slept_sees_the_loss_at_its_first_look",
            "status::the_status_reads_the_clock",
        ],
        "late-reply-revives" => &["revocation::a_late_reply_revives_nothing"],
        "never-revoked" => &["revocation::it_is_told_once_to_everybody"],
        "plain-release" => &[
            "unanswered::a_late_attempt_past_the_abandon",
            "unanswered::a_late_attempt_past_the_release",
        ],
        "cancel-leaves-key" => &["cancellation::dropped_at_every_await_point_of_a_free_name"],
        "release-before-end" => &["run::a_run_releases_after_its_body"],
        "loss-ignored" => &["revocation::a_lost_session_takes_all_its_claims_along"],
        "no-margin" => &["revocation::the_deadline_of_a_renewal_counts_from_its_sending"],
        "early-end" => &["revocation::what_is_taken_off_a_ttl_is_left_to_the_holder"],
        "dead-session" => &["revocation::nothing_is_granted_on_a_dying_session"],
        "fresh-nonce" => &["unanswered::a_lost_answer_is_one_grant_not_two"],
        "keeps-place" => &["waiting::a_wait_that_is_used_up_leaves_no_place_in_line"],
        "ends-once" => &["release::a_release_whose_request_is_lost_is_repeated"],
        "hints-believed" => &["waiting::hints_in_vain_are_not_followed_all_the_time"],
        "newest-first" => &["order::tasks_of_one_process_are_served_in_the_order_they_came"],
        "told-after" => &["history::the_observer_is_told_before_anything_is_visible"],
        "valid-while-released" => &["release::a_guard_is_over_before_its_release_is_answered"],
        "body-runs-on" => &["run::a_run_stops_its_body_on_a_loss"],
        "body-believed" => &["run::a_run_whose_body_outlasts_the_loss_fails"],
        "closed-not-told" => &["lifecycle::a_shutdown_wakes_who_waits"],
        _ => &[],
    };
    (Store::Memory, cases)
}

fn by_store(fault: &str) -> &'static [&'static str] {
    match fault {
        "no-exclusion" => {
            &["exclusion::a_second_coordinator_waits", "exclusion::many_coordinators"]
        }
        "token-repeats" => &["fencing::tokens_grow_from_holder_to_holder"],
        "new-token" => &["fencing::a_repeated_attempt_is_told_its_first_token"],
        "ends-anothers" => &["unanswered::a_late_release_spares_a_newer_claim"],
        "never-renews" => &["lifecycle::guards_outlive_their_last_coordinator"],
        "hides-losses" => {
            &["revocation::a_removed_key_is_told", "revocation::an_ended_session_is_told"]
        }
        "never-expires" => &["release::a_guard_can_be_dropped_when_its_runtime_is_gone"],
        "expires-early" => &["revocation::it_is_told_while_a_renewal_hangs"],
        "closes-nothing" => &["release::releasing_what_was_lost_says_why"],
        "keeps-place" => &["waiting::a_wait_that_is_used_up_leaves_no_place_in_line"],
        "always-queues" => &["waiting::a_wait_of_zero_tries_once"],
        "newest-first" => &["order::coordinators_are_served_in_the_order_they_came"],
        "never-wakes" => &["waiting::a_release_wakes_the_next_at_once"],
        "void-ignored" => &["unanswered::a_late_attempt_past_the_abandon"],
        "updates-blindly" => &["unanswered::a_late_update_undoes_no_later_one"],
        "stale-holder" => &["status::an_update_is_seen_and_changes_no_token"],
        "never-changes" => &["status::a_stream_shows_every_last_state"],
        "names-collide" => &["names::a_name_and_what_lies_below_it_disturb_one_another_never"],
        "kinds-collide" => &["names::a_lock_and_an_election_of_one_name_are_different_things"],
        "namespaces-collide" => &["names::two_namespaces_disturb_one_another_never"],
        "sees-nothing-left" => &["harness::leftovers_tell_what_is_held_and_who_waits"],
        "tampers-not" => &["harness::a_deleted_key_is_held_by_nobody"],
        _ => &[],
    }
}

fn by_redis(fault: &str) -> &'static [&'static str] {
    match fault {
        "rounded-token" => &["fencing::two_acquisitions_in_immediate_succession_differ"],
        "plain-del" => &["unanswered::a_late_release_spares_a_newer_claim"],
        "no-void" => &["unanswered::a_late_attempt_past_the_abandon"],
        "renews-anothers" => &["revocation::an_overwritten_key_is_told"],
        "updates-blindly" => &["unanswered::a_late_update_undoes_no_later_one"],
        "newcomers-first" => &["order::who_asks_without_waiting_passes_nobody"],
        "no-message" => &["waiting::a_release_wakes_the_next_at_once"],
        "dead-wait-on" => &["order::a_killed_waiter_is_passed_over"],
        _ => &[],
    }
}

fn by_etcd(fault: &str) -> (Store, &'static [&'static str]) {
    let of_a_cluster: &[&str] = match fault {
        "one-member" => &[
            "cluster::a_leading_member_is_killed_while_a_lock_is_handed_over",
            "cluster::a_member_that_refuses_is_left_before_the_deadline",
        ],
        "silence-trusted" => &["cluster::a_member_that_falls_silent_is_left_before_the_deadline"],
        _ => &[],
    };
    if !of_a_cluster.is_empty() {
        return (Store::EtcdCluster, of_a_cluster);
    }
    let cases: &[&str] = match fault {
        "everybody-first" => &["exclusion::a_second_coordinator_waits"],
        "strangers-hold" => &["strangers::a_key_that_is_no_claim_blocks_nobody"],
        "always-queues" => &["waiting::a_wait_of_zero_tries_once"],
        "no-compare" | "no-marker" => &["unanswered::a_late_attempt_past_the_abandon"],
        "shared-key" => &["exclusion::two_claims_of_one_session_exclude_each_other"],
        "grants-unread" => &["waiting::a_place_that_was_removed_is_not_granted"],
        "watches-unread" => &["waiting::a_release_before_the_wait_has_begun_wakes_too"],
        "unguarded" => &["revocation::a_removed_key_is_told"],
        "ends-uncompared" => &["release::a_repeated_release_spares_a_newer_claim_of_its_session"],
        "closes-nothing" => &["release::releasing_what_was_lost_says_why"],
        "update-detaches" => &["status::an_update_is_seen_and_changes_no_token"],
        "updates-blindly" => &["unanswered::a_late_update_undoes_no_later_one"],
        "token-of-record" => &["status::an_update_is_seen_and_changes_no_token"],
        "ttl-doubled" => &["revocation::a_partitioned_holder_is_told"],
        "dead-renewed" => &["renewal::a_renewal_tells_that_its_session_was_ended"],
        "token-kept" => &["waiting::a_waiter_does_not_ask_all_the_time"],
        _ => &[],
    };
    (Store::Etcd, cases)
}

fn by_consul(fault: &str) -> (Store, &'static [&'static str]) {
    let of_a_cluster: &[&str] = match fault {
        "one-agent" => &["cluster::a_member_that_refuses_is_left_before_the_deadline"],
        "silence-trusted" => &["cluster::a_member_that_falls_silent_is_left_before_the_deadline"],
        _ => &[],
    };
    if !of_a_cluster.is_empty() {
        return (Store::ConsulCluster, of_a_cluster);
    }
    let cases: &[&str] = match fault {
        "key-may-exist" => &["exclusion::two_claims_of_one_session_exclude_each_other"],
        "no-compare" | "no-marker" => &["unanswered::a_late_attempt_past_the_abandon"],
        "key-left" => &["unanswered::a_try_without_an_answer_says_so_and_leaves_nothing"],
        "ends-uncompared" => &["release::a_repeated_release_spares_a_newer_claim_of_its_session"],
        "newcomers-first" => &["order::who_asks_without_waiting_passes_nobody"],
        "everybody-first" => &["order::coordinators_are_served_in_the_order_they_came"],
        "tickets-alike" => &["order::whoever_stood_before_one_and_is_back_stands_behind"],
        "keeps-place" => &["waiting::a_wait_that_is_used_up_leaves_no_place_in_line"],
        "always-queues" => &["waiting::a_wait_of_zero_tries_once"],
        "waits-unread" => &["waiting::a_release_before_the_wait_has_begun_wakes_too"],
        "never-woken" => &["order::coordinators_are_served_in_the_order_they_came"],
        "unguarded" => &["revocation::a_removed_key_is_told"],
        "nonce-unread" => &["revocation::an_overwritten_key_is_told"],
        "closes-nothing" => &["release::releasing_what_was_lost_says_why"],
        "dead-renewed" => &["renewal::a_renewal_tells_that_its_session_was_ended"],
        "ttl-doubled" => &["revocation::the_deadline_of_a_session_counts_from_its_sending"],
        "updates-blindly" => &["unanswered::a_late_update_undoes_no_later_one"],
        "token-of-record" => &["status::an_update_is_seen_and_changes_no_token"],
        "elections-try-first" => &["status::who_gives_way_is_never_shown"],
        _ => &[],
    };
    (Store::Consul, cases)
}

const HEAD: &str = "\
# What the suite catches

Each line is a deliberate fault, and the cases of the shared suite that must fail for it. Without a
fault the same cases pass. `scripts/mutants` proves both, and writes this table (`WRITE_DOCS=1`);
a case that notices nothing fails it.

A fault of the core stands in `sync-core/src/mutant.rs`, one of a crate in its own, and they exist
only under `--cfg sync_mutants`; those of a store are a decorator around the one in memory, in
`sync-conformance/tests/mutants`.
";

/// The document.
pub(crate) fn table(variants: &[Variant]) -> String {
    let parts = Part::ALL.into_iter().flat_map(|part| {
        let head = format!(
            "\n## {}\n\n| fault | what is wrong | caught by |\n|---|---|---|\n",
            part.title()
        );
        let of_part = variants.iter().filter(move |variant| variant.part == part);
        let lines = of_part.map(|variant| {
            let cases: Vec<_> = variant.cases.iter().map(|case| format!("`{case}`")).collect();
            format!("| `{}` | {} | {} |\n", variant.fault, variant.what, cases.join(", "))
        });
        iter::once(head).chain(lines)
    });
    iter::once(HEAD.to_owned()).chain(parts).collect()
}

/// Compares the document with what has been proven, or writes it.
pub(crate) fn compare(table: &str) -> Result<(), Failed> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/mutants.md");
    if env::var_os("WRITE_DOCS").is_some() {
        return Ok(fs::write(path, table)?);
    }
    match fs::read_to_string(path)? == table {
        true => Ok(()),
        false => Err("docs/mutants.md is not up to date: WRITE_DOCS=1 scripts/mutants the_table")?,
    }
}
