//! How much this server takes on at once: derived from the memory that it may use, so that no request within its own
//! limits gets it killed, and with it the requests of everybody else.

use std::fs;
use std::path::Path;

use consilium_imaging::torch::{Network, canvas_bytes, tile_bytes};

const MIB: u64 = 1 << 20;
/// The process itself: libtorch with its libraries and what they keep for later.
const BASE: u64 = 384 * MIB;
/// Most tiles that go through the network at once.
const TILES_AT_ONCE: u64 = 4;
/// Bytes of memory for a byte of a body with binary voxels until it is a volume: itself and, as it may be UINT8, a float for
/// each of it.
pub const PER_BODY_BYTE: u64 = 5;
/// The same for a body of JSON: a number has at least two bytes, its floats in a growing list take up to eight, and four
/// more where the scan is turned.
pub const PER_JSON_BYTE: u64 = 7;
/// The same for a voxel from then on: a float, its label, and the label in an answer as JSON; not all at once.
pub const PER_VOXEL: u64 = 5;
/// Longest JSON before binary voxels.
pub const MAX_HEAD: u64 = MIB;
/// Longest body of JSON alone: as bytes, voxels are a fraction of the size and of the work.
const MAX_JSON: u64 = 16 * MIB;

/// What fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// The network's tile x, y, z, to which smaller volumes are padded.
    pub tile: [usize; 3],
    /// Tiles that go through the network at once.
    pub tiles: usize,
    /// The largest volume, in voxels.
    pub max_voxels: usize,
    /// Padded voxels of all volumes that go through the network together.
    pub canvas_voxels: usize,
    /// Bytes for requests that arrive or wait and for answers that leave.
    pub room: u64,
    /// Longest body of JSON alone, in bytes.
    pub max_json: u64,
}

/// The model does not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "this process may use {} MiB of memory: the network with one tile of {tile:?} voxels needs {} MiB; raise the memory \
     limit of the pod", limit / MIB, needed.div_ceil(MIB)
)]
pub struct TooLittleMemory {
    /// What it may use, in bytes.
    pub limit: u64,
    /// The least it needs.
    pub needed: u64,
    /// The tile.
    pub tile: [usize; 3],
}

impl Bounds {
    /// Shares out `limit` bytes: the process, the network's tiles, and the rest half to the volumes in the network and
    /// half to those that wait. `max_voxels` is what the caller allows at most.
    pub fn of(limit: u64, network: &Network, tile: [usize; 3], max_voxels: usize) -> Result<Self, TooLittleMemory> {
        let one_tile = tile_bytes(network, tile);
        let tile_voxels: u64 = tile.iter().map(|&side| side as u64).product();
        let per_voxel = canvas_bytes(network);
        let free = limit.saturating_sub(BASE);
        let tiles = (free / 4 / one_tile.max(1)).clamp(1, TILES_AT_ONCE);
        let half = free.saturating_sub(tiles * one_tile) / 2;
        let canvas_voxels = half / per_voxel;
        let largest = (half / PER_BODY_BYTE).saturating_sub(MAX_HEAD) / 4;
        if canvas_voxels < tile_voxels || largest == 0 {
            let waiting = PER_BODY_BYTE * (MAX_HEAD + 4);
            let needed = BASE + one_tile + 2 * (per_voxel * tile_voxels).max(waiting);
            return Err(TooLittleMemory { limit, needed, tile });
        }
        let voxels = |most: u64| usize::try_from(most).unwrap_or(usize::MAX);
        Ok(Self {
            tile,
            tiles: voxels(tiles),
            max_voxels: max_voxels.min(voxels(canvas_voxels.min(largest))),
            canvas_voxels: voxels(canvas_voxels),
            room: half,
            max_json: MAX_JSON.min(half / PER_JSON_BYTE),
        })
    }

    /// Longest body with binary voxels, in bytes.
    pub fn max_binary(&self) -> u64 {
        self.max_voxels as u64 * 4 + MAX_HEAD
    }
}

