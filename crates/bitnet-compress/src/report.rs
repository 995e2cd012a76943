//! From what a run found to its report.

use crate::Plan;
use crate::layout::{OutFile, PackedPlace};
use crate::manifest::Sums;
use crate::stats::{self, FORMS, FileStats, Form, Stats, TensorStats, TernaryStats, Totals, Verification};

impl Plan {
    /// The report of a run, from its source, its options and the sums of its tensors alone.
    pub(crate) fn stats(&self, sums: &[Option<Sums>], verification: Verification) -> Stats {
        let granularity = self.options.rule.granularity();
        let mut tensors = Vec::with_capacity(sums.len());
        let (mut forms, mut codes, mut errors, mut squares) = ([Form::default(); 3], [0; 3], 0.0, 0.0);
        let (mut weights, mut linear_before) = (0, 0);
        for (i, tensor) in self.source.tensors.iter().enumerate() {
            let (decision, matrices) = &self.decisions[i];
            if let Some(sums) = &sums[i] {
                forms
                    .iter_mut()
                    .zip(FORMS)
                    .for_each(|(form, storage)| form.add(storage, matrices, granularity));
                codes.iter_mut().zip(sums.codes).for_each(|(all, n)| *all += n);
                errors += f64::from_bits(sums.errors);
                squares += f64::from_bits(sums.squares);
                weights += matrices.len() as u64;
                linear_before += tensor.bytes;
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
        let before: u64 = self.source.files.iter().map(|file| file.bytes).sum();
        let size = |files: &[OutFile]| files.iter().map(|file| file.bytes).sum();
        forms.iter_mut().for_each(|form| form.finish(4 * weights, linear_before, before));
        let [two_bit, tq1_0, int8] = forms;
        let ternarized = sums.iter().flatten().count();
        let total = Totals {
            ternarized,
            left: tensors.len() - ternarized,
            weights,
            codes,
            shares: stats::shares(codes),
            relative_error: stats::relative_error(errors, squares),
            linear_bytes_before: linear_before,
            linear_bytes_f32: 4 * weights,
            file_bytes_before: before,
            file_bytes_after: size(&self.dense.files),
            file_bytes_packed: self.packed.as_ref().map(|packed| size(&packed.files)),
            two_bit,
            tq1_0,
            int8,
        };
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
