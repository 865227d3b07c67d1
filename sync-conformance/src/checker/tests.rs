use super::*;
use crate::history::parse;

/// Judges lines of `at who token what more` about one lock.
fn judge(lines: &str, outside: Outside) -> Report {
    let line = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let [at, who, token, what, more] = columns[..] else { panic!("{line}") };
        format!("{at} {who} sync lock a {token} {what} {more}\n")
    };
    let text: String = lines.trim().lines().map(line).collect();
    check(&parse(&text).unwrap(), outside)
}

/// What is violated, one word for each.
fn violated(lines: &str, outside: Outside) -> Vec<&'static str> {
    let word = |violation: &Violation| match violation {
        Violation::Overlap(..) => "overlap",
        Violation::Early(..) => "early",
        Violation::Token(..) => "token",
        Violation::Revived(..) => "revived",
        Violation::Twice(..) => "twice",
        Violation::Overdue(..) => "overdue",
        Violation::Outside(..) => "outside",
        Violation::Stray(..) => "stray",
    };
    judge(lines, outside).violations.iter().map(word).collect()
}

fn strict(lines: &str) -> Vec<&'static str> {
    violated(lines, Outside::Forbidden)
}

#[test]
fn a_release_and_an_expiry_each_followed_by_a_grant_pass() {
    let report = judge(
        "1.0 p 1 granted 3.0
         2.0 p 1 extended 4.0
         2.5 p 1 revoked released
         2.6 q 2 granted 4.6
         4.9 r 3 granted 6.9
         5.0 r 3 revoked closed
         5.0 r 4 granted 7.0",
        Outside::Forbidden,
    );
    assert!(report.is_clean(), "{report}");
    assert_eq!((report.grants, report.extensions, report.handovers), (4, 1, 2));
    assert_eq!(report.leads.percentile(0), Some(Duration::from_millis(100)));
    assert_eq!(report.leads.percentile(99), Some(Duration::from_millis(300)));
    assert_eq!(report.expired_leads.count(), 1);
    assert_eq!(report.revocations["released"], 1);
}

#[test]
fn two_valid_holders_are_found() {
    assert_eq!(strict("1.0 p 1 granted 3.0\n 2.9 q 2 granted 5.0"), ["overlap"]);
}

#[test]
fn two_valid_holders_are_found_beyond_the_next_grant() {
    let lines = "1.0 p 1 granted 9.0
         2.0 q 2 granted 4.0
         3.0 q 2 revoked released
         5.0 r 3 granted 7.0";
    assert_eq!(strict(lines), ["overlap", "overlap"]);
}

#[test]
fn an_extension_counts_for_the_overlap() {
    let lines = "1.0 p 1 granted 3.0
         2.0 p 1 extended 4.0
         3.5 q 2 granted 5.0";
    assert_eq!(strict(lines), ["overlap"]);
}

#[test]
fn a_killed_holder_holds_to_its_deadline() {
    assert_eq!(strict("1.0 p 1 granted 3.0\n 3.0 q 2 granted 5.0"), [""; 0]);
    assert_eq!(strict("1.0 p 1 granted 3.0\n 2.999999999 q 2 granted 5.0"), ["overlap"]);
}

#[test]
fn a_grant_before_the_earlier_end_is_found_though_it_was_never_valid() {
    let lines = "1.0 p 1 granted 3.0
         2.0 q 2 granted 4.0
         2.0 q 2 revoked released";
    assert_eq!(strict(lines), ["early"]);
}

#[test]
fn a_token_that_repeats_or_falls_is_found() {
    let released = "1.0 p 5 granted 3.0\n 2.0 p 5 revoked released\n";
    assert_eq!(strict(&format!("{released} 2.5 q 5 granted 4.0")), ["token"]);
    assert_eq!(strict(&format!("{released} 2.5 p 5 granted 4.0")), ["token"]);
    assert_eq!(strict(&format!("{released} 2.5 q 4 granted 4.0")), ["token"]);
    assert_eq!(strict(&format!("{released} 2.5 q 6 granted 4.0")), [""; 0]);
    let later = "2.5 q 6 granted 3.0\n 3.5 r 5 granted 4.0";
    assert_eq!(strict(&format!("{released} {later}")), ["token"]);
}

