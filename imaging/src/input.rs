//! What a network sees of a scan: intensities brought to one scale and, if the study has a reference, to one sign of
//! contrast.
//!
//! Scanners differ in what a value means, and sequences in whether fluid is bright or dark. What can be taken out of a
//! scan by its own values alone is taken out here, at training, evaluation and use alike. It is decided scan by scan: a
//! hospital keeps nothing that could be lost, or be another one where the model is used.

use serde::{Deserialize, Deserializer, Serialize};

use crate::preprocess::{centred, z_score, z_scored};
use crate::volume::Volume;

/// Deviation of the Gaussian that a voxel's surroundings are weighed by, in voxels.
const SIGMA: f64 = 6.0;
/// The Gaussian ends here, in voxels.
const REACH: usize = 18;
/// Added to the surroundings' deviation, which is 1 over a whole scan: where there is nothing but noise, noise must not
/// be blown up.
const FLOOR: f32 = 0.3;
/// Values that a scan's distribution is told from.
const SAMPLED: usize = 1 << 18;
/// A scan is inverted when its lopsidedness is the reference's turned over by at least this share: one that is hardly
/// lopsided is left as it is. Of 209 scans of the hippocampus set one is inverted wrongly, and of their inverted and shaded
/// likenesses none is left as it is; without the share three and none.
const CLEARLY: f64 = 0.2;
/// Fewest and most quantiles of a reference.
const QUANTILES: std::ops::RangeInclusive<usize> = 5..=257;
/// A quantile is written in so many parts of a deviation.
const PARTS: f32 = 1000.0;
/// The highest value of a quantile, 100 deviations.
const HIGHEST: i32 = 100_000;

/// What is done to a scan's intensities before the network sees them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Input {
    /// To which scale they are brought.
    #[serde(default, skip_serializing_if = "Scaling::is_global")]
    pub scaling: Scaling,
    /// The distribution of intensities that scans of this kind have; one whose inverse lies nearer to it is inverted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<Reference>,
}

/// The scale of intensities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Scaling {
    /// Mean 0 and deviation 1 over the scan.
    #[default]
    Global,
    /// Then, at each voxel, against the mean and deviation around it; this takes coil shading away, and most of what one
    /// scanner's contrast has beside another's.
    Local,
}

impl Scaling {
    fn is_global(&self) -> bool {
        *self == Self::Global
    }
}

/// Quantiles of a scan after local scaling: the middles of so many equal parts of its values, in order, in thousandths of a
/// deviation. The ends are left out, where a single bright vessel decides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Reference(Vec<i32>);

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Self::new(Vec::deserialize(from)?).map_err(serde::de::Error::custom)
    }
}

impl Reference {
    /// Quantiles that are some: rising, and not the same as their own inverse.
    pub fn new(quantiles: Vec<i32>) -> Result<Self, String> {
        let fail = |what: String| {
            let way = "take what `consilium-trainer reference` prints";
            Err(format!("input.reference {what}; {way}"))
        };
        if !QUANTILES.contains(&quantiles.len()) {
            return fail(format!("has {} quantiles: from {QUANTILES:?} are allowed", quantiles.len()));
        }
        if let Some(pair) = quantiles.windows(2).find(|pair| pair[0] > pair[1]) {
            return fail(format!("falls from {} to {}: quantiles rise", pair[0], pair[1]));
        }
        if let Some(value) = quantiles.iter().find(|value| value.unsigned_abs() > HIGHEST.unsigned_abs()) {
            return fail(format!("has {value}: thousandths of a deviation lie within {HIGHEST}"));
        }
        if quantiles.iter().zip(quantiles.iter().rev()).all(|(a, b)| a + b == 0) {
            return fail("is the same upside down: it cannot tell a scan from its inverse".into());
        }
        Ok(Self(quantiles))
    }

    /// The mean of several scans' quantiles. None of no scans, and of such as cannot be told from their inverse.
    pub fn of(scans: &[Vec<f32>]) -> Option<Self> {
        let quantiles = scans.first()?.len();
        let mean = |at: usize| {
            let sum: f64 = scans.iter().map(|scan| f64::from(scan[at])).sum();
            (sum / scans.len() as f64 * f64::from(PARTS)).round() as i32
        };
        Self::new((0..quantiles).map(mean).collect()).ok()
    }

