//! The results of a run: a summary, a picture and the SAEs.

use std::fs;
use std::path::Path;
use std::time::Duration;

use activation_store::Stats;
use anyhow::{Context as _, Result, ensure};

use crate::component::{Component, Outcome, Student};
use crate::plot::{self, Chart, Line};

/// The measurements during capture and training.
pub(crate) struct Run {
    pub(crate) elapsed: Duration,
    /// Seconds since the start, and rows in the ring.
    pub(crate) fill: Vec<(f64, f64)>,
    pub(crate) window: usize,
    pub(crate) stats: Stats,
}

/// An SAE and its result.
struct Judged<'a> {
    component: &'a str,
    student: &'a Student,
    outcome: Outcome,
}

impl Run {
    /// Prints the summary and writes the files to `out`.
    pub(crate) fn report(&self, components: &[Component], out: &Path) -> Result<()> {
        let mut results = Vec::new();
        for component in components {
            let judged = |(student, outcome)| Judged { component: &component.name, student, outcome };
            results.extend(component.students.iter().zip(component.outcomes()?).map(judged));
        }
        self.print_flow()?;
        print_outcomes(&results);
        for Judged { student, .. } in &results {
            let file = out.join(format!("sae.{}.safetensors", student.name));
            student.sae()?.save(&file)?;
            println!("wrote {}", file.display());
        }
        let picture = out.join("run.svg");
        fs::write(&picture, self.picture(&results)?).with_context(|| format!("cannot write {}", picture.display()))?;
        println!("wrote {}", picture.display());
        Ok(())
    }

    fn print_flow(&self) -> Result<()> {
        for component in &self.stats.components {
            let (accepted, served) = (component.accepted, component.served);
            ensure!(accepted == served, "{}: {accepted} rows accepted, but {served} served", component.name);
        }
        let rows: u64 = self.stats.components.iter().map(|component| component.accepted).sum();
        let seconds = self.elapsed.as_secs_f64();
        println!();
        println!("{}", self.stats);
        println!(
            "{seconds:.1} s: {:.0} tokens/s, {:.0} rows/s over all components",
            rows as f64 / self.stats.components.len() as f64 / seconds,
            rows as f64 / seconds,
        );
        Ok(())
    }

    fn picture(&self, results: &[Judged<'_>]) -> Result<String> {
        let end = self.elapsed.as_secs_f64();
        let mut lines = Vec::new();
        for (colour, Judged { student, .. }) in results.iter().enumerate() {
            let name = format!("{} SAE", student.name);
            lines.push(Line { name, points: student.losses.clone(), colour, dashed: false });
        }
        // SAEs of the same component with the same L0 are compared with the same principal components.
        for (colour, Judged { component, outcome, .. }) in results.iter().enumerate() {
            let (count, unexplained) = outcome.pca;
            let name = format!("{component} PCA, {count}");
            if lines.iter().all(|line| line.name != name) {
                lines.push(Line { name, points: vec![(0.0, unexplained), (end, unexplained)], colour, dashed: true });
            }
        }
        let window = self.window as f64;
        let fill = self.fill.iter().map(|&(time, rows)| (time, rows / window)).collect();
        plot::svg(&[
            Chart { title: "Fraction of variance unexplained, per minibatch".to_owned(), lines },
            Chart {
                title: format!("Rows in the ring, as a share of its window of {} rows", self.window),
                lines: vec![Line { name: "ring".to_owned(), points: fill, colour: 2, dashed: false }],
            },
        ])
    }
}

fn print_outcomes(results: &[Judged<'_>]) {
    let widest = results.iter().map(|judged| judged.student.name.len()).max().unwrap_or(0);
    println!();
    println!("variance unexplained on held-out rows:");
    println!("{:<widest$} {:>8} {:>8} {:>12} {:>8} {:>14}", "", "before", "after", "PCA", "mean L0", "dead latents");
    for Judged { student, outcome, .. } in results {
        let (count, unexplained) = outcome.pca;
        println!(
            "{:<widest$} {:>8.3} {:>8.3} {:>12} {:>8.1} {:>14}",
            student.name,
            outcome.before,
            outcome.after,
            format!("{unexplained:.3} ({count})"),
            outcome.l0,
            format!("{} of {}", outcome.dead, student.plan.latents),
        );
    }
    println!("PCA: with as many components as the mean L0, fitted on the training rows");
    println!("dead: active on no row of the last quarter of the training");
    println!();
}
