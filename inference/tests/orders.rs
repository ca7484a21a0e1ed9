//! One patient, stored in any order of axes with a true header, gets one answer from a served model. A model that is shown
//! a mirrored patient answers with a mask all the same.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a helper that fails is a test that fails")]

use std::path::Path;

use consilium_imaging::frame::Frame;
use consilium_imaging::input::Input;
use consilium_imaging::nifti_file::{read_mask, write_mask, write_volume};
use consilium_imaging::phantom::{Profile, phantom};
use consilium_imaging::place::{Axes, Turn};
use consilium_imaging::torch::{Network, Segmenter, UNet3d};
use consilium_imaging::{Grid, Volume};
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

/// Serves a network of random weights that wants its scans in `frame`; its address. It ends with the test's runtime.
async fn serve(frame: Frame) -> String {
    tch::manual_seed(5);
    let store = nn::VarStore::new(Device::Cpu);
    let network = Network::UNet3D { width: 2, levels: 2, classes: 3, input: Input::PLAIN };
    let net = UNet3d::new(&store.root(), network.unet()).unwrap();
    let metrics = Metrics::new().unwrap();
    let segmenter = Segmenter::new(net, &network, Device::Cpu, TILE, 2).unwrap();
    let batcher = Batcher::start(segmenter, 4, BOUNDS.canvas_voxels, metrics.clone()).unwrap();
    let identity = Identity { name: "m".into(), version: "v".into(), digest: "sha256:0".into(), frame };
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

/// The answer about a scan that is stored in this order, told in `RAS`, and its Dice.
async fn answer(question: &Question, volume: &Volume, axes: &str) -> (Vec<u8>, serde_json::Value) {
    let turn = Turn::between(Axes::RAS, axes.parse().unwrap());
    let stored = turn.volume(volume.clone());
    write_volume(&question.image, &stored).unwrap();
    let said = ask(question).await.unwrap();
    let mask = read_mask(question.out.as_ref().unwrap(), 3).unwrap();
    assert_eq!(mask.grid.shape, stored.grid.shape, "{axes}");
    (turn.back().voxels(mask.labels, mask.grid.shape), said["dice"].clone())
}

/// As found: left and right, front and back, top and bottom, all of them, and axes swapped. All 48 are imaging's test.
const ORDERS: [&str; 5] = ["LAS", "RPS", "RAI", "LPI", "SAR"];

#[tokio::test]
async fn the_order_of_storage_does_not_change_the_answer() {
    let url = serve(Frame::default()).await;
    let dir = TempDir::new().unwrap();
    let (volume, truth) = phantom(1, 1, [19, 14, 11], &Profile::of_hospital(0));
    // The truth stays as it is stored: it is compared where it lies, not voxel number by voxel number.
    write_mask(&dir.path().join("truth.nii.gz"), &truth).unwrap();
    let question = question(&url, dir.path());
    let first = answer(&question, &volume, "RAS").await;
    assert!((0..3).filter(|class| first.0.contains(class)).count() > 1, "an answer of one class shows nothing");
    for axes in ORDERS {
        assert_eq!(answer(&question, &volume, axes).await, first, "{axes}");
    }
    // A model that was trained in another order is asked in that one, as its server says: another network than the one
    // above, as it were, with the same answer for all orders of storage again.
    let url = serve(Frame::new(Some("LPS".parse().unwrap()), None)).await;
    let question = Question { url, ..question };
    let other = answer(&question, &volume, "RAS").await;
    assert_ne!(other.0, first.0);
    assert_eq!(answer(&question, &volume, "SAR").await, other);
}

/// Nobody can bring a scan to the model's order that does not say its own, nor one of other voxels to the model's.
#[tokio::test]
async fn a_scan_that_cannot_be_brought_to_the_model_is_not_asked_about() {
    let dir = TempDir::new().unwrap();
    let (volume, _) = phantom(1, 1, [16, 12, 8], &Profile::of_hospital(0));
    let url = serve(Frame::new(None, Some(volume.grid.spacing.map(|side| side * 2.0)))).await;
    let question = Question { label: None, ..question(&url, dir.path()) };
    write_volume(&question.image, &volume).unwrap();
    let message = ask(&question).await.unwrap_err().to_string();
    assert!(message.contains("scan.nii.gz: voxels of ") && message.contains("resample"), "{message}");
    let grid = Grid { placed: false, ..volume.grid };
    write_volume(&question.image, &Volume { grid, ..volume }).unwrap();
    let message = ask(&question).await.unwrap_err().to_string();
    assert!(message.contains("scan.nii.gz: orientation unknown"), "{message}");
}
