//! What a session is about: everything that must be equal for all its hospitals, so that a hub which tells two
//! hospitals different things gets masks that do not cancel.
use crate::ids::Digest;
use crate::layout::{Layout, LayoutError};
use crate::ring::{MAX_ROSTER, RingError, RingParams, Statistic};
use crate::thresholds::{MIN_ROSTER, ThresholdError, Thresholds};
use crate::weight::{Weight, WeightError};
use crate::wire::{Message, Reader, WireError, Writer, serde_as_wire};

/// What is summed; each purpose has its own rule over several rounds ([`crate::history`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub enum Purpose {
    /// Updates of a model; the subject is the base model.
    Train,
    /// Metrics of a model; the subject is the model evaluated.
    Evaluate,
    /// Example counts and data statistics; the subject is the roster, so they leave once per study and roster.
    Statistics,
}

impl Purpose {
    fn code(self) -> u8 {
        match self {
            Self::Train => 1,
            Self::Evaluate => 2,
            Self::Statistics => 3,
        }
    }
}

/// How hospitals are weighted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weighting {
    /// All alike.
    Equal,
    /// By example count, in full from `cap` on.
    Examples {
        /// The count that weighs 1.
        cap: u64,
    },
}

/// Why a round's specification is refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SpecError {
    /// The ring.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// The layout.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The weighting.
    #[error("weighting: {0}")]
    Weight(#[from] WeightError),
    /// The thresholds.
    #[error(transparent)]
    Threshold(#[from] ThresholdError),
    /// Capacity out of range.
    #[error("capacity {capacity}: must be {MIN_ROSTER}..={MAX_ROSTER} and at least minContributors {min_contributors}")]
    Capacity {
        /// The capacity.
        capacity: u16,
        /// The floor.
        min_contributors: u16,
    },
    /// A statistic whose scale is unusable.
    #[error("statistic {index} has bound {bound}: must be positive, finite and, for counts, at most {max}")]
    StatisticBound {
        /// Which.
        index: usize,
        /// Its bound.
        bound: f64,
        /// Largest exact count.
        max: u32,
    },
    /// Statistics that do not name the roster.
    #[error("purpose Statistics: subject {subject} must be the roster {roster}, so that they leave once per roster")]
    StatisticsSubject {
        /// The subject given.
        subject: Digest,
        /// The roster.
        roster: Digest,
    },
}

/// What is summed, for whom, at which scale, with which floors. Fixed before training begins.
#[derive(Debug, Clone, PartialEq)]
pub struct RoundSpec {
    /// The federation's name.
    pub federation: String,
    /// The study's identity (namespace/name and UID).
    pub study: String,
    /// The round's number in the study.
    pub round: u64,
    /// What is summed.
    pub purpose: Purpose,
    /// The base model (Train), the evaluated model (Evaluate) or the roster (Statistics).
    pub subject: Digest,
    /// Digest of image, config and everything else that defines the work.
    pub plan: Digest,
    /// Digest of the tensor schema that gives body elements their meaning.
    pub schema: Digest,
    /// Digest of the governance-signed roster whose keys hold.
    pub roster: Digest,
    /// Most hospitals that may take part; scales the ring.
    pub capacity: u16,
    /// L2 clip norm of updates.
    pub clip: f64,
    /// How hospitals are weighted.
    pub weighting: Weighting,
    /// Statistics in the head after the weight.
    pub statistics: Vec<Statistic>,
    /// Parameters in the body.
    pub body: u64,
    /// n_C: hospitals that may collude with the hub.
    pub colluders: u16,
    /// Fewest hospitals in the sum.
    pub min_contributors: u16,
}

impl RoundSpec {
    /// Checks everything that can be checked without knowing who will open an attempt.
    ///
    /// # Errors
    /// [`SpecError`].
    pub fn check(&self) -> Result<(), SpecError> {
        let capacity = usize::from(self.capacity);
        if !(MIN_ROSTER..=MAX_ROSTER).contains(&capacity) || self.min_contributors > self.capacity {
            let min_contributors = self.min_contributors;
            return Err(SpecError::Capacity { capacity: self.capacity, min_contributors });
        }
        let ring = self.ring()?;
        self.layout()?;
        Thresholds::for_attempt(capacity, usize::from(self.colluders), usize::from(self.min_contributors))?;
        if self.weighting == (Weighting::Examples { cap: 0 }) {
            return Err(WeightError::ZeroCap.into());
        }
        for (index, statistic) in self.statistics.iter().enumerate() {
            let (bound, ok) = match *statistic {
                Statistic::Real { bound } => (bound, bound.is_finite() && bound > 0.0),
                Statistic::Count { max } => (f64::from(max), max > 0 && max <= ring.max()),
            };
            if !ok {
                return Err(SpecError::StatisticBound { index, bound, max: ring.max() });
            }
        }
        if self.purpose == Purpose::Statistics && self.subject != self.roster {
            return Err(SpecError::StatisticsSubject { subject: self.subject, roster: self.roster });
        }
        Ok(())
    }

    /// The fixed-point scale.
    ///
    /// # Errors
    /// [`RingError`].
    pub fn ring(&self) -> Result<RingParams, RingError> {
        RingParams::new(usize::from(self.capacity), self.clip)
    }

    /// The upload's layout.
    ///
    /// # Errors
    /// [`LayoutError`].
    pub fn layout(&self) -> Result<Layout, LayoutError> {
        Layout::new(self.statistics.len(), self.body)
    }

    /// This hospital's weight under the round's weighting, with the bucket it chose.
    ///
    /// # Errors
    /// [`WeightError`].
    pub fn weight(&self, examples: u64, bucket: u64) -> Result<Weight, WeightError> {
        match self.weighting {
            Weighting::Equal if examples == 0 => Err(WeightError::NoExamples),
            Weighting::Equal => Ok(Weight::EQUAL),
            Weighting::Examples { cap } => Weight::from_examples(examples, cap, bucket),
        }
    }
}

impl Message for RoundSpec {
    const TAG: &'static str = "consilium/secagg/v1/round";

    fn write(&self, w: &mut Writer) {
        w.string(&self.federation).string(&self.study).u64(self.round).u8(self.purpose.code());
        for digest in [self.subject, self.plan, self.schema, self.roster] {
            w.fixed(&digest.0);
        }
        w.u16(self.capacity).u64(self.clip.to_bits());
        match self.weighting {
            Weighting::Equal => w.u8(0).u64(0),
            Weighting::Examples { cap } => w.u8(1).u64(cap),
        };
        w.count(self.statistics.len());
        for statistic in &self.statistics {
            match *statistic {
                Statistic::Real { bound } => w.u8(0).u64(bound.to_bits()),
                Statistic::Count { max } => w.u8(1).u64(u64::from(max)),
            };
        }
        w.u64(self.body).u16(self.colluders).u16(self.min_contributors);
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, WireError> {
        let federation = r.string("federation")?.to_owned();
        let study = r.string("study")?.to_owned();
        let round = r.u64()?;
        let purpose = match r.u8()? {
            1 => Purpose::Train,
            2 => Purpose::Evaluate,
            3 => Purpose::Statistics,
            other => return Err(r.field("purpose", format!("is {other}, must be 1, 2 or 3"))),
        };
        let (subject, plan) = (Digest(r.fixed()?), Digest(r.fixed()?));
        let (schema, roster) = (Digest(r.fixed()?), Digest(r.fixed()?));
        let (capacity, clip) = (r.u16()?, f64::from_bits(r.u64()?));
        let weighting = match (r.u8()?, r.u64()?) {
            (0, 0) => Weighting::Equal,
            (1, cap) => Weighting::Examples { cap },
            (kind, cap) => return Err(r.field("weighting", format!("is ({kind}, {cap}), must be (0, 0) or (1, cap)"))),
        };
        let n = r.count("statistics", 9)?;
        let mut statistics = Vec::with_capacity(n);
        for _ in 0..n {
            statistics.push(match (r.u8()?, r.u64()?) {
                (0, bits) => Statistic::Real { bound: f64::from_bits(bits) },
                (1, max) => Statistic::Count {
                    max: u32::try_from(max).map_err(|_| r.field("statistics", "has a count beyond 32 bits"))?,
                },
                (kind, _) => return Err(r.field("statistics", format!("has kind {kind}, must be 0 or 1"))),
            });
        }
        let (body, colluders, min_contributors) = (r.u64()?, r.u16()?, r.u16()?);
        Ok(Self {
            federation,
            study,
            round,
            purpose,
            subject,
            plan,
            schema,
            roster,
            capacity,
            clip,
            weighting,
            statistics,
            body,
            colluders,
            min_contributors,
        })
    }
}

/// One run of the protocol within a round.
#[derive(Debug, Clone, PartialEq)]
pub struct AttemptSpec {
    /// The round.
    pub round: RoundSpec,
    /// The attempt's number, from 1.
    pub attempt: u32,
}

impl Message for AttemptSpec {
    const TAG: &'static str = "consilium/secagg/v1/attempt";

    fn write(&self, w: &mut Writer) {
        w.bytes(&self.round.to_bytes()).u32(self.attempt);
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, WireError> {
        Ok(Self { round: RoundSpec::from_bytes(r.bytes("round")?)?, attempt: r.u32()? })
    }
}

serde_as_wire!(RoundSpec, AttemptSpec);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::round_spec;

    #[test]
    fn specifications_survive_the_wire() {
        let spec = AttemptSpec { round: round_spec(4, 100), attempt: 3 };
        assert_eq!(AttemptSpec::from_bytes(&spec.to_bytes()).unwrap(), spec);
        let mut other = spec.clone();
        other.round.subject = Digest([9; 32]);
        assert_ne!(other.digest(), spec.digest(), "another base model must be another session");
    }

    /// What a person can get wrong in a study gets a message that says so before anyone trains.
    #[test]
    fn unusable_specifications_say_why() {
        let check = |edit: fn(&mut RoundSpec)| {
            let mut spec = round_spec(4, 100);
            edit(&mut spec);
            spec.check().unwrap_err().to_string()
        };
        assert!(round_spec(4, 100).check().is_ok());
        assert!(check(|s| s.clip = -1.0).contains("clip norm -1"));
        assert!(check(|s| s.capacity = 2).contains("capacity 2"));
        assert!(check(|s| s.min_contributors = 5).contains("minContributors 5"));
        assert!(check(|s| s.colluders = 3).contains("at least 5"));
        assert!(check(|s| s.weighting = Weighting::Examples { cap: 0 }).contains("cap is 0"));
        assert!(check(|s| s.statistics[0] = Statistic::Count { max: u32::MAX }).contains("statistic 0"));
        assert!(check(|s| s.purpose = Purpose::Statistics).contains("must be the roster"));
    }
}
