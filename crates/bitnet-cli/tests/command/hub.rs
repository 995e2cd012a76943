//! Models from the hub: a local server speaks its API.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::json;
use tempfile::TempDir;

use crate::support::{Run, copy, repository, small};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A hub with one model, `org/name`, in one folder.
struct Hub {
    endpoint: String,
    /// Paths that were asked for, in order.
    asked: Arc<Mutex<Vec<String>>>,
    cache: TempDir,
}

impl Hub {
    fn new(folder: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (folder, log) = (folder.to_owned(), asked.clone());
        // It ends with the process.
        thread::spawn(move || {
            for stream in listener.incoming() {
                answer(&stream.unwrap(), &folder, &log);
            }
        });
        Self { endpoint, asked, cache: tempfile::tempdir().unwrap() }
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = crate::support::command();
        command.env("HF_ENDPOINT", &self.endpoint).env("HF_HOME", self.cache.path()).args(words);
        command
    }

    fn run(&self, words: &[&str]) -> Run {
        crate::support::run(&mut self.command(words))
    }

    /// Files that were asked for since the last time, each once.
    fn asked(&self) -> Vec<String> {
        let mut files: Vec<String> = std::mem::take(&mut *self.asked.lock().unwrap());
        files.dedup();
        files
    }

    fn model_folder(&self) -> PathBuf {
        self.cache.path().join("hub/models--org--name")
    }
}

/// Answers one request and closes the connection.
fn answer(mut stream: &TcpStream, folder: &Path, log: &Mutex<Vec<String>>) {
    let mut lines = BufReader::new(stream).lines().map(Result::unwrap);
    let Some(request) = lines.next() else { return };
    let path = request.split(' ').nth(1).unwrap().to_owned();
    let headers: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
    let header = |name: &str| {
        let found = headers
            .iter()
            .filter_map(|line| line.split_once(": "))
            .find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.to_owned())
    };
    let mut respond = |status: &str, headers: &str, body: &[u8]| {
        let head = format!(
            "HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body)).unwrap();
    };
    if let Some(revision) = path.strip_prefix("/api/models/org/name/revision/") {
        log.lock().unwrap().push(format!("info {revision}"));
        if !["main", "v1", COMMIT].contains(&revision) {
            return respond("404 Not Found", "", b"");
        }
        let files: Vec<_> =
            crate::support::names(folder).into_iter().map(|name| json!({ "rfilename": name })).collect();
        return respond("200 OK", "", json!({ "sha": COMMIT, "siblings": files }).to_string().as_bytes());
    }
    let Some(name) = path.strip_prefix(&format!("/org/name/resolve/{COMMIT}/")) else {
        return respond("401 Unauthorized", "", b"");
    };
    log.lock().unwrap().push(name.to_owned());
    let Ok(bytes) = fs::read(folder.join(name)) else {
        return respond("404 Not Found", "", b"");
    };
    let range = header("range").unwrap();
    let (from, to) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
    let from: usize = from.parse().unwrap();
    let to = to.parse().map_or(bytes.len(), |last: usize| bytes.len().min(last + 1));
    let headers = format!(
        "ETag: \"{name}-{}\"\r\nx-repo-commit: {COMMIT}\r\nContent-Range: bytes {from}-{}/{}\r\n",
        bytes.len(),
        to.saturating_sub(1),
        bytes.len(),
    );
    respond("206 Partial Content", &headers, &bytes[from..to]);
}