/// The memory that this process may use, in bytes: the least of its control group's limit (version 2 or 1) and of the
/// machine's memory. `root` is `/`.
pub fn limit(root: &Path) -> u64 {
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
    // In a container the group's own files lie at the top; elsewhere the process says where.
    let mut files =
        vec!["sys/fs/cgroup/memory.max".to_owned(), "sys/fs/cgroup/memory/memory.limit_in_bytes".to_owned()];
    for line in read("proc/self/cgroup").lines() {
        match line.splitn(3, ':').collect::<Vec<_>>()[..] {
            ["0", "", path] => files.push(format!("sys/fs/cgroup{path}/memory.max")),
            [_, "memory", path] => files.push(format!("sys/fs/cgroup/memory{path}/memory.limit_in_bytes")),
            _ => {}
        }
    }
    // Without a limit version 2 says "max", and version 1 more than any machine has.
    let groups = files.iter().filter_map(|file| read(file).trim().parse().ok());
    let meminfo = read("proc/meminfo");
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")).unwrap_or_default();
    let machine = total.trim().trim_end_matches(" kB").parse::<u64>().map(|kib| kib * 1024);
    groups.chain(machine.ok()).min().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use consilium_imaging::input::Input;

    use super::*;

    const NETWORK: &Network = &Network::UNet3D { width: 8, levels: 3, classes: 3, input: Input::PLAIN };

    /// A radiologist's largest volume must not take the server down under the limit that the agent gives it: what is
    /// held when the network is full and so is the queue adds up to no more.
    #[test]
    fn the_bounds_add_up_to_the_limit() {
        for limit in [640 * MIB, 2048 * MIB, 64 * 1024 * MIB] {
            for tile in [[40, 56, 40], [64, 64, 64], [128, 128, 64]] {
                let Ok(bounds) = Bounds::of(limit, NETWORK, tile, 1 << 26) else {
                    assert_eq!((limit, tile), (640 * MIB, [128, 128, 64]), "only this one is too large");
                    continue;
                };
                let network = bounds.tiles as u64 * tile_bytes(NETWORK, tile);
                let canvases = bounds.canvas_voxels as u64 * canvas_bytes(NETWORK);
                assert!(BASE + network + canvases + bounds.room <= limit, "{limit} {tile:?} {bounds:?}");
                assert!(bounds.max_binary() * PER_BODY_BYTE <= bounds.room, "{bounds:?}");
                assert!(bounds.max_voxels <= bounds.canvas_voxels);
            }
        }
        // The agent's 2 GiB hold a CT of 512 × 512 × 100.
        assert!(Bounds::of(2048 * MIB, NETWORK, [40, 56, 40], 1 << 26).unwrap().max_voxels > 512 * 512 * 100);
        assert_eq!(Bounds::of(1 << 40, NETWORK, [64; 3], 1 << 26).unwrap().max_voxels, 1 << 26);
    }

    /// An administrator who reads this must know which number to write.
    #[test]
    fn too_little_memory_says_how_much_is_needed() {
        let refused = Bounds::of(256 * MIB, NETWORK, [64; 3], 1 << 26).unwrap_err();
        let message = refused.to_string();
        assert!(message.contains("256 MiB") && message.contains("memory limit"), "{message}");
        assert!(Bounds::of(refused.needed, NETWORK, [64; 3], 1 << 26).is_ok(), "{message}");
    }

    /// If the pod's limit were not found, the machine's memory would stand for it and the pod be killed.
    #[test]
    fn the_limit_is_that_of_the_control_group() {
        let dir = tempfile::TempDir::new().unwrap();
        let write = |path: &str, text: &str| {
            let file = dir.path().join(path);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        };
        assert_eq!(limit(dir.path()), u64::MAX);
        write("proc/meminfo", "MemTotal:       16384 kB\nMemFree: 1 kB\n");
        write("sys/fs/cgroup/memory.max", "max\n");
        assert_eq!(limit(dir.path()), 16384 * 1024);
        write("sys/fs/cgroup/memory/memory.limit_in_bytes", "8000\n");
        assert_eq!(limit(dir.path()), 8000);
        write("proc/self/cgroup", "12:memory:/pod\n0::/kubepods/pod\n");
        write("sys/fs/cgroup/memory/pod/memory.limit_in_bytes", "7000\n");
        assert_eq!(limit(dir.path()), 7000);
        write("sys/fs/cgroup/kubepods/pod/memory.max", "6000\n");
        assert_eq!(limit(dir.path()), 6000);
        write("sys/fs/cgroup/memory.max", "5000\n");
        assert_eq!(limit(dir.path()), 5000);
    }
}
