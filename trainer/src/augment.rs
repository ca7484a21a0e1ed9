//! Changes of scans while training, so that the model knows what differs between persons and scanners. What is drawn is
//! a function of seed, round and step alone; what is drawn is then done on tensors, on the device where the batch is.

use consilium_imaging::random::{normal, stream};
use rand::RngExt;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, TchError, Tensor};

use crate::config::{Axis, number_or_string};

/// How scans are changed. Each kind has its measured worth in docs/guides/trainer.md.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", deny_unknown_fields)]
pub enum Augmentation {
    /// Persons that differ in size and place, and scanners of one kind.
    Standard {},
    /// The same, and scanners and sequences of other kinds: other contrast, inverted contrast, shading, thick slices.
    Appearance {},
    /// What the study says itself.
    Own(Changes),
}

/// The changes, each left out where it is 0. Every one but `inversion` is made with `probability`, by an amount drawn up
/// to the one given here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Changes {
    /// Turned about each axis, in degrees.
    #[serde(deserialize_with = "number_or_string")]
    pub rotation: f64,
    /// Made larger or smaller by a factor of e to this power.
    #[serde(deserialize_with = "number_or_string")]
    pub scaling: f64,
    /// Slices averaged over so many voxels, along one axis.
    pub slices: u32,
    /// Share of scans whose contrast is inverted.
    #[serde(deserialize_with = "number_or_string")]
    pub inversion: f64,
    /// Intensities from 0 to 1 raised to the power of e to this power.
    #[serde(deserialize_with = "number_or_string")]
    pub gamma: f64,
    /// Strength of a smooth shading: 0.5 lets corners differ by about a factor of 1.6.
    #[serde(deserialize_with = "number_or_string")]
    pub shading: f64,
    /// Deviation of added noise, in deviations of the scan.
    #[serde(deserialize_with = "number_or_string")]
    pub noise: f64,
    /// Share of scans on which each of them is made.
    #[serde(deserialize_with = "number_or_string")]
    pub probability: f64,
}

impl Default for Changes {
    fn default() -> Self {
        Self {
            rotation: 0.0,
            scaling: 0.0,
            slices: 0,
            inversion: 0.0,
            gamma: 0.0,
            shading: 0.0,
            noise: 0.0,
            probability: 0.3,
        }
    }
}

impl Augmentation {
    /// What is done.
    pub fn changes(&self) -> Changes {
        let standard =
            Changes { rotation: 15.0, scaling: 0.18, gamma: 0.3, shading: 0.3, noise: 0.1, ..Changes::default() };
        match self {
            Self::Standard {} => standard,
            Self::Appearance {} => {
                Changes { slices: 3, inversion: 0.5, gamma: 0.7, shading: 0.5, noise: 0.2, ..standard }
            }
            Self::Own(changes) => changes.clone(),
        }
    }

    /// Refuses amounts that make no scan; the message names field, value and rule.
    pub fn check(&self) -> Result<(), String> {
        let changes = self.changes();
        let amounts = [
            ("rotation", changes.rotation, 180.0),
            ("scaling", changes.scaling, 1.0),
            ("slices", f64::from(changes.slices), 16.0),
            ("inversion", changes.inversion, 1.0),
            ("gamma", changes.gamma, 2.0),
            ("shading", changes.shading, 2.0),
            ("noise", changes.noise, 2.0),
            ("probability", changes.probability, 1.0),
        ];
        match amounts.into_iter().find(|(_, value, most)| !(0.0..=*most).contains(value)) {
            Some((name, value, most)) => {
                Err(format!("config.augmentation.{name} is {value}: it must be from 0 to {most}"))
            }
            None => Ok(()),
        }
    }
}

/// A scan of a step, and what is done to it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Draw {
    /// Which scan.
    pub scan: usize,
    /// Axes along which it is mirrored.
    pub mirrored: Vec<Axis>,
    /// Where each voxel is taken from: degrees about x, y and z, and a factor.
    turned: Option<([f64; 3], f64)>,
    /// An axis counted from the end, and a number of voxels.
    slices: Option<(i64, i64)>,
    inverted: bool,
    gamma: Option<f64>,
    shading: Option<[f32; 6]>,
    /// Deviation, and the seed of the noise.
    noise: Option<(f64, u64)>,
}

