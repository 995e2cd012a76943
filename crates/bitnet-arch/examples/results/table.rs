//! A table of perplexities over seeds, in a document whose other text is by hand.

use std::error::Error;
use std::fmt::Write;
use std::path::Path;

use bitnet_arch::convert::Unfinished;

/// Rows in the order in which they were first measured.
#[derive(Default)]
pub(crate) struct Table {
    rows: Vec<Row>,
}

/// A model, something about it, and its perplexity for each seed.
struct Row {
    what: String,
    about: String,
    perplexities: Vec<f64>,
}

impl Table {
    /// Writes a perplexity down.
    pub(crate) fn add(&mut self, what: &str, about: &str, perplexity: f64) {
        println!("{what}: {perplexity:.3}");
        match self.rows.iter_mut().find(|row| row.what == what) {
            Some(row) => row.perplexities.push(perplexity),
            None => {
                self.rows.push(Row { what: what.into(), about: about.into(), perplexities: vec![perplexity] })
            }
        }
    }

    /// The rows in Markdown; `about` heads the second column.
    pub(crate) fn text(&self, about: &str) -> Result<String, std::fmt::Error> {
        let mut text = format!("| model | {about} | perplexity | over the seeds |\n|---|---|---|---|\n");
        for Row { what, about, perplexities } in &self.rows {
            let mean = perplexities.iter().sum::<f64>() / perplexities.len() as f64;
            let (min, max) = perplexities
                .iter()
                .fold((f64::INFINITY, 0.0_f64), |(min, max), p| (min.min(*p), max.max(*p)));
            writeln!(text, "| {what} | {about} | {mean:.2} | {min:.2} to {max:.2} |")?;
        }
        Ok(text)
    }
}

/// Puts a text between the marks of a document: a comment with the command, and one that says `end`.
pub(crate) fn rewrite(document: &Path, mark: &str, text: &str) -> Result<(), Box<dyn Error>> {
    let (begin, end) = (format!("<!-- {mark} -->"), "<!-- end -->");
    let name = document.display();
    let old = std::fs::read_to_string(document).map_err(|error| format!("{name}: {error}"))?;
    let parts = old.split_once(&begin).and_then(|(before, rest)| Some((before, rest.split_once(end)?.1)));
    let (before, after) = parts.ok_or_else(|| format!("{name}: expected {begin} and {end}"))?;
    Ok(Unfinished::write(document, format!("{before}{begin}\n\n{text}\n{end}{after}").as_bytes())?)
}
