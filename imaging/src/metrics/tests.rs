//! Each expectation is worked out by hand in its comment. A wrong figure here would let a bad model past a gate, or hold
//! a good one back, in every hospital.

use proptest::prelude::*;

use super::*;
use crate::volume::Grid;

fn mask(shape: [usize; 3], spacing: [f32; 3], class: u8, inside: impl Fn([usize; 3]) -> bool) -> Mask {
    let grid = Grid::axis_aligned(shape, spacing);
    let labels = (0..grid.len()).map(|at| if inside(grid.position(at)) { class } else { 0 }).collect();
    Mask { grid, labels }
}

#[test]
fn dice_of_two_shifted_bars() {
    // Bars of 4 voxels, 3 of them shared: 2·3 / (4+4) = 0.75.
    let a = mask([8, 1, 1], [1.0; 3], 1, |[x, _, _]| (1..5).contains(&x));
    let b = mask([8, 1, 1], [1.0; 3], 1, |[x, _, _]| (2..6).contains(&x));
    assert_eq!(dice(&a, &b, 1), Some(0.75));
    assert_eq!(dice(&a, &a, 1), Some(1.0));
}

#[test]
fn classes_do_not_mix() {
    let a = mask([4, 1, 1], [1.0; 3], 1, |_| true);
    let b = mask([4, 1, 1], [1.0; 3], 2, |_| true);
    assert_eq!(dice(&a, &b, 1), Some(0.0));
    assert_eq!(dice(&a, &b, 2), Some(0.0));
    assert_eq!(dice(&a, &b, 3), None);
}

#[test]
fn empty_masks_follow_the_stated_rules() {
    let empty = mask([4, 5, 1], [1.0, 1.0, 1.0], 1, |_| false);
    let full = mask([4, 5, 1], [1.0, 1.0, 1.0], 1, |_| true);
    assert_eq!(dice(&empty, &empty, 1), None);
    assert_eq!(surface_distances(&empty, &empty, 1), None);
    assert_eq!(dice(&empty, &full, 1), Some(0.0));
    assert_eq!(surface_distances(&empty, &full, 1), None);
    assert_eq!(surface_distances(&full, &empty, 1), None);
}

#[test]
fn distances_use_the_spacing_of_their_axis() {
    // Two single voxels two steps apart along z, 3 mm each: 6 mm both ways.
    let a = mask([3, 3, 5], [1.0, 1.0, 3.0], 1, |p| p == [1, 1, 1]);
    let b = mask([3, 3, 5], [1.0, 1.0, 3.0], 1, |p| p == [1, 1, 3]);
    assert_eq!(surface_distances(&a, &b, 1), Some(SurfaceDistances { hd95_mm: 6.0, assd_mm: 6.0 }));
}

#[test]
fn distances_of_a_long_and_a_short_bar() {
    // A = {0..9}, B = {0}: A→B distances are 0,1,…,9 (95th percentile at place 8.55 → 8.55), B→A is 0.
    // ASSD = (0+1+…+9 + 0) / 11 = 45/11.
    let a = mask([10, 1, 1], [1.0; 3], 1, |_| true);
    let b = mask([10, 1, 1], [1.0; 3], 1, |[x, _, _]| x == 0);
    let found = surface_distances(&a, &b, 1).unwrap();
    assert!((found.hd95_mm - 8.55).abs() < 1e-9, "{found:?}");
    assert!((found.assd_mm - 45.0 / 11.0).abs() < 1e-9, "{found:?}");
}

#[test]
fn the_inside_of_a_block_is_no_surface() {
    // A 3³ block in a 5³ volume against the same block without its centre: the surface of the full block is its 26
    // outer voxels; the hollow block adds none (all its voxels were surface). All distances are 0.
    let inside = |[x, y, z]: [usize; 3]| (1..4).contains(&x) && (1..4).contains(&y) && (1..4).contains(&z);
    let full = mask([5, 5, 5], [1.0; 3], 1, inside);
    let hollow = mask([5, 5, 5], [1.0; 3], 1, |p| inside(p) && p != [2, 2, 2]);
    assert_eq!(surface_distances(&full, &hollow, 1), Some(SurfaceDistances { hd95_mm: 0.0, assd_mm: 0.0 }));
}

