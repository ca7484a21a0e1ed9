//! The meaning of `spec.trainer.config`: parsed and checked before anything else is touched, so that a bad value costs
//! seconds and not a queue's worth of waiting.

use consilium_federation::output::{OutputKind, OutputSpec};
use consilium_federation::task::{MAX_CLASSES, TaskFile};
use consilium_imaging::preprocess::divisible;
use consilium_imaging::torch::{Network, UNet3dConfig};
use serde::{Deserialize, Deserializer, Serialize};

use crate::augment::Augmentation;
use crate::error::TrainerError;

/// A study's trainer configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrainerConfig {
    /// The network.
    pub network: Network,
    /// Shape x, y, z that volumes are padded or cut to, and the tile of inference. A study must say it; `fit` otherwise
    /// takes the smallest that holds every scan of the folder and can be halved `levels` times.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shape: Option<[usize; 3]>,
    /// Passes over the data in each round.
    #[serde(default = "one")]
    pub epochs_per_round: u32,
    /// Volumes in each step.
    #[serde(default = "two")]
    pub batch_size: usize,
    /// Adam's rate at the start of the cosine; a number, or a string such as "0.003" (the API keeps decimals as
    /// strings).
    #[serde(default = "default_rate", deserialize_with = "number_or_string")]
    pub learning_rate: f64,
    /// Arithmetic of the forward pass.
    #[serde(default)]
    pub precision: Precision,
    /// Axes along which volumes are mirrored at random while training.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mirror: Vec<Axis>,
    /// Strength of what holds a hospital's model near the round's base (FedProx); 0 lets it go.
    #[serde(default, skip_serializing_if = "is_zero", deserialize_with = "number_or_string")]
    pub proximal: f64,
    /// How scans are changed at random while training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub augmentation: Option<Augmentation>,
}

/// Arithmetic of the forward pass; weights and sums are always 32-bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Precision {
    /// 32-bit everywhere.
    #[default]
    FP32,
    /// 16-bit with loss scaling on a GPU; a CPU has no use for it and trains in 32-bit.
    FP16,
}

/// An axis of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Axis {
    /// First in the file, fastest in memory.
    X,
    /// Second.
    Y,
    /// Third.
    Z,
}

impl Axis {
    /// Its place in a tensor `[batch, channel, z, y, x]`, counted from the end as torch allows.
    pub fn from_end(self) -> i64 {
        match self {
            Self::X => -1,
            Self::Y => -2,
            Self::Z => -3,
        }
    }
}

const fn one() -> u32 {
    1
}
const fn two() -> usize {
    2
}
const fn default_rate() -> f64 {
    2e-3
}

fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

pub(crate) fn number_or_string<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Number(f64),
        Text(String),
    }
    match Either::deserialize(from)? {
        Either::Number(number) => Ok(number),
        Either::Text(text) => text.parse().map_err(|_| serde::de::Error::custom(format!("{text:?} is not a number"))),
    }
}

impl TrainerConfig {
    /// Parses and checks a configuration. The message names field, value and rule.
    pub fn parse(value: &serde_json::Value) -> Result<Self, TrainerError> {
        let config: Self = serde_json::from_value(value.clone())
            .map_err(|e| TrainerError::Config(format!("config: {e}; see docs/guides/trainer.md for the fields")))?;
        config.check()?;
        Ok(config)
    }

    /// Parses and checks a study's configuration, which must fix the shape: hospitals that each took the one that covers
    /// their own scans would train and judge the model on different shapes, and it would be served with yet another.
    pub fn of_study(value: &serde_json::Value) -> Result<Self, TrainerError> {
        Self::parse(value)?.shaped()
    }

    /// Refuses a configuration without a shape.
    pub fn shaped(self) -> Result<Self, TrainerError> {
        if self.shape.is_some() {
            self.check()?;
            return Ok(self);
        }
        Err(TrainerError::Config(format!(
            "config.shape is missing: in a study it must be three multiples of {} (2^levels), so that all hospitals \
             train, judge and serve alike; take the one in the fit.json of `consilium-trainer fit`",
            1 << self.network().levels
        )))
    }

