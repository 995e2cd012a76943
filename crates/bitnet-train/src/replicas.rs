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

    /// Runs all passes, as many at a time as there are devices. The losses and gradients are sums of those on each device; of
    /// [`sharded`](Self::sharded) ones there is one group per device, and otherwise one on the first device, with all passes in
    /// their order.
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
            let mut groups: Vec<Vec<Passed>> = self.devices.iter().map(|_| Vec::new()).collect();
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
