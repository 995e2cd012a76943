//! Burn's AdamW over the parameters of a module, with moments that can be saved.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use bitnet_quant::{AdamW, adamw};
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamGroup, ParamId};
use burn::optim::{AdamWConfig, AdamWState, AdaptiveMomentumState, GradientsParams, Optimizer};
use burn::store::ModuleRecord;
use burn::tensor::{Device, GradientCheckpointingStrategy, Tensor};

use crate::{Decay, TrainConfig, TrainError};

/// AdamW with and without weight decay, and the moments of every parameter that had a gradient.
///
/// Burn's `ModuleOptimizer` does the same, but puts moments that it loads onto the default device, a GPU if support
/// for one is compiled in, present or not; and its decay is fixed. See docs/adr.
#[derive(Clone)]
pub(crate) struct ModuleAdamW {
    config: TrainConfig,
    /// Parameters that never decay.
    exempt: Vec<ParamId>,
    moments: HashMap<ParamId, Moments>,
}

/// AdamW's state of one parameter, as one axis.
#[derive(Clone)]
struct Moments {
    updates: usize,
    first: Tensor<1>,
    second: Tensor<1>,
}

const FILES: [&str; 2] = ["moments_1.bpk", "moments_2.bpk"];

impl ModuleAdamW {
    pub(crate) fn new(config: &TrainConfig, model: &impl Module) -> Self {
        let mut exempt = Exempt::default();
        if config.decay == Decay::Matrices {
            model.visit(&mut exempt);
        }
        Self { config: config.clone(), exempt: exempt.ids, moments: HashMap::new() }
    }

    /// Updates every parameter that has a gradient; `decays` is false in the second stage of a two-stage schedule.
    pub(crate) fn step<M: Module>(
        &mut self,
        learning_rate: f64,
        decays: bool,
        model: M,
        grads: GradientsParams,
    ) -> M {
        model.map(&mut Step { optimizer: self, learning_rate, decays, grads })
    }

    /// Writes the moments as two records of the module, and returns how many updates each of its parameters had.
    pub(crate) fn save<M: Module>(
        &self,
        model: &M,
        folder: &Path,
    ) -> Result<BTreeMap<u64, usize>, TrainError> {
        let group = ParamGroup::from_ids(self.moments.keys().copied().collect());
        let of: [fn(&Moments) -> &Tensor<1>; 2] = [|moments| &moments.first, |moments| &moments.second];
        for (name, of) in FILES.into_iter().zip(of) {
            let moments = model.valid().map(&mut AsParameters { moments: &self.moments, of });
            let path = folder.join(name);
            moments
                .into_record_group(group.clone())
                .save(&path)
                .map_err(|error| TrainError::Write { path, reason: error.to_string() })?;
        }
        Ok(self.moments.iter().map(|(id, moments)| (id.val(), moments.updates)).collect())
    }

    /// Reads what [`save`](Self::save) wrote, for a model whose record has been loaded.
    pub(crate) fn load<M: Module>(
        &mut self,
        model: &M,
        folder: &Path,
        updates: &BTreeMap<u64, usize>,
    ) -> Result<(), TrainError> {
        let [first, second] = FILES.map(|name| {
            let path = folder.join(name);
            let wrong = |error| TrainError::snapshot(&path, error);
            let record = ModuleRecord::load(&path).map_err(wrong)?.allow_partial(true);
            let moments = model.valid().try_load_record(record).map_err(wrong)?;
            let mut found = Collected::default();
            moments.visit(&mut found);
            Ok::<_, TrainError>(found.0)
        });
        let (mut first, mut second) = (first?, second?);
        for (&id, &updates) in updates {
            let id = ParamId::from(id);
            let (Some(first), Some(second)) = (first.remove(&id), second.remove(&id)) else {
                return Err(TrainError::snapshot(folder, format!("parameter {id} is unknown")));
            };
            self.moments.insert(id, Moments { updates, first, second });
        }
        Ok(())
    }
}

struct Step<'a> {
    optimizer: &'a mut ModuleAdamW,
    learning_rate: f64,
    decays: bool,
    grads: GradientsParams,
}

impl ModuleMapper for Step<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (id, tensor, mapper) = param.consume();
        let Some(grad) = self.grads.remove::<D>(id) else {
            return Param::from_mapped_value(id, tensor, mapper);
        };
        let decays = self.decays && !self.optimizer.exempt.contains(&id);
        let (shape, kind) = (tensor.dims(), Kind::of(&tensor));
        let n = shape.iter().product::<usize>();
        let moments = self.optimizer.moments.remove(&id);
        // The update, and the moments for good, are where the gradient is; the parameter comes back.
        let (value, there) = (tensor.inner().reshape([n]), grad.device());
        let home = value.device();
        let moments = moments.map(|Moments { updates, first, second }| Moments {
            updates,
            first: on(first, &there),
            second: on(second, &there),
        });
        let (value, moments) = self.updated(decays, on(value, &there), grad.reshape([n]), moments);
        self.optimizer.moments.insert(id, moments);
        Param::from_mapped_value(id, kind.restore(on(value, &home).reshape(shape)), mapper)
    }
}

/// The tensor on a device, the same handle if it is there already.
fn on(tensor: Tensor<1>, device: &Device) -> Tensor<1> {
    if tensor.device() == *device { tensor } else { tensor.to_device(device) }
}

