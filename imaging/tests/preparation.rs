//! Splits, preprocessing, tiles, phantoms and shifts: pure functions, the same result for the same numbers.

use std::collections::BTreeSet;

use consilium_imaging::msd::Case;
use consilium_imaging::phantom::{PHANTOM_CLASSES, Profile, phantom};
use consilium_imaging::preprocess::{covering_shape, divisible, pad_or_crop, z_score};
use consilium_imaging::shift::{Shift, apply};
use consilium_imaging::split::{hold_back, runs, subjects};
use consilium_imaging::tiles::{corners, gaussian};
use proptest::prelude::*;

fn case(id: usize, subject: usize) -> Case {
    Case { id: format!("c{id}"), subject: subject.to_string(), regime: None, image: "x".into(), mask: None }
}

/// Two scans of one person on both sides of a split make a model look better than it is.
#[test]
fn every_fifth_person_is_held_back_with_all_scans() {
    let cases: Vec<Case> = (0..40).map(|i| case(i, i / 2 + 1)).collect();
    let (train, held) = hold_back(&cases, 5, None);
    // Persons 5, 10, 15, 20 in the order of numbers (as text, "10" would come before "5").
    assert_eq!(subjects(&held), ["5", "10", "15", "20"]);
    assert_eq!((train.len(), held.len()), (32, 8));
    assert_eq!(hold_back(&cases, 5, None), (train, held));
}

#[test]
fn a_salt_makes_another_split_and_always_the_same() {
    let cases: Vec<Case> = (0..40).map(|i| case(i, i)).collect();
    let split = |salt| subjects(&hold_back(&cases, 5, Some(salt)).1);
    assert_eq!(split(1), split(1));
    assert_ne!(split(1), split(2));
    assert_eq!(split(1).len(), 8);
}

#[test]
fn runs_share_no_person_and_are_nearly_equal() {
    let cases: Vec<Case> = (0..30).map(|i| case(i, i / 3)).collect();
    let parts = runs(&cases, 3);
    let persons: Vec<BTreeSet<String>> =
        parts.iter().map(|part| part.iter().map(|case| case.subject.clone()).collect()).collect();
    assert!(persons[0].is_disjoint(&persons[1]) && persons[1].is_disjoint(&persons[2]));
    assert!(parts.iter().all(|part| (9..=12).contains(&part.len())));
    assert_eq!(parts.iter().map(Vec::len).sum::<usize>(), 30);
}

#[test]
fn z_score_has_mean_zero_and_deviation_one() {
    let mut voxels = vec![1.0, 3.0];
    z_score(&mut voxels);
    assert_eq!(voxels, [-1.0, 1.0]);
    // Float32 sums of large scanner units lose digits; the regime H has means above 10^4.
    let mut large: Vec<f32> = (0..100_000).map(|i| 20_000.0 + (i % 100) as f32).collect();
    z_score(&mut large);
    assert!(large.iter().map(|&v| f64::from(v)).sum::<f64>().abs() < 1.0);
    let mut flat = vec![5.0; 4];
    z_score(&mut flat);
    assert_eq!(flat, [0.0; 4]);
}

#[test]
fn the_covering_shape_can_be_halved() {
    let shape = covering_shape([[35, 51, 35], [43, 40, 24]], 3);
    assert_eq!(shape, [48, 56, 40]);
    assert!(divisible(shape, 3) && !divisible([48, 57, 40], 3));
}

#[test]
fn padding_and_cutting_keep_the_centre() {
    assert_eq!(pad_or_crop(&[1, 2], [2, 1, 1], [4, 1, 1], 0), [0, 1, 2, 0]);
    assert_eq!(pad_or_crop(&[1, 2, 3, 4], [4, 1, 1], [2, 1, 1], 0), [2, 3]);
    assert_eq!(pad_or_crop(&[1, 2, 3, 4], [2, 2, 1], [1, 4, 1], 0), [0, 1, 3, 0]);
}

