//! What a run leaves behind: a summary, a picture and the SAEs.

use std::fs;
use std::path::Path;
use std::time::Duration;

use activation_store::Stats;
use anyhow::{Context as _, Result, ensure};

use crate::plot::{self, Chart, Line};
use crate::training::{Component, Outcome};

/// What was measured while capturing and training.
pub(crate) struct Run {
    pub(crate) elapsed: Duration,
    /// Seconds since the start, and rows in the ring.
    pub(crate) fill: Vec<(f64, f64)>,
    pub(crate) window: usize,
    pub(crate) latents: usize,
    pub(crate) stats: Stats,
}

impl Run {
    /// Prints the summary and writes the files to `out`.
    pub(crate) fn report(&self, components: &[Component], out: &Path) -> Result<()> {
        let outcomes = components.iter().map(Component::outcome).collect::<Result<Vec<_>>>()?;
        self.print_flow()?;
        self.print_outcomes(components, &outcomes);
        for component in components {
            let file = out.join(format!("sae.{}.safetensors", component.name));
            component.sae()?.save(&file)?;
            println!("wrote {}", file.display());
        }
        let picture = out.join("run.svg");
        fs::write(&picture, self.picture(components, &outcomes))
            .with_context(|| format!("cannot write {}", picture.display()))?;
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

    fn print_outcomes(&self, components: &[Component], outcomes: &[Outcome]) {
        println!();
        println!("variance unexplained on held-out rows:");
        println!("{:<10} {:>8} {:>8} {:>12} {:>8} {:>14}", "", "before", "after", "PCA", "mean L0", "dead latents");
        for (component, outcome) in components.iter().zip(outcomes) {
            let (count, unexplained) = outcome.pca;
            println!(
                "{:<10} {:>8.3} {:>8.3} {:>12} {:>8.1} {:>14}",
                component.name,
                outcome.before,
                outcome.after,
                format!("{unexplained:.3} ({count})"),
                outcome.l0,
                format!("{} of {}", outcome.dead, self.latents),
            );
        }
        println!("PCA: with as many components as the mean L0, fitted on the training rows");
        println!("dead: active on no row of the last quarter of the training");
        println!();
    }

    fn picture(&self, components: &[Component], outcomes: &[Outcome]) -> String {
        let end = self.elapsed.as_secs_f64();
        let mut lines = Vec::new();
        for (colour, (component, outcome)) in components.iter().zip(outcomes).enumerate() {
            let (count, unexplained) = outcome.pca;
            let name = format!("{} SAE", component.name);
            lines.push(Line { name, points: component.losses.clone(), colour, dashed: false });
            let name = format!("{} PCA, {count}", component.name);
            lines.push(Line { name, points: vec![(0.0, unexplained), (end, unexplained)], colour, dashed: true });
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
