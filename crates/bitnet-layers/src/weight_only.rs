use bitnet_quant::{Granularity, check_granularity, straight_through, ternarize};
use bitnet_warmup::default_lambda;
use burn::module::{Module, ModuleVisitor, Param, Reparameterization, Reparameterizer};
use burn::tensor::Tensor;
use globset::{Glob, GlobSet, GlobSetBuilder};

use crate::LayerError;

/// Makes the matching weights of an unmodified Burn module ternary, through Burn's own parameter hook: `val()`
/// gives the straight-through value, the optimizer keeps training the latent one.
///
/// The hook sees one weight and no activations, so it carries neither int8 activations nor SubLN: use slots for
/// those. `lambda: None` follows the process-wide default.
///
/// # Shapes
/// Weights are Burn's `[d_input, d_output]`; rows and groups are those of the transposed matrix.
///
/// Returns the module and the names of the weights that it converted, in the module's order.
///
/// # Errors
/// - [`LayerError::Pattern`] where a glob cannot be read
/// - [`LayerError::NothingMatched`] where no two-dimensional weight matches
/// - [`LayerError::Quantization`] where the granularity does not fit a matching weight
pub fn ternarize_weights<M: Module>(
    module: M,
    include: &[&str],
    granularity: Granularity,
    lambda: Option<f32>,
) -> Result<(M, Vec<String>), LayerError> {
    let mut found =
        Matching { include: globs(include)?, path: Vec::new(), granularity, names: Vec::new(), error: None };
    module.visit(&mut found);
    if let Some(error) = found.error {
        return Err(error);
    }
    if found.names.is_empty() {
        return Err(LayerError::NothingMatched { patterns: include.iter().map(|p| p.to_string()).collect() });
    }
    let reparameterization = TernaryReparameterization { granularity, lambda };
    let module = module.apply_reparameterization(Attach { names: &found.names, reparameterization });
    Ok((module, found.names))
}

/// Compiles globs on full names.
fn globs(patterns: &[&str]) -> Result<GlobSet, LayerError> {
    let error = |pattern: &str, reason: globset::Error| LayerError::Pattern {
        pattern: pattern.into(),
        reason: reason.kind().to_string(),
    };
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        set.add(Glob::new(pattern).map_err(|reason| error(pattern, reason))?);
    }
    set.build().map_err(|reason| error(&patterns.join(", "), reason))
}

/// The hook that [`ternarize_weights`] attaches to a parameter.
#[derive(Module, Debug)]
pub struct TernaryReparameterization {
    #[module(skip)]
    granularity: Granularity,
    #[module(skip)]
    lambda: Option<f32>,
}

impl Reparameterization for TernaryReparameterization {
    const NAME: &'static str = "ternary";

    fn apply<const D: usize>(&self, base: Tensor<D>) -> Tensor<D> {
        let shape = base.shape();
        let weight = base.clone().inner().reshape([shape[0], shape[1]]).transpose();
        let quantized = match ternarize(weight, self.granularity) {
            Ok(quantized) => quantized.dequantize().transpose().reshape(shape),
            Err(error) => unreachable!("`ternarize_weights` checked the granularity: {error}"),
        };
        straight_through(base, quantized, self.lambda.unwrap_or_else(default_lambda))
    }
}

struct Attach<'a> {
    names: &'a [String],
    reparameterization: TernaryReparameterization,
}

impl Reparameterizer for Attach<'_> {
    type Reparam = TernaryReparameterization;

    fn reparameterize<const D: usize>(
        &mut self,
        path: &str,
        param: Param<Tensor<D>>,
    ) -> (Param<Tensor<D>>, Option<Self::Reparam>) {
        let matches = self.names.iter().any(|name| name == path);
        (param, matches.then(|| self.reparameterization.clone()))
    }
}

/// Collects the names of the two-dimensional weights that match.
struct Matching {
    include: GlobSet,
    path: Vec<String>,
    granularity: Granularity,
    names: Vec<String>,
    error: Option<LayerError>,
}

impl ModuleVisitor for Matching {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.into());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let name = self.path.join(".");
        if D != 2 || !self.include.is_match(&name) {
            return;
        }
        let shape = param.lazy_shape();
        match check_granularity(self.granularity, [shape[1], shape[0]]) {
            Ok(()) => self.names.push(name),
            Err(source) => self.error = Some(LayerError::Quantization { name, source }),
        }
    }
}
