//! From a checkpoint to a plan, from a plan to artifacts.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;

use serde_json::json;

use crate::beside::{write_json, write_whole};
use crate::decide::{Decision, Matrices, decide};
use crate::layout::{self, Artifact, OutFile, PackedPlace, Place, dense_float};
use crate::manifest::{self, Done, Manifest, Sums};
use crate::page::{self, PAGE};
use crate::source::{Source, write_error};
use crate::stats::{Stats, Verification};
use crate::unfinished::{LOCK, check_outside, lock, unfinished};
use crate::verify;
use crate::write::{self, Out, PackedOut, Weight};
use crate::{CompressError, Options, disk};

/// The report's name in the target.
pub const STATS: &str = "compression_stats.json";

/// Bytes after which the disk is asked to write what it holds back.
const SYNC: u64 = 64 << 20;

/// What a run is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Tensors are ternarized or copied.
    Write,
    /// Everything is read again.
    Verify,
}

/// A checked job: what would be written and where. Nothing is written yet.
pub struct Plan {
    pub(crate) source: Source,
    pub(crate) target: PathBuf,
    pub(crate) options: Options,
    pub(crate) decisions: Vec<(Decision, Matrices)>,
    pub(crate) dense: Artifact<Place>,
    pub(crate) packed: Option<Artifact<PackedPlace>>,
}

/// Compresses a checkpoint: [`Plan::new`], then [`Plan::run`].
///
/// # Errors
/// Those of the two.
pub fn compress(
    source: &Path,
    target: &Path,
    options: &Options,
    progress: &mut dyn FnMut(Stage, u64, u64),
) -> Result<Stats, CompressError> {
    Plan::new(source, target, options)?.run(progress)
}

impl Plan {
    /// Reads the headers of a checkpoint, decides for every tensor, and checks target and disk.
    ///
    /// `source` is a safetensors file, or a folder: then with the files that its index names, else
    /// `model.safetensors`, else all safetensors files in it.
    ///
    /// # Errors
    /// Everything that can be known before the first weight is read: see [`CompressError`].
    pub fn new(source: &Path, target: &Path, options: &Options) -> Result<Self, CompressError> {
        options.validate()?;
        let target = target.to_owned();
        if target.file_name().is_none()
            || target.is_file()
            || target.read_dir().is_ok_and(|mut entries| entries.next().is_some())
        {
            return Err(CompressError::Exists { path: target });
        }
        if is_inside(&target, source) {
            return Err(CompressError::InsideSource { path: target });
        }
        check_outside(source, &unfinished(&target))?;
        let source = Source::open(source)?;
        let decisions = decide(&source, options)?;
        if !decisions.iter().any(|(decision, _)| matches!(decision, Decision::Ternarized(_))) {
            return Err(CompressError::NothingToDo { tensors: decisions.len() });
        }
        let dense = layout::dense(&source, options);
        let packed = options.packed.then(|| layout::packed(&source, &decisions, options)).transpose()?;
        let plan = Self { source, target, options: options.clone(), decisions, dense, packed };
        let needed = plan.bytes().saturating_sub(disk::taken(&unfinished(&plan.target)));
        match disk::free(&plan.target) {
            Some(free) if free < needed => {
                Err(CompressError::Space { path: plan.target.clone(), needed, free })
            }
            _ => Ok(plan),
        }
    }

    /// Every tensor's name, and what is to be done to it.
    pub fn decisions(&self) -> impl Iterator<Item = (&str, &Decision)> {
        self.source
            .tensors
            .iter()
            .zip(&self.decisions)
            .map(|(tensor, (decision, _))| (tensor.name.as_str(), decision))
    }

    /// Bytes that will be written.
    pub fn bytes(&self) -> u64 {
        let files: u64 = self.files().map(|file| file.bytes).sum();
        files + self.source.companions.iter().map(|(_, bytes)| bytes).sum::<u64>()
    }

    pub(crate) fn files(&self) -> impl Iterator<Item = &OutFile> {
        self.dense.files.iter().chain(self.packed.iter().flat_map(|packed| &packed.files))
    }

