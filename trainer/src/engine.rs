//! The training loop: one round's steps from a base model, with checkpoints on the way.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use consilium_federation::digest::Digest;
use consilium_federation::task::Progress;
use consilium_imaging::random::{permutation, stream};
use consilium_imaging::torch::{LossParts, UNet3d, dice_cross_entropy, named_parameters};
use rand::RngExt;
use tch::{Device, TchError, Tensor, autocast, nn};

use crate::adam::Adam;
use crate::augment::{Augmentation, Draw};
use crate::checkpoint::{self, Position};
use crate::config::{Precision, TrainerConfig};
use crate::data::Examples;
use crate::error::TrainerError;
use crate::ranks::{RankError, Ranks, sum_tensors};
use crate::schedule::{Place, learning_rate};

/// Half precision: where the loss's scale begins, and after how many good steps it is doubled.
const FIRST_LOSS_SCALE: f64 = 65536.0;
const LOSS_SCALE_GROWS_AFTER: u64 = 2000;

/// A network with its optimiser.
#[derive(Debug)]
pub struct Engine {
    store: nn::VarStore,
    net: UNet3d,
    adam: Adam,
    half: bool,
    loss_scale: f64,
    good_steps: u64,
    /// What the parameters are held near, and how strongly.
    hold: Option<(Vec<Tensor>, f64)>,
}

/// What to train on, and how long.
#[derive(Debug)]
pub struct Job<'a> {
    /// The scans.
    pub examples: &'a Examples,
    /// The configuration.
    pub config: &'a TrainerConfig,
    /// Seed of the data order.
    pub data_seed: u64,
    /// Round, from 1.
    pub round: u32,
    /// Rounds planned.
    pub rounds: u32,
    /// Where checkpoints go, after how many steps, and whose they are; `None` writes none.
    pub checkpoints: Option<Checkpoints>,
}

/// Where a job's checkpoints go.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    /// The folder.
    pub folder: PathBuf,
    /// Steps between two.
    pub every: u64,
    /// Digest of the task.
    pub task: Digest,
}

/// What came of a job.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Steps of the round.
    pub steps: u64,
    /// Mean loss of each epoch.
    pub epoch_losses: Vec<f64>,
    /// The step that a checkpoint let it begin with.
    pub resumed_at: u64,
}

impl Engine {
    /// A network with random weights by `seed`.
    pub fn new(config: &TrainerConfig, seed: u64, device: Device) -> Result<Self, TchError> {
        // Torch's seed is signed; the bits are what counts.
        tch::manual_seed(seed as i64);
        let store = nn::VarStore::new(device);
        let net = UNet3d::new(&store.root(), config.network())?;
        let adam = Adam::new(named_parameters(&store))?;
        let half = config.precision == Precision::FP16 && device.is_cuda();
        let loss_scale = if half { FIRST_LOSS_SCALE } else { 1.0 };
        Ok(Self { store, net, adam, half, loss_scale, good_steps: 0, hold: None })
    }

    /// The parameters.
    pub fn store(&self) -> &nn::VarStore {
        &self.store
    }

    /// The network alone, for inference; its parameters live on with it.
    pub fn into_net(self) -> UNet3d {
        self.net
    }

    /// One step on a batch; gives the loss.
    pub fn step(&mut self, images: &Tensor, labels: &Tensor, rate: f64) -> Result<f64, TchError> {
        self.adam.zero_grad();
        let loss = dice_cross_entropy(&self.scores(images)?, labels)?;
        self.backward(&loss)?;
        self.update(rate)?;
        f64::try_from(&loss)
    }

    /// One step on a batch of which this process has a part: what comes of it is the same in every rank.
    fn shared_step(
        &mut self,
        job: &Job<'_>,
        drawn: &[Draw],
        rate: f64,
        ranks: &mut dyn Ranks,
    ) -> Result<f64, TrainerError> {
        self.adam.zero_grad();
        let own: Vec<Draw> = drawn.iter().skip(ranks.rank()).step_by(ranks.count()).cloned().collect();
        let parts = if own.is_empty() {
            None
        } else {
            let (images, labels) = job.examples.batch(&own, self.store.device())?;
            let share = own.len() as f64 / drawn.len() as f64;
            Some(LossParts::of(&self.scores(&images)?, &labels, share)?)
        };
        let nothing = || LossParts::nothing(job.config.network().classes, self.store.device());
        let mut sums = [parts.as_ref().map_or_else(nothing, LossParts::sums)?];
        sum_tensors(ranks, &mut sums)?;
        // A last batch may be smaller than there are ranks.
        self.backward(&parts.map_or_else(|| self.adam.nothing(), |parts| parts.pull(&sums[0]))?)?;
        sum_tensors(ranks, &mut self.adam.gradients())?;
        self.update(rate)?;
        Ok(f64::try_from(&LossParts::loss(&sums[0])?)?)
    }

