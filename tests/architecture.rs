//! The files depend on each other as `docs/architecture.md` says.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

/// The source files below `folder`, without the unit tests that lie beside them.
fn files_below(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files = entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] });
    files.filter(|path| path.file_name().unwrap() != "tests.rs").collect()
}

#[test]
fn imports_go_one_way() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let source = root.join("src");
    let page = fs::read_to_string(root.join("docs/architecture.md")).unwrap();
    let table = page.split("| file |").nth(1).unwrap();
    let names = |line: &str| line.split('|').nth(1).map_or(String::new(), |cell| cell.replace(['`', ','], " "));
    let order: Vec<String> = table
        .lines()
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .flat_map(|line| names(line).split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    let place = |name: &str| order.iter().position(|listed| listed == name);
    for path in files_below(&source) {
        let name = path.strip_prefix(&source).unwrap().with_extension("").display().to_string().replace('\\', "/");
        if name == "lib" || name == "bench_support" || name.ends_with("/mod") {
            continue;
        }
        let own = place(&name).unwrap_or_else(|| panic!("{name} is not in docs/architecture.md"));
        let text = fs::read_to_string(&path).unwrap();
        for import in text.lines().filter_map(|line| line.trim_start().strip_prefix("use crate::")) {
            let parts: Vec<&str> = import.split([':', ';']).filter(|part| !part.is_empty()).collect();
            let file = if parts[0] == "error" { "error".to_owned() } else { parts[..2].join("/") };
            assert!(place(&file).is_some_and(|other| other < own), "{name} imports {file}, which comes after it");
        }
    }
}
