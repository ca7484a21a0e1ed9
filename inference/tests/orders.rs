//! One patient, stored in any order of axes with a true header, gets one answer from a served model. A model that is shown
//! a mirrored patient answers with a mask all the same.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a helper that fails is a test that fails")]

use std::path::Path;

use consilium_imaging::nifti_file::{read_mask, write_mask, write_volume};
use consilium_imaging::phantom::{Profile, phantom};
use consilium_imaging::place::{Axes, Turn};
use consilium_imaging::torch::{Segmenter, UNet3d, UNet3dConfig};
use consilium_imaging::{Grid, Mask, Volume};
use consilium_inference::ask::{Question, ask};
use consilium_inference::batcher::Batcher;
use consilium_inference::memory::Bounds;
use consilium_inference::metrics::Metrics;
use consilium_inference::protocol::Identity;
use consilium_inference::room::Room;
use consilium_inference::server::{Served, router};
use tch::{Device, nn};
use tempfile::TempDir;

const TILE: [usize; 3] = [16, 12, 8];
const BOUNDS: Bounds =
    Bounds { tile: TILE, tiles: 2, max_voxels: 100_000, canvas_voxels: 100_000, room: 8 << 20, max_json: 1000 };

/// Serves a network of random weights; its address. It ends with the test's runtime.
async fn serve() -> String {
    tch::manual_seed(5);
    let store = nn::VarStore::new(Device::Cpu);
    let net = UNet3d::new(&store.root(), UNet3dConfig { width: 2, levels: 2, classes: 3 }).unwrap();
    let metrics = Metrics::new().unwrap();
    let segmenter = Segmenter::new(net, Device::Cpu, TILE, 2, 3).unwrap();
    let batcher = Batcher::start(segmenter, 4, BOUNDS.canvas_voxels, metrics.clone()).unwrap();
    let identity = Identity { name: "m".into(), version: "v".into(), digest: "sha256:0".into() };
    let served = router(Served { identity, batcher, metrics, bounds: BOUNDS, room: Room::new(BOUNDS.room) });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, served).await });
    format!("http://{address}")
}

fn question(url: &str, dir: &Path) -> Question {
    Question {
        url: url.to_owned(),
        model: "m".into(),
        image: dir.join("scan.nii.gz"),
        label: Some(dir.join("truth.nii.gz")),
        out: Some(dir.join("answer.nii.gz")),
    }
}

#[tokio::test]
async fn the_order_of_storage_does_not_change_the_answer() {
    let url = serve().await;
    let dir = TempDir::new().unwrap();
    let (volume, truth) = phantom(1, 1, [19, 14, 11], &Profile::of_hospital(0));
    // The truth stays as it is stored: it is compared where it lies, not voxel number by voxel number.
    write_mask(&dir.path().join("truth.nii.gz"), &truth).unwrap();
    let question = question(&url, dir.path());
    let mut first = None;
    // As found: left and right, front and back, top and bottom, all of them, and axes swapped. All 48 are imaging's test.
    for axes in ["RAS", "LAS", "RPS", "RAI", "LPI", "SAR"].map(|axes| axes.parse::<Axes>().unwrap()) {
        let turn = Turn::between(Axes::RAS, axes);
        let stored = turn.volume(volume.clone());
        write_volume(&question.image, &stored).unwrap();
        let said = ask(&question).await.unwrap();
        let answer = read_mask(question.out.as_ref().unwrap(), 3).unwrap();
        assert_eq!(answer.grid.shape, stored.grid.shape, "{axes}");
        let answer = (turn.back().voxels(answer.labels, answer.grid.shape), said["dice"].clone());
        assert!((0..3).filter(|class| answer.0.contains(class)).count() > 1, "an answer of one class shows nothing");
        assert_eq!(first.get_or_insert_with(|| answer.clone()), &answer, "{axes}");
    }
}

/// Nobody can bring a scan to the model's order that does not say its own.
#[tokio::test]
async fn a_scan_that_does_not_say_how_it_lies_is_not_asked_about() {
    let dir = TempDir::new().unwrap();
    let (volume, truth) = phantom(1, 1, [16, 12, 8], &Profile::of_hospital(0));
    let grid = Grid { placed: false, ..volume.grid };
    let question = Question { label: None, ..question("http://127.0.0.1:1", dir.path()) };
    write_volume(&question.image, &Volume { grid: grid.clone(), ..volume }).unwrap();
    write_mask(&dir.path().join("truth.nii.gz"), &Mask { grid, ..truth }).unwrap();
    let message = ask(&question).await.unwrap_err().to_string();
    assert!(message.contains("scan.nii.gz: orientation unknown"), "{message}");
}
