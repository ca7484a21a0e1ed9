//! How a model wants its scans to lie, and how each scan is brought to that.
//!
//! A network sees voxels in an order and at a size. Which order that is must not be a hospital's habit of storing: a scan
//! stored left to right shows a model that learnt on right to left a mirrored patient. So every scan is brought to one
//! order of axes by its own header (`RAS` where the study names none), at training, evaluation and use alike, and what
//! the model says is brought back the same way, without a value changed. What a header does not tell is refused.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::error::ScanError;
use crate::nifti_file::read_grid;
use crate::place::{Axes, Turn, shear_degrees};
use crate::volume::{Grid, Volume};

/// Voxel sides may differ by so much, in percent, from what is asked for: scanners give 0.98 mm for 1 mm.
const SPACING_PERCENT: u8 = 5;
/// Degrees off a right angle that are said: less is rounding.
const SHEAR_SAID: f64 = 0.5;

/// How scans have to lie.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Frame {
    axes: Axes,
    spacing: Option<[f32; 3]>,
    as_stored: bool,
}

impl Default for Frame {
    fn default() -> Self {
        Self::new(None, None)
    }
}

impl Frame {
    /// Scans are brought to these axes (`RAS` where none are named), and must have this spacing along them, if any.
    pub fn new(axes: Option<Axes>, spacing: Option<[f32; 3]>) -> Self {
        Self { axes: axes.unwrap_or(Axes::RAS), spacing, as_stored: false }
    }

    /// Scans that do not say how they lie are taken as they are stored. Only for one folder by itself, none of whose scans
    /// says it.
    #[must_use]
    pub fn taking_unknown_as_stored(self) -> Self {
        Self { as_stored: true, ..self }
    }

    /// The axes that scans are brought to.
    pub fn axes(&self) -> Axes {
        self.axes
    }

    /// The axes that scans are known to lie in once they are here; none where they are taken as they are stored.
    pub fn known_axes(&self) -> Option<Axes> {
        (!self.as_stored).then_some(self.axes)
    }

    /// The spacing that scans must have along them, if any.
    pub fn spacing(&self) -> Option<[f32; 3]> {
        self.spacing
    }

    /// How a scan is brought here, judged by its header alone; `file` is for messages.
    pub fn turn(&self, file: &Path, grid: &Grid) -> Result<Turn, ScanError> {
        let turn = match grid.axes() {
            Some(axes) => Turn::between(axes, self.axes),
            None if self.as_stored => Turn::NONE,
            None => return Err(ScanError::UnknownOrientation { file: file.to_owned(), axes: self.axes }),
        };
        let found = turn.by_axis(grid.spacing);
        match self.spacing {
            Some(wanted) if !alike(found, wanted) => Err(ScanError::WrongSpacing {
                file: file.to_owned(),
                found,
                axes: self.axes,
                wanted,
                percent: SPACING_PERCENT,
            }),
            _ => Ok(turn),
        }
    }

    /// A scan as the model sees it, and the way there; [`Turn::back`] leads what the model says of it home.
    pub fn bring(&self, file: &Path, volume: Volume) -> Result<(Volume, Turn), ScanError> {
        let turn = self.turn(file, &volume.grid)?;
        Ok((turn.volume(volume), turn))
    }
}

fn alike(a: [f32; 3], b: [f32; 3]) -> bool {
    (0..3).all(|axis| (a[axis] - b[axis]).abs() <= f32::from(SPACING_PERCENT) / 100.0 * b[axis])
}

/// What the headers of a folder's scans say together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Survey {
    /// What a person should know, in words; the odd ones are named, not the many.
    pub notices: Vec<String>,
    /// No scan says how it lies.
    pub none_placed: bool,
}

/// Looks at the headers of scans that are to be brought to `frame`. Headers that cannot be read are left to whoever reads
/// the scans.
pub fn survey<'a>(files: impl IntoIterator<Item = &'a PathBuf>, frame: &Frame) -> Survey {
    let grids = grids_of(files);
    let none_placed = !grids.is_empty() && grids.iter().all(|(_, grid)| !grid.placed);
    let mut notices = Vec::new();
    if none_placed {
        notices.push(format!(
            "none of {} scans says where its axes point (qform_code and sform_code are 0; the first: {}): the model learns \
             them as they are stored, and answers scans that lie otherwise wrongly",
            grids.len(),
            grids[0].0.display()
        ));
    }
    notices.extend(other_axes(&grids, frame.axes));
    notices.extend(other_spacing(&grids, frame.axes));
    notices.extend(sheared(&grids));
    Survey { notices, none_placed }
}