    /// Quantiles that it has.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Never: [`Reference::new`] refuses it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a scan with these quantiles is clearly nearer to it when it is inverted: by the difference of the two squared
    /// distances, in which what is the same upside down cancels out.
    pub fn inverted(&self, quantiles: &[f32]) -> bool {
        let skew = |at: usize| f64::from(quantiles[at]) + f64::from(quantiles[quantiles.len() - 1 - at]);
        let wanted = |at: usize| f64::from(self.0[at]) + f64::from(self.0[self.0.len() - 1 - at]);
        let likeness: f64 = (0..quantiles.len()).map(|at| skew(at) * wanted(at) / f64::from(PARTS)).sum();
        let own: f64 = (0..quantiles.len()).map(|at| (wanted(at) / f64::from(PARTS)).powi(2)).sum();
        likeness < -CLEARLY * own
    }
}

impl Input {
    /// What a study without a word of it has.
    pub const PLAIN: Self = Self { scaling: Scaling::Global, reference: None };

    /// Whether it is what a study without a word of it has.
    pub fn is_plain(&self) -> bool {
        *self == Self::PLAIN
    }

    /// Refuses what does not go together; the message names field, value and rule.
    pub fn check(&self) -> Result<(), String> {
        if self.reference.is_some() && self.scaling == Scaling::Global {
            return Err("config.network.input.reference needs input.scaling Local: by a whole scan's own mean and \
                        deviation an inverted scan is not told from another"
                .into());
        }
        Ok(())
    }

    /// A raw scan as the network sees it, centred in shape `to`: cut where larger, filled with 0, the mean, where smaller.
    pub fn seen(&self, volume: &Volume, to: [usize; 3]) -> Vec<f32> {
        let shape = volume.grid.shape;
        match self.scaling {
            Scaling::Global => z_scored(&volume.voxels, shape, to),
            Scaling::Local => {
                let local = locally_scored(&volume.voxels, shape);
                let inverted = |r: &Reference| r.inverted(&quantiles(&local, r.len()));
                let sign = if self.reference.as_ref().is_some_and(inverted) { -1.0 } else { 1.0 };
                centred(&local, shape, to, 0.0, |voxel| sign * voxel)
            }
        }
    }

    /// Bytes that [`Input::seen`] takes for each voxel besides what it gives, while it runs.
    pub fn working_bytes(&self) -> u64 {
        match self.scaling {
            Scaling::Global => 0,
            // The z-scores, their squares, and both blurred; while one is blurred, a copy.
            Scaling::Local => 5 * 4,
        }
    }
}

/// The quantiles of one raw scan after local scaling, for [`Reference::of`].
pub fn local_quantiles(volume: &Volume, count: usize) -> Vec<f32> {
    quantiles(&locally_scored(&volume.voxels, volume.grid.shape), count)
}

/// (z − mean) / (deviation + [`FLOOR`]) with the Gaussian mean and deviation around each voxel of the z-scores z; then
/// z-scored again.
fn locally_scored(voxels: &[f32], shape: [usize; 3]) -> Vec<f32> {
    let mut scores = voxels.to_vec();
    z_score(&mut scores);
    let mean = blurred(scores.clone(), shape);
    let square = blurred(scores.iter().map(|z| z * z).collect(), shape);
    for ((score, mean), square) in scores.iter_mut().zip(mean).zip(square) {
        *score = (*score - mean) / ((square - mean * mean).max(0.0).sqrt() + FLOOR);
    }
    z_score(&mut scores);
    scores
}

/// The Gaussian mean around each voxel, over what the volume has of its surroundings.
fn blurred(mut values: Vec<f32>, shape: [usize; 3]) -> Vec<f32> {
    for axis in 0..3 {
        values = blurred_along(&values, shape[axis], shape[..axis].iter().product());
    }
    values
}

