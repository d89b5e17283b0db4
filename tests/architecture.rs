//! The files depend on each other as `docs/architecture.md` says.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

#[test]
fn imports_go_one_way() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
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
    for file in fs::read_dir(root.join("src")).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() || name == "lib" || name == "bench_support" {
            continue;
        }
        let own = place(&name).unwrap_or_else(|| panic!("{name} is not in docs/architecture.md"));
        let source = fs::read_to_string(&path).unwrap();
        let imports = source.lines().filter_map(|line| line.strip_prefix("use crate::"));
        for import in imports.map(|import| import.split([':', ';']).next().unwrap()) {
            assert!(place(import).is_some_and(|other| other < own), "{name} imports {import}, which comes after it");
        }
    }
}
