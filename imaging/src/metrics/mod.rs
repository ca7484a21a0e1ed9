//! How good a segmentation is: Dice per class, and distances of the surfaces in mm.
//!
//! Rules for empty masks, by class: absent from both, the class says nothing about the model and counts nowhere
//! (`None`). Present in only one, the model missed or invented the whole structure: Dice 0, and no distances (`None`),
//! because one of the surfaces does not exist; Dice carries the blame, and [`ClassSummary::missed`] counts such cases
//! beside the mean distances, which cannot show them.

mod distance;
mod report;
mod surface;

pub use distance::squared_distances;
pub use report::{CaseScore, ClassScore, ClassSummary, Summary, summarise};
pub use surface::{SurfaceDistances, percentile, surface_distances};

use crate::volume::Mask;

/// 2|A∩B| / (|A|+|B|) of one class; `None` when neither mask has it. Both masks must have the same shape.
pub fn dice(prediction: &Mask, truth: &Mask, class: u8) -> Option<f64> {
    let (a, b) = (prediction.count(class), truth.count(class));
    if a + b == 0 {
        return None;
    }
    let both = prediction.labels.iter().zip(&truth.labels).filter(|&(&p, &t)| p == class && t == class).count();
    Some(2.0 * both as f64 / (a + b) as f64)
}

/// All scores of one case, for each class from 1 up to `classes` - 1. Spacing is taken from the truth.
pub fn score(prediction: &Mask, truth: &Mask, classes: u8) -> Vec<ClassScore> {
    (1..classes)
        .map(|class| {
            let distances = surface_distances(prediction, truth, class);
            ClassScore {
                class,
                dice: dice(prediction, truth, class),
                hd95_mm: distances.map(|d| d.hd95_mm),
                assd_mm: distances.map(|d| d.assd_mm),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests;
