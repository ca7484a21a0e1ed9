//! Where a scan lies: whatever the order in which its voxels are stored, a model sees it in one order, and its answer lies
//! on the scan as it is stored. A mistake here mirrors a patient.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a helper that fails is a test that fails")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use consilium_imaging::frame::{Frame, survey};
use consilium_imaging::nifti_file::{
    check_pair, read_grid, read_mask, read_volume, turn_onto, write_mask, write_volume,
};
use consilium_imaging::place::{Axes, Turn, corner_distance, corner_tolerance, shear_degrees};
use consilium_imaging::preprocess::{labels_lost, pad_or_crop};
use consilium_imaging::untrusted::UntrustedFolder;
use consilium_imaging::{Grid, Mask, Volume};
use proptest::prelude::*;
use tempfile::TempDir;

const SHAPE: [usize; 3] = [5, 4, 3];

/// A grid that is oblique, not at the origin, and of three different voxel sides: nothing about it is symmetric.
fn grid() -> Grid {
    let (sin, cos) = (0.2_f32).sin_cos();
    let spacing = [1.0, 1.5, 2.0];
    let rotation = [[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]];
    let mut affine = [[0.0; 4]; 3];
    for row in 0..3 {
        for column in 0..3 {
            affine[row][column] = rotation[row][column] * spacing[column];
        }
        affine[row][3] = [-12.5, 30.0, 7.25][row];
    }
    Grid { shape: SHAPE, spacing, affine, placed: true }
}

fn volume() -> Volume {
    let grid = grid();
    Volume { voxels: (0..grid.len()).map(|i| i as f32).collect(), grid }
}

/// The place of a voxel in mm.
fn place(grid: &Grid, at: [usize; 3]) -> [f32; 3] {
    grid.affine.map(|row| row[0] * at[0] as f32 + row[1] * at[1] as f32 + row[2] * at[2] as f32 + row[3])
}

/// All 48 orders of storage: each value stays at its place in the patient, the axes are the ones asked for, and the way
/// back gives the same bytes.
#[test]
fn every_order_of_axes_is_reached_and_left_without_a_change() {
    let from = volume();
    let start = from.grid.axes().unwrap();
    assert_eq!(start, Axes::RAS);
    let names: BTreeSet<String> = Axes::all().map(|axes| axes.to_string()).collect();
    assert_eq!(names.len(), 48);
    for axes in Axes::all() {
        assert_eq!(axes.to_string().parse::<Axes>().unwrap(), axes);
        let turn = Turn::between(start, axes);
        let turned = turn.volume(from.clone());
        assert_eq!(turned.grid.axes(), Some(axes));
        for (offset, value) in turned.voxels.iter().enumerate() {
            let there = place(&turned.grid, turned.grid.position(offset));
            let here = place(&from.grid, from.grid.position(*value as usize));
            assert!((0..3).all(|axis| (there[axis] - here[axis]).abs() < 1e-4), "{axes}: {there:?}, not {here:?}");
        }
        assert_eq!(turn.back().voxels(turned.voxels, turned.grid.shape), from.voxels, "{axes}");
        assert_eq!(turn.back(), Turn::between(axes, start));
    }
}

/// The same through files: a scan stored in any order is seen by the model in the same order, and a mask of it, written
/// where it was stored, is scored as itself, whichever order the scorer's truth is stored in.
#[test]
fn files_in_any_order_are_one_scan() {
    let dir = TempDir::new().unwrap();
    let (from, truth_file) = (volume(), dir.path().join("truth.nii.gz"));
    let labels: Vec<u8> = from.voxels.iter().map(|v| u8::from(*v > 40.0)).collect();
    let truth = Mask { grid: from.grid.clone(), labels };
    write_mask(&truth_file, &truth).unwrap();
    let folder = dir.path().join("predictions");
    fs::create_dir(&folder).unwrap();
    for axes in Axes::all() {
        let file = dir.path().join("scan.nii.gz");
        write_volume(&file, &Turn::between(Axes::RAS, axes).volume(from.clone())).unwrap();
        let stored = read_volume(&file).unwrap();
        let home = stored.grid.clone();
        let (seen, turn) = Frame::default().bring(&file, stored).unwrap();
        assert_eq!((&seen.voxels, seen.grid.shape), (&from.voxels, SHAPE), "{axes}");
        let said: Vec<u8> = seen.voxels.iter().map(|v| u8::from(*v > 40.0)).collect();
        let answer = Mask { labels: turn.back().voxels(said, seen.grid.shape), grid: home };
        write_mask(&folder.join("a.nii.gz"), &answer).unwrap();
        let open = UntrustedFolder::open(&folder).unwrap();
        let scored = open.mask("a.nii.gz", 2, (&truth_file, &truth.grid)).unwrap();
        assert_eq!(scored.labels, truth.labels, "{axes}");
    }
}

