//! What may be replaced by `--force`.

use std::path::Path;

use crate::error::CliError;

/// Refuses to replace a folder that is no model and no adapter, and the source by its own conversion: `--force` must not
/// be able to remove a home.
pub(crate) fn check_replaceable(source: &Path, target: &Path) -> Result<(), CliError> {
    let refuse = |reason| Err(CliError::NotReplaced { path: target.into(), reason });
    let same = source.canonicalize().ok().zip(target.canonicalize().ok());
    if same.is_some_and(|(source, target)| source.starts_with(target)) {
        return refuse("it is what is read");
    }
    let is_full = target.read_dir().is_ok_and(|mut entries| entries.next().is_some());
    let is_model = ["config.json", "adapter_config.json"].iter().any(|name| target.join(name).is_file());
    if is_full && !is_model {
        return refuse("it is a folder without a model or an adapter in it; remove it yourself");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn only_a_model_or_nothing_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let (source, target) = (folder.path().join("source"), folder.path().join("target"));
        for path in [&source, &target] {
            fs::create_dir(path).unwrap();
        }
        let check = |target: &Path| check_replaceable(&source, target);
        assert!(check(&folder.path().join("absent")).is_ok());
        assert!(check(&target).is_ok());
        fs::write(target.join("holiday.jpg"), "").unwrap();
        assert!(matches!(check(&target), Err(CliError::NotReplaced { .. })));
        for config in ["adapter_config.json", "config.json"] {
            fs::write(target.join(config), "{}").unwrap();
            assert!(check(&target).is_ok());
            fs::remove_file(target.join(config)).unwrap();
        }
        fs::write(target.join("config.json"), "{}").unwrap();
        assert!(check(&target.join("config.json")).is_ok());
        fs::write(source.join("config.json"), "{}").unwrap();
        assert!(matches!(check(&source), Err(CliError::NotReplaced { .. })));
        assert!(matches!(check(&source.join("..").join("source")), Err(CliError::NotReplaced { .. })));
        fs::write(folder.path().join("config.json"), "{}").unwrap();
        assert!(matches!(check(folder.path()), Err(CliError::NotReplaced { .. })), "it holds the source");
    }
}