impl Draw {
    /// What `seed` says for item number `item` of a training. Every number is drawn whether it is used or not, so that a
    /// change of one amount changes no other draw.
    pub fn of(changes: &Changes, seed: u64, item: u64, scan: usize, mirrored: Vec<Axis>) -> Self {
        let mut rng = stream(seed, "augment", item);
        let mut even = |most: f64| most * (2.0 * rng.random::<f64>() - 1.0);
        let angles: [f64; 3] = std::array::from_fn(|_| even(changes.rotation));
        let (factor, gamma) = (even(changes.scaling).exp(), even(changes.gamma).exp());
        let shading = std::array::from_fn(|_| even(changes.shading) as f32);
        let noise = even(changes.noise).abs();
        let axis = -rng.random_range(1..=3_i64);
        let thick = rng.random_range(2..=i64::from(changes.slices.max(2)));
        let seed = rng.random::<u64>();
        let inverted = rng.random::<f64>() < changes.inversion;
        let mut now = |amount: f64| rng.random::<f64>() < changes.probability && amount > 0.0;
        Self {
            scan,
            mirrored,
            turned: now(changes.rotation + changes.scaling).then_some((angles, factor)),
            slices: now(f64::from(changes.slices)).then_some((axis, thick)),
            inverted,
            gamma: now(changes.gamma).then_some(gamma),
            shading: now(changes.shading).then_some(shading),
            noise: now(changes.noise).then_some((noise, seed)),
        }
    }

    /// A scan as it is, mirrored.
    pub fn plain(scan: usize, mirrored: Vec<Axis>) -> Self {
        Self { scan, mirrored, ..Self::default() }
    }

    /// Image `[1, 1, z, y, x]` and labels `[1, z, y, x]` with the changes made. The image keeps its mean and deviation.
    pub fn make(&self, image: &Tensor, labels: &Tensor) -> Result<(Tensor, Tensor), TchError> {
        let axes: Vec<i64> = self.mirrored.iter().map(|axis| axis.from_end()).collect();
        let (image, labels) = (image.f_flip(&axes)?, labels.f_flip(&axes)?);
        let (image, labels) = match self.turned {
            Some((degrees, factor)) => turned(&image, &labels, degrees, factor)?,
            None => (image, labels),
        };
        Ok((self.seen_by_another_scanner(&image)?, labels))
    }

    fn seen_by_another_scanner(&self, image: &Tensor) -> Result<Tensor, TchError> {
        let changed = self.slices.is_some() || self.inverted || self.gamma.is_some() || self.shading.is_some();
        if !changed && self.noise.is_none() {
            return Ok(image.shallow_clone());
        }
        let mut now = match self.slices {
            Some((axis, thick)) => thick_slices(image, axis, thick)?,
            None => image.shallow_clone(),
        };
        let (least, most) = (now.f_min()?, now.f_max()?);
        now = now.f_sub(&least)?.f_div(&most.f_sub(&least)?.f_clamp_min(1e-6)?)?;
        if self.inverted {
            now = now.f_neg()?.f_add_scalar(1.0)?;
        }
        if let Some(gamma) = self.gamma {
            now = now.f_pow_tensor_scalar(gamma)?;
        }
        if let Some(coefficients) = &self.shading {
            now = now.f_mul(&shading(coefficients, &image.size(), image.device())?)?;
        }
        if let Some((deviation, seed)) = self.noise {
            let noise = noise(seed, &image.size(), image.device())?;
            now = now.f_add(&noise.f_mul(&now.f_std(true)?.f_mul_scalar(deviation)?)?)?;
        }
        // On the scale of the scan as it was: the network sees no other.
        let scale = image.f_std(true)?.f_div(&now.f_std(true)?.f_clamp_min(1e-6)?)?;
        now.f_sub(&now.f_mean(Kind::Float)?)?.f_mul(&scale)?.f_add(&image.f_mean(Kind::Float)?)
    }
}