    /// The configuration of a task: the study's, which must agree with its `spec.output` if it has one.
    pub fn of_task(task: &TaskFile) -> Result<Self, TrainerError> {
        let Some(output) = &task.output else { return Self::of_study(&task.config) };
        let mut config = Self::parse(&task.config)?;
        config.agree(output)?;
        config.shape = config.shape.or(output.shape.map(|shape| shape.map(|side| side as usize)));
        config.shaped()
    }

    /// The network must answer what the study says that its model answers: evaluator and server go by that.
    fn agree(&self, output: &OutputSpec) -> Result<(), TrainerError> {
        let fail = |what: String| Err(TrainerError::Config(format!("{what}; correct one of the two in the study")));
        output.check().map_err(TrainerError::Config)?;
        if output.kind != OutputKind::Segmentation {
            return fail("spec.output.kind is Classification and this trainer makes segmentations".into());
        }
        let classes = usize::from(self.network().classes);
        if classes != output.values() {
            return fail(format!(
                "config.network.classes is {classes} and spec.output.classes names {} (with the background {})",
                output.classes.len(),
                output.values()
            ));
        }
        match (self.shape, output.shape.map(|shape| shape.map(|side| side as usize))) {
            (Some(here), Some(there)) if here != there => {
                fail(format!("config.shape is {here:?} and spec.output.shape is {there:?}"))
            }
            _ => Ok(()),
        }
    }

    fn check(&self) -> Result<(), TrainerError> {
        let net = self.network();
        let fail = |field: &str, value: String, rule: &str| {
            Err(TrainerError::Config(format!("config.{field} is {value}: it must be {rule}")))
        };
        self.network.check().map_err(TrainerError::Config)?;
        if usize::from(net.classes) > MAX_CLASSES + 1 {
            let rule = format!(
                "at most {} (background and {MAX_CLASSES} structures, as many as a score tells)",
                MAX_CLASSES + 1
            );
            return fail("network.classes", net.classes.to_string(), &rule);
        }
        if let Some(shape) = self.shape
            && (!divisible(shape, net.levels) || shape.iter().any(|side| *side > 1024))
        {
            let rule = format!("three multiples of {} (2^levels) up to 1024", 1 << net.levels);
            return fail("shape", format!("{shape:?}"), &rule);
        }
        if !(1..=1000).contains(&self.epochs_per_round) {
            return fail("epochsPerRound", self.epochs_per_round.to_string(), "from 1 to 1000");
        }
        if !(1..=1024).contains(&self.batch_size) {
            return fail("batchSize", self.batch_size.to_string(), "from 1 to 1024");
        }
        if !(self.learning_rate > 0.0 && self.learning_rate <= 1.0) {
            return fail("learningRate", self.learning_rate.to_string(), "above 0 and at most 1");
        }
        if !(0.0..=100.0).contains(&self.proximal) {
            return fail("proximal", self.proximal.to_string(), "from 0 to 100");
        }
        self.augmentation.as_ref().map_or(Ok(()), Augmentation::check).map_err(TrainerError::Config)
    }

