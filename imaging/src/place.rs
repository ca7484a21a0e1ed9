//! Where a scan lies in the patient: which way its voxel axes point, how it is turned to point another way without
//! changing a single value, and how far two grids lie apart.

use std::fmt;
use std::str::FromStr;

use crate::volume::{Grid, Mask, Volume};

/// Two grids of one shape count as one where no corner is further off than this share of the smallest voxel side…
const CORNER_SHARE: f64 = 0.1;
/// … and than this, in mm.
const CORNER_MM: f64 = 0.1;

/// One voxel axis: the patient's axis that it follows (0 left to right, 1 back to front, 2 feet to head), and whether it
/// goes against it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Direction {
    axis: usize,
    against: bool,
}

const LETTERS: [(char, char); 3] = [('R', 'L'), ('A', 'P'), ('S', 'I')];

impl Direction {
    fn of(letter: char) -> Option<Self> {
        let (axis, pair) = LETTERS.iter().enumerate().find(|(_, pair)| pair.0 == letter || pair.1 == letter)?;
        Some(Self { axis, against: pair.1 == letter })
    }

    fn letter(self) -> char {
        let (with, against) = LETTERS[self.axis];
        if self.against { against } else { with }
    }
}

/// Where the voxel axes x, y, z point in the patient: `RAS` when x goes to the patient's right, y to the front and z
/// upwards; `L`, `P` and `I` are the opposites. The letters say where an axis goes *to*, as nibabel's `aff2axcodes` does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Axes([Direction; 3]);

impl Axes {
    /// x to the right, y to the front, z upwards: what every scan is brought to where a study names nothing else.
    pub const RAS: Self = Self([
        Direction { axis: 0, against: false },
        Direction { axis: 1, against: false },
        Direction { axis: 2, against: false },
    ]);

    /// All 48 of them.
    pub fn all() -> impl Iterator<Item = Self> {
        PERMUTATIONS.into_iter().flat_map(|axes| {
            (0..8).map(move |signs: u8| {
                Self([0, 1, 2].map(|at| Direction { axis: axes[at], against: signs & (1 << at) != 0 }))
            })
        })
    }

    /// The axes of a voxel-to-space matrix: the assignment of voxel axes to the patient's axes that fits best as a whole,
    /// so that no two voxel axes get the same letter, however oblique the scan is.
    pub(crate) fn of(affine: &[[f32; 4]; 3]) -> Self {
        let unit = unit_columns(affine);
        let fit = |axes: &[usize; 3]| (0..3).map(|at| unit[at][axes[at]].abs()).sum::<f64>();
        let mut best = PERMUTATIONS[0];
        for axes in &PERMUTATIONS[1..] {
            if fit(axes) > fit(&best) {
                best = *axes;
            }
        }
        Self([0, 1, 2].map(|at| Direction { axis: best[at], against: unit[at][best[at]] < 0.0 }))
    }
}

const PERMUTATIONS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

impl fmt::Display for Axes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|direction| write!(f, "{}", direction.letter()))
    }
}

impl FromStr for Axes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "orientation {text:?}: three letters say where x, y and z go to, one of R and L, one of A and P, one of S \
                 and I, such as RAS or LPS"
            )
        };
        let found: Option<Vec<Direction>> = text.chars().map(Direction::of).collect();
        let three: [Direction; 3] = found.and_then(|all| all.try_into().ok()).ok_or_else(wrong)?;
        let mut axes = three.map(|direction| direction.axis);
        axes.sort_unstable();
        if axes == [0, 1, 2] { Ok(Self(three)) } else { Err(wrong()) }
    }
}

/// How voxels are reordered so that the axes point elsewhere: axes are swapped and reversed, no value is changed, so that
/// the way back is exact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    /// For each new axis the old one that it follows.
    source: [usize; 3],
    /// Whether it runs against that.
    reversed: [bool; 3],
}

impl Turn {
    /// No change at all.
    pub const NONE: Self = Self { source: [0, 1, 2], reversed: [false; 3] };

    /// From one order to another.
    pub fn between(from: Axes, to: Axes) -> Self {
        // Both name each of the patient's axes once.
        let source = to.0.map(|target| from.0.iter().position(|d| d.axis == target.axis).unwrap_or_default());
        let reversed = [0, 1, 2].map(|at| from.0[source[at]].against != to.0[at].against);
        Self { source, reversed }
    }

    /// The way back.
    pub fn back(&self) -> Self {
        let source = [0, 1, 2].map(|old| self.source.iter().position(|s| *s == old).unwrap_or_default());
        Self { source, reversed: source.map(|new| self.reversed[new]) }
    }

    /// Something by axis, such as a shape or a spacing, in the new order.
    pub fn by_axis<T: Copy>(&self, values: [T; 3]) -> [T; 3] {
        self.source.map(|old| values[old])
    }