#[test]
fn persons_count_once_however_many_scans_they_have() {
    let case = |name: &str, subject: &str, dice: f64| CaseScore {
        case: name.into(),
        subject: subject.into(),
        classes: vec![ClassScore { class: 1, dice: Some(dice), hd95_mm: Some(10.0 * dice), assd_mm: Some(dice) }],
    };
    // Person A: mean of 0.8 and 0.6 is 0.7; person B: 0.9; over persons 0.8 (over cases it would be 0.7667).
    let summary = summarise(&[case("1", "A", 0.8), case("2", "A", 0.6), case("3", "B", 0.9)]);
    assert!((summary.dice.unwrap() - 0.8).abs() < 1e-12);
    assert_eq!((summary.cases, summary.subjects), (3, 2));
    assert_eq!((summary.classes[0].worst_dice, summary.classes[0].missed), (0.6, 0));
    let class = &summary.classes[0];
    assert!((class.dice_by_case - 2.3 / 3.0).abs() < 1e-12);
    // Distances likewise: 8 mm over persons, 23/3 mm over cases.
    let close = |found: Option<f64>, expected: f64| (found.unwrap() - expected).abs() < 1e-12;
    assert!(close(class.hd95_mm, 8.0) && close(class.hd95_mm_by_case, 23.0 / 3.0), "{class:?}");
    assert!(close(class.assd_mm, 0.8) && close(class.assd_mm_by_case, 2.3 / 3.0), "{class:?}");
}

#[test]
fn a_missed_structure_pulls_dice_down_and_is_counted() {
    let found = mask([4, 4, 4], [1.0; 3], 1, |_| true);
    let missed = mask([4, 4, 4], [1.0; 3], 1, |_| false);
    let case = |name: &str, prediction: &Mask| CaseScore {
        case: name.into(),
        subject: name.into(),
        classes: score(prediction, &found, 2),
    };
    let class = &summarise(&[case("hit", &found), case("miss", &missed)]).classes[0];
    assert_eq!((class.dice, class.missed, class.hd95_mm, class.cases), (0.5, 1, Some(0.0), 2));
}

#[test]
fn percentiles_as_numpy_gives_them() {
    assert_eq!(percentile(&mut [4.0, 1.0, 3.0, 2.0], 0.5), 2.5);
    assert_eq!(percentile(&mut [7.0], 0.95), 7.0);
    assert_eq!(percentile(&mut [], 0.95), 0.0);
}

proptest! {
    /// The fast transform equals the definition on random targets and spacings.
    #[test]
    fn distance_transform_is_exact(
        targets in prop::collection::vec(any::<bool>(), 60),
        sx in 0.3f32..3.0, sy in 0.3f32..3.0, sz in 0.3f32..3.0,
    ) {
        let grid = Grid::axis_aligned([5, 4, 3], [sx, sy, sz]);
        let fast = squared_distances(&grid, |at| targets[at]);
        prop_assert_eq!(fast.len(), grid.len());
        for (at, &fast) in fast.iter().enumerate() {
            let p = grid.position(at);
            let slow = (0..grid.len()).filter(|&q| targets[q]).map(|q| {
                let q = grid.position(q);
                (0..3).map(|i| ((p[i] as f64 - q[i] as f64) * f64::from(grid.spacing[i])).powi(2)).sum::<f64>()
            }).fold(f64::INFINITY, f64::min);
            prop_assert!(fast == slow || (fast - slow).abs() < 1e-6, "at {p:?}: {fast} is not {slow}");
        }
    }
}
