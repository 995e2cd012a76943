//! Burn's AdamW over the parameters of a module, with moments that can be saved.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamGroup, ParamId};
use burn::optim::{AdamW, AdamWConfig, AdamWState, AdaptiveMomentumState, GradientsParams, Optimizer};
use burn::store::ModuleRecord;
use burn::tensor::Tensor;

use crate::working::in_place_of;
use crate::{Decay, TrainConfig, TrainError};

/// AdamW with and without weight decay, and the moments of every parameter that had a gradient.
///
/// Burn's `ModuleOptimizer` does the same, but puts moments that it loads onto the default device, a GPU if support
/// for one is compiled in, present or not; and its decay is fixed. See docs/adr.
#[derive(Clone)]
pub(crate) struct ModuleAdamW {
    decaying: AdamW,
    constant: AdamW,
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
        let adamw = |weight_decay| {
            AdamWConfig::new()
                .with_beta_1(config.betas[0])
                .with_beta_2(config.betas[1])
                .with_epsilon(config.adam_eps)
                .with_weight_decay(weight_decay)
                .build()
        };
        let mut exempt = Exempt::default();
        if config.decay == Decay::Matrices {
            model.visit(&mut exempt);
        }
        Self {
            decaying: adamw(config.weight_decay),
            constant: adamw(0.0),
            exempt: exempt.ids,
            moments: HashMap::new(),
        }
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
        let shape = tensor.dims();
        let decays = self.decays && !self.optimizer.exempt.contains(&id);
        let adamw = if decays { &self.optimizer.decaying } else { &self.optimizer.constant };
        let state = self.optimizer.moments.remove(&id).map(|Moments { updates, first, second }| {
            AdamWState::new(AdaptiveMomentumState::new(updates, first.reshape(shape), second.reshape(shape)))
        });
        let (updated, state) = adamw.step(self.learning_rate, tensor.clone().inner(), grad, state);
        if let Some(AdamWState { momentum }) = state {
            let n = shape.iter().product::<usize>();
            let (first, second) = (momentum.moment_1.reshape([n]), momentum.moment_2.reshape([n]));
            self.optimizer.moments.insert(id, Moments { updates: momentum.time, first, second });
        }
        Param::from_mapped_value(id, in_place_of(&tensor, updated), mapper)
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