impl Step<'_> {
    /// A parameter and its moments after the update.
    fn updated(
        &self,
        decays: bool,
        parameter: Tensor<1>,
        gradient: Tensor<1>,
        moments: Option<Moments>,
    ) -> (Tensor<1>, Moments) {
        let TrainConfig { betas, adam_eps, weight_decay, .. } = self.optimizer.config;
        let weight_decay = if decays { weight_decay } else { 0.0 };
        let Moments { updates, first, second } = moments.unwrap_or_else(|| Moments {
            updates: 0,
            first: gradient.zeros_like(),
            second: gradient.zeros_like(),
        });
        let settings = AdamW {
            betas,
            corrections: betas.map(|beta| 1.0 - beta.powi(updates as i32 + 1)),
            epsilon: adam_eps,
            learning_rate: self.learning_rate as f32,
            keep: (1.0 - self.learning_rate * f64::from(weight_decay)) as f32,
        };
        match adamw(settings, &gradient, [parameter, first, second]) {
            Ok([parameter, first, second]) => (parameter, Moments { updates: updates + 1, first, second }),
            Err(tensors) => {
                let [parameter, first, second] = *tensors;
                let adamw = AdamWConfig::new()
                    .with_beta_1(betas[0])
                    .with_beta_2(betas[1])
                    .with_epsilon(adam_eps)
                    .with_weight_decay(weight_decay)
                    .build();
                let state = AdamWState::new(AdaptiveMomentumState::new(updates, first, second));
                let (parameter, state) = adamw.step(self.learning_rate, parameter, gradient, Some(state));
                match state {
                    Some(AdamWState { momentum }) => {
                        let (first, second) = (momentum.moment_1, momentum.moment_2);
                        (parameter, Moments { updates: momentum.time, first, second })
                    }
                    None => unreachable!("AdamW has a state after its update"),
                }
            }
        }
    }
}

/// What a parameter's tensor has beside its value. The value alone can be updated where it lies.
struct Kind {
    /// Of autodiff; none where there is no autodiff.
    strategy: Option<GradientCheckpointingStrategy>,
    requires_grad: bool,
}

impl Kind {
    fn of<const D: usize>(parameter: &Tensor<D>) -> Self {
        Self {
            strategy: parameter.gradient_checkpointing_strategy(),
            requires_grad: parameter.is_require_grad(),
        }
    }

    fn restore<const D: usize>(&self, value: Tensor<D>) -> Tensor<D> {
        let Some(strategy) = self.strategy else {
            return value;
        };
        let value = Tensor::from_inner(value).with_gradient_checkpointing_strategy(strategy);
        if self.requires_grad { value.require_grad() } else { value }
    }
}

/// Finds norms, biases and embeddings.
#[derive(Default)]
struct Exempt {
    containers: Vec<bool>,
    ids: Vec<ParamId>,
}

impl ModuleVisitor for Exempt {
    fn enter_module(&mut self, _name: &str, container: &str) {
        self.containers.push(container == "Struct:Embedding");
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.containers.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if D == 1 || self.containers.last() == Some(&true) {
            self.ids.push(param.id);
        }
    }
}

/// Puts moments in the place of parameters.
struct AsParameters<'a> {
    moments: &'a HashMap<ParamId, Moments>,
    of: fn(&Moments) -> &Tensor<1>,
}

impl ModuleMapper for AsParameters<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (id, tensor, mapper) = param.consume();
        let moment = self.moments.get(&id).map(|moments| (self.of)(moments).clone().reshape(tensor.dims()));
        Param::from_mapped_value(id, moment.unwrap_or(tensor), mapper)
    }
}

/// All parameters, as one axis each.
#[derive(Default)]
struct Collected(HashMap<ParamId, Tensor<1>>);

impl ModuleVisitor for Collected {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let tensor = param.val();
        let n = tensor.shape().num_elements();
        self.0.insert(param.id, tensor.reshape([n]));
    }
}

#[cfg(test)]
mod tests {
    use burn::nn::LinearConfig;
    use burn::tensor::Tolerance;

    use super::*;

    /// A gradient on another device is applied there: the moments stay, the parameter is back where it was.
    #[test]
    fn an_update_is_where_the_gradient_is() {
        let home = Device::flex();
        // Without a second kind of device, as outside of the workspace's tests, both are one.
        let there = bitnet_quant::device("ndarray").unwrap_or(home.clone());
        let model = LinearConfig::new(3, 2).with_bias(false).init(&home.clone().autodiff());
        let gradient = Tensor::<2>::from_data([[1.0, -2.0], [3.0, 4.0], [0.5, -0.25]], &home);
        let config: TrainConfig =
            toml::from_str("steps = 2\nlambda = { schedule = 'linear', warmup_steps = 1 }").unwrap();
        let run = |device: &Device| {
            let (mut optimizer, mut model) = (ModuleAdamW::new(&config, &model), model.clone());
            for _ in 0..2 {
                let mut grads = GradientsParams::new();
                grads.register(model.weight.id, gradient.clone().to_device(device));
                model = optimizer.step(0.1, true, model, grads);
            }
            let moments = &optimizer.moments[&model.weight.id];
            assert_eq!([moments.first.device(), moments.second.device()], [device.clone(), device.clone()]);
            assert_eq!(model.weight.val().inner().device(), home);
            model.weight.val().inner().into_data()
        };
        run(&there).assert_approx_eq::<f32>(&run(&home), Tolerance::relative(1e-6));
    }
}
