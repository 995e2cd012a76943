//! Micro-batches on several devices, by Burn's strategies of data parallelism: the optimizer on one of them, or on all.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::mpsc::channel;

use burn::data::dataloader::{DataLoaderIterator, Progress};
use burn::data::dataset::DatasetError;
use burn::module::{Module, ModuleDisplay, ModuleVisitor, Param};
use burn::optim::{GradientsParams, MultiGradientsParams};
use burn::tensor::{Device, Tensor};
use burn::train::train::MultiDevicesTrainStep;
use burn::train::{InferenceStep, TrainOutput, TrainStep};

use crate::TrainError;

/// What the forward and backward pass of a micro-batch gives: its share of the loss, and the gradients.
pub(crate) type Passed = Result<(f64, GradientsParams), TrainError>;

/// Such a pass.
pub(crate) type Pass<M> = Box<dyn FnOnce(&M) -> Passed + Send>;

/// Devices that each compute some of a step's micro-batches, on copies of the model. The first has the model, and the
/// optimizer's state unless that is [`sharded`](Self::sharded).
///
/// Each is a thread of Burn's [`MultiDevicesTrainStep`], which copies the model to its device before every micro-batch.
pub struct Replicas<M: Module + ModuleDisplay + 'static> {
    workers: MultiDevicesTrainStep<Replica<M>>,
    devices: Vec<Device>,
    sharded: bool,
}

impl<M: Module + ModuleDisplay + 'static> Replicas<M> {
    /// Starts a thread for each device.
    ///
    /// # Errors
    /// [`TrainError::Config`] without a device.
    pub fn new(devices: &[Device]) -> Result<Self, TrainError> {
        if devices.is_empty() {
            let (found, expected) = ("none".into(), "at least one".into());
            return Err(TrainError::Config { field: "devices", found, expected });
        }
        let devices: Vec<Device> = devices.iter().map(|device| device.clone().autodiff()).collect();
        Ok(Self { workers: MultiDevicesTrainStep::new(&devices), devices, sharded: false })
    }

    /// Deals out the parameters' updates and the optimizer's state to the devices, by Burn's [`MultiGradientsParams`]. The
    /// last bits of a sum then follow the number of devices.
    pub fn sharded(self) -> Self {
        Self { sharded: true, ..self }
    }

    /// Runs all passes, as many at a time as there are devices. What they give comes in the groups that are added up: in one,
    /// in the order of the passes and brought to the first device; where the optimizer is [`sharded`](Self::sharded), in one for
    /// each device that had a pass.
    pub(crate) fn run(&self, model: &M, passes: Vec<Pass<M>>) -> Result<Vec<Vec<Passed>>, TrainError> {
        let (results, received) = channel();
        let mut queues: Vec<Queue<M>> = self.devices.iter().map(|_| Queue(VecDeque::new())).collect();
        let n_queues = queues.len();
        for (index, pass) in passes.into_iter().enumerate() {
            let results = results.clone();
            let job: Job<M> = Box::new(move |model| {
                // The other end is gone where another device has failed.
                let _ = results.send((index, pass(model)));
            });
            queues[index % n_queues].0.push_back(job);
        }
        drop(results);
        let mut queues: Vec<Box<dyn DataLoaderIterator<Job<M>>>> =
            queues.into_iter().map(|queue| Box::new(queue) as _).collect();
        let replica = Replica { model: model.clone() };
        loop {
            let step = self.workers.step(&mut queues, &replica);
            let (done, _) = step.map_err(|error| TrainError::Device(error.to_string()))?;
            if done.is_empty() {
                break;
            }
        }
        let mut passed: Vec<(usize, Passed)> = received.iter().collect();
        passed.sort_by_key(|(index, _)| *index);
        if self.sharded {
            let n_groups = n_queues.min(passed.len()).max(1);
            let mut groups: Vec<Vec<Passed>> = (0..n_groups).map(|_| Vec::new()).collect();
            passed.into_iter().for_each(|(index, passed)| groups[index % n_queues].push(passed));
            return Ok(groups);
        }
        let on_first = passed.into_iter().map(|(_, passed)| {
            let (loss, grads) = passed?;
            Ok((loss, grads.to_device(&self.devices[0], &replica)))
        });
        Ok(vec![on_first.collect()])
    }

    /// One gradient per parameter, on the device that updates it, from the sums of each group that [`run`](Self::run) gave.
    pub(crate) fn gathered(&self, model: &M, sums: Vec<GradientsParams>) -> GradientsParams {
        let grads = sums.into_iter().zip(self.devices.iter().map(|device| device.clone().inner())).collect();
        let mut gathered = Gathered { from: MultiGradientsParams { grads }, to: GradientsParams::new() };
        model.visit(&mut gathered);
        gathered.to
    }
}