#[test]
fn what_a_stopped_process_wrote_late_is_put_in_order() {
    let lines = "4.0 q 2 granted 6.0
         1.0 p 1 granted 3.0";
    assert_eq!(strict(lines), [""; 0]);
}

#[test]
fn a_revived_guard_is_found() {
    assert_eq!(strict("1.0 p 1 granted 3.0\n 3.0 p 1 extended 5.0"), ["revived"]);
    let released = "1.0 p 1 granted 3.0
         1.5 p 1 revoked released
         2.0 p 1 extended 4.0";
    assert_eq!(strict(released), ["revived"]);
}

#[test]
fn a_second_revocation_is_found() {
    let lines = "1.0 p 1 granted 3.0
         1.5 p 1 revoked released
         1.6 p 1 revoked closed";
    assert_eq!(strict(lines), ["twice"]);
}

#[test]
fn use_past_the_deadline_is_found() {
    assert_eq!(strict("1.0 p 1 granted 3.0\n 3.5 p 1 revoked released"), ["overdue"]);
    assert_eq!(strict("1.0 p 1 granted 3.0\n 3.0 p 1 revoked deadline"), [""; 0]);
}

#[test]
fn events_without_a_grant_are_found() {
    assert_eq!(strict("1.0 p 1 extended 3.0"), ["stray"]);
    assert_eq!(strict("1.0 p 1 granted 3.0\n 2.0 q 1 revoked released"), ["stray"]);
    assert_eq!(strict("1.0 p 1 granted 3.0\n 2.0 p 2 revoked released"), ["stray"]);
}

#[test]
fn a_loss_from_outside_is_a_violation_unless_it_is_expected() {
    let lines = "1.0 p 1 granted 3.0
         2.0 q 2 granted 4.0
         2.1 p 1 revoked key";
    assert_eq!(strict(lines), ["outside", "overlap"]);
    let report = judge(lines, Outside::Expected);
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.outside_overlaps, 1);
}

#[test]
fn a_loss_from_outside_excuses_only_the_one_who_lost() {
    let successor_lost = "1.0 p 1 granted 3.0
         2.0 q 2 granted 4.0
         2.1 q 2 revoked session";
    assert_eq!(violated(successor_lost, Outside::Expected), ["overlap"]);
    let late_answer = "2.0 q 2 granted 4.0
         2.1 p 1 granted 3.0
         2.2 p 1 revoked key";
    assert_eq!(violated(late_answer, Outside::Expected), [""; 0]);
    let same_token = "2.0 q 1 granted 4.0
         4.1 p 1 granted 6.0
         4.2 p 1 revoked key";
    assert_eq!(violated(same_token, Outside::Expected), ["token"]);
}

#[test]
fn names_kinds_and_namespaces_are_judged_apart() {
    let text = "\
1.0 p sync lock a 1 granted 3.0
1.0 p sync lock b 1 granted 3.0
1.0 p sync leader a 1 granted 3.0
1.0 p other lock a 1 granted 3.0
";
    assert!(check(&parse(text).unwrap(), Outside::Forbidden).is_clean());
}

#[test]
fn percentiles_are_of_what_was_seen() {
    let leads = Leads((0..=100).map(Duration::from_millis).collect());
    assert_eq!(leads.percentile(0), Some(Duration::ZERO));
    assert_eq!(leads.percentile(50), Some(Duration::from_millis(50)));
    assert_eq!(leads.percentile(99), Some(Duration::from_millis(99)));
    assert_eq!(Leads::default().percentile(50), None);
}
