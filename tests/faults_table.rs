//! `tests/FAULTS.md` and `tests/BEHAVIOURS.md` do not rot: every row of the matrix is there, every test that they name
//! exists, and every test of a row is named.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// The number of rows.
const ROWS: u32 = 111;
/// What a row without a test says.
const REASONS: [&str; 3] = ["*not run*", "*by design*", "*open*"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

fn sources(folder: &Path, text: &mut String) {
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            sources(&entry, text);
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&fs::read_to_string(entry).unwrap());
        }
    }
}

/// The rows: number -> (what is expected, tests).
fn rows(table: &str) -> BTreeMap<u32, (String, Vec<String>)> {
    let mut rows = BTreeMap::new();
    for line in table.lines() {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        let [_, number, _, expected, tests, _] = cells[..] else { continue };
        let Ok(number) = number.parse::<u32>() else { continue };
        // Every other piece is between backquotes.
        let tests = tests.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        assert!(rows.insert(number, (expected.to_owned(), tests)).is_none(), "row {number} is there twice");
    }
    rows
}

#[test]
fn every_row_is_there_and_every_test_exists() {
    let rows = rows(&fs::read_to_string(root().join("tests/FAULTS.md")).unwrap());
    assert!(rows.keys().copied().eq(1..=ROWS), "the rows are {:?}", rows.keys());
    let (mut cases, mut units) = (String::new(), String::new());
    sources(&root().join("tests/fork"), &mut cases);
    sources(&root().join("src"), &mut units);
    for (number, (expected, tests)) in &rows {
        let has_reason = REASONS.iter().any(|reason| expected.starts_with(reason));
        assert!(has_reason || !tests.is_empty(), "row {number} has neither a test nor a reason");
        for test in tests {
            let (function, unit) = (format!("fn {test}("), format!("#[test]\n    fn {test}("));
            assert!(cases.contains(&function) || units.contains(&unit), "row {number}: there is no test {test}");
            // A case that no list has never runs.
            let listed = [" {},", " {};", " {}]", "[{},"].map(|place| place.replace("{}", test));
            assert!(
                units.contains(&unit) || listed.iter().any(|place| cases.contains(place)),
                "{test} is in no list of cases"
            );
        }
    }
}

#[test]
fn every_test_of_a_row_is_in_the_table() {
    let rows = rows(&fs::read_to_string(root().join("tests/FAULTS.md")).unwrap());
    let named: Vec<_> = rows.values().flat_map(|(_, tests)| tests).collect();
    let mut cases = String::new();
    sources(&root().join("tests/fork"), &mut cases);
    let mut missing = Vec::new();
    for line in cases.lines() {
        let Some(name) = declared(line) else { continue };
        let (letter, rest) = name.split_at(1);
        let number = rest.split('_').next().unwrap_or_default();
        if "abcdefg".contains(letter) && number.parse::<u32>().is_ok() && !named.iter().any(|&test| test == name) {
            missing.push(name.to_owned());
        }
    }
    assert!(missing.is_empty(), "not in tests/FAULTS.md: {missing:?}");
}

/// The name of a test in a line of its source.
fn declared(line: &str) -> Option<&str> {
    line.trim_start().strip_prefix("fn ").and_then(|rest| rest.strip_suffix("() {"))
}

#[test]
fn the_tests_of_behaviours_are_in_their_table() {
    let table = fs::read_to_string(root().join("tests/BEHAVIOURS.md")).unwrap();
    let mut named: Vec<&str> = table
        .lines()
        .filter(|line| line.starts_with("| "))
        .flat_map(|line| line.split('`').filter(|piece| is_of_behaviour(piece)).collect::<Vec<_>>())
        .collect();
    let mut text = String::new();
    sources(&root().join("tests"), &mut text);
    sources(&root().join("src"), &mut text);
    let mut declared: Vec<&str> = text.lines().filter_map(declared).filter(|name| is_of_behaviour(name)).collect();
    named.sort_unstable();
    declared.sort_unstable();
    declared.dedup();
    assert_eq!(named, declared);
}

/// A letter and two digits.
fn is_of_behaviour(name: &str) -> bool {
    let digits = name.strip_prefix(['p', 's']).and_then(|rest| rest.split_once('_'));
    digits.is_some_and(|(digits, _)| digits.len() == 2 && digits.parse::<u32>().is_ok())
}
