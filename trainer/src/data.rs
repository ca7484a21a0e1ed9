//! A folder's scans as the network sees them, checked and kept in memory; the raw ones are not kept.

use consilium_imaging::frame::Frame;
use consilium_imaging::input::Input;
use consilium_imaging::msd::{Case, load};
use consilium_imaging::preprocess::{covering_shape, labels_lost, pad_or_crop};
use consilium_imaging::torch::{to_label_tensor, to_tensor};
use consilium_imaging::{Mask, ScanError, Volume};
use tch::{Device, Kind, TchError, Tensor};

use crate::augment::Draw;
use crate::config::TrainerConfig;
use crate::error::TrainerError;

/// One scan, ready for a batch.
#[derive(Debug)]
struct Example {
    /// `[1, 1, z, y, x]`, float32.
    image: Tensor,
    /// `[1, z, y, x]`, uint8: an eighth of the memory of what the loss wants.
    labels: Tensor,
}

/// All scans of a task.
#[derive(Debug)]
pub struct Examples {
    all: Vec<Example>,
    shape: [usize; 3],
}

/// Reads and checks labelled cases one after the other, as if to use them; gives their shapes as the network sees them.
pub fn check(cases: &[Case], classes: u8, frame: &Frame) -> Result<Vec<[usize; 3]>, ScanError> {
    all(cases, |case| Ok(placed(case, classes, frame)?.0.grid.shape))
}

/// A labelled case, brought to where the network wants it.
pub fn placed(case: &Case, classes: u8, frame: &Frame) -> Result<(Volume, Mask), ScanError> {
    let (volume, mask) = load(case, classes)?;
    let turn = frame.turn(&case.image, &volume.grid)?;
    Ok((turn.volume(volume), turn.mask(mask)))
}

/// Does something with every case. All bad files are named at once, so that a hospital corrects its export once and not
/// file by file.
fn all<T>(cases: &[Case], mut act: impl FnMut(&Case) -> Result<T, ScanError>) -> Result<Vec<T>, ScanError> {
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for case in cases {
        match act(case) {
            Ok(done) => good.push(done),
            Err(e) => bad.push(e),
        }
    }
    ScanError::fold(bad).map_or(Ok(good), Err)
}

