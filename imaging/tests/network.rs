//! The network, its loss and the sliding window on libtorch.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a helper that fails is a test that fails")]
#![cfg(feature = "torch")]

use consilium_imaging::input::Input;
use consilium_imaging::phantom::{Profile, phantom};
use consilium_imaging::torch::{
    Network, Segmenter, UNet3d, UNet3dConfig, dice_cross_entropy, load_weights, named_parameters, save_weights,
};
use tch::{Device, Kind, Tensor, nn};

const NETWORK: Network = Network::UNet3D { width: 2, levels: 2, classes: 3, input: Input::PLAIN };
const SMALL: UNet3dConfig = UNet3dConfig { width: 2, levels: 2, classes: 3 };

fn net(config: UNet3dConfig, seed: i64) -> (nn::VarStore, UNet3d) {
    tch::manual_seed(seed);
    let store = nn::VarStore::new(Device::Cpu);
    let net = UNet3d::new(&store.root(), config).unwrap();
    (store, net)
}

/// A changed parameter count means that released models no longer load.
#[test]
fn the_network_has_the_size_and_names_it_is_documented_with() {
    let (store, _) = net(UNet3dConfig { width: 8, levels: 3, classes: 3 }, 0);
    let parameters = named_parameters(&store);
    assert_eq!(parameters.iter().map(|(_, t)| t.numel()).sum::<usize>(), 350_827);
    assert_eq!(parameters.len(), 50);
    assert!(parameters.iter().any(|(name, _)| name == "encoder0.conv1.weight"));
}

#[test]
fn scores_have_the_shape_of_the_image() {
    let (_store, net) = net(SMALL, 0);
    let scores = net.forward(&Tensor::randn([2, 1, 8, 12, 16], (Kind::Float, Device::Cpu))).unwrap();
    assert_eq!(scores.size(), [2, 3, 8, 12, 16]);
}

/// Worked out by hand: two voxels of classes 1 and 0, scores 0 for all of two classes. Cross-entropy ln 2. Soft Dice of
/// class 1: 2·½ / (1 + 1) = ½. Loss ln 2 + ½.
#[test]
fn the_loss_is_cross_entropy_and_dice() {
    let scores = Tensor::zeros([1, 2, 1, 1, 2], (Kind::Float, Device::Cpu));
    let labels = Tensor::from_slice(&[1_i64, 0]).view([1, 1, 1, 2]);
    let loss = f64::try_from(dice_cross_entropy(&scores, &labels).unwrap()).unwrap();
    assert!((loss - (2.0_f64.ln() + 0.5)).abs() < 1e-4, "{loss}");
}

#[test]
fn weights_survive_a_file_and_foreign_ones_are_refused() {
    let dir = tempfile::TempDir::new().unwrap();
    let file = dir.path().join("model.safetensors");
    let (first, _) = net(SMALL, 1);
    save_weights(&named_parameters(&first), &file).unwrap();
    let (second, _) = net(SMALL, 2);
    load_weights(&second, &file).unwrap();
    for ((_, a), (_, b)) in named_parameters(&first).iter().zip(named_parameters(&second)) {
        assert_eq!(a, &b);
    }
    let (wider, _) = net(UNet3dConfig { width: 3, ..SMALL }, 1);
    let message = load_weights(&wider, &file).unwrap_err().to_string();
    assert!(message.contains("model.safetensors") && message.contains("shape"), "{message}");
    let (deeper, _) = net(UNet3dConfig { levels: 3, ..SMALL }, 1);
    assert!(load_weights(&deeper, &file).unwrap_err().to_string().contains("not in it"));
}

#[test]
fn a_model_with_nan_is_refused() {
    let dir = tempfile::TempDir::new().unwrap();
    let file = dir.path().join("model.safetensors");
    let (store, _) = net(SMALL, 1);
    let mut parameters = named_parameters(&store);
    parameters[3].1 = parameters[3].1.detach() * f64::NAN;
    save_weights(&parameters, &file).unwrap();
    let message = load_weights(&store, &file).unwrap_err().to_string();
    assert!(message.contains("NaN") && message.contains(&parameters[3].0), "{message}");
}

/// Volumes smaller than a tile, as large, and larger on some axes must all come back in their own shape, and the same
/// whether they are segmented alone or share batches with others.
#[test]
fn any_shape_is_segmented_alone_or_together() {
    let (_store, net) = net(SMALL, 3);
    let segmenter = Segmenter::new(net, &NETWORK, Device::Cpu, [16, 16, 12], 3).unwrap();
    let volumes: Vec<_> = [[10, 9, 11], [16, 16, 12], [21, 16, 25]]
        .into_iter()
        .map(|shape| phantom(1, 1, shape, &Profile::of_hospital(0)).0)
        .collect();
    let together = segmenter.segment_all(&volumes.iter().collect::<Vec<_>>()).unwrap();
    for (volume, mask) in volumes.iter().zip(&together) {
        assert_eq!(mask.grid, volume.grid);
        assert_eq!(mask.labels.len(), volume.voxels.len());
        assert!(mask.labels.iter().all(|&label| label < 3));
        let alone = segmenter.segment(volume).unwrap();
        let differing = alone.labels.iter().zip(&mask.labels).filter(|(a, b)| a != b).count();
        // Batch sizes may round differently where two classes tie.
        assert!(differing * 1000 <= mask.labels.len(), "{differing} of {} differ", mask.labels.len());
    }
}
