//! A release on disk, to serve without a hub.

use std::fs;
use std::path::Path;

use consilium_federation::digest::{Digest, canonical_json};
use consilium_federation::model::{CHUNK_BYTES, ModelManifest, parse_safetensors_header};
use consilium_imaging::input::Input;
use consilium_imaging::phantom::PHANTOM_CLASSES;
use consilium_imaging::torch::{Network, UNet3d, named_parameters, save_weights};
use serde_json::json;
use tch::{Device, nn};

/// Writes the three files that the agent hands out, for a network with random weights and tiles of this shape; gives the
/// digests of the release and of the model.
pub fn write(
    folder: &Path,
    width: u32,
    levels: u32,
    shape: [usize; 3],
) -> Result<(Digest, Digest), Box<dyn std::error::Error>> {
    let network = Network::UNet3D { width, levels, classes: PHANTOM_CLASSES, input: Input::PLAIN };
    tch::manual_seed(5);
    let store = nn::VarStore::new(Device::Cpu);
    let _net = UNet3d::new(&store.root(), network.unet())?;
    let file = folder.join("model.safetensors");
    save_weights(&named_parameters(&store), &file)?;
    let bytes = fs::read(&file)?;
    let (schema, payload) = parse_safetensors_header(&bytes)?;
    let manifest = ModelManifest::new(schema, bytes[payload..].chunks(CHUNK_BYTES).map(Digest::of).collect())?;
    fs::write(folder.join("manifest.json"), manifest.to_bytes())?;
    let spec = json!({ "study": "research/phantoms", "round": 1, "model": manifest.digest(),
        "config": { "network": network, "shape": shape } });
    let bytes = canonical_json(&spec);
    fs::write(folder.join("release.json"), &bytes)?;
    Ok((Digest::of(&bytes), manifest.digest()))
}