/// Says of scans or masks alone whether their axes stand at right angles.
pub fn shear<'a>(files: impl IntoIterator<Item = &'a PathBuf>) -> Option<String> {
    sheared(&grids_of(files))
}

fn grids_of<'a>(files: impl IntoIterator<Item = &'a PathBuf>) -> Vec<(&'a PathBuf, Grid)> {
    files.into_iter().filter_map(|file| Some((file, read_grid(file).ok()?))).collect()
}

/// Scans stored in another order than most of them.
fn other_axes(grids: &[(&PathBuf, Grid)], wanted: Axes) -> Vec<String> {
    let mut stored: BTreeMap<String, Vec<&PathBuf>> = BTreeMap::new();
    for (file, grid) in grids {
        if let Some(axes) = grid.axes() {
            stored.entry(axes.to_string()).or_default().push(file);
        }
    }
    let most = stored.iter().max_by_key(|(_, files)| files.len()).map(|(axes, _)| axes.clone()).unwrap_or_default();
    let odd = stored.iter().filter(|(axes, _)| **axes != most);
    odd.map(|(axes, files)| {
        format!(
            "stored as {axes}, the others as {most}; all are brought to {wanted} by their headers: {}",
            named(files)
        )
    })
    .collect()
}

/// Scans whose voxels have another size than most of them have.
fn other_spacing(grids: &[(&PathBuf, Grid)], wanted: Axes) -> Option<String> {
    let spacing =
        |grid: &Grid| grid.axes().map_or(Turn::NONE, |axes| Turn::between(axes, wanted)).by_axis(grid.spacing);
    let mut counted: Vec<([f32; 3], usize)> = Vec::new();
    for (_, grid) in grids {
        let found = spacing(grid);
        match counted.iter_mut().find(|(known, _)| alike(found, *known)) {
            Some((_, count)) => *count += 1,
            None => counted.push((found, 1)),
        }
    }
    let (most, _) = counted.into_iter().max_by_key(|(_, count)| *count)?;
    let odd: Vec<&PathBuf> =
        grids.iter().filter(|(_, grid)| !alike(spacing(grid), most)).map(|(file, _)| *file).collect();
    let example = grids.iter().find(|(file, _)| Some(file) == odd.first()).map(|(_, grid)| spacing(grid))?;
    Some(format!(
        "voxels of another size than the {most:?} mm of most scans, such as {example:?} mm (along {wanted}); nothing is \
         resampled, so that the network sees organs of another size: {}",
        named(&odd)
    ))
}

/// Scans whose axes do not stand at right angles, as a CT with a tilted gantry has them.
fn sheared(grids: &[(&PathBuf, Grid)]) -> Option<String> {
    let odd: Vec<(&PathBuf, f64)> = grids.iter().map(|(file, grid)| (*file, shear_degrees(grid))).collect();
    let odd: Vec<(&PathBuf, f64)> = odd.into_iter().filter(|(_, degrees)| *degrees > SHEAR_SAID).collect();
    let most = odd.iter().map(|(_, degrees)| *degrees).fold(0.0, f64::max);
    let files: Vec<&PathBuf> = odd.iter().map(|(file, _)| *file).collect();
    (!files.is_empty()).then(|| {
        format!(
            "sheared: voxel axes up to {most:.1} degrees off a right angle, by the affine; the network sees them as if they \
             stood at right angles, and distances in mm are wrong; resample scan and mask to a straight grid: {}",
            named(&files)
        )
    })
}

/// The first of some files, and how many there are.
fn named(files: &[&PathBuf]) -> String {
    const SHOWN: usize = 5;
    let names: Vec<String> = files.iter().take(SHOWN).map(|file| file.display().to_string()).collect();
    let more = if files.len() > SHOWN { ", …" } else { "" };
    format!("{}{more} ({} in all)", names.join(", "), files.len())
}
