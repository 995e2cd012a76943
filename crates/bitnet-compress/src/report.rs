//! From what a run found to its report.

use crate::Plan;
use crate::layout::{OutFile, PackedPlace};
use crate::manifest::Sums;
use crate::stats::{self, FileStats, Stats, TensorStats, TernaryStats, Totals, Verification};

impl Plan {
    /// The report of a run, from its source, its options and the sums of its tensors alone.
    pub(crate) fn stats(&self, sums: &[Option<Sums>], verification: Verification) -> Stats {
        let (mut errors, mut squares) = (0.0, 0.0);
        let mut tensors = Vec::with_capacity(sums.len());
        for (i, tensor) in self.source.tensors.iter().enumerate() {
            let (decision, matrices) = &self.decisions[i];
            if let Some(sums) = &sums[i] {
                errors += f64::from_bits(sums.errors);
                squares += f64::from_bits(sums.squares);
            }
            tensors.push(TensorStats {
                name: tensor.name.clone(),
                file: self.source.files[tensor.file].name.clone(),
                shape: tensor.shape.clone(),
                dtype: format!("{:?}", tensor.dtype).to_lowercase(),
                decision: decision.clone(),
                bytes_before: tensor.bytes,
                bytes_after: self.dense.places[i].bytes,
                bytes_packed: self.packed.as_ref().map(|packed| match packed.places[i] {
                    PackedPlace::Ternary { codes, scales } => codes.bytes + scales.bytes,
                    PackedPlace::Copy(place) => place.bytes,
                }),
                ternary: sums[i].as_ref().map(|sums| TernaryStats::new(*matrices, sums)),
            });
        }
        let size = |files: &[OutFile]| files.iter().map(|file| file.bytes).sum();
        let all = stats::Sums {
            errors,
            squares,
            file_bytes_before: self.source.files.iter().map(|file| file.bytes).sum(),
            file_bytes_after: size(&self.dense.files),
            file_bytes_packed: self.packed.as_ref().map(|packed| size(&packed.files)),
        };
        let total = Totals::of(&tensors, self.options.rule.granularity(), &all);
        let sources = self.source.files.iter().cycle();
        let files = self.files().zip(sources).map(|(file, source)| FileStats {
            path: file.path.to_string_lossy().into_owned(),
            bytes_before: source.bytes,
            bytes_after: file.bytes,
        });
        let copied = self.source.companions.iter().map(|(path, _)| path.to_string_lossy().into_owned());
        Stats {
            version: 1,
            mode: "tensors".into(),
            options: self.options.clone(),
            tensors,
            files: files.collect(),
            copied: copied.collect(),
            skipped: self.source.skipped.clone(),
            total,
            verification,
        }
    }
}