#[test]
fn orientations_that_are_none_are_refused() {
    for text in ["", "RA", "RAX", "RLA", "RAS ", "ras", "RASS", "RRS"] {
        let error = text.parse::<Axes>().unwrap_err();
        assert!(error.contains(&format!("{text:?}")) && error.contains("RAS or LPS"), "{error}");
    }
}

/// A hundredth in one entry of an affine moves the far end of 512 voxels by 5 mm; a tenth of a millimetre everywhere is
/// nothing. Both were judged by the entry.
#[test]
fn grids_are_compared_where_they_end() {
    let long = Grid::axis_aligned([512, 512, 100], [1.0, 1.0, 2.0]);
    let mut tilted = long.clone();
    tilted.affine[1][0] = 0.009;
    assert!((corner_distance(&long, &tilted) - 511.0 * 0.009).abs() < 1e-3);
    let pair = |a: &Grid, b: &Grid| check_pair(Path::new("i.nii"), a, Path::new("m.nii"), b);
    assert_eq!(pair(&long, &tilted).unwrap_err().reason(), "AffineMismatch");
    let mut moved = long.clone();
    moved.affine[0][3] = 0.05;
    pair(&long, &moved).unwrap();
    // Of voxels of a twentieth of a millimetre, that is a whole one.
    let fine = Grid::axis_aligned([20, 20, 20], [0.05, 0.05, 0.05]);
    assert!((corner_tolerance(&fine) - 0.005).abs() < 1e-6);
}

/// Without codes nobody knows left from right. As a pair such files agree by their spacing; where one of them says it,
/// a tool has made it up (nibabel mirrors x), and advice to resample would mirror the mask.
#[test]
fn a_scan_that_does_not_say_how_it_lies() {
    let dir = TempDir::new().unwrap();
    let mut unknown = volume();
    unknown.grid = Grid { placed: false, ..Grid::axis_aligned(SHAPE, [1.0, 1.5, 2.0]) };
    let (image, mask) = (dir.path().join("image.nii.gz"), dir.path().join("mask.nii.gz"));
    write_volume(&image, &unknown).unwrap();
    assert_eq!(read_volume(&image).unwrap(), unknown, "a mask written over it must not claim to know");
    let labels = Mask { grid: unknown.grid.clone(), labels: vec![1; unknown.voxels.len()] };
    write_mask(&mask, &labels).unwrap();
    check_pair(&image, &unknown.grid, &mask, &read_grid(&mask).unwrap()).unwrap();
    let mut made_up = Grid::axis_aligned(SHAPE, [1.0, 1.5, 2.0]);
    made_up.affine[0] = [-1.0, 0.0, 0.0, 2.0];
    for (first, second) in [(&unknown.grid, &made_up), (&made_up, &unknown.grid)] {
        let error = check_pair(&image, first, &mask, second).unwrap_err();
        let message = error.to_string();
        assert_eq!(error.reason(), "UnknownOrientation");
        for part in ["image.nii.gz", "mask.nii.gz", "LAS", "qform_code and sform_code are 0", "sform"] {
            assert!(message.contains(part), "{message} lacks {part}");
        }
        assert!(!message.contains("resample"), "{message}");
    }
    let frame = Frame::default();
    let message = frame.turn(&image, &unknown.grid).unwrap_err().to_string();
    assert!(message.contains("image.nii.gz: orientation unknown") && message.contains("RAS"), "{message}");
    assert_eq!(frame.taking_unknown_as_stored().turn(&image, &unknown.grid).unwrap(), Turn::NONE);
}

/// What a study says of spacing is held against the header, along the axes that it names.
#[test]
fn voxels_of_another_size_than_asked_for() {
    let frame = Frame::new(Some("SAR".parse().unwrap()), Some([2.0, 1.5, 1.0]));
    frame.turn(Path::new("a.nii"), &grid()).unwrap();
    let nearly = Frame::new(None, Some([1.02, 1.5, 2.0]));
    nearly.turn(Path::new("a.nii"), &grid()).unwrap();
    let other = Frame::new(None, Some([1.0, 1.0, 1.0]));
    let message = other.turn(Path::new("a.nii"), &grid()).unwrap_err().to_string();
    for part in ["a.nii", "[1.0, 1.5, 2.0] mm", "[1.0, 1.0, 1.0] mm", "RAS", "5 %", "resample"] {
        assert!(message.contains(part), "{message} lacks {part}");
    }
}