/// Turned about the centre and made larger by `factor`: the image by linear interpolation, labels by the nearest. Beyond
/// the scan stand 0 and background.
fn turned(image: &Tensor, labels: &Tensor, degrees: [f64; 3], factor: f64) -> Result<(Tensor, Tensor), TchError> {
    let size = image.size();
    // libtorch's grid runs from -1 to 1 along each axis, x first; in voxels it must be a turn.
    let half = [size[4], size[3], size[2]].map(|side| side as f64 / 2.0);
    let rotation = rotation(degrees);
    let mut theta = [0.0_f32; 12];
    for row in 0..3 {
        for column in 0..3 {
            theta[4 * row + column] = (rotation[row][column] * half[column] / half[row] / factor) as f32;
        }
    }
    let theta = Tensor::f_from_slice(&theta)?.f_view([1, 3, 4])?.f_to_device(image.device())?;
    let grid = Tensor::f_affine_grid_generator(&theta, &size[..], false)?;
    let (linear, nearest, zeros) = (0, 1, 0);
    let floats = labels.f_unsqueeze(1)?.f_to_kind(Kind::Float)?;
    let labels = floats.f_grid_sampler(&grid, nearest, zeros, false)?.f_squeeze_dim(1)?.f_to_kind(labels.kind())?;
    Ok((image.f_grid_sampler(&grid, linear, zeros, false)?, labels))
}

/// The product of the turns about x, y and z.
fn rotation(degrees: [f64; 3]) -> [[f64; 3]; 3] {
    let mut all = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]];
    for (axis, degrees) in degrees.into_iter().enumerate() {
        let (sin, cos) = degrees.to_radians().sin_cos();
        let (a, b) = ((axis + 1) % 3, (axis + 2) % 3);
        for row in &mut all {
            (row[a], row[b]) = (cos * row[a] + sin * row[b], cos * row[b] - sin * row[a]);
        }
    }
    all
}

/// Each run of `thick` voxels along an axis replaced by its mean.
fn thick_slices(image: &Tensor, axis: i64, thick: i64) -> Result<Tensor, TchError> {
    let mut kernel = [1, 1, 1];
    // Safety of the index: the axis is -1, -2 or -3.
    kernel[(3 + axis) as usize] = thick;
    let side = image.size()[(5 + axis) as usize];
    let means = image.f_avg_pool3d(kernel, kernel, [0, 0, 0], true, false, None)?;
    means.f_repeat_interleave_self_int(thick, axis, None)?.f_narrow(axis, 0, side)
}

/// The exponential of a polynomial of second degree over the cube [-1, 1]³.
fn shading(coefficients: &[f32; 6], size: &[i64], device: Device) -> Result<Tensor, TchError> {
    let line = |axis: usize| -> Result<Tensor, TchError> {
        let mut shape = [1; 5];
        shape[axis] = size[axis];
        Tensor::f_linspace(-1.0, 1.0, size[axis], (Kind::Float, device))?.f_view(shape)
    };
    let (x, y, z) = (line(4)?, line(3)?, line(2)?);
    let [a, b, c, d, e, f] = coefficients.map(f64::from);
    let straight = x.f_mul_scalar(a)?.f_add(&y.f_mul_scalar(b)?)?.f_add(&z.f_mul_scalar(c)?)?;
    let bent = x.f_mul(&y)?.f_mul_scalar(d / 2.0)?.f_add(&y.f_mul(&z)?.f_mul_scalar(e / 2.0)?)?;
    straight.f_add(&bent)?.f_add(&x.f_mul(&z)?.f_mul_scalar(f / 2.0)?)?.f_exp()
}

/// Normal numbers from our own generator: torch's is one for the whole process and another on each device.
fn noise(seed: u64, size: &[i64], device: Device) -> Result<Tensor, TchError> {
    let mut rng = stream(seed, "noise", 0);
    let count = size.iter().product::<i64>();
    let values: Vec<f32> = (0..count).map(|_| normal(&mut rng)).collect();
    Tensor::f_from_slice(&values)?.f_view(size)?.f_to_device(device)
}

#[cfg(test)]
mod tests {
    use consilium_imaging::random::uniform;
    use serde_json::json;

    use super::*;

    fn image() -> Tensor {
        let mut rng = stream(3, "test", 0);
        let values: Vec<f32> = (0..8 * 10 * 12).map(|_| uniform(&mut rng, -2.0, 3.0)).collect();
        Tensor::from_slice(&values).view([1, 1, 8, 10, 12])
    }

    fn labels() -> Tensor {
        (image().squeeze_dim(1).gt(1.0)).to_kind(Kind::Uint8)
    }

    /// A resumed task draws again what was drawn before its node was drained, or its update is another one.
    #[test]
    fn equal_seeds_give_equal_scans_and_others_do_not() {
        let changes = Augmentation::Appearance {}.changes();
        let made = |seed, item| {
            let draw = Draw::of(&changes, seed, item, 0, vec![]);
            let (image, labels) = draw.make(&image(), &labels()).unwrap();
            (Vec::<f32>::try_from(image.view(-1)).unwrap(), Vec::<u8>::try_from(labels.view(-1)).unwrap())
        };
        let all: Vec<_> = (0..20).map(|item| made(7, item)).collect();
        assert!((0..20).all(|item| all[item as usize] == made(7, item)));
        let differing = (0..20).filter(|item| all[*item as usize].0 != made(8, *item).0).count();
        assert!(differing > 12, "{differing} of 20");
    }