#[test]
fn a_model_is_fetched_once_and_then_served_by_the_cache() {
    let work = tempfile::tempdir().unwrap();
    let folder = work.path().join("model");
    copy(&small(), &folder);
    fs::write(folder.join("README.md"), "not needed").unwrap();
    fs::write(folder.join("pytorch_model.bin"), "not needed").unwrap();
    let hub = Hub::new(&folder);

    let generate = ["generate", "org/name", "--prompt", "Once", "--max-tokens", "4", "--quiet"];
    let text = hub.run(&generate).ok();
    let mut here = crate::support::command();
    let local = crate::support::run(here.arg("generate").arg(small()).args(&generate[2..])).ok();
    assert_eq!(text, local);
    assert_eq!(hub.asked(), ["info main", "config.json", "tokenizer.json", "model.safetensors"]);
    assert_eq!(fs::read_to_string(hub.model_folder().join("refs/main")).unwrap(), COMMIT);
    let fetched = hub.model_folder().join("snapshots").join(COMMIT).join("model.safetensors");
    assert_eq!(fs::read(fetched).unwrap(), fs::read(small().join("model.safetensors")).unwrap());

    // Another revision of the same commit, then the commit itself: nothing is fetched twice.
    hub.run(&["inspect", "org/name@v1"]).ok();
    hub.run(&["inspect", &format!("org/name@{COMMIT}")]).ok();
    assert_eq!(hub.asked(), ["info v1".to_owned(), format!("info {COMMIT}")]);

    // Without the hub, by wish and by accident.
    for name in ["org/name", "org/name@v1", &format!("org/name@{COMMIT}")] {
        crate::support::run(hub.command(&["inspect", name]).env("HF_HUB_OFFLINE", "1")).ok();
        crate::support::run(hub.command(&["inspect", name]).env("HF_ENDPOINT", closed())).ok();
    }
    assert_eq!(hub.asked(), Vec::<String>::new());
    let error =
        crate::support::run(hub.command(&["inspect", "org/name@v2"]).env("HF_HUB_OFFLINE", "1")).failed();
    assert!(error.contains("`org/name@v2`") && error.contains("HF_HUB_OFFLINE"), "{error}");

    // A cache that lacks a file is none.
    fs::remove_file(hub.model_folder().join("snapshots").join(COMMIT).join("config.json")).unwrap();
    crate::support::run(hub.command(&["inspect", "org/name"]).env("HF_HUB_OFFLINE", "1")).failed();
    hub.run(&["inspect", "org/name"]).ok();
    assert_eq!(hub.asked(), ["info main", "config.json"]);
}

#[test]
fn shards_are_those_of_the_index() {
    let hub = Hub::new(&repository("tests/data/hf/llama_sharded"));
    let found = crate::support::json(&hub.run(&["inspect", "org/name", "--json"]).ok());
    assert_eq!(found["architecture"]["n_layers"], 3);
    let shard = |i| format!("model-{i:05}-of-00005.safetensors");
    let expected = ["info main", "config.json", "model.safetensors.index.json"].map(str::to_owned);
    assert_eq!(hub.asked(), [expected.to_vec(), (1..=5).map(shard).collect()].concat());
}

#[test]
fn a_folder_of_that_name_goes_first() {
    let hub = Hub::new(&small());
    let work = tempfile::tempdir().unwrap();
    copy(&repository("tests/data/hf/gpt2"), &work.path().join("org/name"));
    let text = crate::support::run(hub.command(&["inspect", "org/name"]).current_dir(work.path())).ok();
    assert!(text.contains("gpt2"), "{text}");
    assert_eq!(hub.asked(), Vec::<String>::new());
}

#[test]
fn what_the_hub_lacks_is_named() {
    let work = tempfile::tempdir().unwrap();
    let hub = Hub::new(work.path());
    let error = hub.run(&["inspect", "org/other"]).failed();
    assert!(error.contains("`org/other`") && error.contains("no such model"), "{error}");
    let error = hub.run(&["inspect", "org/name@v7"]).failed();
    assert!(error.contains("`org/name@v7`") && error.contains("no such model or revision"), "{error}");
    let error = hub.run(&["inspect", "org/name"]).failed();
    assert!(error.contains("it has no file `config.json`"), "{error}");
    fs::copy(small().join("config.json"), work.path().join("config.json")).unwrap();
    let error = hub.run(&["inspect", "org/name"]).failed();
    assert!(error.contains("it has no file `model.safetensors`"), "{error}");
    let index = json!({ "weight_map": { "a": "there.safetensors", "b": "gone.safetensors" } });
    fs::write(work.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    fs::copy(small().join("model.safetensors"), work.path().join("there.safetensors")).unwrap();
    let error = hub.run(&["inspect", "org/name"]).failed();
    assert!(error.contains("it has no file `gone.safetensors`"), "{error}");
}

#[test]
fn a_hub_that_does_not_answer_is_named() {
    let hub = Hub::new(&small());
    let endpoint = closed();
    let error =
        crate::support::run(hub.command(&["inspect", "org/name"]).env("HF_ENDPOINT", &endpoint)).failed();
    assert!(error.contains(&format!("cannot reach {endpoint}")) && error.contains("refused"), "{error}");
    assert!(!hub.model_folder().exists());
}

/// The address of a server that is not there.
fn closed() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}