/// Along an axis of `length` whose neighbours lie `stride` values apart. Whole runs are added at a time, for each weight
/// one, which is as fast as memory for any axis.
fn blurred_along(values: &[f32], length: usize, stride: usize) -> Vec<f32> {
    let reach = REACH.min(length.saturating_sub(1));
    let weights: Vec<f32> = (0..=reach).map(|far| (-0.5 * (far as f64 / SIGMA).powi(2)).exp() as f32).collect();
    let total = |at: usize| -> f32 {
        (0..length).map(|other| weights.get(other.abs_diff(at)).copied().unwrap_or_default()).sum()
    };
    let totals: Vec<f32> = (0..length).map(total).collect();
    let mut out = vec![0.0; values.len()];
    for (out, values) in out.chunks_exact_mut(length * stride).zip(values.chunks_exact(length * stride)) {
        add(out, values, weights[0]);
        for (far, weight) in weights.iter().enumerate().skip(1) {
            let (away, last) = (far * stride, (length - far) * stride);
            add(&mut out[..last], &values[away..], *weight);
            add(&mut out[away..], &values[..last], *weight);
        }
        for (run, total) in out.chunks_exact_mut(stride).zip(&totals) {
            run.iter_mut().for_each(|value| *value /= total);
        }
    }
    out
}

fn add(to: &mut [f32], values: &[f32], weight: f32) {
    for (to, value) in to.iter_mut().zip(values) {
        *to += weight * value;
    }
}