    /// Writes the artifacts, reads them again, and gives the target its name.
    ///
    /// A run that was killed is resumed behind the last tensor that it finished, if source, options and decisions are the
    /// same; else the unfinished folder is begun anew, unless the other mode began it. What is written is the same in all
    /// cases. `progress` gets the stage, and the bytes of the source that are done, and all.
    ///
    /// # Errors
    /// [`CompressError::NotFinite`] and [`CompressError::Range`] for weights, [`CompressError::Verification`] for
    /// artifacts that are not what was meant, and failures of the disk.
    pub fn run(&self, progress: &mut dyn FnMut(Stage, u64, u64)) -> Result<Stats, CompressError> {
        let folder = unfinished(&self.target);
        let result = self.build(&folder, progress);
        if result.as_ref().is_err_and(|error| !error.may_pass()) {
            // Whoever tries again gets the same error, or must not go on with what is wrong.
            let _ = fs::remove_dir_all(&folder);
        }
        result
    }

    fn build(
        &self,
        folder: &Path,
        progress: &mut dyn FnMut(Stage, u64, u64),
    ) -> Result<Stats, CompressError> {
        let write = write_error(folder);
        let _lock = lock(folder, "tensors")?;
        // config.json has a say in the decisions.
        let fingerprint =
            json!([env!("CARGO_PKG_VERSION"), self.source.fingerprint(), self.options, self.decisions])
                .to_string();
        let (mut manifest, known) = Manifest::open(folder, &fingerprint)?;
        let mut sums: Vec<Option<Option<Sums>>> = vec![None; self.decisions.len()];
        let files = match known {
            Some(known) if self.have_their_sizes(folder) => {
                for Done { tensor, sums: found } in known {
                    if let Some(sums) = sums.get_mut(tensor) {
                        *sums = Some(found);
                    }
                }
                self.open_files(folder, false)?
            }
            _ => {
                // These two are open.
                remove_all_but(folder, [LOCK, manifest::NAME]).map_err(&write)?;
                let files = self.open_files(folder, true)?;
                manifest.begin(&fingerprint)?;
                files
            }
        };
        let all = self.source.tensors.iter().map(|tensor| tensor.bytes).sum();
        let (start_sync, requests) = mpsc::sync_channel(1);
        let (sums, verification) = thread::scope(|scope| {
            // The disk works meanwhile, and the last synchronisation finds little to do.
            let to_sync = &files;
            scope.spawn(move || {
                // What fails here fails again at the end, where it is an error.
                requests.iter().for_each(|()| to_sync.iter().for_each(|file| drop(file.sync_data())));
            });
            let start_sync = start_sync;
            let (mut done, mut since_sync) = (0, 0);
            for (i, tensor) in self.source.tensors.iter().enumerate() {
                if sums[i].is_none() {
                    let found = self.write_tensor(i, &files)?;
                    manifest.push(&Done { tensor: i, sums: found.clone() })?;
                    sums[i] = Some(found);
                    since_sync += tensor.bytes;
                }
                if since_sync >= SYNC && start_sync.try_send(()).is_ok() {
                    since_sync = 0;
                }
                done += tensor.bytes;
                progress(Stage::Write, done, all);
            }
            self.source.check_unchanged()?;
            let _ = start_sync.try_send(());
            let sums: Vec<Option<Sums>> = sums.into_iter().map(Option::flatten).collect();
            let found = self.verify(&files, &sums, &mut |done| progress(Stage::Verify, done, all))?;
            Ok((sums, found))
        })?;
        let stats = self.stats(&sums, verification);
        self.write_companions(folder)?;
        write_json(&folder.join(STATS), &stats)?;
        let page = page::page(&stats, "Compressed weights", "")?;
        write_whole(&folder.join(PAGE), page.as_bytes())?;
        for (file, out) in files.iter().zip(self.files()) {
            file.sync_all().map_err(write_error(&folder.join(&out.path)))?;
        }
        self.source.check_unchanged()?;
        for name in [manifest::NAME, LOCK] {
            fs::remove_file(folder.join(name)).map_err(&write)?;
        }
        let rename = write_error(&self.target);
        if self.target.is_dir() {
            fs::remove_dir(&self.target).map_err(&rename)?;
        }
        fs::rename(folder, &self.target).map_err(&rename)?;
        Ok(stats)
    }

    /// Whether the files of an earlier run are there in full length.
    fn have_their_sizes(&self, folder: &Path) -> bool {
        self.files()
            .all(|file| fs::metadata(folder.join(&file.path)).is_ok_and(|found| found.len() == file.bytes))
    }

