//! Files: scans, tables and descriptions of hospitals, and what a study's image writes.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use consilium_federation::Digest;
use consilium_federation::model::ModelManifest;
use consilium_federation::results;
use consilium_federation::safetensors::Header;
use consilium_federation::task::{Failure, OutManifest, Progress, ScoreFile, TaskFile};
use consilium_imaging::dataset::Dataset;
use consilium_imaging::nifti_file::{read_grid, read_mask, read_prediction, read_volume};
use consilium_imaging::table::CaseTable;
use consilium_imaging::{Grid, frame::Frame};
use flate2::Compression;
use flate2::write::GzEncoder;

/// Most bytes of a file that is tried: a scan's voxels teach nothing.
const MOST: usize = 1 << 16;

/// Readers of scans take a path: one file of this process, in memory where there is such a place.
fn with_file(name: &str, content: &[u8], read: impl FnOnce(&Path) -> bool) -> bool {
    let folder = ["/dev/shm", "/tmp"].iter().map(Path::new).find(|folder| folder.is_dir()).unwrap_or(Path::new("."));
    let thread = format!("{:?}", std::thread::current().id()).replace(|c: char| !c.is_ascii_alphanumeric(), "");
    let path: PathBuf = folder.join(format!("consilium-fuzz-{}-{thread}-{name}", std::process::id()));
    let taken = fs::write(&path, content).is_ok() && read(&path);
    fs::remove_file(&path).ok();
    taken
}

fn scan(path: &Path) -> bool {
    let grid = read_grid(path);
    let volume = read_volume(path);
    let mask = read_mask(path, 3);
    if let Ok(grid) = &grid {
        // What the header says is used before any voxel is: turning, comparing, and a prediction of someone else's.
        if let Ok(turn) = Frame::default().turn(path, grid) {
            let _ = turn.grid(grid);
        }
        let truth = Grid::axis_aligned([4, 4, 4], [1.0; 3]);
        if let Ok(opened) = File::open(path) {
            let _ = read_prediction(path, opened, 3, (path, &truth));
        }
    }
    grid.is_ok() && (volume.is_ok() || mask.is_ok())
}

pub(crate) fn nifti(data: &[u8]) -> bool {
    data.len() <= MOST && with_file("a.nii", data, scan)
}

/// The first byte says whether the rest is a compressed file, or one to be compressed: chance writes no right checksum.
pub(crate) fn nifti_gz(data: &[u8]) -> bool {
    let Some((first, rest)) = data.split_first().filter(|_| data.len() <= MOST) else { return false };
    if first % 2 == 0 {
        return with_file("a.nii.gz", rest, scan);
    }
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    let written = packed.write_all(rest).and_then(|()| packed.finish());
    written.is_ok_and(|packed| with_file("b.nii.gz", &packed, scan))
}

pub(crate) fn table(data: &[u8]) -> bool {
    match CaseTable::parse(Path::new("cases.csv"), data) {
        Ok(table) => {
            let _ = (table.notice(), table.knows_persons(), table.subject("a"), table.regime("a"));
            true
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            false
        }
    }
}

pub(crate) fn dataset(data: &[u8]) -> bool {
    Dataset::parse(Path::new("dataset.json"), data).is_ok_and(|found| {
        let _ = found.check_classes(3);
        true
    })
}

pub(crate) fn safetensors(data: &[u8]) -> bool {
    let Ok(header) = Header::parse(data) else { return false };
    let _ = (header.schema().map(|schema| schema.elements()), header.local().len(), header.payload());
    true
}

pub(crate) fn metrics(data: &[u8]) -> bool {
    results::metrics(data).is_ok()
}

pub(crate) fn task(data: &[u8]) -> bool {
    TaskFile::parse(data).is_ok()
}

/// What lies beside an update in `out/`, and the manifest of a model.
pub(crate) fn manifest(data: &[u8]) -> bool {
    let read = serde_json::from_slice::<OutManifest>(data).is_ok();
    let score = serde_json::from_slice::<ScoreFile>(data).is_ok_and(|score| {
        let _ = (score.check(), score.mean_dice());
        true
    });
    let other = serde_json::from_slice::<Progress>(data).is_ok() || serde_json::from_slice::<Failure>(data).is_ok();
    let model = ModelManifest::parse(data, Digest::of(data)).is_ok_and(|model| {
        let _ = (model.elements(), model.safetensors_header().len(), model.verify(&[]));
        let _ = (0..model.chunks.len()).map(|index| model.chunk_bytes(index)).sum::<usize>();
        true
    });
    read || score || other || model
}