    /// The network is used on scans of mean 0 and deviation 1; trained on others it would be wrong for all of them.
    #[test]
    fn a_changed_scan_keeps_its_scale_and_its_classes() {
        let changes = Changes { probability: 1.0, ..Augmentation::Appearance {}.changes() };
        for item in 0..10 {
            let draw = Draw { turned: None, ..Draw::of(&changes, 5, item, 0, vec![]) };
            let (made, mask) = draw.make(&image(), &labels()).unwrap();
            let near = |a: Tensor, b: Tensor| (a - b).abs().double_value(&[]) < 1e-3;
            assert!(near(made.mean(Kind::Float), image().mean(Kind::Float)), "{draw:?}");
            assert!(near(made.std(true), image().std(true)), "{draw:?}");
            assert_eq!(mask, labels());
            let (made, mask) = Draw::of(&changes, 5, item, 0, vec![]).make(&image(), &labels()).unwrap();
            assert!(bool::try_from(made.isfinite().all()).unwrap());
            assert_eq!((mask.kind(), mask.size()), (Kind::Uint8, labels().size()));
        }
    }

    /// Image and mask must turn together and by the same sense, or the network learns structures beside themselves. A
    /// quarter turn about z takes x to y, whatever the sides are.
    #[test]
    fn a_quarter_turn_is_one_of_image_and_mask() {
        let mut values = vec![0.0_f32; 8 * 8 * 4];
        values[5 + 8 * 3 + 64] = 1.0;
        let image = Tensor::from_slice(&values).view([1, 1, 4, 8, 8]);
        let labels = image.squeeze_dim(1).to_kind(Kind::Uint8);
        let (turned_image, turned_labels) = turned(&image, &labels, [0.0, 0.0, 90.0], 1.0).unwrap();
        let place = |of: &Tensor| of.to_kind(Kind::Float).view(-1).argmax(0, false).int64_value(&[]);
        assert_eq!(place(&turned_image), place(&turned_labels));
        let at = place(&turned_image);
        let (x, y, z) = (at % 8, at / 8 % 8, at / 64);
        assert!((x, y, z) == (3, 2, 1) || (x, y, z) == (4, 5, 1), "{x} {y} {z}");
        let (larger, _) = turned(&image, &labels, [0.0; 3], 2.0).unwrap();
        assert!(larger.sum(Kind::Float).double_value(&[]) > 2.0, "twice the size has more of it");
    }

    #[test]
    fn thick_slices_are_means_of_runs() {
        let image = Tensor::from_slice(&[1.0_f32, 3.0, 5.0, 7.0, 8.0]).view([1, 1, 1, 1, 5]);
        let made: Vec<f32> = thick_slices(&image, -1, 2).unwrap().view(-1).try_into().unwrap();
        assert_eq!(made, [2.0, 2.0, 6.0, 6.0, 8.0]);
    }

    /// A researcher who mistypes must learn field, value and rule from the message alone.
    #[test]
    fn wrong_amounts_are_named() {
        let read = |value| serde_json::from_value::<Augmentation>(value).map_err(|e| e.to_string());
        assert_eq!(read(json!({"kind": "Standard"})).unwrap().changes().rotation, 15.0);
        let own = read(json!({"kind": "Own", "rotation": "10", "noise": 0.1})).unwrap();
        assert_eq!((own.changes().rotation, own.changes().gamma), (10.0, 0.0));
        assert!(read(json!({"kind": "Elastic"})).unwrap_err().contains("Standard"));
        assert!(read(json!({"kind": "Standard", "noise": 1})).unwrap_err().contains("noise"));
        assert!(read(json!({"kind": "Own", "elastic": 1})).unwrap_err().contains("elastic"));
        let message = read(json!({"kind": "Own", "inversion": 2})).unwrap().check().unwrap_err();
        assert!(message.contains("augmentation.inversion is 2") && message.contains("from 0 to 1"), "{message}");
        assert!(read(json!({"kind": "Own", "gamma": "nan"})).unwrap().check().is_err());
    }
}
