//! The text whose activations are captured.
//!
//! By default, the text is prose that every machine has after it built this program: the documentation of the crates that the program
//! is built from, taken from their sources in cargo's registry. `Cargo.lock` pins the versions.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use crate::dependencies;

/// A document ends with the paragraph that makes it longer than this many bytes.
const DOCUMENT_BYTES: usize = 4096;

/// Pieces of text. Each piece is contiguous prose from one file.
pub(crate) struct Corpus {
    pub(crate) documents: Vec<String>,
    /// Where the text comes from, for the user.
    pub(crate) origin: String,
}

impl Corpus {
    /// Reads the text of `paths`: files, or directories with `.txt` and `.md` files.
    pub(crate) fn from_paths(paths: &[PathBuf]) -> Result<Self> {
        let mut corpus = Collector::default();
        for path in paths {
            let files = if path.is_dir() {
                let files = files_below(path, &["txt", "md"])?;
                ensure!(!files.is_empty(), "--text {}: there is no .txt or .md file in it", path.display());
                files
            } else {
                vec![path.clone()]
            };
            for file in files {
                let bytes = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
                corpus.add(text_paragraphs(&String::from_utf8_lossy(&bytes)));
            }
        }
        let names: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
        Ok(corpus.into_corpus(names.join(", ")))
    }

    /// Reads the documentation of the crates that this program is built from.
    pub(crate) fn from_dependencies() -> Result<Self> {
        let crates = dependencies::dirs().context(
            "the default text, the documentation of this program's dependencies, cannot be found; \
             pass text of your own as --text PATH...",
        )?;
        let mut corpus = Collector::default();
        for dir in &crates {
            for file in files_below(&dir.join("src"), &["rs"])? {
                // A file that is not UTF-8 is not Rust source, so it is left out.
                if let Ok(source) = fs::read_to_string(&file) {
                    corpus.add(doc_paragraphs(&source).into_iter().filter(|text| is_prose(text)));
                }
            }
        }
        Ok(corpus.into_corpus(format!("the documentation of {} crates", crates.len())))
    }

    pub(crate) fn bytes(&self) -> usize {
        self.documents.iter().map(String::len).sum()
    }
}

/// Gathers paragraphs into documents. Drops paragraphs that came before.
#[derive(Default)]
struct Collector {
    documents: Vec<String>,
    seen: HashSet<String>,
}

impl Collector {
    /// Adds the paragraphs of one file.
    fn add(&mut self, paragraphs: impl IntoIterator<Item = String>) {
        let mut document = String::new();
        for paragraph in paragraphs {
            if self.seen.insert(paragraph.clone()) {
                document.push_str(&paragraph);
                document.push('\n');
            }
            if document.len() >= DOCUMENT_BYTES {
                self.documents.push(std::mem::take(&mut document));
            }
        }
        if !document.is_empty() {
            self.documents.push(document);
        }
    }

    fn into_corpus(self, origin: String) -> Corpus {
        Corpus { documents: self.documents, origin }
    }
}

/// Lists the files below `dir` that have one of these extensions, sorted. Returns nothing if the directory does not exist.
fn files_below(dir: &Path, extensions: &[&str]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(dir) = pending.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries {
            let entry = entry.with_context(|| format!("cannot list {}", dir.display()))?;
            let path = entry.path();
            // This is the type of the entry itself. So links to directories are not followed, and there are no cycles.
            if entry.file_type()?.is_dir() {
                pending.push(path);
            } else if path.extension().and_then(OsStr::to_str).is_some_and(|e| extensions.contains(&e)) {
                files.push(path);
            }
        }
    }
    files.sort_unstable();
    Ok(files)
}

/// Returns the paragraphs of plain text, which blank lines separate. Joins the lines of each.
fn text_paragraphs(text: &str) -> Vec<String> {
    let mut paragraphs = Paragraphs::default();
    for line in text.lines() {
        match line.trim() {
            "" => paragraphs.end(),
            line => paragraphs.push(line),
        }
    }
    paragraphs.finish()
}