struct Gathered {
    from: MultiGradientsParams,
    to: GradientsParams,
}

impl ModuleVisitor for Gathered {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some((grad, _)) = self.from.remove::<D>(param.id) {
            self.to.register(param.id, grad);
        }
    }
}

/// The model as Burn's training threads take it.
#[derive(Module, Debug)]
struct Replica<M: Module> {
    model: M,
}

/// A pass that hands over what it gives itself: Burn's threads return results in any order, and no errors.
type Job<M> = Box<dyn FnOnce(&M) + Send>;

impl<M: Module + ModuleDisplay + 'static> TrainStep for Replica<M> {
    type Input = Job<M>;
    type Output = ();

    fn step(&self, job: Job<M>) -> TrainOutput<()> {
        job(&self.model);
        TrainOutput { grads: GradientsParams::new(), item: () }
    }
}

/// Burn's threads ask for it, and never do it: nothing can be its input.
impl<M: Module + ModuleDisplay + 'static> InferenceStep for Replica<M> {
    type Input = Infallible;
    type Output = ();

    fn step(&self, input: Infallible) {
        match input {}
    }
}

/// The passes of one device, as the data that Burn's threads take.
struct Queue<M>(VecDeque<Job<M>>);

impl<M> Iterator for Queue<M> {
    type Item = Result<Job<M>, DatasetError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.pop_front().map(Ok)
    }
}

impl<M> DataLoaderIterator<Job<M>> for Queue<M> {
    fn progress(&self) -> Progress {
        Progress { items_processed: 0, items_total: self.0.len(), unit: None }
    }
}

#[cfg(test)]
mod tests {
    use burn::module::ParamId;
    use burn::nn::{Linear, LinearConfig};

    use super::*;

    /// On which device each parameter's gradient is, and its sum, after some passes.
    fn gradients(sharded: bool, passes: usize) -> Vec<(Device, f32)> {
        // Without a second kind of device, as outside of the workspace's tests, all are one.
        let home = Device::flex();
        let devices = [home.clone(), bitnet_quant::device("ndarray").unwrap_or(home.clone())];
        let replicas = Replicas::new(&devices).unwrap();
        let replicas = if sharded { replicas.sharded() } else { replicas };
        let layer = |id| {
            let mut layer: Linear = LinearConfig::new(1, 1).with_bias(false).init(&home.clone().autodiff());
            layer.weight = Param::initialized(ParamId::from(id), layer.weight.val());
            layer
        };
        let model: Vec<Linear> = (0..4).map(layer).collect();
        let pass = || -> Pass<Vec<Linear>> {
            Box::new(|model| {
                let grads =
                    model.iter().map(|layer| layer.weight.val()).reduce(|a, b| a + b).unwrap().backward();
                Ok((1.0, GradientsParams::from_grads(grads, model)))
            })
        };
        let groups = replicas.run(&model, (0..passes).map(|_| pass()).collect()).unwrap();
        assert_eq!(groups.iter().map(Vec::len).sum::<usize>(), passes);
        assert_eq!(groups.len(), if sharded { passes.min(2) } else { 1 });
        let sums = groups.into_iter().map(|group| {
            let mut sum = burn::optim::GradientsAccumulator::new();
            group.into_iter().for_each(|passed| sum.accumulate(&model, passed.unwrap().1));
            sum.grads()
        });
        let gathered = replicas.gathered(&model, sums.collect());
        let gradient = |layer: &Linear| gathered.get::<2>(layer.weight.id).unwrap();
        model.iter().map(|layer| (gradient(layer).device(), gradient(layer).into_scalar::<f32>())).collect()
    }

    /// Sharded, every other parameter is updated on the second device; a device without a pass updates none.
    #[test]
    fn gradients_come_to_the_device_that_updates() {
        let (first, second) = (Device::flex(), bitnet_quant::device("ndarray").unwrap_or(Device::flex()));
        let on = |devices: [&Device; 4], sum| devices.map(|device| (device.clone(), sum)).to_vec();
        assert_eq!(gradients(false, 4), on([&first; 4], 4.0));
        assert_eq!(gradients(true, 4), on([&first, &second, &first, &second], 4.0));
        assert_eq!(gradients(true, 1), on([&first; 4], 1.0));
    }
}