    fn scores(&self, images: &Tensor) -> Result<Tensor, TchError> {
        if self.half { autocast(true, || self.net.forward(images)) } else { self.net.forward(images) }
    }

    fn backward(&self, loss: &Tensor) -> Result<(), TchError> {
        if self.half { loss.f_mul_scalar(self.loss_scale)?.f_backward() } else { loss.f_backward() }
    }

    /// One step of the optimiser by the gradients that are there.
    fn update(&mut self, rate: f64) -> Result<(), TchError> {
        if let Some((anchor, strength)) = &self.hold {
            self.adam.hold(anchor, strength * self.loss_scale)?;
        }
        if !self.half || self.adam.gradients_finite()? {
            self.adam.step(rate, self.loss_scale)?;
            self.grow_loss_scale();
        } else {
            // Overflow: leave out this step and scale less (Micikevicius et al., Mixed Precision Training, 2018).
            self.loss_scale = (self.loss_scale / 2.0).max(1.0);
            self.good_steps = 0;
        }
        Ok(())
    }

    fn grow_loss_scale(&mut self) {
        self.good_steps += 1;
        if self.half && self.good_steps >= LOSS_SCALE_GROWS_AFTER {
            self.loss_scale *= 2.0;
            self.good_steps = 0;
        }
    }

    /// Runs a job to its end, from its checkpoint if there is one. `tell` is called after every step; when `stop` is set
    /// the job writes a checkpoint and ends with [`TrainerError::Terminated`].
    pub fn run(
        &mut self,
        job: &Job<'_>,
        stop: &AtomicBool,
        tell: &mut dyn FnMut(&Progress, f64) -> Result<(), TrainerError>,
        ranks: &mut dyn Ranks,
    ) -> Result<Outcome, TrainerError> {
        let plan = Plan::of(job);
        // The base, and not what a checkpoint holds: a task that was stopped is held where it was held before.
        let strength = Some(job.config.proximal).filter(|strength| *strength > 0.0);
        self.hold = strength.map(|strength| Ok::<_, TchError>((self.adam.anchor()?, strength))).transpose()?;
        let mut state = self.resume(job)?;
        let resumed_at = state.step;
        let began = Instant::now();
        while state.step < plan.steps {
            if together(ranks, state.step, stop.load(Ordering::Relaxed))? {
                self.checkpoint(job, &state, ranks)?;
                return Err(TrainerError::Terminated { step: state.step });
            }
            let loss = self.plan_step(job, &plan, state.step, ranks)?;
            state.loss_sum += loss;
            state.step += 1;
            if state.step % plan.steps_per_epoch == 0 {
                state.epoch_losses.push(state.loss_sum / plan.steps_per_epoch as f64);
                state.loss_sum = 0.0;
            }
            let due = job.checkpoints.as_ref().is_some_and(|c| state.step.is_multiple_of(c.every.max(1)));
            if due && state.step < plan.steps {
                self.checkpoint(job, &state, ranks)?;
            }
            let per_step = began.elapsed().as_secs_f64() / (state.step - resumed_at) as f64;
            let left = (per_step * (plan.steps - state.step) as f64).ceil() as u64;
            tell(&Progress { step: state.step, of: plan.steps, eta_seconds: Some(left) }, loss)?;
        }
        Ok(Outcome { steps: plan.steps, epoch_losses: state.epoch_losses, resumed_at })
    }

    fn plan_step(&mut self, job: &Job<'_>, plan: &Plan, step: u64, ranks: &mut dyn Ranks) -> Result<f64, TrainerError> {
        let drawn = plan.batch(job, step);
        let place = Place { round: job.round, rounds: job.rounds, step, steps: plan.steps };
        let rate = learning_rate(job.config.learning_rate, place);
        let loss = if ranks.count() == 1 {
            let (images, labels) = job.examples.batch(&drawn, self.store.device())?;
            self.step(&images, &labels, rate)?
        } else {
            self.shared_step(job, &drawn, rate, ranks)?
        };
        if loss.is_finite() {
            Ok(loss)
        } else {
            Err(TrainerError::Diverged { loss, step, learning_rate: job.config.learning_rate })
        }
    }

