//! Exact Euclidean distance transform with unequal spacing.
//!
//! Felzenszwalb and Huttenlocher, *Distance Transforms of Sampled Functions*, Theory of Computing 8 (2012): the squared
//! distance is separable, and along one axis it is the lower envelope of parabolas, found in linear time.

use crate::volume::Grid;

/// For every voxel the squared distance in mm² to the nearest voxel for which `is_target` holds; infinite everywhere
/// when there is none. x is the fastest axis.
pub fn squared_distances(grid: &Grid, is_target: impl Fn(usize) -> bool) -> Vec<f64> {
    let mut field: Vec<f64> = (0..grid.len()).map(|at| if is_target(at) { 0.0 } else { f64::INFINITY }).collect();
    let [nx, ny, _] = grid.shape;
    let strides = [1, nx, nx * ny];
    let mut lines = Lines::default();
    for (axis, &stride) in strides.iter().enumerate() {
        let length = grid.shape[axis];
        let spacing = f64::from(grid.spacing[axis]);
        for first in 0..field.len() {
            // The first voxel of a line along this axis is the one whose index on the axis is 0.
            if (first / stride) % length == 0 {
                lines.transform(&mut field, first, stride, length, spacing);
            }
        }
    }
    field
}

/// Scratch of one line; kept over lines so that nothing is allocated in between.
#[derive(Default)]
struct Lines {
    values: Vec<f64>,
    /// Vertices of the parabolas in the envelope (indices on the line).
    vertices: Vec<usize>,
    /// `starts[k]`: position in mm from which parabola k is the lowest.
    starts: Vec<f64>,
}

impl Lines {
    fn transform(&mut self, field: &mut [f64], first: usize, stride: usize, length: usize, spacing: f64) {
        self.values.clear();
        self.values.extend((0..length).map(|i| field[first + i * stride]));
        self.vertices.clear();
        self.starts.clear();
        for i in 0..length {
            if self.values[i].is_finite() {
                self.push(i, spacing);
            }
        }
        if self.vertices.is_empty() {
            return;
        }
        let mut k = 0;
        for i in 0..length {
            let at = i as f64 * spacing;
            while k + 1 < self.vertices.len() && self.starts[k + 1] <= at {
                k += 1;
            }
            let vertex = self.vertices[k];
            field[first + i * stride] = (at - vertex as f64 * spacing).powi(2) + self.values[vertex];
        }
    }

    /// Adds the parabola at index `i`, taking away those it hides.
    fn push(&mut self, i: usize, spacing: f64) {
        let at = i as f64 * spacing;
        while let Some(&last) = self.vertices.last() {
            let other = last as f64 * spacing;
            let crossing = (self.values[i] + at * at - self.values[last] - other * other) / (2.0 * (at - other));
            if crossing > self.starts[self.starts.len() - 1] {
                self.vertices.push(i);
                self.starts.push(crossing);
                return;
            }
            self.vertices.pop();
            self.starts.pop();
        }
        self.vertices.push(i);
        self.starts.push(f64::NEG_INFINITY);
    }
}
