//! Checkpoints of the Hugging Face hub, by way of its ordinary cache.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};

use crate::checkpoint::COMPANIONS;
use crate::shards::{INDEX, SINGLE, shard_names};
use crate::{ConvertError, HubProblem};

/// A model on the hub: `org/name`, or `org/name@revision` with a branch, a tag or a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubId {
    name: String,
    revision: String,
}

impl FromStr for HubId {
    type Err = ConvertError;

    fn from_str(text: &str) -> Result<Self, ConvertError> {
        let (name, revision) = text.split_once('@').unwrap_or((text, "main"));
        let sound = |part: &str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            part.chars().all(plain) && part.starts_with(|c| c != '.') && !part.contains("..")
        };
        let sound_name = name.split('/').count() == 2 && name.split('/').all(sound);
        if sound_name && revision.split('/').all(sound) {
            Ok(Self { name: name.into(), revision: revision.into() })
        } else {
            Err(ConvertError::HubId { found: text.into() })
        }
    }
}

impl fmt::Display for HubId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.revision.as_str() {
            "main" => f.write_str(&self.name),
            revision => write!(f, "{}@{revision}", self.name),
        }
    }
}

impl HubId {
    fn repo(&self, revision: &str) -> Repo {
        Repo::with_revision(self.name.clone(), RepoType::Model, revision.into())
    }

    fn error(&self, problem: HubProblem) -> ConvertError {
        ConvertError::Hub { id: self.to_string(), problem }
    }
}

/// Fetches what [`load`](crate::load) reads of a model, and its tokenizer files, into the hub's cache, and returns the
/// folder there. What the cache holds is not fetched again; where the hub cannot be reached, the cache alone serves.
///
/// The environment says where both are, as for Hugging Face's own tools: `HF_HOME` or `HF_HUB_CACHE`, `HF_ENDPOINT`,
/// `HF_TOKEN` for private models, and `HF_HUB_OFFLINE=1`, with which the hub is not asked at all.
///
/// `progress` is called with each file's name, the bytes of it that are there, and its size.
///
/// # Errors
/// [`ConvertError::Hub`], and [`ConvertError::Json`] for an index that names no files.
pub fn fetch(id: &HubId, mut progress: impl FnMut(&str, u64, u64)) -> Result<PathBuf, ConvertError> {
    let cache = cache().ok_or_else(|| id.error(HubProblem::NoCache))?;
    if variable("HF_HUB_OFFLINE").is_some_and(|value| value != "0") {
        return cached(id, &cache).ok_or_else(|| id.error(HubProblem::NotCached));
    }
    let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
    let endpoint = endpoint.trim_end_matches('/').to_owned();
    let mut builder = ApiBuilder::from_cache(cache.clone()).with_endpoint(endpoint.clone());
    if let Some(token) = variable("HF_TOKEN") {
        builder = builder.with_token(Some(token));
    }
    let api = builder.build().map_err(|source| id.error(HubProblem::Answer { source: source.into() }))?;
    let info = match api.repo(id.repo(&id.revision)).info() {
        Ok(info) => info,
        Err(error) => {
            let problem = problem(error, endpoint, None);
            return match (&problem, cached(id, &cache)) {
                (HubProblem::Unreachable { .. }, Some(folder)) => Ok(folder),
                _ => Err(id.error(problem)),
            };
        }
    };
    if !info.sha.chars().all(|c| c.is_ascii_alphanumeric()) || info.sha.is_empty() {
        return Err(id.error(HubProblem::Commit { found: info.sha }));
    }
    // All files are of one commit, whatever happens to the branch meanwhile.
    let folder = folder(&cache, id, &info.sha);
    let repo = api.repo(id.repo(&info.sha));
    let mut commit = Commit { id, endpoint, folder, repo, progress: &mut progress };
    let names: Vec<&str> = info.siblings.iter().map(|file| file.rfilename.as_str()).collect();
    commit.fetch("config.json")?;
    for name in COMPANIONS.into_iter().filter(|name| names.contains(name)) {
        commit.fetch(name)?;
    }
    if names.contains(&INDEX) {
        let index = commit.fetch(INDEX)?;
        for shard in shard_names(&index)? {
            commit.fetch(&shard)?;
        }
    } else {
        commit.fetch(SINGLE)?;
    }
    let failed = |source| id.error(HubProblem::Cache { source });
    cache.repo(id.repo(&id.revision)).create_ref(&info.sha).map_err(failed)?;
    Ok(commit.folder)
}

/// One state of a model on the hub.
struct Commit<'a> {
    id: &'a HubId,
    endpoint: String,
    /// Its files in the cache.
    folder: PathBuf,
    repo: ApiRepo,
    progress: &'a mut dyn FnMut(&str, u64, u64),
}