    fn resume(&mut self, job: &Job<'_>) -> Result<State, TrainerError> {
        let Some(checkpoints) = &job.checkpoints else { return Ok(State::default()) };
        let Some((position, tensors)) = checkpoint::load(&checkpoints.folder, checkpoints.task)? else {
            return Ok(State::default());
        };
        self.adam.restore(&tensors, position.adam_steps)?;
        if self.half {
            (self.loss_scale, self.good_steps) = (position.loss_scale, position.good_steps);
        }
        Ok(State { step: position.step, loss_sum: position.loss_sum, epoch_losses: position.epoch_losses })
    }

    /// Written by the first rank; all others have the same in memory.
    fn checkpoint(&self, job: &Job<'_>, state: &State, ranks: &dyn Ranks) -> Result<(), TrainerError> {
        let Some(checkpoints) = job.checkpoints.as_ref().filter(|_| ranks.rank() == 0) else { return Ok(()) };
        let position = Position {
            task: checkpoints.task,
            step: state.step,
            adam_steps: self.adam.steps(),
            loss_scale: self.loss_scale,
            good_steps: self.good_steps,
            epoch_losses: state.epoch_losses.clone(),
            loss_sum: state.loss_sum,
            tensors: format!("step-{}.safetensors", state.step),
        };
        checkpoint::save(&checkpoints.folder, &position, &self.adam.state())
    }
}

/// Whether all ranks stop now, because one of them was told to; they must be at the same step.
fn together(ranks: &mut dyn Ranks, step: u64, stop: bool) -> Result<bool, TrainerError> {
    if ranks.count() == 1 {
        return Ok(stop);
    }
    // A float holds every step up to 2^24 exactly, and differences beyond.
    let mut said = [f32::from(u8::from(stop)), (step % (1 << 16)) as f32];
    let own = said[1] * ranks.count() as f32;
    ranks.sum(&mut said)?;
    if said[1] == own {
        return Ok(said[0] > 0.0);
    }
    let reason = format!("step {step} here, {} in sum", said[1]);
    Err(RankError::OutOfStep { rank: ranks.rank(), other: usize::from(ranks.rank() == 0), reason }.into())
}

/// Where the loop stands.
#[derive(Debug, Default)]
struct State {
    step: u64,
    loss_sum: f64,
    epoch_losses: Vec<f64>,
}

/// How many steps, and which scans in each.
struct Plan {
    steps: u64,
    steps_per_epoch: u64,
}

impl Plan {
    fn of(job: &Job<'_>) -> Self {
        let steps_per_epoch = job.examples.len().div_ceil(job.config.batch_size) as u64;
        Self { steps: steps_per_epoch * u64::from(job.config.epochs_per_round), steps_per_epoch }
    }

    /// The scans of a step with their changes: a function of seed, round and step alone.
    fn batch(&self, job: &Job<'_>, step: u64) -> Vec<Draw> {
        let epochs_before = u64::from(job.round.max(1) - 1) * u64::from(job.config.epochs_per_round);
        let (epoch, at) = (epochs_before + step / self.steps_per_epoch, step % self.steps_per_epoch);
        let order = permutation(job.data_seed, "order", epoch, job.examples.len());
        let mut coin = stream(job.data_seed, "mirror", epoch * self.steps_per_epoch + at);
        let first = at as usize * job.config.batch_size;
        let last = (first + job.config.batch_size).min(order.len());
        let changes = job.config.augmentation.as_ref().map(Augmentation::changes);
        let draw = |(place, &scan): (usize, &usize)| {
            let mirrored = job.config.mirror.iter().copied().filter(|_| coin.random::<bool>()).collect();
            let item = epoch * order.len() as u64 + (first + place) as u64;
            match &changes {
                Some(changes) => Draw::of(changes, job.data_seed, item, scan, mirrored),
                None => Draw::plain(scan, mirrored),
            }
        };
        order[first..last].iter().enumerate().map(draw).collect()
    }
}