    /// Voxels of shape `shape` (x fastest) in the new order.
    pub fn voxels<T: Copy>(&self, voxels: Vec<T>, shape: [usize; 3]) -> Vec<T> {
        if *self == Self::NONE {
            return voxels;
        }
        let mut out = Vec::with_capacity(voxels.len());
        out.extend(self.sources(shape).map(|at| voxels[at]));
        out
    }

    /// For each voxel in the new order the offset that it has in the old one, of shape `shape` (x fastest).
    pub fn sources(&self, shape: [usize; 3]) -> impl Iterator<Item = usize> + use<> {
        let turn = *self;
        let strides = [1, shape[0], shape[0] * shape[1]];
        let [nx, ny, nz] = turn.by_axis(shape);
        let along = move |axis: usize, at: usize, length: usize| {
            (if turn.reversed[axis] { length - 1 - at } else { at }) * strides[turn.source[axis]]
        };
        (0..nz).flat_map(move |z| {
            (0..ny).flat_map(move |y| {
                let row = along(2, z, nz) + along(1, y, ny);
                (0..nx).map(move |x| row + along(0, x, nx))
            })
        })
    }

    /// Where the same voxels lie, told in the new order.
    pub fn grid(&self, grid: &Grid) -> Grid {
        if *self == Self::NONE {
            return grid.clone();
        }
        let mut affine = grid.affine;
        for (row, old) in affine.iter_mut().zip(&grid.affine) {
            for axis in 0..3 {
                let (from, step) = (self.source[axis], old[self.source[axis]]);
                row[axis] = if self.reversed[axis] { -step } else { step };
                if self.reversed[axis] {
                    row[3] += step * (grid.shape[from] as f32 - 1.0);
                }
            }
        }
        Grid { shape: self.by_axis(grid.shape), spacing: self.by_axis(grid.spacing), affine, placed: grid.placed }
    }

    /// A scan in the new order.
    pub fn volume(&self, volume: Volume) -> Volume {
        Volume { grid: self.grid(&volume.grid), voxels: self.voxels(volume.voxels, volume.grid.shape) }
    }

    /// A mask in the new order.
    pub fn mask(&self, mask: Mask) -> Mask {
        Mask { grid: self.grid(&mask.grid), labels: self.voxels(mask.labels, mask.grid.shape) }
    }
}

/// The largest distance in mm between the same corners of two grids of one shape. Entries of affines say little: a
/// hundredth in one of them moves the far end of a long axis by millimetres.
pub fn corner_distance(a: &Grid, b: &Grid) -> f64 {
    let corner = |grid: &Grid, which: u8| {
        let at = [0, 1, 2].map(|axis| if which & (1 << axis) == 0 { 0.0 } else { grid.shape[axis] as f64 - 1.0 });
        grid.affine.map(|row| (0..3).map(|axis| f64::from(row[axis]) * at[axis]).sum::<f64>() + f64::from(row[3]))
    };
    let apart = |which: u8| {
        let (a, b) = (corner(a, which), corner(b, which));
        (0..3).map(|axis| (a[axis] - b[axis]).powi(2)).sum::<f64>().sqrt()
    };
    (0..8).map(apart).fold(0.0, f64::max)
}

/// How far the corners of grids that count as one may lie apart, in mm: a tenth of the smallest voxel side, and 0.1 mm at
/// most. Rounding of exporting tools stays far below it.
pub fn corner_tolerance(grid: &Grid) -> f64 {
    let smallest = grid.spacing.into_iter().map(f64::from).fold(f64::INFINITY, f64::min);
    (CORNER_SHARE * smallest).min(CORNER_MM)
}

/// By how many degrees two voxel axes are off a right angle, at most.
pub fn shear_degrees(grid: &Grid) -> f64 {
    let unit = unit_columns(&grid.affine);
    let off = |a: usize, b: usize| {
        let cosine: f64 = (0..3).map(|row| unit[a][row] * unit[b][row]).sum();
        cosine.clamp(-1.0, 1.0).asin().to_degrees().abs()
    };
    off(0, 1).max(off(0, 2)).max(off(1, 2))
}

/// The volume spanned by the axes' directions: 1 at right angles, 0 where they lie in one plane.
pub(crate) fn spanned(affine: &[[f32; 4]; 3]) -> f64 {
    let [a, b, c] = unit_columns(affine);
    (a[0] * (b[1] * c[2] - b[2] * c[1]) - a[1] * (b[0] * c[2] - b[2] * c[0]) + a[2] * (b[0] * c[1] - b[1] * c[0])).abs()
}

/// The directions of the voxel axes, each of length 1 (0 stays 0).
fn unit_columns(affine: &[[f32; 4]; 3]) -> [[f64; 3]; 3] {
    [0, 1, 2].map(|column| {
        let direction = [0, 1, 2].map(|row: usize| f64::from(affine[row][column]));
        let length = direction.iter().map(|v| v * v).sum::<f64>().sqrt();
        direction.map(|v| if length > 0.0 { v / length } else { 0.0 })
    })
}
