//! How much memory inference takes, so that whoever has a limit can keep to it.

use super::config::Network;

const FLOAT: u64 = 4;

/// Bytes for each voxel of a canvas while it is segmented: the image with the buffer that it is made from, the sums of
/// the classes' shares, the mask before and after its padding is cut away, and what preparing the scan takes.
pub fn canvas_bytes(network: &Network) -> u64 {
    2 * FLOAT + FLOAT * u64::from(network.unet().classes) + 2 + network.input().working_bytes()
}

/// Bytes that the network takes while one tile goes through it. The most is held in the last decoder at full resolution:
/// the skip, what came from below, both side by side, and a block's input, output and normed output; then the scores,
/// their shares and the weighted shares.
pub fn tile_bytes(network: &Network, tile: [usize; 3]) -> u64 {
    let network = network.unet();
    let voxels: u64 = tile.iter().map(|&side| side as u64).product();
    voxels * FLOAT * (8 * u64::from(network.width) + 3 * u64::from(network.classes))
}
