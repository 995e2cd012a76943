//! The report is what its schema says.

use std::fs;
use std::path::Path;

use bitnet_compress::{Float, Options, Rule, STATS};
use safetensors::Dtype;
use serde_json::Value;

use crate::shared::problems;
use crate::support::*;

#[test]
fn reports_follow_the_schema() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/compression-stats.schema.json");
    let schema: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let all = [
        given("model.layers.0.mlp.up_proj.weight", Dtype::F32, &[8, 16]),
        given("model.layers.0.norm.weight", Dtype::F32, &[16]),
        given("model.embed_tokens.weight", Dtype::F32, &[8, 16]),
        values("model.layers.1.mlp.up_proj.weight", &[8, 16], &[0.0; 128]),
    ];
    let (_work, source, target) = checkpoint(&all, "{}");
    let options = [
        Options::default(),
        Options {
            packed: true,
            dtype: Some(Float::Bf16),
            exclude: vec!["*.1.*".into()],
            ..Options::default()
        },
        Options {
            rule: Rule::Threshold(0.1),
            include: vec!["*.embed_tokens.*".into()],
            ..Options::default()
        },
    ];
    for (i, options) in options.iter().enumerate() {
        let target = target.with_file_name(format!("target-{i}"));
        run(&source, &target, options).unwrap();
        let report: Value = serde_json::from_slice(&fs::read(target.join(STATS)).unwrap()).unwrap();
        let mut found = Vec::new();
        problems(&report, &schema, "", &mut found);
        assert_eq!(found, Vec::<String>::new());

        // And the check can fail.
        let mut wrong = report;
        wrong["total"]["weights"] = "many".into();
        wrong["tensors"][0]["decision"] = "forgotten".into();
        wrong["extra"] = 1.into();
        wrong["verification"].as_object_mut().unwrap().remove("dense_codes");
        problems(&wrong, &schema, "", &mut found);
        assert_eq!(found.len(), 4, "{found:?}");
    }
}
