//! What `docs/writing-a-backend.md` shows is what compiles and runs.

#![allow(clippy::unwrap_used, reason = "this is all test")]

use std::fs;
use std::path::{Path, PathBuf};

fn crate_file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &str) -> String {
    fs::read_to_string(crate_file(path)).unwrap()
}

/// The fenced blocks of this language.
fn blocks<'a>(text: &'a str, language: &str) -> Vec<&'a str> {
    let open = format!("\n```{language}\n");
    text.split(&*open).skip(1).map(|rest| rest.split("\n```").next().unwrap()).collect()
}

#[test]
fn the_code_in_the_guide_is_the_toys() {
    let guide = read("../docs/writing-a-backend.md");
    let files = ["main.rs", "backend.rs", "link.rs"].map(|name| read(&format!("tests/toy/{name}")));
    let shown = blocks(&guide, "rust");
    assert!(shown.len() >= 5, "{}", shown.len());
    for block in shown {
        let found = files.iter().any(|file| file.contains(block));
        assert!(found, "this is in no file of the toy any more:\n{block}");
    }
}

#[test]
fn the_manifest_in_the_guide_is_like_this_crates() {
    let guide = read("../docs/writing-a-backend.md");
    let [manifest] = blocks(&guide, "toml")[..] else { panic!("one manifest") };
    let test = manifest.split_once("[[test]]").unwrap().1;
    let here = read("Cargo.toml");
    assert!(here.contains(test.replace("conformance", "toy").trim()), "{test}");
    let version = format!("version = \"{}.", manifest.split('"').nth(1).unwrap());
    assert!(read("../Cargo.toml").contains(&version), "{version}");
}

#[test]
fn the_cases_that_the_guide_names_exist() {
    let guide = read("../docs/writing-a-backend.md");
    let mut named = 0;
    for name in guide.split("toy::").skip(1) {
        let name = name.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')).next();
        let (group, case) = name.map(|name| name.split_once("::").unwrap_or((name, ""))).unwrap();
        let cases = read(&format!("src/cases/{group}.rs"));
        assert!(case.is_empty() || cases.contains(&format!("async fn {case}(")), "{group}::{case}");
        named += 1;
    }
    assert!(named >= 4, "{named}");
    let order = guide.split("A good order").nth(1).unwrap().split("the rest").next().unwrap();
    for group in order.split('`').skip(1).step_by(2).filter(|group| *group != "Store") {
        assert!(crate_file(&format!("src/cases/{group}.rs")).exists(), "{group}");
    }
}

#[test]
fn every_need_is_explained() {
    let guide = read("../docs/writing-a-backend.md");
    let suite = read("src/suite.rs");
    let needs = suite.split("pub enum Need {").nth(1).unwrap().split('}').next().unwrap();
    let needs = needs.lines().map(str::trim).filter(|line| line.starts_with(char::is_uppercase));
    for need in needs {
        let need = need.split([',', '(']).next().unwrap();
        assert!(guide.contains(&format!("`{need}")), "{need}");
    }
}

#[test]
fn the_toys_backend_is_as_short_as_the_guide_says() {
    assert!(read("tests/toy/backend.rs").lines().count() < 200);
    let main = read("tests/toy/main.rs");
    let store = main.split("impl Store for ToyStore").nth(1).unwrap();
    let asked_for = store.split("    fn tampers").next().unwrap();
    assert!(asked_for.lines().count() <= 40, "{}", asked_for.lines().count());
}
