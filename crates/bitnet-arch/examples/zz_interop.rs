use bitnet_arch::convert::*;
use bitnet_arch::format::ScaleHome;
use bitnet_arch::quant::device;
use burn::tensor::DType;
fn main() {
    if let Err(error) = run() {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}
fn run() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    let args: Vec<&str> = args.iter().map(|s| s.as_str()).collect();
    let opt = |name: &str| args.iter().position(|a| *a == name).map(|i| args[i + 1]);
    match args[1] {
        "convert" => {
            let policy = Policy { sub_norm: opt("--sub-norm").unwrap().parse::<Placement>()?, ..Policy::default() };
            stage1(args[2], args[3], &policy, &device("flex")?, &LoadOptions::default())?;
        }
        "export" => {
            let form = opt("--format").unwrap();
            let overwrite = args.contains(&"--force");
            let tensors = Tensors::open(args[2], &LoadOptions::default())?;
            let hf = match form {
                "hf-bitlinear" => Some(HfFormat::BitLinear),
                "hf-autobitlinear" => Some(HfFormat::AutoBitLinear),
                "hf-online" => Some(HfFormat::Online),
                _ => None,
            };
            if let Some(hf) = hf {
                let options = ExportOptions { overwrite, ..ExportOptions::new(ExportFormat::Hf(hf)) };
                export(&tensors, args[3], &options, |_, _| ())?;
            } else {
                let kind = if form == "gguf" { "auto" } else { form.strip_prefix("gguf-").unwrap_or(form) };
                let scale = opt("--scale").map(|s| if s == "block" { ScaleHome::Block } else { ScaleHome::Tensor });
                let options = GgufOptions { weights: kind.parse()?, overwrite, scale, ..Default::default() };
                print!("{}", export_gguf(&tensors, args[3], &options, |_, _| ())?);
            }
        }
        "logits" => {
            let model = Tensors::open(args[2], &LoadOptions::default())?.load(&device("flex")?)?.model;
            let sequences: Vec<Vec<u32>> = serde_json::from_slice(&std::fs::read(args[3])?)?;
            let logits = model.forward(model.batch(&sequences)?);
            let logits: Vec<f32> = logits.cast(DType::F32).try_into_vec_as().map_err(|error| error.to_string())?;
            let bytes: Vec<u8> = logits.iter().flat_map(|v| v.to_le_bytes()).collect();
            std::fs::write(args[4], bytes)?;
        }
        other => return Err(other.into()),
    }
    Ok(())
}