/// `count` quantiles in the middles of as many equal parts, with linear interpolation, of at most about [`SAMPLED`] values.
fn quantiles(values: &[f32], count: usize) -> Vec<f32> {
    let mut sample: Vec<f32> = values.iter().step_by(values.len().div_ceil(SAMPLED).max(1)).copied().collect();
    sample.sort_unstable_by(f32::total_cmp);
    let last = sample.len().saturating_sub(1);
    let at = |place: usize| sample.get(place.min(last)).copied().unwrap_or_default();
    (0..count)
        .map(|quantile| {
            let place = last as f64 * (quantile as f64 + 0.5) / count as f64;
            let below = place.floor();
            let (low, high) = (at(below as usize), at(below as usize + 1));
            low + (place - below) as f32 * (high - low)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::phantom::{Profile, phantom};
    use crate::random::{stream, uniform};
    use crate::volume::Grid;

    const SHAPE: [usize; 3] = [24, 30, 24];

    fn scan(person: u64) -> Volume {
        phantom(3, person, SHAPE, &Profile::of_hospital(0)).0
    }

    fn correlation(a: &[f32], b: &[f32]) -> f64 {
        let sum =
            |f: &dyn Fn(f64, f64) -> f64| a.iter().zip(b).map(|(a, b)| f(f64::from(*a), f64::from(*b))).sum::<f64>();
        sum(&|a, b| a * b) / (sum(&|a, _| a * a) * sum(&|_, b| b * b)).sqrt()
    }

    /// A study of last year must go on with the same bits, and its config must not grow a word.
    #[test]
    fn without_a_word_nothing_changes() {
        let input: Input = serde_json::from_str("{}").unwrap();
        assert!(input.is_plain());
        assert_eq!(serde_json::to_string(&input).unwrap(), "{}");
        let scan = scan(1);
        assert_eq!(input.seen(&scan, [32, 32, 16]), z_scored(&scan.voxels, SHAPE, [32, 32, 16]));
    }

    /// The sums by whole runs must be the Gaussian's, at the borders too, or the model sees a frame around each scan.
    #[test]
    fn blurring_is_the_weighted_mean_of_what_is_there() {
        let shape = [5, 40, 3];
        let values: Vec<f32> = (0..600).map(|at| ((at * 7919) % 101) as f32).collect();
        let grid = Grid::axis_aligned(shape, [1.0; 3]);
        let found = blurred(values.clone(), shape);
        for at in [0, 3, 299, 411, 599] {
            let here = grid.position(at);
            let (mut sum, mut total) = (0.0, 0.0);
            for (other, value) in values.iter().enumerate() {
                let there = grid.position(other);
                let apart = (0..3).map(|axis| there[axis].abs_diff(here[axis])).collect::<Vec<_>>();
                if apart.iter().all(|far| *far <= REACH) {
                    let weight: f64 = apart.iter().map(|far| (-0.5 * (*far as f64 / SIGMA).powi(2)).exp()).product();
                    (sum, total) = (sum + weight * f64::from(*value), total + weight);
                }
            }
            assert!((f64::from(found[at]) - sum / total).abs() < 1e-3, "{at}: {} and {}", found[at], sum / total);
        }
    }

    /// A coil's shading is the scanner's and not the patient's.
    #[test]
    fn shading_is_taken_away() {
        let scan = scan(2);
        let mut shaded = scan.clone();
        for (at, voxel) in shaded.voxels.iter_mut().enumerate() {
            *voxel *= 1.0 + scan.grid.position(at)[1] as f32 / 15.0;
        }
        let kept = |input: &Input| correlation(&input.seen(&scan, SHAPE), &input.seen(&shaded, SHAPE));
        let (global, local) = (kept(&Input::default()), kept(&Input { scaling: Scaling::Local, reference: None }));
        assert!(local > 0.75 && local > global + 0.5, "global {global:.3}, local {local:.3}");
    }

    /// The fourth hospital's sequence shows dark what the others show bright; without this a model learnt from the others
    /// is wrong there for every patient.
    #[test]
    fn an_inverted_scan_is_turned_over_and_no_other() {
        // Few bright places among much that is dark; phantoms look much the same upside down.
        let scan = |person| {
            let mut rng = stream(3, "bright", person);
            let bright = |_| 100.0 - 30.0 * uniform(&mut rng, f32::MIN_POSITIVE, 1.0).ln();
            let grid = Grid::axis_aligned(SHAPE, [1.0; 3]);
            Volume { voxels: (0..grid.len()).map(bright).collect(), grid }
        };
        let of = |scan: &Volume| local_quantiles(scan, 17);
        let reference = Reference::of(&(10..14).map(|person| of(&scan(person))).collect::<Vec<_>>()).unwrap();
        let input = Input { scaling: Scaling::Local, reference: Some(reference) };
        for person in 0..6 {
            let (scan, mut inverted) = (scan(person), scan(person));
            let top = scan.voxels.iter().copied().fold(0.0, f32::max);
            for (at, voxel) in inverted.voxels.iter_mut().enumerate() {
                *voxel = (top - *voxel) * (1.0 + scan.grid.position(at)[1] as f32 / 200.0);
            }
            let plain = Input { scaling: Scaling::Local, reference: None }.seen(&scan, SHAPE);
            let (as_is, turned) = (input.seen(&scan, SHAPE), input.seen(&inverted, SHAPE));
            let (as_is, turned) = (correlation(&as_is, &plain), correlation(&turned, &plain));
            assert!(as_is > 0.999 && turned > 0.6, "person {person}: as is {as_is:.3}, inverted {turned:.3}");
        }
    }

    /// A flat scan has no deviation anywhere, and must not fill a batch with numbers that are none.
    #[test]
    fn a_flat_scan_is_zero() {
        let flat = Volume { grid: Grid::axis_aligned([4, 4, 1], [1.0; 3]), voxels: vec![7.0; 16] };
        let seen = Input { scaling: Scaling::Local, reference: None }.seen(&flat, [8, 8, 8]);
        assert!(seen.iter().all(|voxel| *voxel == 0.0));
    }

    /// A reference that was cut in copying must be refused by name where the study is written, and not invert scans.
    #[test]
    fn references_that_cannot_be_are_refused() {
        let refused = |quantiles: Vec<i32>| Reference::new(quantiles).unwrap_err();
        assert!(refused(vec![-1, 2]).contains("2 quantiles"));
        assert!(refused(vec![-2000, -500, -600, 100, 3000]).contains("falls from -500 to -600"));
        assert!(refused(vec![-2000, -500, 0, 100, 300_000]).contains("300000"));
        assert!(refused(vec![-2000, -500, 0, 500, 2000]).contains("upside down"));
        let input = |text: &str| serde_json::from_str::<Input>(text);
        assert!(input(r#"{"scaling": "Locally"}"#).unwrap_err().to_string().contains("Local"));
        let global = input(r#"{"reference": [-2000, -900, -100, 500, 3000]}"#).unwrap();
        assert!(global.check().unwrap_err().contains("scaling Local"));
    }
}