impl Commit<'_> {
    fn fetch(&mut self, name: &str) -> Result<PathBuf, ConvertError> {
        let path = self.folder.join(name);
        if path.is_file() {
            return Ok(path);
        }
        let observed = Observed { name: name.into(), done: 0, total: 0, progress: self.progress };
        self.repo
            .download_with_progress(name, observed)
            .map_err(|error| self.id.error(problem(error, self.endpoint.clone(), Some(name))))
    }
}

/// Passes the progress of one file on.
struct Observed<'a> {
    name: String,
    done: u64,
    total: u64,
    progress: &'a mut dyn FnMut(&str, u64, u64),
}

impl hf_hub::api::Progress for Observed<'_> {
    fn init(&mut self, size: usize, _name: &str) {
        (self.done, self.total) = (0, size as u64);
        (self.progress)(&self.name, self.done, self.total);
    }

    fn update(&mut self, size: usize) {
        self.done += size as u64;
        (self.progress)(&self.name, self.done, self.total);
    }

    fn finish(&mut self) {}
}

/// Sorts the library's errors by what a user can do about them.
fn problem(error: ApiError, endpoint: String, file: Option<&str>) -> HubProblem {
    let source = match error {
        ApiError::RequestError(source) => source,
        ApiError::IoError(source) => return HubProblem::Cache { source },
        other => return HubProblem::Answer { source: other.into() },
    };
    match (&*source, file) {
        (ureq::Error::StatusCode(404), Some(file)) => HubProblem::NoFile { file: file.into() },
        // The hub says 401 of a name that it does not know, so as not to give private ones away.
        (ureq::Error::StatusCode(401 | 403 | 404), _) => HubProblem::NoModel { endpoint },
        (ureq::Error::StatusCode(status), _) if *status < 500 => HubProblem::Answer { source },
        _ => HubProblem::Unreachable { endpoint, source },
    }
}

fn folder(cache: &Cache, id: &HubId, commit: &str) -> PathBuf {
    cache.repo(id.repo(commit)).pointer_path(commit)
}

/// The folder of a model that the cache holds whole.
fn cached(id: &HubId, cache: &Cache) -> Option<PathBuf> {
    let reference = cache.path().join(id.repo(&id.revision).folder_name()).join("refs").join(&id.revision);
    let commit = match std::fs::read_to_string(reference) {
        Ok(commit) => commit.trim().to_owned(),
        Err(_) => id.revision.clone(), // a commit is its own name
    };
    let folder = folder(cache, id, &commit);
    is_whole(&folder).then_some(folder)
}

/// Whether a folder of the cache has all that a model needs.
fn is_whole(folder: &Path) -> bool {
    let weights = match folder.join(INDEX) {
        index if index.exists() => shard_names(&index).unwrap_or_default().into_iter().collect(),
        _ => vec![SINGLE.to_owned()],
    };
    let all_there = weights.iter().all(|name| folder.join(name).is_file());
    !weights.is_empty() && all_there && folder.join("config.json").is_file()
}

/// Where the hub's files are kept; `None` on a machine without a home.
fn cache() -> Option<Cache> {
    if let Some(path) = variable("HF_HUB_CACHE") {
        return Some(Cache::new(path.into()));
    }
    let home = match variable("HF_HOME") {
        Some(home) => home.into(),
        None => std::env::home_dir()?.join(".cache").join("huggingface"),
    };
    Some(Cache::new(home.join("hub")))
}

/// A variable of the environment that is set to something.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_two_parts_and_perhaps_a_revision() {
        for (text, name, revision) in [
            ("org/name", "org/name", "main"),
            ("HuggingFaceTB/SmolLM2-135M@v1.0", "HuggingFaceTB/SmolLM2-135M", "v1.0"),
            ("a/b@refs/pr/7", "a/b", "refs/pr/7"),
        ] {
            let id: HubId = text.parse().unwrap();
            assert_eq!(
                (id.name.as_str(), id.revision.as_str(), id.to_string()),
                (name, revision, text.into())
            );
        }
        assert_eq!("a/b@main".parse::<HubId>().unwrap().to_string(), "a/b");
        for bad in [
            "",
            "name",
            "/abs/path",
            "a/",
            "a/b/c",
            "../b",
            "a/..",
            "a/.hidden",
            "a b/c",
            "a/b@",
            "a/b@..",
            "a/b@x/../y",
            "a/b@/",
            "./a/b",
            "a\\b/c",
            "a/b@c@d",
        ] {
            let error = bad.parse::<HubId>().unwrap_err();
            assert!(matches!(&error, ConvertError::HubId { found } if found == bad), "{bad}: {error}");
        }
    }
}