    /// Opens the files in the order of [`files`](Self::files).
    fn open_files(&self, folder: &Path, new: bool) -> Result<Vec<File>, CompressError> {
        let open = |out: &OutFile| {
            let path = folder.join(&out.path);
            let write = write_error(&path);
            fs::create_dir_all(path.parent().unwrap_or(folder)).map_err(&write)?;
            let file = OpenOptions::new().read(true).write(true).create(new).truncate(new).open(&path);
            let file = file.map_err(&write)?;
            if new {
                crate::at::write(&file, &out.header, 0)
                    .and_then(|()| file.set_len(out.bytes))
                    .map_err(&write)?;
            }
            Ok(file)
        };
        self.files().map(open).collect()
    }

    /// The dense file of a tensor, and the packed one.
    fn files_of<'a>(&'a self, i: usize, files: &'a [File]) -> (Out<'a>, Option<Out<'a>>) {
        let (file, n) = (self.source.tensors[i].file, self.dense.files.len());
        let dense = Out { file: &files[file], path: &self.dense.files[file].path };
        let packed = self.packed.as_ref();
        (dense, packed.map(|packed| Out { file: &files[n + file], path: &packed.files[file].path }))
    }

    fn write_tensor(&self, i: usize, files: &[File]) -> Result<Option<Sums>, CompressError> {
        let (tensor, (decision, matrices)) = (&self.source.tensors[i], &self.decisions[i]);
        let (dense, packed) = self.files_of(i, files);
        let (place, float) = (self.dense.places[i], dense_float(tensor, &self.options));
        let packed = packed.zip(self.packed.as_ref().map(|artifact| artifact.places[i]));
        match (decision, float) {
            (Decision::Ternarized(_), Some(float)) => {
                let packed = packed.and_then(|(out, place)| match place {
                    PackedPlace::Ternary { codes, scales } => Some(PackedOut { out, codes, scales }),
                    PackedPlace::Copy(_) => None,
                });
                let weight = Weight::new(&self.source, tensor, *matrices, self.options.rule);
                weight.write(dense, place, float, packed).map(Some)
            }
            _ => {
                write::copy(&self.source, tensor, float, dense, place)?;
                if let Some((out, PackedPlace::Copy(place))) = packed {
                    write::copy(&self.source, tensor, None, out, place)?;
                }
                Ok(None)
            }
        }
    }

    /// Reads everything again.
    fn verify(
        &self,
        files: &[File],
        sums: &[Option<Sums>],
        progress: &mut dyn FnMut(u64),
    ) -> Result<Verification, CompressError> {
        let (mut verification, mut done) = (Verification::default(), 0);
        for (i, tensor) in self.source.tensors.iter().enumerate() {
            let (dense, packed) = self.files_of(i, files);
            let (place, float) = (self.dense.places[i], dense_float(tensor, &self.options));
            let packed = packed.zip(self.packed.as_ref().map(|artifact| artifact.places[i]));
            let differences = match (&sums[i], float) {
                (Some(sums), Some(float)) => {
                    let codes = self.decisions[i].1.len() as u64;
                    verification.dense_codes += codes;
                    verification.packed_codes += if packed.is_some() { codes } else { 0 };
                    let weight = Weight::new(&self.source, tensor, self.decisions[i].1, self.options.rule);
                    verify::weight(&weight, &sums.fixed, (dense, place, float), packed)?
                }
                _ => {
                    verification.copied_bytes += tensor.bytes;
                    let in_dense = verify::copy(&self.source, tensor, float, dense, place)?;
                    let in_packed = match packed {
                        Some((out, PackedPlace::Copy(place))) => {
                            verification.copied_bytes += tensor.bytes;
                            verify::copy(&self.source, tensor, None, out, place)?
                        }
                        _ => 0,
                    };
                    [in_dense, in_packed]
                }
            };
            let paths = [Some(dense.path), packed.map(|(out, _)| out.path)];
            for (found, path) in differences.into_iter().zip(paths) {
                if found > 0 {
                    let file = path.unwrap_or(dense.path).display().to_string();
                    return Err(CompressError::Verification { name: tensor.name.clone(), file, found });
                }
            }
            done += tensor.bytes;
            progress(done);
        }
        Ok(verification)
    }
}

/// Whether the target is the source or below it.
pub fn is_inside(target: &Path, source: &Path) -> bool {
    if source.is_file() {
        return false;
    }
    let folder = source.canonicalize();
    let existing = std::path::absolute(target);
    let existing =
        existing.ok().and_then(|target| target.ancestors().find_map(|ancestor| ancestor.canonicalize().ok()));
    existing.zip(folder.ok()).is_some_and(|(target, source)| target.starts_with(source))
}

fn remove_all_but(folder: &Path, names: [&str; 2]) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else if !names.iter().any(|name| entry.file_name() == *name) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
