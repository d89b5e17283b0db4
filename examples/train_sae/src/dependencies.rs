//! Asks cargo where the sources of this program's dependencies are.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

/// Returns the directories of the crates from a registry that this program is built from, in the order of their names.
pub(crate) fn dirs() -> Result<Vec<PathBuf>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version=1", "--filter-platform", env!("TARGET")])
        .args(["--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")])
        .output()
        .context("cannot run cargo")?;
    if !output.status.success() {
        bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let metadata: Metadata = serde_json::from_slice(&output.stdout).context("cargo metadata is not as expected")?;
    let root = metadata.packages.iter().find(|package| package.name == env!("CARGO_PKG_NAME"));
    let root = root.context("cargo metadata does not list this program")?;
    let mut reached = BTreeSet::new();
    let mut pending = vec![&root.id];
    while let Some(id) = pending.pop() {
        if reached.insert(id) {
            let deps = metadata.resolve.nodes.iter().filter(|node| node.id == *id).flat_map(|node| &node.deps);
            pending.extend(deps.filter(|dep| !dep.is_for_tests()).map(|dep| &dep.pkg));
        }
    }
    // An identifier starts with the address of the registry, which is the same for all crates, and the name of the crate.
    let from_registry = |package: &&Package| package.source.is_some() && reached.contains(&package.id);
    let mut packages: Vec<_> = metadata.packages.iter().filter(from_registry).collect();
    packages.sort_unstable_by_key(|package| &package.id);
    Ok(packages.iter().filter_map(|package| Some(package.manifest_path.parent()?.to_owned())).collect())
}

/// The part of the output of `cargo metadata` that is used here.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    id: String,
    source: Option<String>,
    manifest_path: PathBuf,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<Kind>,
}

#[derive(Deserialize)]
struct Kind {
    kind: Option<String>,
}

impl Dependency {
    fn is_for_tests(&self) -> bool {
        self.dep_kinds.iter().all(|kind| kind.kind.as_deref() == Some("dev"))
    }
}
