//! What the README shows is what the example prints, and what the documents link to exists.

#![allow(clippy::unwrap_used, reason = "this is all test")]

use std::fs;
use std::path::{Path, PathBuf};

#[path = "../examples/failover.rs"]
#[allow(dead_code, reason = "its main is not used here")]
mod failover;

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[tokio::test]
async fn the_failover_example_prints_what_the_readme_shows() {
    let printed = failover::story().await.unwrap();
    let readme = fs::read_to_string(workspace().join("README.md")).unwrap();
    let shown = readme
        .split("```")
        .find_map(|block| block.strip_prefix("text\n").filter(|text| text.contains("campaigns")))
        .expect("the README has a block with the output of the example");
    assert_eq!(shown, printed, "the left is in the README, the right is printed now");
}

#[test]
fn the_links_of_the_documents_lead_somewhere() {
    let mut broken = Vec::new();
    let mut followed = 0;
    for document in documents(&workspace()) {
        let text = fs::read_to_string(&document).unwrap();
        for target in links(&text) {
            let (file, section) = target.split_once('#').unwrap_or((target, ""));
            let folder = document.parent().unwrap();
            let file = if file.is_empty() { document.clone() } else { folder.join(file) };
            let found = match section {
                "" => file.exists(),
                section => fs::read_to_string(&file).is_ok_and(|text| has_section(&text, section)),
            };
            followed += 1;
            if !found {
                broken.push(format!("{} in {}", target, document.display()));
            }
        }
    }
    assert!(followed > 20, "only {followed} links were found");
    assert!(broken.is_empty(), "these lead nowhere: {broken:#?}");
}

/// The workspace's documents: at its top, in `docs`, and at the top of each crate.
fn documents(workspace: &Path) -> Vec<PathBuf> {
    let crates = fs::read_dir(workspace).unwrap().map(|entry| entry.unwrap().path());
    let crates = crates.filter(|path| path.join("Cargo.toml").exists());
    let folders = [workspace.to_owned(), workspace.join("docs"), workspace.join("docs/backends")];
    folders
        .into_iter()
        .chain(crates)
        .flat_map(|folder| fs::read_dir(folder).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .collect()
}

/// The targets of a document's links that lead into the workspace.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let ends = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    ends.filter(|target| !target.contains("://") && !target.contains(char::is_whitespace))
}

/// Whether a document has a heading with this anchor.
fn has_section(text: &str, anchor: &str) -> bool {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    headings.map(|line| line.trim_start_matches('#').trim()).any(|heading| {
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || *c == ' ' || *c == '-');
        kept.collect::<String>().to_lowercase().replace(' ', "-") == anchor
    })
}