proptest! {
    /// A mask predicted on a padded volume must come back voxel for voxel.
    #[test]
    fn padding_is_undone_by_cutting(shape in [1_usize..7, 1..7, 1..7], more in [0_usize..5, 0..5, 0..5]) {
        let larger = [0, 1, 2].map(|i| shape[i] + more[i]);
        let voxels: Vec<usize> = (1..=shape.iter().product()).collect();
        let there = pad_or_crop(&voxels, shape, larger, 0);
        prop_assert_eq!(pad_or_crop(&there, larger, shape, 0), voxels);
    }

    /// A voxel in no tile would silently become background.
    #[test]
    fn tiles_cover_everything_and_stay_inside(tile in [1_usize..9, 1..9, 1..9], more in [0_usize..20, 0..20, 0..20]) {
        let shape = [0, 1, 2].map(|i| tile[i] + more[i]);
        let mut seen = vec![false; shape.iter().product()];
        for [x0, y0, z0] in corners(shape, tile) {
            prop_assert!(x0 + tile[0] <= shape[0] && y0 + tile[1] <= shape[1] && z0 + tile[2] <= shape[2]);
            for z in z0..z0 + tile[2] { for y in y0..y0 + tile[1] { for x in x0..x0 + tile[0] {
                seen[x + shape[0] * (y + shape[1] * z)] = true;
            }}}
        }
        prop_assert!(seen.into_iter().all(|s| s));
    }
}

#[test]
fn neighbouring_tiles_are_at_most_half_a_tile_apart() {
    let xs: Vec<usize> = corners([100, 8, 8], [32, 8, 8]).into_iter().map(|[x, _, _]| x).collect();
    assert_eq!(xs, [0, 14, 27, 41, 54, 68]);
}

#[test]
fn weights_are_one_in_the_middle_and_nowhere_zero() {
    let weights = gaussian([17, 9, 9]);
    let at = |x: usize, y: usize, z: usize| weights[x + 17 * (y + 9 * z)];
    assert_eq!(at(8, 4, 4), 1.0);
    // σ = 17/8 = 2.125: two voxels off, exp(-½ (2/2.125)²) = 0.6421.
    assert!((at(10, 4, 4) - 0.6421).abs() < 1e-3);
    assert!(weights.iter().all(|&w| w > 0.0));
    // 40×56×40 underflows in the corners without the floor.
    assert!(gaussian([200, 200, 200]).iter().all(|&w| w > 0.0));
}

#[test]
fn phantoms_are_the_same_for_the_same_seed_and_differ_between_persons() {
    let look = Profile::of_hospital(1);
    let one = phantom(7, 1, [24, 32, 24], &look);
    assert_eq!(one, phantom(7, 1, [24, 32, 24], &look));
    assert_ne!(one.1.labels, phantom(7, 2, [24, 32, 24], &look).1.labels);
    assert_ne!(one.1.labels, phantom(8, 1, [24, 32, 24], &look).1.labels);
}

/// A phantom without one of its classes, or with a body that fills the volume, would teach nothing and pass anyway.
#[test]
fn every_phantom_shows_both_parts_and_differs_from_its_surroundings() {
    for hospital in 0..4 {
        for person in 0..6 {
            let (volume, mask) = phantom(7, person, [32, 40, 32], &Profile::of_hospital(hospital));
            let all = mask.labels.len() as f64;
            for class in 1..PHANTOM_CLASSES {
                let share = mask.count(class) as f64 / all;
                assert!((0.005..0.2).contains(&share), "hospital {hospital} person {person} class {class}: {share}");
            }
            assert!(volume.voxels.iter().all(|v| v.is_finite()));
            let mean = |inside: bool| {
                let chosen: Vec<f64> = volume
                    .voxels
                    .iter()
                    .zip(&mask.labels)
                    .filter(|(_, label)| (**label != 0) == inside)
                    .map(|(v, _)| f64::from(*v))
                    .collect();
                chosen.iter().sum::<f64>() / chosen.len() as f64
            };
            assert!(mean(true) > 1.15 * mean(false), "{} {}", mean(true), mean(false));
        }
    }
}

#[test]
fn shifts_change_the_image_repeatably_and_keep_its_grid() {
    let (volume, _) = phantom(7, 1, [16, 16, 15], &Profile::of_hospital(0));
    for shift in [Shift::ThickSlices, Shift::InvertedBias] {
        let changed = apply(shift, &volume, 3, 0);
        assert_eq!(changed.grid, volume.grid);
        assert_ne!(changed.voxels, volume.voxels);
        assert_eq!(changed, apply(shift, &volume, 3, 0));
        assert_ne!(changed, apply(shift, &volume, 3, 1));
    }
}