/// Ten scans, one of them stored otherwise, thick, or sheared: the one is named and not the nine.
#[test]
fn the_odd_one_is_named() {
    let dir = TempDir::new().unwrap();
    let mut files: Vec<PathBuf> = Vec::new();
    let straight = Volume { grid: Grid::axis_aligned(SHAPE, [1.0, 1.5, 2.0]), ..volume() };
    for at in 0..10 {
        let mut one = straight.clone();
        match at {
            0 => one = Turn::between(Axes::RAS, "LAS".parse().unwrap()).volume(one),
            4 => one.grid = Grid::axis_aligned(SHAPE, [1.0, 1.5, 6.0]),
            7 => one.grid.affine[0][1] = 0.45,
            _ => {}
        }
        // Not by another spacing: the sheared axis keeps its length.
        one.grid.affine[1][1] = (one.grid.spacing[1].powi(2) - one.grid.affine[0][1].powi(2)).sqrt();
        let file = dir.path().join(format!("s{at}.nii.gz"));
        write_volume(&file, &one).unwrap();
        files.push(file);
    }
    let found = survey(&files, &Frame::default());
    assert!(!found.none_placed);
    let expected = [("s0", "stored as LAS, the others as RAS"), ("s4", "6.0] mm"), ("s7", "17.5 degrees")];
    assert_eq!(found.notices.len(), expected.len(), "{:?}", found.notices);
    for ((name, words), notice) in expected.iter().zip(&found.notices) {
        assert!(notice.contains(words), "{notice} lacks {words}");
        let named: Vec<bool> = (0..10).map(|at| notice.contains(&format!("s{at}.nii"))).collect();
        assert_eq!(named.iter().filter(|named| **named).count(), 1, "{notice}");
        assert!(notice.contains(&format!("{name}.nii")), "{notice}");
    }
    assert!(shear_degrees(&straight.grid) < 1e-3);
}

/// A mask cut to nothing teaches that there is nothing.
#[test]
fn a_cut_that_takes_labels_says_which_shape_would_not() {
    let from = [48, 24, 16];
    let at = |x: usize, y: usize, z: usize| x + from[0] * (y + from[1] * z);
    let mut labels = vec![0_u8; from.iter().product()];
    assert_eq!(labels_lost(&labels, from, [16, 24, 16], 2), None);
    labels[at(3, 10, 8)] = 1;
    labels[at(24, 10, 8)] = 2;
    let found = labels_lost(&labels, from, [16, 24, 16], 2).unwrap();
    assert_eq!((found.lost, found.all, found.needed), (1, 2, [44, 24, 16]));
    assert_eq!(labels_lost(&labels, from, found.needed, 2), None);
    assert_eq!(labels_lost(&labels, from, [48, 24, 16], 2), None);
}

proptest! {
    /// The shape that is advised keeps every label, and what is said to be lost is what the cut takes.
    #[test]
    fn the_advised_shape_keeps_all_labels(
        from in [1_usize..12, 1..12, 1..12], shape in [1_usize..4, 1..4, 1..4], chosen in prop::collection::vec(0_usize..1728, 1..5),
    ) {
        let shape = shape.map(|side| side * 2);
        let mut labels = vec![0_u8; from.iter().product()];
        for at in chosen {
            let length = labels.len();
            labels[at % length] = 1;
        }
        let kept = |to: [usize; 3]| pad_or_crop(&labels, from, to, 0).iter().filter(|l| **l != 0).count();
        let all = labels.iter().filter(|l| **l != 0).count();
        match labels_lost(&labels, from, shape, 1) {
            None => prop_assert_eq!(kept(shape), all),
            Some(found) => {
                prop_assert_eq!((found.lost, found.all), (all - kept(shape), all));
                prop_assert_eq!(kept(found.needed), all);
                prop_assert!(found.needed.iter().all(|side| side % 2 == 0));
            }
        }
    }
}

#[test]
fn labels_of_a_file_without_codes_are_read_like_others() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("m.nii.gz");
    let grid = Grid { placed: false, ..Grid::axis_aligned(SHAPE, [1.0; 3]) };
    let mask = Mask { labels: vec![2; grid.len()], grid };
    write_mask(&file, &mask).unwrap();
    assert_eq!(read_mask(&file, 3).unwrap(), mask);
}

proptest! {
    /// A scan turned by about 45 degrees, its mask written by another tool: the names of their axes differ by a rounding of
    /// the header, the case is one, and its labels stay on what they mark.
    #[test]
    fn a_mask_near_45_degrees_goes_by_its_image_s_order(
        off in -2e-6..2e-6f64, noise in prop::array::uniform9(-1e-6..1e-6f32), stored in 0_usize..48,
    ) {
        let shape = [6, 4, 3];
        let mut image = Grid::axis_aligned(shape, [1.0, 1.0, 2.0]);
        let (sin, cos) = (std::f64::consts::FRAC_PI_4 + off).sin_cos();
        image.affine[0] = [cos as f32, -sin as f32, 0.0, 3.0];
        image.affine[1] = [sin as f32, cos as f32, 0.0, -2.0];
        let mut written = image.clone();
        for (at, noise) in noise.into_iter().enumerate() {
            written.affine[at / 3][at % 3] += noise;
        }
        let labels: Vec<u8> = (0..written.len()).map(|at| (at % 3) as u8).collect();
        let truth = Mask { grid: written.clone(), labels: labels.clone() };
        let other = Axes::all().nth(stored).unwrap();
        let mask = Turn::between(written.axes().unwrap(), other).mask(truth);
        let back = turn_onto(&image, &mask.grid).mask(mask);
        prop_assert_eq!(back.labels, labels);
        check_pair(Path::new("i"), &image, Path::new("m"), &back.grid).unwrap();
    }
}
