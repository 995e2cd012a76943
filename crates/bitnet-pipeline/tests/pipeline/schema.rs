//! The report is what its schema says.

use std::fs;
use std::path::Path;

use bitnet_compress::{PAGE, STATS};
use serde_json::Value;

use crate::shared::problems;
use crate::support::*;

#[test]
fn reports_follow_the_schema() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/compression-stats.schema.json");
    let schema: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let short = "calibration = { windows = 4 }\neval = { every = 1, windows = 2 }";
    for settings in [
        "",
        "train = { steps = 1 }\nexclude = ['*.o_proj']\ndtype = 'bf16'\nlrc = { init = { calibrated = { rounds = 0 } } }",
        "train = { steps = 1 }\nexport = { gguf = 'f16' }",
    ] {
        let work = Work::new("llama_tied");
        let report = work.run(&format!("{short}\n{settings}")).unwrap();
        let json: Value = serde_json::from_slice(&fs::read(work.target().join(STATS)).unwrap()).unwrap();
        let mut found = Vec::new();
        problems(&json, &schema, "", &mut found);
        assert_eq!(found, Vec::<String>::new());
        assert_eq!(json["model"]["lrc"].is_array(), settings.contains("lrc"));
        assert_eq!(json["model"]["gguf"].is_object(), settings.contains("gguf"));

        // And the check can fail.
        let mut wrong = json;
        wrong["model"]["verdict"]["ratio"] = "low".into();
        wrong["model"]["calibration"][0]["extra"] = 1.into();
        wrong["model"].as_object_mut().unwrap().remove("perplexity");
        problems(&wrong, &schema, "", &mut found);
        assert_eq!(found.len(), 3, "{found:?}");

        let page = fs::read_to_string(work.target().join(PAGE)).unwrap();
        for word in ["model.layers.2.mlp.down_proj.weight", "weights alone", "mlp.down_proj", "TQ1_0"] {
            assert!(page.contains(word), "{word}");
        }
        assert_eq!(page.matches("<svg").count(), 5);
        assert!(page.contains(&format!("{:.4}", report.model.perplexity.result)));
        assert!(
            !page.contains("<script") && !page.contains("src=") && !page.contains("href="),
            "self-contained"
        );
    }
}
