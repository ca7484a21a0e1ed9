//! Parameters to and from `safetensors` files.

use std::path::{Path, PathBuf};

use tch::{Kind, TchError, Tensor, nn, no_grad};

/// A weights file that does not fit the network.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// The file cannot be read as safetensors.
    #[error("{}: cannot be read as safetensors: {reason}; fetch the model again", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// Why.
        reason: String,
    },
    /// Names or shapes differ from the network's.
    #[error("{}: {problem}; the network in the configuration must be the one that the model was made with", file.display())]
    WrongNetwork {
        /// The file.
        file: PathBuf,
        /// What differs.
        problem: String,
    },
    /// NaN or infinite parameters.
    #[error("{}: tensor {tensor} holds NaN or infinity; a model must be finite, take an earlier one", file.display())]
    NotFinite {
        /// The file.
        file: PathBuf,
        /// Which.
        tensor: String,
    },
    /// libtorch refused.
    #[error(transparent)]
    Torch(#[from] TchError),
}

/// All parameters by name, sorted by it. The tensors share memory with the network's.
pub fn named_parameters(store: &nn::VarStore) -> Vec<(String, Tensor)> {
    let mut all: Vec<(String, Tensor)> = store.variables().into_iter().collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

/// Writes tensors as float32.
pub fn save_weights(tensors: &[(String, Tensor)], file: &Path) -> Result<(), TchError> {
    let mut plain = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let tensor = tensor.f_detach()?.f_to_device(tch::Device::Cpu)?.f_to_kind(Kind::Float)?.f_contiguous()?;
        plain.push((name.as_str(), tensor));
    }
    Tensor::write_safetensors(&plain, file)
}

/// Reads a file into a network's parameters. The file must hold exactly the network's tensors, in their shapes, finite.
pub fn load_weights(store: &nn::VarStore, file: &Path) -> Result<(), WeightsError> {
    let wrong = |problem: String| WeightsError::WrongNetwork { file: file.to_owned(), problem };
    let found = Tensor::read_safetensors(file)
        .map_err(|e| WeightsError::Unreadable { file: file.to_owned(), reason: e.to_string() })?;
    let parameters = named_parameters(store);
    if let Some((name, _)) = found.iter().find(|(name, _)| parameters.iter().all(|(known, _)| known != name)) {
        return Err(wrong(format!("it holds tensor {name}, which the network has not")));
    }
    for (name, mut parameter) in parameters {
        let Some((_, tensor)) = found.iter().find(|(known, _)| *known == name) else {
            return Err(wrong(format!("tensor {name} of the network is not in it")));
        };
        if tensor.size() != parameter.size() {
            return Err(wrong(format!(
                "tensor {name} has the shape {:?}, the network's has {:?}",
                tensor.size(),
                parameter.size()
            )));
        }
        if !bool::try_from(tensor.f_isfinite()?.f_all()?)? {
            return Err(WeightsError::NotFinite { file: file.to_owned(), tensor: name });
        }
        no_grad(|| parameter.f_copy_(tensor))?;
    }
    Ok(())
}