    /// The network's shape for `imaging`.
    pub fn network(&self) -> UNet3dConfig {
        self.network.unet()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_smallest_config_has_sensible_defaults() {
        let config = TrainerConfig::parse(&json!({"network": {"kind": "UNet3D", "classes": 3}})).unwrap();
        assert_eq!(config.network(), UNet3dConfig { width: 8, levels: 3, classes: 3 });
        assert_eq!((config.epochs_per_round, config.batch_size, config.precision), (1, 2, Precision::FP32));
    }

    /// Without it each hospital would train another model, and none of them be the one that is served.
    #[test]
    fn a_study_must_fix_the_shape_and_a_fit_need_not() {
        let mut config = json!({"network": {"kind": "UNet3D", "classes": 9}});
        assert!(TrainerConfig::parse(&config).is_ok());
        let message = TrainerConfig::of_study(&config).unwrap_err().to_string();
        assert!(["config.shape", "missing", "multiples of 8"].iter().all(|part| message.contains(part)), "{message}");
        config["shape"] = json!([40, 56, 40]);
        assert_eq!(TrainerConfig::of_study(&config).unwrap().shape, Some([40, 56, 40]));
    }

    /// Two words for one thing in a study must not differ: the evaluator would score other structures than were trained.
    #[test]
    fn the_config_agrees_with_what_the_study_says_of_its_output() {
        let of = |config: serde_json::Value, output: serde_json::Value| {
            let task = json!({"study": "a/b", "round": 1, "rounds": 1, "kind": "Train", "config": config, "seed": 1, "dataSeed": 1,
                "output": output});
            TrainerConfig::of_task(&serde_json::from_value(task).unwrap())
        };
        let network = json!({"network": {"kind": "UNet3D", "classes": 3}});
        let two = json!({"kind": "Segmentation", "classes": ["anterior", "posterior"], "shape": [40, 56, 40]});
        assert_eq!(of(network.clone(), two.clone()).unwrap().shape, Some([40, 56, 40]));
        let said = |config, output| of(config, output).unwrap_err().to_string();
        let one = json!({"kind": "Segmentation", "classes": ["anterior"], "shape": [40, 56, 40]});
        assert!(said(network.clone(), one).contains("classes is 3 and spec.output.classes names 1"));
        let mut shaped = network.clone();
        shaped["shape"] = json!([48, 56, 40]);
        assert!(said(shaped, two).contains("config.shape is [48, 56, 40] and spec.output.shape is [40, 56, 40]"));
        let other = json!({"kind": "Classification", "classes": ["a", "b", "c"]});
        assert!(said(network.clone(), other).contains("Classification"));
        let shapeless = json!({"kind": "Segmentation", "classes": ["anterior", "posterior"]});
        assert!(said(network, shapeless).contains("shape is missing"));
    }

    #[test]
    fn a_rate_may_be_a_string_because_the_api_keeps_decimals_so() {
        let base = json!({"network": {"kind": "UNet3D", "classes": 3}, "learningRate": "0.01"});
        assert_eq!(TrainerConfig::parse(&base).unwrap().learning_rate, 0.01);
    }

    /// A researcher who mistypes must learn field, value and rule from the message alone.
    #[test]
    fn wrong_values_are_named() {
        let cases = [
            (json!({"network": {"kind": "UNet3D", "classes": 1}}), ["network.classes", "1", "at least 2"]),
            // One more could be trained and would then be refused at every evaluation.
            (json!({"network": {"kind": "UNet3D", "classes": 10}}), ["network.classes", "10", "at most 9"]),
            (json!({"network": {"kind": "UNet3D", "classes": 3, "width": 0}}), ["network.width", "0", "1 to 256"]),
            (json!({"network": {"kind": "UNet3D", "classes": 3}, "shape": [40, 57, 40]}), ["shape", "57", "8"]),
            (json!({"network": {"kind": "UNet3D", "classes": 3}, "learningRate": "nan"}), ["learningRate", "NaN", "0"]),
            (json!({"network": {"kind": "UNet3D", "classes": 3}, "learningRate": "fast"}), ["fast", "not", "number"]),
            (json!({"network": {"kind": "UNet3D", "classes": 3}, "batchSize": 0}), ["batchSize", "0", "1 to 1024"]),
            (json!({"network": {"kind": "UNet3D", "classes": 3}, "epochs": 3}), ["epochs", "unknown", "expected"]),
            (json!({"network": {"kind": "ResNet", "classes": 3}}), ["ResNet", "unknown", "UNet3D"]),
        ];
        for (value, parts) in cases {
            let message = TrainerConfig::parse(&value).unwrap_err().to_string();
            assert!(parts.iter().all(|part| message.contains(part)), "{message} lacks one of {parts:?}");
        }
    }
}
