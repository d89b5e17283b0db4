//! The files and folders depend on each other as `docs/architecture.md` says.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

/// A source file: its name as in the table (`rows/batch`), and its lines of code without comments.
struct File {
    name: String,
    code: Vec<String>,
}

impl File {
    /// The files that it imports in `use crate::` lines.
    fn imports(&self) -> impl Iterator<Item = String> {
        self.code.iter().filter_map(|line| line.strip_prefix("use crate::")).map(|import| {
            let parts: Vec<&str> = import.split([':', ';']).filter(|part| !part.is_empty()).collect();
            // What follows the names of folders and of the file is the name of an item.
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
            let mut names = (1..=parts.len()).rev().map(|n| parts[..n].join("/"));
            names.find(|name| source.join(name).with_extension("rs").is_file()).unwrap()
        })
    }

    /// Every path into the crate that the file names, in imports and elsewhere.
    fn paths(&self) -> impl Iterator<Item = &str> {
        self.code.iter().flat_map(|line| line.split("crate::").skip(1))
    }

    fn folder(&self) -> &str {
        self.name.split('/').next().unwrap()
    }
}

/// Lists the source files below `folder`, without the files of unit tests.
fn paths_below(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files = entries.flat_map(|path| if path.is_dir() { paths_below(&path) } else { vec![path] });
    files.filter(|path| path.file_name().unwrap() != "tests.rs").collect()
}

/// Lists all source files except `lib.rs` and each `mod.rs`.
fn files() -> Vec<File> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let file = |path: PathBuf| {
        let name = path.strip_prefix(&source).unwrap().with_extension("").display().to_string().replace('\\', "/");
        let text = fs::read_to_string(&path).unwrap();
        let code = text.lines().map(str::trim_start).filter(|line| !line.starts_with("//"));
        File { name, code: code.map(str::to_owned).collect() }
    };
    let files = paths_below(&source).into_iter().map(file);
    files.filter(|file| !["lib", "bench_support"].contains(&&*file.name) && !file.name.ends_with("/mod")).collect()
}

fn page() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/architecture.md")).unwrap()
}

#[test]
fn imports_go_one_way() {
    let page = page();
    let table = page.split("| file |").nth(1).unwrap();
    let names = |line: &str| line.split('|').nth(1).map_or(String::new(), |cell| cell.replace(['`', ','], " "));
    let order: Vec<String> = table
        .lines()
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .flat_map(|line| names(line).split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    let place = |name: &str| order.iter().position(|listed| listed == name);
    for file in files() {
        let name = &file.name;
        let own = place(name).unwrap_or_else(|| panic!("{name} is not in docs/architecture.md"));
        for import in file.imports() {
            assert!(place(&import).is_some_and(|other| other < own), "{name} imports {import}, which comes after it");
        }
    }
}

#[test]
fn no_folder_names_a_later_one() {
    let page = page();
    let tree = page.split("```text\nsrc/\n").nth(1).unwrap().split("```").next().unwrap();
    let names = tree.lines().filter_map(|line| line.split_whitespace().next());
    let names = names.filter_map(|name| name.strip_suffix('/').or(name.strip_suffix(".rs")));
    let order: Vec<&str> = names.filter(|name| *name != "lib").collect();
    let all = [
        "disk",
        "rows",
        "memory",
        "dealing",
        "waiting",
        "store",
        "ring_store",
        "snapshot",
        "tensor_store",
        "recording",
    ];
    assert_eq!(order, all);
    let place = |folder: &str| order.iter().position(|listed| *listed == folder);
    for file in files() {
        let name = &file.name;
        let own = place(file.folder()).unwrap_or_else(|| panic!("{name} is in no folder of docs/architecture.md"));
        for path in file.paths() {
            let folder = path.split("::").next().unwrap();
            // Other names are items that `lib.rs` defines.
            assert!(place(folder).is_none_or(|other| other <= own), "{name} names crate::{path}, of a later folder");
        }
    }
}