impl Examples {
    /// Reads, checks and prepares labelled cases: brought to `frame` and to what the network sees, padded or cut to the
    /// shape that the config asks for, else to the smallest that covers them. One raw scan is held at a time.
    pub fn read(cases: &[Case], config: &TrainerConfig, frame: &Frame) -> Result<Self, TrainerError> {
        let (classes, levels) = (config.network().classes, config.network().levels);
        let shape = match config.shape {
            Some(shape) => shape,
            // Every scan is read to its end before the word of its header sets the size of all the others.
            None => covering(cases, &check(cases, classes, frame)?, levels)?,
        };
        let (mut prepared, mut bad) = (Vec::new(), Vec::new());
        for case in cases {
            let kept = placed(case, classes, frame).and_then(|(volume, mask)| {
                labels_stay(case, &mask, shape, levels)?;
                Ok((volume, mask))
            });
            match kept {
                // After a bad scan the others are only checked.
                Ok((volume, mask)) if bad.is_empty() => {
                    prepared.push(example(&volume, &mask, shape, config.network.input())?)
                }
                Ok(_) => {}
                Err(e) => bad.push(e),
            }
        }
        match ScanError::fold(one_shape_for_all(bad)) {
            Some(e) => Err(e.into()),
            None => Ok(Self { all: prepared, shape }),
        }
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Their common shape x, y, z.
    pub fn shape(&self) -> [usize; 3] {
        self.shape
    }

    /// Images `[n, 1, z, y, x]` and labels `[n, z, y, x]` of the drawn examples, each with its changes.
    pub fn batch(&self, drawn: &[Draw], device: Device) -> Result<(Tensor, Tensor), TchError> {
        let (mut images, mut labels) = (Vec::new(), Vec::new());
        for draw in drawn {
            let example = &self.all[draw.scan];
            // Changed on the device: a node with many cards has few cores for each.
            let (image, mask) = draw.make(&example.image.f_to_device(device)?, &example.labels.f_to_device(device)?)?;
            images.push(image);
            labels.push(mask);
        }
        Ok((Tensor::f_cat(&images, 0)?, Tensor::f_cat(&labels, 0)?.f_to_kind(Kind::Int64)?))
    }
}

/// Bytes of a prepared voxel: a float and a label.
const PREPARED: usize = 5;
/// Padding beyond so many times the scans themselves is an odd scan's doing, where it takes more than [`PADDING`].
const TIMES: usize = 8;
/// Padded scans that nobody minds, in bytes.
const PADDING: usize = 1 << 30;

/// The smallest shape that covers all scans, unless one of them is so much longer than the others that it would blow all of
/// them up.
fn covering(cases: &[Case], shapes: &[[usize; 3]], levels: u32) -> Result<[usize; 3], TrainerError> {
    let shape = covering_shape(shapes.iter().copied(), levels);
    let own: usize = shapes.iter().map(|shape| shape.iter().product::<usize>()).sum();
    let padded = shape.iter().product::<usize>().saturating_mul(shapes.len());
    if padded <= own.saturating_mul(TIMES) || padded.saturating_mul(PREPARED) <= PADDING {
        return Ok(shape);
    }
    let longest = |axis: usize| {
        let at = (0..shapes.len()).max_by_key(|&at| shapes[at][axis]).unwrap_or_default();
        format!("{} ({:?})", cases[at].image.display(), shapes[at])
    };
    let mut odd = [0, 1, 2].map(longest).to_vec();
    odd.dedup();
    Err(TrainerError::Config(format!(
        "without \"shape\" in the configuration all {} scans are padded to {shape:?}, which covers the longest sides and \
         takes {} MiB, {} times what the scans have: set \"shape\", or leave out the odd ones: {}",
        shapes.len(),
        padded.saturating_mul(PREPARED) >> 20,
        padded / own.max(1),
        odd.join(", ")
    )))
}

/// Refuses a cut that takes labels: the network would learn that there is nothing where there is something.
fn labels_stay(case: &Case, mask: &Mask, shape: [usize; 3], levels: u32) -> Result<(), ScanError> {
    let Some(found) = labels_lost(&mask.labels, mask.grid.shape, shape, levels) else { return Ok(()) };
    let file = case.mask.as_ref().unwrap_or(&case.image).clone();
    Err(ScanError::LabelsCutOff { mask: file, shape, lost: found.lost, all: found.all, needed: found.needed })
}

/// Names in every such message the one shape that does for all.
fn one_shape_for_all(mut errors: Vec<ScanError>) -> Vec<ScanError> {
    let mut most = [0; 3];
    for error in &errors {
        if let ScanError::LabelsCutOff { needed, .. } = error {
            most = [0, 1, 2].map(|axis: usize| most[axis].max(needed[axis]));
        }
    }
    for error in &mut errors {
        if let ScanError::LabelsCutOff { needed, .. } = error {
            *needed = most;
        }
    }
    errors
}

fn example(volume: &Volume, mask: &Mask, shape: [usize; 3], input: &Input) -> Result<Example, TchError> {
    let image = to_tensor(&input.seen(volume, shape), shape)?;
    let labels = pad_or_crop(&mask.labels, mask.grid.shape, shape, 0);
    Ok(Example { image, labels: to_label_tensor(&labels, shape)?.f_to_kind(Kind::Uint8)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(name: &str) -> Case {
        Case { id: name.into(), image: name.into(), mask: None, subject: name.into(), regime: None }
    }

    /// One scan of the whole body in a folder of small ones would pad each of them to its size, and end the pod by its
    /// memory after an hour of reading.
    #[test]
    fn an_odd_scan_does_not_blow_up_all_others() {
        let cases: Vec<Case> = (0..20).map(|n| case(&format!("s{n}.nii.gz"))).collect();
        let mut shapes = vec![[40, 56, 40]; 20];
        assert_eq!(covering(&cases, &shapes, 2).unwrap(), [40, 56, 40]);
        shapes[3] = [60, 57, 30];
        assert_eq!(covering(&cases, &shapes, 2).unwrap(), [60, 60, 40]);
        shapes[7] = [512, 512, 600];
        let message = covering(&cases, &shapes, 2).unwrap_err().to_string();
        for part in ["\"shape\"", "[512, 512, 600]", "s7.nii.gz", "MiB", "leave out"] {
            assert!(message.contains(part), "{message} lacks {part}");
        }
        assert!(!message.contains("s3.nii.gz"), "{message}");
    }
}
