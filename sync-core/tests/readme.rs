//! What the README shows is what the example prints.

#[path = "../examples/failover.rs"]
#[allow(dead_code, reason = "its main is not used here")]
mod failover;

const README: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md");

#[tokio::test]
async fn the_failover_example_prints_what_the_readme_shows() {
    let printed = failover::story().await.unwrap();
    let readme = std::fs::read_to_string(README).unwrap();
    let shown = readme
        .split("```")
        .find_map(|block| block.strip_prefix("text\n").filter(|text| text.contains("campaigns")))
        .expect("the README has a block with the output of the example");
    assert_eq!(shown, printed, "the left is in the README, the right is printed now");
}