/// Returns the paragraphs of the doc comments in Rust source. Leaves out code blocks, headings, tables and link targets.
fn doc_paragraphs(source: &str) -> Vec<String> {
    let mut paragraphs = Paragraphs::default();
    let mut in_code = false;
    for line in source.lines().map(str::trim_start) {
        let comment = line.strip_prefix("//!").or_else(|| line.strip_prefix("///"));
        let Some(comment) = comment.filter(|comment| !comment.starts_with('/')).map(str::trim) else {
            paragraphs.end();
            in_code = false;
            continue;
        };
        if comment.starts_with("```") {
            in_code = !in_code;
            paragraphs.end();
        } else if in_code {
            // This line has no prose.
        } else if let Some(item) = comment.strip_prefix("- ").or_else(|| comment.strip_prefix("* ")) {
            paragraphs.end();
            paragraphs.push(item);
        } else if comment.is_empty() || comment.starts_with(['#', '|', '[', '<', '-']) {
            paragraphs.end();
        } else {
            paragraphs.push(comment);
        }
    }
    paragraphs.finish().iter().map(|paragraph| without_markup(paragraph)).collect()
}

/// Builds paragraphs from lines, one line after the other.
#[derive(Default)]
struct Paragraphs {
    done: Vec<String>,
    open: String,
}

impl Paragraphs {
    fn push(&mut self, line: &str) {
        if !self.open.is_empty() {
            self.open.push(' ');
        }
        self.open.push_str(line);
    }

    fn end(&mut self) {
        if !self.open.is_empty() {
            self.done.push(std::mem::take(&mut self.open));
        }
    }

    fn finish(mut self) -> Vec<String> {
        self.end();
        self.done
    }
}

/// Returns the words of some Markdown, without backticks and asterisks. Keeps only the text of a link.
fn without_markup(markdown: &str) -> String {
    let mut text = String::with_capacity(markdown.len());
    let mut rest = markdown;
    while let Some(at) = rest.find(['`', '*', '[', ']']) {
        text.push_str(&rest[..at]);
        let closes_link = rest[at..].starts_with(']');
        rest = &rest[at + 1..];
        if closes_link {
            let closing = match rest.chars().next() {
                Some('(') => rest.find(')'),
                Some('[') => rest.find(']'),
                _ => None,
            };
            rest = closing.map_or(rest, |end| &rest[end + 1..]);
        }
    }
    text.push_str(rest);
    text
}

/// Returns whether most of a paragraph is plain words, and whether there are enough words for a sentence.
fn is_prose(paragraph: &str) -> bool {
    let (mut words, mut plain) = (0, 0);
    for word in paragraph.split_whitespace() {
        words += 1;
        let word = word.trim_end_matches(['.', ',', ';', ':', '!', '?', ')']);
        let mut letters = word.trim_start_matches('(').chars();
        let starts = letters.next().is_some_and(|c| c.is_ascii_alphabetic());
        plain += usize::from(starts && letters.all(|c| c.is_ascii_lowercase() || c == '\'' || c == '-'));
    }
    words >= 8 && plain * 5 >= words * 4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docs_yield_their_sentences_without_code_and_markup() {
        let source = "\
//! # Title
//!
//! Waits for *all* of the [threads](crate::threads) to
//! finish, as [`join`][join] does.
//!
//! - one item
//! - another item
//!
//! ```
//! let x = code();
//! ```
//! After the code.
//! [join]: crate::join
// An ordinary comment.
//// Not a doc comment.
fn f() {}
";
        let expected =
            ["Waits for all of the threads to finish, as join does.", "one item", "another item", "After the code."];
        assert_eq!(doc_paragraphs(source), expected);
    }

    #[test]
    fn prose_is_told_from_code_and_fragments() {
        assert!(is_prose("This function returns the (first) element of a slice, if there is one."));
        assert!(!is_prose("Too short to be a sentence."));
        assert!(!is_prose("SSE2 _mm_add_ps a0 b0 x[1] x[2] x[3] the instruction of u32x4"));
    }

    #[test]
    fn repeated_paragraphs_are_taken_once_and_documents_end() {
        let mut collector = Collector::default();
        collector.add(["same".to_owned(), "same".to_owned(), "x".repeat(DOCUMENT_BYTES), "next".to_owned()]);
        collector.add(["same".to_owned()]);
        assert_eq!(collector.documents.len(), 2);
        assert!(collector.documents[0].starts_with("same\nxxx"));
        assert_eq!(collector.documents[1], "next\n");
    }

    #[test]
    fn the_default_text_is_more_than_a_megabyte() {
        let corpus = Corpus::from_dependencies().unwrap();
        assert!(corpus.bytes() > 1_000_000, "{} bytes", corpus.bytes());
    }

    #[test]
    fn a_missing_file_is_named() {
        let Err(error) = Corpus::from_paths(&["/nowhere/book.txt".into()]) else { panic!("read a missing file") };
        assert!(error.to_string().contains("/nowhere/book.txt"), "{error}");
    }
}
