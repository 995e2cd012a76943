//! Any shape, any type, any rule.

use bitnet_compress::{Granularity, Options, PACKED_FOLDER, Rule, read_packed};
use bitnet_cpu::Kernel;
use proptest::prelude::*;
use safetensors::Dtype;

use crate::shared::tree;
use crate::support::*;

fn any_rule() -> impl Strategy<Value = Rule> {
    prop_oneof![
        Just(Rule::default()),
        Just(Rule::Absmean(Granularity::Row)),
        (0u32..3).prop_map(|log| Rule::Absmean(Granularity::Group(1 << log))),
        (0.0f32..2.0).prop_map(Rule::Threshold),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn artifacts_hold_the_reference_s_codes(
        rule in any_rule(),
        experts in 1usize..4,
        rows in 2usize..40,
        fours in 1usize..12,
        ragged in 0usize..4,
        dtype in prop_oneof![Just(Dtype::F32), Just(Dtype::F16), Just(Dtype::BF16)],
        transposed: bool,
        seed: u32,
    ) {
        let columns = 4 * fours + if matches!(rule, Rule::Absmean(Granularity::Group(_))) { 0 } else { ragged };
        let shape = if transposed { [experts, columns, rows] } else { [experts, rows, columns] };
        let name = "layers.0.mlp.experts.up_proj";
        let stored = encode(dtype, &noise(&seed.to_string(), experts * rows * columns));
        let values = decode(dtype, &stored);
        let given = Given { name: name.into(), dtype, shape: shape.to_vec(), bytes: stored };
        let config = if transposed { r#"{"model_type": "gpt_oss"}"# } else { "{}" };
        let (_work, source, target) = checkpoint(&[given], config);
        run(&source, &target, &Options { rule, packed: true, ..Options::default() }).unwrap();
        let packed = read_packed(&target.join(PACKED_FOLDER).join("model.safetensors"), name).unwrap();
        prop_assert_eq!(packed.matrices.len(), experts);
        for (matrix, values) in packed.matrices.iter().zip(values.chunks(rows * columns)) {
            let w: Vec<f32> = if transposed {
                (0..rows * columns).map(|i| values[i % columns * rows + i / columns]).collect()
            } else {
                values.to_vec()
            };
            let kernel = Kernel::scalar();
            let expected = match rule {
                Rule::Absmean(granularity) => kernel.absmean_ternarize(&w, rows, columns, granularity),
                Rule::Threshold(threshold) => kernel.threshold_ternarize(&w, rows, columns, threshold),
            }.unwrap();
            prop_assert_eq!(matrix.codes(), &expected.codes);
            let scales: Vec<f32> = matrix.scales().iter().map(|scale| scale.get()).collect();
            prop_assert_eq!(scales, expected.scales);
        }
        let dense = &tensors(&target.join("model.safetensors"))[name].2;
        prop_assert_eq!(dense, &encode(dtype, &packed.dequantize()));
    }

    #[test]
    fn any_bytes_are_refused_or_read(bytes in proptest::collection::vec(any::<u8>(), 0..200), header: bool) {
        let (_work, source, target) = checkpoint(&[], "{}");
        let file = if header {
            [&(bytes.len() as u64).to_le_bytes()[..], &bytes].concat()
        } else {
            bytes
        };
        std::fs::write(source.join("model.safetensors"), file).unwrap();
        prop_assert!(run(&source, &target, &Options::default()).is_err());
        prop_assert!(read_packed(&source.join("model.safetensors"), "a").is_err());
    }
}

/// More rows than a task takes, so that tasks meet.
#[test]
fn large_matrices_are_whole_and_the_same_with_any_number_of_threads() {
    let names = ["layers.0.q_proj.weight", "layers.0.experts.up_proj"];
    let given = [given(names[0], Dtype::BF16, &[1500, 700]), given(names[1], Dtype::F16, &[2, 900, 1301])];
    let (_work, source, target) = checkpoint(&given, r#"{"model_type": "gpt_oss"}"#);
    let options = Options { packed: true, ..Options::default() };
    let mut found = Vec::new();
    for threads in [1, 2, 5] {
        let target = target.with_file_name(format!("target-{threads}"));
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| run(&source, &target, &options)).unwrap();
        found.push(tree(&target));
    }
    assert!(found.iter().all(|tree| *tree == found[0]));
    let path = target.with_file_name("target-1").join(PACKED_FOLDER).join("model.safetensors");
    let values = decode(Dtype::BF16, &given[0].bytes);
    let expected = Kernel::new().absmean_ternarize(&values, 1500, 700, Granularity::Tensor).unwrap();
    let packed = read_packed(&path, names[0]).unwrap();
    assert_eq!(packed.matrices[0].codes(), expected.codes);
    assert_eq!(packed.matrices[0].scales()[0].get().to_bits(), expected.scales[0].to_bits());
    let values = decode(Dtype::F16, &given[1].bytes);
    for (matrix, values) in
        read_packed(&path, names[1]).unwrap().matrices.iter().zip(values.chunks(900 * 1301))
    {
        let w: Vec<f32> = (0..values.len()).map(|i| values[i % 900 * 1301 + i / 900]).collect();
        let expected = Kernel::new().absmean_ternarize(&w, 1301, 900, Granularity::Tensor).unwrap();
        assert_eq!(matrix.codes(), expected.codes);
        assert_eq!(matrix.scales()[0].get().to_bits(), expected.scales[0].to_bits());
    }
}
